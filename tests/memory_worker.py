"""Counts the bytes a training step really holds under one layout after another (see test_memory_model.py).

    python tests/memory_worker.py TASKS.json OUT.json

TASKS.json names cases of memory_cases.py. Every rank's counts go to OUT.json.<rank>.
"""

# ruff: noqa: E402  (torch is patched before Megatron binds its names)
import json
import os
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nemo_vibethinker.megatron.platform import install_cpu_platform

install_cpu_platform()

from megatron.core import parallel_state
from memory_cases import CASES, VOCAB, Case
from torch.distributed import distributed_c10d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from nemo_vibethinker.config import Config, OptimizerConfig
from nemo_vibethinker.megatron.distributed import initialize
from nemo_vibethinker.megatron.micro_batch import pack_row
from nemo_vibethinker.megatron.optimizer import build_optimizer
from nemo_vibethinker.megatron.train_step import run_forward_backward
from nemo_vibethinker.model.qwen2 import build_chunks, wrap_for_training
from nemo_vibethinker.stages.sft import sft_loss


class Alive:
    """Bytes of the distinct storages noted and not yet freed, and their peak; storages there before do not count."""

    def __init__(self, before: list[torch.Tensor]) -> None:
        self._known = {tensor.untyped_storage().data_ptr() for tensor in before}
        self._holders: dict[int, tuple[int, int]] = {}  # address -> holders, bytes
        self.peak = self.now = 0

    def hold(self, tensor: torch.Tensor, holder: object) -> None:
        """Count the tensor's storage for as long as `holder` lives."""
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in self._known or not address:
            return
        holders, size = self._holders.get(address, (0, storage.nbytes()))
        self.now += size if holders == 0 else 0
        self.peak = max(self.peak, self.now)
        self._holders[address] = holders + 1, size
        weakref.finalize(holder, self._release, address)

    def _release(self, address: int) -> None:
        holders, size = self._holders.pop(address)
        if holders > 1:
            self._holders[address] = holders - 1, size
        else:
            self.now -= size


class Saved:
    """A tensor kept for the backward pass."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class EveryTensor(TorchDispatchMode):
    """Counts the storage of whatever an operation returns until it is freed."""

    def __init__(self, alive: Alive) -> None:
        super().__init__()
        self._alive = alive
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_flatten(result)[0]:
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if id(storage) not in self._seen:
                    self._seen.add(id(storage))
                    weakref.finalize(storage, self._seen.discard, id(storage))
                    self._alive.hold(value, storage)
        return result


def run(case: Case) -> dict[str, int]:
    """Bytes of parameters, gradients, optimizer states, tensors saved for backward (peak) and all tensors (peak)."""
    config = Config(scale=case.scale())
    initialize(config)
    chunks: list[Any] = wrap_for_training(config, build_chunks(config, VOCAB))
    optimizer: Any = build_optimizer(chunks, OptimizerConfig())
    buffers = [b for chunk in chunks for b in chunk.buffers]
    parameters = [p for chunk in chunks for p in chunk.parameters()]
    samples = [([token % VOCAB for token in range(n)], 1) for n in case.lengths]
    rows = [pack_row(samples, [1.0] * len(samples))] * case.micro_batches
    fixed = [*parameters, *(b.grad_data for b in buffers)]
    run_forward_backward(chunks, rows, sft_loss)  # what is made once (RoPE tables) is there before the count
    saved, every = Alive(fixed), Alive(fixed)

    def pack(tensor: torch.Tensor) -> Saved:
        kept = Saved(tensor)
        saved.hold(tensor, kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        run_forward_backward(chunks, rows, sft_loss)
    with EveryTensor(every):
        run_forward_backward(chunks, rows, sft_loss)
    counts = {
        "weights": sum(p.numel() * p.element_size() for p in parameters),
        "gradients": sum(b.grad_data.numel() * b.grad_data.element_size() for b in buffers),
        "optimizer": optimizer_bytes(optimizer, parameters),
        "saved": saved.peak,
        "every": every.peak,
    }
    leave_groups()
    return counts


def optimizer_bytes(optimizer: Any, parameters: Sequence[torch.Tensor]) -> int:
    """Bytes of moments and of master weights that are not the parameters themselves."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    total = 0
    for part in optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            for p in group["params"]:
                tensors = [p] if p.untyped_storage().data_ptr() not in own else []
                tensors += [t for t in part.optimizer.state[p].values() if isinstance(t, torch.Tensor)]
                total += sum(t.numel() * t.element_size() for t in tensors)
    return total


def leave_groups() -> None:
    """End the process groups of a layout before the next."""
    parallel_state.destroy_model_parallel()
    for group in list(distributed_c10d._world.pg_map):
        if group is not torch.distributed.group.WORLD:
            torch.distributed.destroy_process_group(group)


def main() -> None:
    """Every task in turn."""
    tasks, out = (Path(argument) for argument in sys.argv[1:3])
    found = {case.name: run(case) for case in CASES if case.name in json.loads(tasks.read_text())}
    Path(f"{out}.{os.environ.get('RANK', '0')}").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
