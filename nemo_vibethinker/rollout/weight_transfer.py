"""Weights from the trainer's ranks to its vLLM servers, bucket by bucket, by vLLM's weight-transfer calls."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from nemo_vibethinker.rollout.server_process import EngineFailure, ServerProcess

Weights = Callable[[], Iterable[tuple[str, Tensor]]]  # a fresh pass over (Hugging Face name, full tensor); collective


class WeightTransfer(Protocol):
    """One way to move weights. All ranks of a replica call `send` together; only the first has servers.

    Attributes:
        backend: name of vLLM's transfer engine.
    """

    backend: str

    def send(self, servers: Sequence[ServerProcess], weights: Weights, version: str) -> None:
        """Send one pass over `weights` to all servers. Every rank makes the whole pass, failure or not.

        Raises:
            EngineFailure: a server failed or refused.
        """
        ...


class FileTransfer:
    """Through safetensors files in shared memory: for machines without GPUs.

    Args:
        bucket_bytes: of one file; what is held of the weights at a time.
    """

    backend = "file"

    def __init__(self, bucket_bytes: int, call_deadline_s: float) -> None:
        self._bucket_bytes = bucket_bytes
        self._deadline_s = call_deadline_s

    def send(self, servers: Sequence[ServerProcess], weights: Weights, version: str) -> None:
        """See `WeightTransfer`."""
        failure: EngineFailure | None = None
        memory = Path("/dev/shm")
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
            try:
                self._call(servers, "init_weight_transfer_engine", init_info={})
                self._call(servers, "start_weight_update")
            except EngineFailure as error:
                failure = error
            for bucket in _buckets(weights(), self._bucket_bytes):
                try:
                    if servers and not failure:
                        self._send_bucket(servers, bucket, Path(folder) / "bucket.safetensors")
                except EngineFailure as error:
                    failure = error
        if failure:
            raise failure
        self._call(servers, "finish_weight_update", weight_version=version)

    def _send_bucket(self, servers: Sequence[ServerProcess], bucket: dict[str, Tensor], path: Path) -> None:
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in bucket.items()}, path)
        self._call(servers, "update_weights", update_info={"path": str(path)})
        path.unlink()

    def _call(self, servers: Sequence[ServerProcess], method: str, **arguments: Any) -> None:
        for server in servers:
            server.call(method, self._deadline_s, **arguments)


def _buckets(tensors: Iterable[tuple[str, Tensor]], limit_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Consecutive tensors of at most `limit_bytes` together; a larger one comes alone."""
    bucket: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if bucket and sum(t.nbytes for t in bucket.values()) + tensor.nbytes > limit_bytes:
            yield bucket
            bucket = {}
        bucket[name] = tensor
    if bucket:
        yield bucket
