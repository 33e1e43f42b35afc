"""GPUs whose peaks are known. Only exact names match: an unknown GPU gives no figure rather than a wrong one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet. Peaks are dense: half of those that sheets give "with sparsity".

    Attributes:
        name: for `cluster.gpu`.
        device_names: what the driver calls it (`torch.cuda.get_device_name`).
        bf16_tflops: dense BF16 tensor-core peak, TFLOP/s.
        fp8_tflops: dense FP8 peak; None: has no FP8.
        memory_gb: 10^9 bytes; the driver shows a little more on most boards.
        memory_gb_per_s: bandwidth of that memory.
        nvlink_gb_per_s: of one GPU, both directions together.
        source: the document, its column, and what it says with sparsity.
    """

    name: str
    device_names: tuple[str, ...]
    bf16_tflops: float
    fp8_tflops: float | None
    memory_gb: float
    memory_gb_per_s: float
    nvlink_gb_per_s: float
    source: str

    @property
    def memory_bytes(self) -> int:
        """Device memory."""
        return int(self.memory_gb * 1e9)


H100 = "NVIDIA H100 Tensor Core GPU data sheet"
H800 = "sold in China: the H100's figures but for NVLink, cut to 400 GB/s (DeepSeek-V3 report, section 3.1)"
H200 = "NVIDIA H200 Tensor Core GPU data sheet"
A100 = "NVIDIA A100 Tensor Core GPU data sheet"
GPUS = (
    Gpu("H100-SXM", ("NVIDIA H100 80GB HBM3",), 989.4, 1978.9, 80, 3350, 900, f"{H100}, SXM: 1,979 and 3,958 sparse"),
    Gpu(
        "H100-PCIe", ("NVIDIA H100 PCIe",), 756.5, 1513, 80, 2000, 600, f"{H100} of 2022, PCIe: 1,513 and 3,026 sparse"
    ),
    Gpu("H100-NVL", ("NVIDIA H100 NVL",), 835.5, 1670.5, 94, 3900, 600, f"{H100} of 2024, NVL: 1,671 and 3,341 sparse"),
    Gpu("H800-SXM", ("NVIDIA H800",), 989.4, 1978.9, 80, 3350, 400, H800),
    Gpu("H800-PCIe", ("NVIDIA H800 PCIe",), 756.5, 1513, 80, 2000, 400, H800),
    Gpu("H200-SXM", ("NVIDIA H200",), 989.4, 1978.9, 141, 4800, 900, f"{H200}, SXM: 1,979 and 3,958 sparse"),
    Gpu("H200-NVL", ("NVIDIA H200 NVL",), 835.5, 1670.5, 141, 4800, 900, f"{H200}, NVL: 1,671 and 3,341 sparse"),
    Gpu("A100-SXM-40GB", ("NVIDIA A100-SXM4-40GB",), 312, None, 40, 1555, 600, f"{A100}, SXM 40GB: 624 sparse"),
    Gpu("A100-SXM-80GB", ("NVIDIA A100-SXM4-80GB",), 312, None, 80, 2039, 600, f"{A100}, SXM 80GB: 624 sparse"),
    Gpu("A100-PCIe-40GB", ("NVIDIA A100-PCIE-40GB",), 312, None, 40, 1555, 600, f"{A100}, PCIe 40GB: 624 sparse"),
    Gpu("A100-PCIe-80GB", ("NVIDIA A100 80GB PCIe",), 312, None, 80, 1935, 600, f"{A100}, PCIe 80GB: 624 sparse"),
    Gpu(
        "B200-SXM",
        ("NVIDIA B200",),
        2250,
        4500,
        180,
        7700,
        1800,
        "NVIDIA HGX B200 data sheet, an eighth: 4,500 and 9,000 sparse",
    ),
)


def find_gpu(name: str) -> Gpu | None:
    """The GPU of a table name or a driver's device name; None if it is not known exactly."""
    return next((gpu for gpu in GPUS if name == gpu.name or name in gpu.device_names), None)


def mfu(flops_per_s: float, gpu_name: str) -> float | None:
    """Model FLOPs utilisation: achieved FLOP/s of one GPU over its dense BF16 peak; None for an unknown GPU.

    The peak is the BF16 one also where some products run in FP8, so that figures stay comparable.
    """
    gpu = find_gpu(gpu_name)
    return flops_per_s / (gpu.bf16_tflops * 1e12) if gpu else None
