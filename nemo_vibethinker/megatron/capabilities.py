"""Which kernels this machine has, and which of them a run uses. Imports neither torch nor what it looks for.

Transformer Engine is looked up on disk: its bare package, without the torch extension, raises RuntimeError when it is
imported, and only a machine with CUDA can load the extension. What this module selects for CUDA follows the sources of
Megatron-Core 0.16.1 and was not run on a GPU.
"""

import importlib.metadata
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_vibethinker.config import Config

_DRIVER = Path("/proc/driver/nvidia/version")
# The first versions with all three recipes (Megatron-Core's fp8_utils), and the first chips: Ada has per-tensor
# scaling, Hopper blockwise too.
_TE_FOR_FP8 = (2, 3)
_CHIP_FOR_FP8 = {"tensorwise": (8, 9), "delayed": (8, 9), "blockwise": (9, 0)}


@dataclass(frozen=True)
class Machine:
    """What is installed here.

    Attributes:
        cuda: there is a GPU to run on.
        transformer_engine: its version; empty where it is not installed with its torch extension.
        wgrad_kernel: NVIDIA apex's kernel that adds weight gradients into the fp32 buffer.
        chip: compute capability of the GPU; None where torch was not asked.
    """

    cuda: bool
    transformer_engine: str
    wgrad_kernel: bool
    chip: tuple[int, int] | None = None


@dataclass(frozen=True)
class Kernels:
    """What a run uses of the machine.

    Attributes:
        cuda: weights are allocated on the GPU, and Megatron's jit-fused SwiGLU and residual additions are on.
        transformer_engine: its layers (linear with fused RMSNorm, attention of packed rows) and fused RoPE, else the
            local ones over torch.
        gradient_accumulation_fusion: weight gradients are added into the fp32 buffer by the matrix product itself.
        fp8: format of the layers' matrix products, `hybrid` or `e4m3`; None: they run in `scale.precision`.
        reasons: name -> what is used and why, to be read by people.
    """

    cuda: bool
    transformer_engine: bool
    gradient_accumulation_fusion: bool
    fp8: str | None
    reasons: dict[str, str] = field(default_factory=dict)


def detect_machine(cuda: bool | None = None, chip: tuple[int, int] | None = None) -> Machine:
    """Look at what is installed, without importing it.

    Args:
        cuda: what torch says, where it is imported; None: whether NVIDIA's driver is loaded.
        chip: the GPU's compute capability, where torch was asked.
    """
    has_cuda = _DRIVER.exists() if cuda is None else cuda
    return Machine(has_cuda, _transformer_engine(), _has("fused_weight_gradient_mlp_cuda"), chip)


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _transformer_engine() -> str:
    spec = importlib.util.find_spec("transformer_engine")
    if spec is None or not spec.submodule_search_locations:
        return ""
    package = Path(next(iter(spec.submodule_search_locations)))
    folders = (package, package.parent, package / "wheel_lib")
    if not any(path for folder in folders for path in folder.glob("transformer_engine_torch*.so")):
        return ""
    (distribution, *_) = importlib.metadata.packages_distributions()["transformer_engine"]
    return importlib.metadata.version(distribution)


def select_kernels(config: "Config", machine: Machine) -> Kernels:
    """What a run of this configuration uses on this machine.

    Raises:
        ValueError: the configuration asks for FP8, and the machine cannot do it.
    """
    scale = config.scale
    missing = _missing_for_engine(scale.precision, machine)
    fp8 = None if scale.fp8 == "none" else scale.fp8
    if fp8:
        _require_fp8(scale.fp8_recipe, missing, machine)
    engine = not missing
    fused_wgrad = machine.cuda and machine.wgrad_kernel
    reasons = {
        "layers": f"Transformer Engine {machine.transformer_engine}" if engine else f"local (torch): {missing}",
        "fp8": f"{fp8} {scale.fp8_recipe}, {scale.fp8_bf16_layers} layers at each end in bf16" if fp8 else "none",
        "attention": "Transformer Engine for training, torch for generation" if engine else "torch",
        "rope": "fused" if engine else "not fused: a kernel of Transformer Engine",
        "swiglu": "fused" if machine.cuda else "not fused: no CUDA",
        "log-probs": _logprobs(scale.logprob_chunk),
        "weight gradient": "added in fp32 by the product" if fused_wgrad else f"added apart: {_no_wgrad(machine)}",
        "softmax": "inside the attention kernel",
        "gradient overlap": _switch(scale.overlap_grad_reduce, "overlap_grad_reduce"),
        "weight gather overlap": _switch(scale.overlap_param_gather, "overlap_param_gather"),
        "tensor-parallel overlap": "off: its buffers have one shape, and packed rows differ in length",
    }
    return Kernels(machine.cuda, engine, fused_wgrad, fp8, reasons)


def _missing_for_engine(precision: str, machine: Machine) -> str:
    """Why the layers of Transformer Engine are not used; empty where they are."""
    if not machine.cuda:
        return "no CUDA"
    if not machine.transformer_engine:
        return "Transformer Engine is not installed"
    return "" if precision == "bf16" else "attention of packed rows needs scale.precision=bf16"


def _require_fp8(recipe: str, missing: str, machine: Machine) -> None:
    if missing:
        raise ValueError(f"scale.fp8 needs Transformer Engine on a GPU ({missing}); set scale.fp8=none")
    version = machine.transformer_engine
    if tuple(int(part) for part in version.split(".")[:2]) < _TE_FOR_FP8:
        raise ValueError(f"scale.fp8 needs Transformer Engine 2.3 or newer; {version} is installed")
    chip = _CHIP_FOR_FP8[recipe]
    if machine.chip is not None and machine.chip < chip:
        raise ValueError(
            f"scale.fp8_recipe={recipe} needs a GPU of compute capability {chip[0]}.{chip[1]}; "
            f"this one has {machine.chip[0]}.{machine.chip[1]}; set scale.fp8=none"
        )


def _switch(on: bool, key: str) -> str:
    return "on" if on else f"off (scale.{key})"


def _logprobs(chunk_tokens: int) -> str:
    return f"{chunk_tokens} tokens at a time" if chunk_tokens else "all logits at once (scale.logprob_chunk=0)"


def _no_wgrad(machine: Machine) -> str:
    return "NVIDIA's apex is not installed" if machine.cuda else "no CUDA"
