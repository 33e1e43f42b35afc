"""What NeMo's Lightning strategy needs, beyond Megatron-Core, on a machine without CUDA."""

from typing import Any

import torch

from nemo_vibethinker.megatron.platform import install_cpu_platform


def install_nemo_cpu_platform() -> None:
    """Patch torch so that `MegatronStrategy` runs on the CPU; does nothing where CUDA is present. Idempotent.

    The strategy sends every value it logs `.to("cuda")`, which no setting of its own turns off.
    """
    if not install_cpu_platform() or getattr(torch.Tensor.to, "_nvt_cpu_platform", False):
        return
    original: Any = torch.Tensor.to

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        places = [torch.device("cpu") if _is_cuda(arg) else arg for arg in args]
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
        return original(self, *places, **kwargs)

    to._nvt_cpu_platform = True  # pyright: ignore[reportFunctionMemberAccess]
    torch.Tensor.to = to


def _is_cuda(place: object) -> bool:
    return isinstance(place, str | torch.device) and str(place).startswith("cuda")
