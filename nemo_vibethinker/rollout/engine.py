"""What every rollout engine does, whichever program generates the tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from nemo_vibethinker.config import SamplingConfig

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled response.

    Attributes:
        tokens: response token ids, the end-of-sequence token included when it was reached.
        logprobs: log-prob of each token under the policy that sampled it, at sampling temperature.
        finish_reason: "stop" at end of sequence, "length" when cut off at the length limit, "cut" when the engine was
            told to end it before.
    """

    tokens: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length", "cut"]


class RolloutEngine(Protocol):
    """Generates responses. All ranks of one replica call each method together, with the same arguments.

    Attributes:
        chunks: the trainer's model on this rank, whose weights `sync` takes.
    """

    chunks: list["GPTModel"]

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[Sequence[int]]
    ) -> list[list[Sample]]:
        """For each prompt (token ids) its responses, one for each of its seeds, in their order."""
        ...

    def sync(self, version: str) -> None:
        """Generate from the trainer's present weights from now on; `version` names them."""
        ...

    def release(self) -> None:
        """Give the GPU memory of generation back to training, until the next `sync`."""
        ...

    def close(self) -> None:
        """End what the engine has started."""
        ...
