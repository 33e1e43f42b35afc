"""Where the vLLM servers of a replica run, and with which settings."""

import json
import os
import socket
import sys
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel

from nemo_vibethinker.config import Config
from nemo_vibethinker.megatron.distributed import (
    data_parallel_rank_and_size,
    gather_over_replica,
    leads_replica,
)
from nemo_vibethinker.model.hf_folder import hf_config_fields, hf_shapes
from nemo_vibethinker.rollout.server_process import ServerProcess
from nemo_vibethinker.rollout.weight_transfer import FileTransfer, WeightTransfer

CPU_CACHE_BYTES = 1 << 28  # key-value cache of an engine without a GPU
_CPU_TOKENS = 8192  # of one engine step
_CPU_BLOCK = 32  # tokens of a block of the prefix cache; vLLM's default of 128 caches no prompt of a tiny run
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class VllmLauncher:
    """Starts the servers of one replica, from its leading rank. All ranks of the replica make one together.

    Attributes:
        sleeps: whether the engines give their memory to training between rollouts.
        backend: vLLM's weight-transfer engine.

    Raises:
        ValueError: there are no GPUs for the servers, or the replica is spread over nodes.
    """

    def __init__(self, config: Config, vocab_size: int, eos_token_id: int) -> None:
        self.config, self.vocab_size = config, vocab_size
        colocated = config.rollout.placement == "colocated"
        on_gpu = torch.cuda.is_available()
        self.sleeps = on_gpu and colocated
        self.backend = "file" if not on_gpu else "ipc" if colocated else "nccl"
        self.devices = self._devices(colocated) if on_gpu else [""]  # CUDA_VISIBLE_DEVICES of each server
        self._replica, _ = data_parallel_rank_and_size()
        self._folder = (config.run_folder / "rollout").resolve()
        if leads_replica():
            self._write_model_config(eos_token_id)

    def _devices(self, colocated: bool) -> list[str]:
        """The GPUs of each server."""
        size = self.config.rollout.tensor_parallel
        here = gather_over_replica((socket.gethostname(), _visible_gpus()[_local_rank()]))
        if len({host for host, _ in here}) > 1:
            raise ValueError(
                "rollout.engine=vllm needs each replica on one node: lower scale.parallel.tensor, pipeline or context"
            )
        gpus = [gpu for _, gpu in here] if colocated else self._spare_gpus(len(here))
        if len(gpus) < size:
            raise ValueError(
                f"rollout.tensor_parallel={size}: a replica has {len(gpus)} GPUs for its engines; "
                "lower it, or leave GPUs of each node free of training with rollout.placement=separate"
            )
        return [",".join(gpus[i : i + size]) for i in range(0, len(gpus) - size + 1, size)]

    def _spare_gpus(self, ranks: int) -> list[str]:
        """This replica's share of the node's GPUs that train nothing."""
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        spare = _visible_gpus()[local:]
        share = len(spare) // max(1, local // ranks)
        first = _local_rank() // ranks * share
        return spare[first : first + share]

    def start(self) -> list[ServerProcess]:
        """Start all servers side by side; each is ready when its `await_ready` returns."""
        settings, python = self._settings(), self.config.rollout.python or sys.executable
        return [
            ServerProcess(
                python, settings, self._environment(gpus), self._folder / f"vllm-{self._replica}-{number}.log"
            )
            for number, gpus in enumerate(self.devices)
        ]

    def _settings(self) -> dict[str, Any]:
        """vLLM's engine arguments."""
        scale, rollout = self.config.scale, self.config.rollout
        settings = {
            "model": str(self._folder / f"model-{self._replica}"),
            "dtype": _DTYPES[scale.precision],
            "tensor_parallel_size": rollout.tensor_parallel,
            "max_model_len": scale.model.max_position_embeddings,
            "max_num_seqs": rollout.max_sequences,
            "enable_prefix_caching": True,
            "weight_transfer_config": {"backend": self.backend},
        }
        if self.backend == "file":
            return settings | {
                "enforce_eager": True,
                "block_size": _CPU_BLOCK,
                "kv_cache_memory_bytes": CPU_CACHE_BYTES,
                # A prompt read in parts makes vLLM turn the response's random numbers back, which those of CPUs refuse.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(_CPU_TOKENS, scale.model.max_position_embeddings),
            }
        return settings | {"gpu_memory_utilization": rollout.gpu_memory, "enable_sleep_mode": self.sleeps}

    def _environment(self, gpus: str) -> dict[str, str | None]:
        """The trainer's place in its process group is not the server's, nor its Python paths another environment's."""
        place = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        paths = ("PYTHONPATH",) if self.config.rollout.python else ()
        environment: dict[str, str | None] = {name: None for name in (*place, *paths)}
        environment |= {name: None for name in os.environ if name.startswith("TORCHELASTIC_")}
        if self.backend == "file":
            threads = str(self.config.cluster.threads_per_process)
            # Compiling one small kernel on a CPU takes longer than a test's rollouts.
            cpu = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": threads, "TORCHDYNAMO_DISABLE": "1"}
            return environment | cpu
        return environment | {"CUDA_VISIBLE_DEVICES": gpus, "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}  # IPC handles

    def _write_model_config(self, eos_token_id: int) -> None:
        """A Hugging Face folder of the architecture alone; the weights come from the trainer."""
        model = self.config.scale.model
        name, model_type = ("Qwen3ForCausalLM", "qwen3") if model.qk_norm else ("Qwen2ForCausalLM", "qwen2")
        fields = hf_config_fields(model, self.vocab_size) | {
            "architectures": [name],
            "model_type": model_type,
            "eos_token_id": eos_token_id,
            "dtype": _DTYPES[self.config.scale.precision],
        }
        folder = self._folder / f"model-{self._replica}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(fields, indent=1))


def make_transfer(config: Config, launcher: VllmLauncher, chunk: GPTModel) -> WeightTransfer:
    """How the weights get from this replica's ranks to its servers."""
    rollout, bucket_bytes = config.rollout, config.rollout.bucket_mb << 20
    if launcher.backend == "file":
        return FileTransfer(bucket_bytes, rollout.call_deadline_s)
    from nemo_vibethinker.rollout.gpu_transfer import FanOutClient, GpuTransfer, ReplicaWeights

    ranks = gather_over_replica(torch.distributed.get_rank())
    return GpuTransfer(
        launcher.backend,
        ReplicaWeights(hf_shapes(config.scale.model, launcher.vocab_size), chunk.config.params_dtype),
        FanOutClient(rollout.call_deadline_s, rollout.tensor_parallel),
        gather=gather_over_replica,
        rank=ranks.index(torch.distributed.get_rank()),
        workers=len(launcher.devices) * rollout.tensor_parallel,
        bucket_bytes=bucket_bytes,
    )


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _visible_gpus() -> list[str]:
    """The GPUs of this process by the names that CUDA_VISIBLE_DEVICES takes."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
