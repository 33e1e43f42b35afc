"""The reference policy of the KL penalty: weights of this rank, held in host memory. Imports Megatron."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from nemo_vibethinker.megatron.checkpoint import load_model, save_model
from nemo_vibethinker.megatron.micro_batch import MicroBatch
from nemo_vibethinker.megatron.row_logprobs import row_logprobs
from nemo_vibethinker.signal.reference_kl import reference_step


class Reference:
    """The policy as it was at the stage's start, or after the last reset.

    Args:
        chunks: the model under training.
        first: checkpoint of the stage's first policy.
        folder: where later references are kept for a resume.
        interval: steps between resets; 0: none.
    """

    def __init__(self, chunks: Sequence[DistributedDataParallel], first: Path, folder: Path, interval: int) -> None:
        self._chunks, self._first, self._folder, self._interval = chunks, first, folder, interval
        self._taken_after = -1
        self._weights: list[Tensor] = []

    def prepare(self, step: int) -> None:
        """Have the reference of step `step` (from 1), the policy being that after the step before."""
        wanted = reference_step(step, self._interval)
        if wanted == self._taken_after:
            return
        folder = self._first if wanted == 0 else self._folder / f"step_{wanted:06d}"
        if wanted == step - 1:
            self._weights = self._copies()
            if wanted:
                save_model(self._modules(), folder)
        else:
            mine = [p.detach().clone() for p in self._parameters()]
            load_model(self._modules(), folder)
            self._weights = self._copies()
            self._set(mine)
        self._taken_after = wanted

    def logprobs(self, batches: Sequence[MicroBatch], temperature: float) -> list[Tensor]:
        """`row_logprobs` under the reference."""
        with self._in_place():
            return row_logprobs(self._chunks, batches, temperature)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        mine = [p.detach().clone() for p in self._parameters()]
        self._set(self._weights)
        try:
            yield
        finally:
            self._set(mine)

    def _copies(self) -> list[Tensor]:
        return [parameter.detach().to("cpu", copy=True) for parameter in self._parameters()]

    @torch.no_grad()
    def _set(self, weights: Sequence[Tensor]) -> None:
        for parameter, weight in zip(self._parameters(), weights, strict=True):
            parameter.copy_(weight)

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for chunk in self._modules() for parameter in chunk.parameters()]

    def _modules(self) -> list:
        return [chunk.module for chunk in self._chunks]
