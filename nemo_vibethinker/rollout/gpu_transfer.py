"""Weights between GPUs by vLLM's own trainer engines: NCCL to GPUs of the engines' own, IPC on shared GPUs.

Not measured yet: it needs GPUs. `tests/test_vllm_transfer.py` checks every name and argument against vLLM 0.32.0.
"""
# pyright: reportMissingImports=false
# (vLLM is part of the cluster's image, not of the CPU environment)

import base64
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo, IPCTrainerWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from nemo_vibethinker.rollout.server_process import EngineFailure, ServerProcess
from nemo_vibethinker.rollout.weight_transfer import Weights

Gather = Callable[[Any], list[Any]]  # a picklable value of every rank of the replica, on each of them


class ReplicaWeights(WeightSource):
    """The trainer's weights as vLLM's trainer engines take them.

    Args:
        shapes: Hugging Face name -> shape, in the order of the stream.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self._metadata = [ParamMeta(name, dtype, tuple(shape)) for name, shape in shapes.items()]
        self.weights: Weights = dict[str, Tensor]().items
        self._stream: Iterator[tuple[str, Tensor]] = iter(())

    def metadata(self) -> list[ParamMeta]:
        """Name, type and shape of every tensor."""
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._stream = iter(self.weights())
        return self._stream

    def finish(self) -> None:
        """Make what is left of the pass: the replica's other ranks make all of it."""
        for _ in self._stream:
            pass


class FanOutClient:
    """vLLM's `VLLMWeightSyncClient` for all servers of a replica at once; only the sending rank has them.

    Attributes:
        keep_failures: a failure is kept in `failure` and the calls after it do nothing, where it would be raised: the
            replica's ranks meet after each bucket of an IPC transfer, and the sender has to come along.
    """

    def __init__(self, call_deadline_s: float, tensor_parallel: int) -> None:
        self._deadline_s = call_deadline_s
        self._tensor_parallel = tensor_parallel
        self.servers: Sequence[ServerProcess] = ()
        self.version = ""
        self.keep_failures = False
        self.failure: EngineFailure | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each server's workers come behind those of the servers before it in the NCCL group."""
        infos = [dict(init_info) for _ in self.servers]
        if "rank_offset" in init_info:
            for number, info in enumerate(infos):
                info["rank_offset"] += number * self._tensor_parallel
        self._call("init_weight_transfer_engine", [{"init_info": info} for info in infos])

    def start_weight_update(self) -> None:
        """Begin."""
        self._call("start_weight_update", [{} for _ in self.servers])

    def update_weights(self, update_info: Any) -> None:
        """One bucket; IPC handles travel pickled, between processes of one trainer."""
        if handles := update_info.get("ipc_handles"):
            pickled = base64.b64encode(pickle.dumps(handles)).decode()
            update_info = update_info | {"ipc_handles": None, "ipc_handles_pickled": pickled}
        self._call("update_weights", [{"update_info": update_info} for _ in self.servers])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End, under the version that `GpuTransfer` has set: vLLM's engines name none."""
        version = weight_version or self.version
        self._call("finish_weight_update", [{"weight_version": version} for _ in self.servers])

    def _call(self, method: str, arguments: list[dict[str, Any]]) -> None:
        """All servers at the same time: they meet in the same NCCL calls."""
        if self.failure:
            return
        try:
            self._call_all(method, arguments)
        except EngineFailure as error:
            if not self.keep_failures:
                raise
            self.failure = error

    def _call_all(self, method: str, arguments: list[dict[str, Any]]) -> None:
        with ThreadPoolExecutor(max(1, len(self.servers))) as threads:
            calls = [
                threads.submit(server.call, method, self._deadline_s, **arguments[number])
                for number, server in enumerate(self.servers)
            ]
            for call in calls:
                call.result()


class GpuTransfer:
    """Weights by NCCL or IPC.

    Args:
        backend: nccl | ipc.
        gather: over the ranks of the replica.
        rank: of this process in its replica; 0 sends.
        workers: of all servers of the replica.
    """

    def __init__(
        self,
        backend: str,
        source: ReplicaWeights,
        client: FanOutClient,
        *,
        gather: Gather,
        rank: int,
        workers: int,
        bucket_bytes: int,
    ) -> None:
        self.backend = backend
        self._source, self._client, self._gather = source, client, gather
        self._rank, self._workers, self._bucket_bytes = rank, workers, bucket_bytes
        client.keep_failures = backend == "ipc"
        self._trainer: Any = None
        self._servers: Sequence[ServerProcess] = ()

    def send(self, servers: Sequence[ServerProcess], weights: Weights, version: str) -> None:
        """See `WeightTransfer`. Another set of servers than last time makes a new connection."""
        self._source.weights, self._client.version, self._client.failure = weights, version, None
        try:
            if self._trainer is None or list(servers) != list(self._servers):
                self._trainer = self._connect(servers)
            self._trainer.send_weights()
        except EngineFailure:
            self._source.finish()
            raise
        if self._client.failure:
            raise self._client.failure

    def _connect(self, servers: Sequence[ServerProcess]) -> Any:
        """vLLM's trainer engine, in touch with these servers."""
        if self._trainer is not None:
            self._trainer.shutdown()
        self._servers = self._client.servers = list(servers)
        if self.backend == "ipc":
            info = IPCTrainerInitInfo(rank=self._rank, packed=True, packed_buffer_size_bytes=self._bucket_bytes)
            trainer = ReplicaIpc.trainer_init(info, client=self._client, source=self._source)
            trainer.gather = self._gather
            return trainer
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        return WeightTransferTrainerFactory.trainer_init(
            NCCLTrainerInitInfo(
                rank=self._rank,
                master_address="127.0.0.1",  # engines run on their trainer's node
                master_port=port,
                world_size=1 + self._workers,
                packed=True,
                packed_buffer_size_bytes=self._bucket_bytes,
            ),
            client=self._client,
            source=self._source,
        )


class ReplicaIpc(IPCTrainerWeightTransferEngine):
    """vLLM's IPC sender, whose ranks are those of one replica where vLLM takes the whole process group."""

    gather: Gather

    def _all_gather_and_merge_handles(self, handles: list[dict[str, tuple]]) -> list[dict[str, tuple]]:
        gathered = self.gather(handles)
        torch.cuda.synchronize()
        return [{uuid: args for rank in gathered for uuid, args in rank[i].items()} for i in range(len(handles))]

    def _post_send_sync(self) -> None:  # pyright: ignore  (static in vLLM)
        self.gather(None)  # no rank writes into its buffer while another's engine reads
        torch.cuda.ipc_collect()
