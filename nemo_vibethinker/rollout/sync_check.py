"""Proof that an engine generates from the trainer's weights: checksums of its parameters, and a canary's log-probs."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_vibethinker.config import SamplingConfig
from nemo_vibethinker.megatron.distributed import context_parallel_group, pipeline_parallel_group
from nemo_vibethinker.megatron.logprobs import token_logprobs
from nemo_vibethinker.megatron.micro_batch import MicroBatch, pack_row
from nemo_vibethinker.megatron.train_step import LossTerms, run_forward_backward
from nemo_vibethinker.rollout.engine import Sample

CANARY_PROMPTS = 4
CANARY_TOKENS = 16  # generated for each
_PROMPT_TOKENS = 70  # two blocks of the prefix cache (32 on a CPU, 16 on a GPU) and more, so that a stale one is seen
_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
# vLLM's fused parameters and the Hugging Face tensors that they are made of.
_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


class TensorSums:
    """Size and sum of the bits, as integers, of each tensor of a stream."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._sums: list[Tensor] = []

    def watch(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same tensors, added up on their way."""
        for name, tensor in tensors:
            self._sizes[name] = tensor.numel()
            self._sums.append(tensor.contiguous().view(_INTEGERS[tensor.dtype]).sum(dtype=torch.int64))
            yield name, tensor

    def values(self) -> dict[str, tuple[int, int]]:
        """Name -> (elements, sum)."""
        sums = torch.stack(self._sums).tolist()
        return {name: (size, value) for (name, size), value in zip(self._sizes.items(), sums, strict=True)}


def differing_parameter(
    trainer: Mapping[str, tuple[int, int]], workers: Sequence[Mapping[str, tuple[int, int]]]
) -> str | None:
    """The first engine parameter whose bits do not add up to those of the trainer's tensors; None if all do.

    Args:
        trainer: Hugging Face name -> (elements, sum of bits) of the full tensor.
        workers: for each tensor-parallel worker, engine parameter -> the same of its part; or a tensor as it came.
    """
    for name in workers[0]:
        parts = [trainer[part] for part in _trainer_names(name)]
        size, expected = sum(part[0] for part in parts), sum(part[1] for part in parts)
        held = [worker[name] for worker in workers]
        if len(held) > 1 and held[0][0] == size:  # every worker has the whole
            wrong = any(value != expected for _, value in held)
        elif sum(count for count, _ in held) > size and "embed" not in name and "lm_head" not in name:
            continue  # key and value heads held twice, more workers than heads
        else:  # shares of it; a padded vocabulary adds zeros
            wrong = sum(value for _, value in held) != expected
        if wrong:
            return name
    return None


def _trainer_names(name: str) -> list[str]:
    for fused, parts in _FUSED.items():
        if f".{fused}." in name:
            return [name.replace(fused, part) for part in parts]
    return [name]


def canary_prompts(vocab_size: int, window: int) -> list[list[int]]:
    """Random token ids, the same in every run."""
    generator = random.Random("canary")
    length = min(_PROMPT_TOKENS, window // 2)
    return [[generator.randrange(vocab_size) for _ in range(length)] for _ in range(CANARY_PROMPTS)]


def canary_sampling(window: int) -> SamplingConfig:
    """How the canary's responses are sampled."""
    return SamplingConfig(max_response_length=min(CANARY_TOKENS, window // 4))


@torch.no_grad()
def logprob_difference(chunks: Sequence[GPTModel], prompts: Sequence[list[int]], samples: Sequence[Sample]) -> float:
    """Mean |log-prob of the engine - log-prob of the trainer| over the tokens of `samples`, in nats.

    All ranks of one replica call it together and get the same value; other replicas take no part.
    """
    row = pack_row(
        [(prompt + sample.tokens, len(prompt)) for prompt, sample in zip(prompts, samples, strict=True)],
        [1.0] * len(samples),
        engine_logprobs=[sample.logprobs for sample in samples],
    )
    training = chunks[0].training
    for chunk in chunks:
        chunk.eval()
    reports = run_forward_backward(chunks, [row], _difference, forward_only=True)
    for chunk in chunks:
        chunk.train(training)
    total = torch.zeros(2, dtype=torch.float64, device=row.tokens.device)
    for report in reports:
        total += torch.stack([report["difference"], report["tokens"]]).double()
    torch.distributed.all_reduce(total, group=context_parallel_group())
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    torch.distributed.broadcast(total, src=last, group=pipeline_parallel_group())
    return float(total[0] / total[1])


def _difference(batch: MicroBatch, output: Tensor) -> LossTerms:
    logprobs_T, _ = token_logprobs(output, batch.targets)
    counted = batch.loss_weights > 0
    difference = ((logprobs_T - batch.extra["engine_logprobs"]).abs() * counted).sum()
    return difference, counted.sum(), {"difference": difference, "tokens": counted.sum()}
