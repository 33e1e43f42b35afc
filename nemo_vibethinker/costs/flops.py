"""FLOPs of training on a token, with the attention term: half of them at 32K tokens for a model of 1.5B parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_vibethinker.config import ModelConfig
from nemo_vibethinker.costs.parameters import attention_widths, layer_matrices


@dataclass(frozen=True)
class TokenFlops:
    """Floating-point operations for one token; a multiplication and its addition are two.

    Attributes:
        forward: matrix products and causal attention of the forward pass.
        backward: twice as much.
        recompute: what is computed again for the backward pass.
    """

    forward: float
    backward: float
    recompute: float

    @property
    def model(self) -> float:
        """What the method needs: the numerator of MFU."""
        return self.forward + self.backward

    @property
    def hardware(self) -> float:
        """What the GPU computes."""
        return self.model + self.recompute


def segment_length(lengths: Sequence[int]) -> float:
    """Mean length of the packed samples as attention sees it, sum n^2 / sum n: a token attends to half of its own."""
    return sum(n * n for n in lengths) / sum(lengths)


def token_flops(
    model: ModelConfig, vocab_size: int, segment: float, *, recompute: str = "none", chunked_logits: bool = False
) -> TokenFlops:
    """FLOPs of one token of a packed row.

    Forward: 2 FLOPs for each weight of a matrix product (the output layer too; a look-up of an embedding is none), and
    4 * channels * segment/2 for the scores and values of causal attention in each layer.

    Args:
        segment: tokens, `segment_length` of the row's samples, not the row's own length.
        recompute: none | selective (attention) | full (every layer).
        chunked_logits: the output layer is computed again, too.
    """
    attention = model.num_layers * 2 * attention_widths(model)[0] * segment
    layers = model.num_layers * 2 * layer_matrices(model) + attention
    output = 2 * model.hidden_size * vocab_size
    again = {"none": 0.0, "selective": attention, "full": layers}[recompute] + output * chunked_logits
    return TokenFlops(layers + output, 2 * (layers + output), again)
