"""What Megatron-Core 0.16 needs to run on a machine without CUDA.

`install_cpu_platform` is called once, before any Megatron import, and does nothing where CUDA is present. Megatron-Core
names CUDA directly in many places; each patch below stands for one such place and says which.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._device import _device_constructors

_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "as_tensor", "rand", "randn")


class _InertStream:
    """Stands for `torch.cuda.Stream` and `Event`: CPU work is in order already, so waiting and recording do nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, *args: Any) -> None:
        """Nothing to wait for."""

    def wait_event(self, *args: Any) -> None:
        """Nothing to wait for."""

    def record(self, *args: Any) -> None:
        """Nothing to record."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


def install_cpu_platform() -> bool:
    """Patch torch so that Megatron-Core runs on the CPU. Returns whether the patches are in force.

    Idempotent. Must run before `megatron.core` is imported, because Megatron binds some of these names at import.
    """
    if torch.cuda.is_available():
        return False
    if getattr(torch, "_nvt_cpu_platform", False):
        return True
    torch._nvt_cpu_platform = True  # pyright: ignore[reportAttributeAccessIssue]
    warnings.filterwarnings("ignore", message=".*Apex (is|are) not installed")  # what this module is here for
    warnings.filterwarnings("ignore", message=".*full scope is deprecated")  # CUDA graphs, which are off
    warnings.filterwarnings("ignore", message=".*The .grad attribute of a Tensor that is not a leaf")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", category=FutureWarning, module="megatron.core.dist_checkpointing")
    warnings.filterwarnings("ignore", message=".*Transformer Engine and Apex are not installed")
    _patch_device_calls()
    _patch_factories()
    _patch_random_state()
    _patch_compile()
    _patch_type_names()
    _patch_megatron()
    return True


def _patch_device_calls() -> None:
    """Schedules, DDP buffers and layers ask for the current device and synchronise with it."""
    cpu = torch.device("cpu")
    replacements: dict[str, Any] = {
        "current_device": lambda: cpu,  # allocations say device=torch.cuda.current_device()
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,  # p2p communication, after batched sends
        "empty_cache": lambda: None,
        "current_stream": lambda device=None: _InertStream(),
        "default_stream": lambda device=None: _InertStream(),  # gradient buckets, overlap off
        "stream": lambda stream: contextlib.nullcontext(),
        "Stream": _InertStream,  # DDP with overlap settings
        "Event": _InertStream,
    }
    for name, value in replacements.items():
        setattr(torch.cuda, name, value)
    torch.cuda.nvtx.range_push = lambda *args, **kwargs: 0  # profiling ranges around each layer part
    torch.cuda.nvtx.range_pop = lambda *args, **kwargs: 0
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self


def _patch_factories() -> None:
    """Megatron allocates scalars and norms with device='cuda', and index tensors in pinned memory."""
    # `with torch.device(...)` knows the factories by identity and looks them up once: now, while they are torch's own.
    _device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs and str(kwargs["device"]).startswith("cuda"):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return wrapper


def _patch_random_state() -> None:
    """`model_parallel_cuda_manual_seed` and recomputation save and restore CUDA's generator; here the CPU's is used."""
    modules: tuple[Any, ...] = (torch.cuda, torch.cuda.random)
    for module in modules:
        module.get_rng_state = lambda device="cuda": torch.get_rng_state()
        module.set_rng_state = lambda state, device="cuda": torch.set_rng_state(state)
        module.manual_seed = lambda seed: torch.manual_seed(seed) and None


def _patch_compile() -> None:
    """Megatron decorates small functions with torch.compile; importing the compiler costs seconds and wins nothing."""

    def identity(model: Any = None, **kwargs: Any) -> Any:
        return (lambda function: function) if model is None else model

    torch.compile = identity


def _patch_type_names() -> None:
    """The optimizers sort parameters by `Tensor.type() == 'torch.cuda.FloatTensor'`."""
    original = torch.Tensor.type

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return original(self, *args, **kwargs)
        return original(self).replace("torch.", "torch.cuda.", 1)

    torch.Tensor.type = type_


def _patch_megatron() -> None:
    """Places inside Megatron-Core itself, reachable only after its import."""
    import megatron.core.optimizer as optimizer
    from megatron.core.optimizer import distrib_optimizer
    from megatron.core.tensor_parallel import random

    from nemo_vibethinker.megatron.fused_adam import FusedAdam

    # Bound at import from torch._C, so patching torch.cuda does not reach it.
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    # With torch's AdamW the distributed optimizer saves checkpoints it cannot load (its state holds `step` per
    # tensor); with an optimizer shaped like apex's FusedAdam it takes the path used on GPUs.
    optimizer.Adam = FusedAdam  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.Adam = FusedAdam  # pyright: ignore[reportAttributeAccessIssue]
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True
