"""Run in vLLM's environment by test_vllm_transfer.py: what we call of vLLM 0.32.0 exists, with our arguments."""

import inspect
import sys
from dataclasses import asdict

import torch
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import (
    IPCTrainerInitInfo,
    IPCTrainerWeightTransferEngine,
    IPCWeightTransferInitInfo,
    IPCWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_payload
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from nemo_vibethinker.rollout.gpu_transfer import FanOutClient, ReplicaIpc, ReplicaWeights
from nemo_vibethinker.rollout.server_process import EngineFailure


class Recorder:
    """Stands at the place of a server process: keeps the calls, fails where it is told to."""

    def __init__(self, fail: str = "") -> None:
        self.calls: list[tuple[str, dict]] = []
        self.fail = fail

    def call(self, method: str, deadline_s: float, **arguments: object) -> None:
        if method == self.fail:
            raise EngineFailure(method)
        self.calls.append((method, arguments))


def client_of(*servers: Recorder) -> FanOutClient:
    client = FanOutClient(call_deadline_s=1.0, tensor_parallel=2)
    client.servers = servers  # type: ignore[assignment]
    client.version = "v7"
    return client


def check_client() -> None:
    one, two = Recorder(), Recorder()
    client = client_of(one, two)
    assert isinstance(client, VLLMWeightSyncClient)
    info = NCCLWeightTransferInitInfo(
        master_address="127.0.0.1", master_port=1, rank_offset=1, world_size=5, packed=True
    )
    client.init_weight_transfer_engine(worker_init_payload(info))
    offsets = [NCCLWeightTransferInitInfo(**server.calls[0][1]["init_info"]).rank_offset for server in (one, two)]
    assert offsets == [1, 3], offsets  # trainer 0, workers of the first server 1 and 2, of the second 3 and 4
    client.finish_weight_update()
    assert one.calls[-1] == two.calls[-1] == ("finish_weight_update", {"weight_version": "v7"})


def check_ipc_handles_survive_the_way() -> None:
    server = Recorder()
    client = client_of(server)
    fields = {"names": ["a"], "dtype_names": ["float32"], "shapes": [[2]], "tensor_sizes": [8]}
    client.update_weights(asdict(IPCWeightTransferUpdateInfo(**fields, ipc_handles={"GPU-1": (1, b"x")})))
    received = IPCWeightTransferUpdateInfo(**server.calls[0][1]["update_info"])
    assert received.ipc_handles == {"GPU-1": (1, b"x")}
    IPCWeightTransferInitInfo(packed=True)


def check_failures() -> None:
    for keep in (False, True):
        client = client_of(Recorder(fail="start_weight_update"))
        client.keep_failures = keep
        try:
            client.start_weight_update()
            client.finish_weight_update()
            assert keep
            assert isinstance(client.failure, EngineFailure)
            assert not client.servers[0].calls  # type: ignore[attr-defined]
        except EngineFailure:
            assert not keep


def check_weights() -> None:
    source = ReplicaWeights({"a": (2, 3), "b": (4,)}, torch.bfloat16)
    tensors = {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.ones(4, dtype=torch.bfloat16)}
    source.weights = tensors.items
    for _ in range(2):  # a fresh pass each time
        passed = NCCLTrainerWeightTransferEngine._checked_iter(source, source.metadata())
        assert [name for name, _ in passed] == ["a", "b"]
    first = iter(source)
    next(first)
    source.finish()
    assert next(first, None) is None


def check_names() -> None:
    NCCLTrainerInitInfo(
        rank=0, master_address="127.0.0.1", master_port=1, world_size=2, packed=True, packed_buffer_size_bytes=1
    )
    IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=1)
    for name in ("_all_gather_and_merge_handles", "_post_send_sync"):
        ours, theirs = getattr(ReplicaIpc, name), getattr(IPCTrainerWeightTransferEngine, name)
        assert ours is not theirs
    for backend in ("nccl", "ipc"):
        assert backend in WeightTransferEngineFactory._registry
        assert backend in WeightTransferTrainerFactory._registry
        WeightTransferConfig(backend=backend)
    assert {"level", "mode"} <= inspect.signature(AsyncLLM.sleep).parameters.keys()
    assert "tags" in inspect.signature(AsyncLLM.wake_up).parameters
    known = inspect.signature(AsyncEngineArgs).parameters.keys()
    assert {"gpu_memory_utilization", "enable_sleep_mode", "weight_transfer_config", "worker_extension_cls"} <= known


if __name__ == "__main__":
    check_client()
    check_ipc_handles_survive_the_way()
    check_failures()
    check_weights()
    check_names()
    print("all of vLLM that is called is there", file=sys.stderr)
