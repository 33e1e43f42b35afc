"""Writing of checkpoints, beside training or while it waits.

A save has three parts. First, together, the ranks plan which of them writes what, and each copies its share to host
memory. Then a thread of each rank writes that rank's files, to disk and not only to the page cache, and hashes them;
in the background the caller goes on meanwhile. Last, together again, they write the metadata and the manifest, and the
folder gets its name by one rename. So a folder of that name is whole, whenever a process or the machine dies, and a
save that died has left a `.tmp` folder that nothing reads.

Megatron's own asynchronous saving forks writers. Here its planner and its file writer run in a thread: a fork beside
the threads of gloo, NCCL or OpenMP can hang, and one that dies without `psutil` is waited for forever.
"""

import errno
import queue
import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, is_main_replica
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

from nemo_vibethinker.atomic_files import rename_folder
from nemo_vibethinker.interruption import Interrupted
from nemo_vibethinker.megatron.checkpoint_manifest import Files, Parts, fingerprint, gathered, write_manifest
from nemo_vibethinker.megatron.distributed import barrier, broadcast_object, is_main

SPACE_MARGIN = 1.1  # a checkpoint's metadata, and what else writes meanwhile
AT_ONCE = 2  # saves under way: a step's model and its resume point
Buckets = list[tuple[Any, str, Any]]  # (path, name, data) of each file of a rank
Written = tuple[dict[int, Any], Files]  # what Megatron notes of each file, and the files' fingerprints

# Where Megatron's writer leaves its results; by default a server process is started for it, which imports torch again.
filesystem_async._results_queue = queue.Queue()


@dataclass
class _Save:
    """A save under way."""

    folder: Path
    parts: Parts
    request: AsyncRequest
    written: Future[Written]
    then: Callable[[], None]

    @property
    def temporary(self) -> Path:
        return temporary_folder(self.folder)


class CheckpointSaver:
    """Writes checkpoints one after the other; all ranks call each method together.

    As a context manager it waits at the end for what is under way, also when the run is asked to stop; but not when
    another exception passes, for the other ranks may be anywhere: then what is not whole stays a `.tmp` folder.

    Args:
        in_background: `save` returns once the state is copied; else when the checkpoint is there.
    """

    def __init__(self, in_background: bool = False) -> None:
        self._in_background = in_background
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: deque[_Save] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None or isinstance(error, Interrupted):
                self.wait()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def save(self, state: dict[str, Any], folder: Path, then: Callable[[], None] = lambda: None) -> None:
        """Write a state of sharded tensors to `folder`; `then` is called on every rank when it is there.

        Waits for an earlier save first if two are under way.

        Raises:
            OSError: there is no room for it.
            RuntimeError: it, or an earlier one in the background, could not be written; names the rank and the cause.
        """
        while len(self._under_way) >= AT_ONCE:
            self._finish()
        self._require_space(state, folder)
        save = _begin(state, folder, self._thread, then, snapshot=self._in_background)
        self._under_way.append(save)
        if not self._in_background:
            self.wait()

    def poll(self) -> None:
        """Complete what all ranks have written; cheap enough for every step. Raises as `save`."""
        while self._under_way and _on_all_ranks(self._under_way[0].written.done()):
            self._finish()

    def wait(self) -> None:
        """Complete everything under way. Raises as `save`."""
        while self._under_way:
            self._finish()

    def _finish(self) -> None:
        save = self._under_way.popleft()
        try:
            written, error = save.written.result(), ""
        except Exception as caught:  # of any kind, told to the ranks that would else wait for this one
            written, error = ({}, {}), _first_cause(caught)
        failed = {rank: text for rank, text in enumerate(gathered(error)) if text}
        if failed:
            texts = "; ".join(f"rank {rank}: {text}" for rank, text in failed.items())
            raise RuntimeError(f"checkpoint {save.folder} could not be written: {texts}")
        _complete(save, written)
        save.then()

    def _require_space(self, state: dict[str, Any], folder: Path) -> None:
        """Refuse to begin what cannot be finished; the writer's own complaint about a full disk is hard to read."""
        needed, free = _space(state, folder)
        if free < needed * SPACE_MARGIN and self._under_way:  # what is under way may make room as it ends
            self.wait()
            needed, free = _space(state, folder)
        if free < needed * SPACE_MARGIN:
            text = f"a checkpoint of {needed / 1e6:,.1f} MB does not fit into {free / 1e6:,.1f} MB of free space"
            raise OSError(errno.ENOSPC, text, str(folder))


def temporary_folder(folder: Path) -> Path:
    """Where a checkpoint lies before it is whole."""
    return folder.with_suffix(".tmp")


def state_parts(state: dict[str, Any]) -> Parts:
    """The parts of the state this rank has a share of; a factory, which makes several tensors, is without a shape."""
    return {v.key: list(v.global_shape) if isinstance(v, ShardedTensor) else [] for v in _sharded_values(state)}


def _sharded_values(state: dict[str, Any]) -> list[ShardedTensor | ShardedTensorFactory]:
    return [value for value in nested_values(state) if isinstance(value, ShardedTensor | ShardedTensorFactory)]


def _space(state: dict[str, Any], folder: Path) -> tuple[int, int]:
    """Bytes of the checkpoint over all ranks, and bytes free where it goes."""
    mine = [value.data for value in _sharded_values(state) if is_main_replica(value.replica_id)]
    needed = sum(gathered(sum(data.nbytes for data in mine if data is not None)))
    if is_main():
        folder.parent.mkdir(parents=True, exist_ok=True)
    return needed, broadcast_object(shutil.disk_usage(folder.parent).free if is_main() else 0)


def _begin(
    state: dict[str, Any], folder: Path, thread: ThreadPoolExecutor, then: Callable[[], None], *, snapshot: bool
) -> _Save:
    """Plan together, copy this rank's share to host memory, and leave the rest to the thread."""
    temporary = temporary_folder(folder)
    if is_main():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    parts = state_parts(state)
    request = dist_checkpointing.save(state, str(temporary), async_sharded_save=True)
    assert request is not None
    transforms = getattr(request.async_fn, "args", ([],))[0]  # of the streams: none, but Megatron's writer takes them
    written = thread.submit(_write_files, transforms, _host_buckets(request, snapshot))
    return _Save(folder, parts, request, written, then)


def _host_buckets(request: AsyncRequest, snapshot: bool) -> Buckets:
    """This rank's files with their tensors in host memory; `snapshot`: as they are now, whatever training does."""
    if request.async_fn is None:
        return []
    given: Buckets = request.async_fn_args[1]
    live = {id(tensor) for *_, (_, tensors) in given for _, tensor in tensors} if snapshot else set()
    staged: Buckets = request.preload_fn()  # hands over what lies in host memory as it is

    def own(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone() if id(tensor) in live else tensor

    owned = [(path, name, (blobs, [(i, own(t)) for i, t in tensors])) for path, name, (blobs, tensors) in staged]
    for *_, (_, tensors) in given:  # else the request would keep them until the end
        tensors.clear()
    return owned


def _write_files(transforms: list[Any], buckets: Buckets) -> Written:
    """Write and hash files; in the saver's thread."""
    results: dict[int, Any] = {}
    for index, bucket in enumerate(buckets):
        outcome, running = queue.Queue(), queue.Queue()
        running.put(index)
        FileSystemWriterAsync.write_preloaded_data(transforms, index, bucket, outcome, running, use_fsync=True)  # pyright: ignore
        _, result = outcome.get_nowait()
        if isinstance(result, Exception):
            raise result
        results[index] = result
    return results, {name: fingerprint(Path(path)) for path, name, _ in buckets}


def _first_cause(error: BaseException) -> str:
    """What went wrong first: torch answers a failed write by an error of its own about positions in the file."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return f"{type(error).__name__}: {error}"


def _complete(save: _Save, written: Written) -> None:
    """Metadata, manifest, and the folder's name; all ranks together."""
    results, files = written
    if save.request.async_fn is not None:
        save.request.async_fn_args[2].put(results)  # where Megatron looks for them
    for finalize in save.request.finalize_fns:
        finalize()
    write_manifest(save.temporary, save.parts, files)
    if is_main():
        rename_folder(save.temporary, save.folder)
    barrier()


def _on_all_ranks(value: bool) -> bool:
    flag = torch.tensor([int(value)], dtype=torch.int, device=torch.cuda.current_device())
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag.item())
