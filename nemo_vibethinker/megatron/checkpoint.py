"""Checkpoints in Megatron's torch_dist format: written under one layout, readable under another.

A checkpoint is a folder that appears by one rename after everything in it is on disk, so a torn write is never taken
for one. Model and optimizer are apart: every model stays for probing and evaluation, of the optimizer only the last.
"""

import errno
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, is_main_replica
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from nemo_vibethinker.megatron.checkpoint_manifest import Parts, check_files, check_parts, write_manifest
from nemo_vibethinker.megatron.distributed import barrier, broadcast_object, is_main

logging.getLogger("megatron.core.dist_checkpointing").setLevel(logging.ERROR)
SPACE_MARGIN = 1.1  # a checkpoint's metadata, and what else writes meanwhile
_OPTIMIZER_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def save_model(chunks: Sequence[GPTModel], folder: Path) -> None:
    """Write the weights to `folder`, atomically; all ranks call it together."""
    _save(_sharded_weights(chunks), folder)


def load_model(chunks: Sequence[GPTModel], folder: Path) -> None:
    """Read the weights of `folder` into this rank's part of the model, whatever layout wrote them.

    Raises:
        ValueError: there is no checkpoint in `folder`.
    """
    _set_weights(chunks, load_model_state(chunks, folder))


def load_model_state(chunks: Sequence[GPTModel], folder: Path) -> dict[str, Tensor]:
    """This rank's part of the weights in `folder`, by chunk and name; the model itself is not changed.

    Raises:
        ValueError: there is no checkpoint in `folder`.
    """
    if not (folder / "metadata.json").exists():
        raise ValueError(f"{folder} is not a checkpoint (no metadata.json); delete the stage's folder to redo it")
    return _load(_sharded_weights(chunks), folder)


def save_model_state(chunks: Sequence[GPTModel], state: dict[str, Tensor], folder: Path) -> None:
    """Write `state` (this rank's part) in place of the weights of the model, which keeps `state` afterwards."""
    _set_weights(chunks, state)
    save_model(chunks, folder)


def _sharded_weights(chunks: Sequence[GPTModel]) -> dict[str, Any]:
    """Chunk number and local name -> sharded tensor. On disk a tensor is known by its global name alone."""
    parts = [(index, chunk.sharded_state_dict()) for index, chunk in enumerate(chunks)]
    return {f"{index}.{name}": value for index, part in parts for name, value in part.items()}


def _set_weights(chunks: Sequence[GPTModel], state: dict[str, Tensor]) -> None:
    for index, chunk in enumerate(chunks):
        prefix = f"{index}."
        mine = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        chunk.load_state_dict(mine)


def save_resume_point(chunks: Sequence[GPTModel], optimizer: MegatronOptimizer, step: int, folder: Path) -> None:
    """Write weights, optimizer state and step to `folder/step_N`, then delete older resume points.

    Data order and rollout randomness are functions of the seed and the step, so there is no other state.
    """
    sharded = _sharded_weights(chunks)
    optimizer_state = optimizer.sharded_state_dict(sharded, is_loading=False, metadata=_OPTIMIZER_METADATA)
    state = {"model": sharded, "optimizer": optimizer_state, "step": step}
    _save(state, folder / f"step_{step:06d}")
    if is_main():
        for old in sorted(folder.glob("step_*"))[:-1]:
            shutil.rmtree(old)
    barrier()


def load_resume_point(chunks: Sequence[GPTModel], optimizer: MegatronOptimizer, folder: Path) -> int:
    """Restore the last resume point in `folder`; returns its step, 0 if there is none.

    Raises:
        ValueError: a file of it is missing or damaged, or a part of the state is missing; nothing is restored.
    """
    points = sorted(p for p in folder.glob("step_*") if p.suffix != ".tmp")
    if not points:
        return 0
    sharded = _sharded_weights(chunks)
    optimizer_state = optimizer.sharded_state_dict(sharded, is_loading=True, metadata=_OPTIMIZER_METADATA)
    check_files(points[-1])
    state = _load({"model": sharded, "optimizer": optimizer_state}, points[-1])
    _set_weights(chunks, state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _require_space(state: dict[str, Any], folder: Path) -> None:
    """Refuse to begin what cannot be finished: the writer's own complaint about a full disk says nothing of disks."""
    mine = [value.data for value in _sharded_values(state) if is_main_replica(value.replica_id)]
    local = sum(data.nbytes for data in mine if data is not None)
    sizes: list[int] = [0] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(sizes, local)
    if is_main():
        folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(sizes), broadcast_object(shutil.disk_usage(folder.parent).free if is_main() else 0)
    if free < needed * SPACE_MARGIN:
        text = f"a checkpoint of {needed / 1e6:,.1f} MB does not fit into {free / 1e6:,.1f} MB of free space"
        raise OSError(errno.ENOSPC, text, str(folder))


def _sharded_values(state: dict[str, Any]) -> list[ShardedTensor | ShardedTensorFactory]:
    return [value for value in nested_values(state) if isinstance(value, ShardedTensor | ShardedTensorFactory)]


def _parts(state: dict[str, Any]) -> Parts:
    """The parts of the state this rank has a share of; a factory, which makes several tensors, is without a shape."""
    return {v.key: list(v.global_shape) if isinstance(v, ShardedTensor) else [] for v in _sharded_values(state)}


def _load(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    check_parts(folder, _parts(state))
    loaded = dist_checkpointing.load(state, str(folder))
    assert isinstance(loaded, dict)
    return loaded


def _save(state: dict[str, Any], folder: Path) -> None:
    _require_space(state, folder)
    temporary = folder.with_suffix(".tmp")
    if is_main():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    parts = _parts(state)
    dist_checkpointing.save(state, str(temporary))
    barrier()
    write_manifest(temporary, parts)
    barrier()
    if is_main():
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    barrier()
