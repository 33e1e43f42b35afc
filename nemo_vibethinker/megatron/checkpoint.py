"""Checkpoints in Megatron's torch_dist format: written under one layout, readable under another.

A checkpoint is a folder that appears by one rename after everything in it is on disk, so a torn write is never taken
for one (see `checkpoint_saver`). Model and optimizer are apart: every model stays for probing and evaluation, of the
optimizer only the last.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from nemo_vibethinker.megatron.checkpoint_manifest import check_files, check_parts
from nemo_vibethinker.megatron.checkpoint_saver import CheckpointSaver, state_parts
from nemo_vibethinker.megatron.distributed import barrier, is_main

logging.getLogger("megatron.core.dist_checkpointing").setLevel(logging.ERROR)
_OPTIMIZER_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


def save_model(chunks: Sequence[GPTModel], folder: Path, saver: CheckpointSaver | None = None) -> None:
    """Write the weights to `folder`, atomically; all ranks call it together. Without a saver it is there on return."""
    with saver_or_own(saver) as writer:
        writer.save(_sharded_weights(chunks), folder)


def load_model(chunks: Sequence[GPTModel], folder: Path) -> None:
    """Read the weights of `folder` into this rank's part of the model, whatever layout wrote them.

    Raises:
        ValueError: there is no checkpoint in `folder`.
    """
    _set_weights(chunks, load_model_state(chunks, folder))


def load_model_state(chunks: Sequence[GPTModel], folder: Path) -> dict[str, Tensor]:
    """This rank's part of the weights in `folder`, by chunk and name, read into the tensors of the model.

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


def save_resume_point(
    chunks: Sequence[GPTModel],
    optimizer: MegatronOptimizer,
    step: int,
    folder: Path,
    saver: CheckpointSaver | None = None,
    then: Callable[[], None] = lambda: None,
) -> None:
    """Write weights, optimizer state and step to `folder/step_N`, then delete older resume points and call `then`.

    Data order and rollout randomness are functions of the seed and the step, so there is no other state.
    """
    sharded = _sharded_weights(chunks)
    optimizer_state = optimizer.sharded_state_dict(sharded, is_loading=False, metadata=_OPTIMIZER_METADATA)
    state = {"model": sharded, "optimizer": optimizer_state, "step": step}
    point = folder / f"step_{step:06d}"

    def replace_older() -> None:
        if is_main():
            for old in [other for other in resume_points(folder) if other != point]:
                shutil.rmtree(old)
        barrier()
        then()

    with saver_or_own(saver) as writer:
        writer.save(state, point, replace_older)


def saver_or_own(saver: CheckpointSaver | None) -> AbstractContextManager[CheckpointSaver]:
    """The given saver, left open; or one for a single save."""
    return CheckpointSaver() if saver is None else nullcontext(saver)


def resume_points(folder: Path) -> list[Path]:
    """The whole resume points in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.suffix != ".tmp")


def load_resume_point(chunks: Sequence[GPTModel], optimizer: MegatronOptimizer, folder: Path) -> int:
    """Restore the last resume point in `folder`; returns its step, 0 if there is none. Removes what a kill left torn.

    Raises:
        ValueError: a file of it is missing or damaged, or a part of the state is missing; nothing is restored.
    """
    if is_main():
        for torn in folder.glob("step_*.tmp"):
            shutil.rmtree(torn)
    points = resume_points(folder)
    if not points:
        return 0
    sharded = _sharded_weights(chunks)
    optimizer_state = optimizer.sharded_state_dict(sharded, is_loading=True, metadata=_OPTIMIZER_METADATA)
    check_files(points[-1])
    state = _load({"model": sharded, "optimizer": optimizer_state}, points[-1])
    _set_weights(chunks, state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _load(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    check_parts(folder, state_parts(state))
    loaded = dist_checkpointing.load(state, str(folder))
    assert isinstance(loaded, dict)
    return loaded
