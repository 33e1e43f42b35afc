"""What is loaded into vLLM's worker processes: weights by file, checksums. Runs in vLLM's environment, without ours."""
# pyright: reportMissingImports=false

from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
Checksums = dict[str, tuple[int, int]]  # name -> (elements, sum of their bits as integers)


def checksums(tensors: dict[str, torch.Tensor]) -> Checksums:
    """Integer sums do not depend on the order, and those of the parts add up to that of the whole."""
    sums = [t.contiguous().view(_INTEGERS[t.dtype]).sum(dtype=torch.int64) for t in tensors.values()]
    values = torch.stack(sums).tolist()
    return {name: (t.numel(), value) for (name, t), value in zip(tensors.items(), values, strict=True)}


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing to agree on."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """One bucket of weights: a safetensors file of tensors under their Hugging Face names."""

    path: str


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Weights through files in memory, for machines without GPUs, with the calls of vLLM's own transfer engines.

    Attributes:
        received: checksums of the tensors of the last update.
    """

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to do."""
        self.received: Checksums = {}

    def start_weight_update(self) -> None:
        """Make the layers ready for tensors of a checkpoint: they hold them repacked."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one bucket. The base class waits for an accelerator here, and a CPU has none."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Load one bucket."""
        tensors = load_file(update_info.path)
        self.received |= checksums(tensors)
        self.model.load_weights(iter(tensors.items()))

    def finish_weight_update(self) -> None:
        """Repack the layers, and an output layer tied to the embedding, which vLLM 0.32.0's reload leaves as it was."""
        finalize_layerwise_reload(self.model, self.model_config)
        if self.model_config.hf_config.tie_word_embeddings:
            head = self.model.lm_head.tie_weights(self.model.model.embed_tokens)
            head.quant_method.process_weights_after_loading(head)

    def shutdown(self) -> None:
        """Nothing is held."""


WeightTransferEngineFactory.register_engine("file", FileWeightTransferEngine)


class WorkerExtension:
    """Methods that every worker gets (`worker_extension_cls`)."""

    def parameter_checksums(self) -> Checksums:
        """Checksums of this worker's part of each parameter.

        What the worker holds repacked, as linear layers on a CPU, is given as it came, by its Hugging Face name.
        """
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        dtype = self.model_config.dtype  # type: ignore[attr-defined]
        found = {n: p.detach() for n, p in model.named_parameters() if p.numel() and p.dtype == dtype}
        received = getattr(self.weight_transfer_engine, "received", {})  # type: ignore[attr-defined]
        return received | checksums(found)

    def free_gpu_bytes(self) -> int:
        """Free memory of this worker's GPU."""
        return torch.cuda.mem_get_info(self.device)[0]  # type: ignore[attr-defined]
