"""What a run costs each GPU, as text: memory and FLOPs for `plan=true`, the choice of layouts for `plan=layouts`."""

from launcher.cli import Command
from nemo_vibethinker.config import Config
from nemo_vibethinker.costs.flops import TokenFlops, token_flops
from nemo_vibethinker.costs.gpus import GPUS, Gpu, find_gpu, mfu
from nemo_vibethinker.costs.layouts import Estimate, estimate, ranked
from nemo_vibethinker.costs.memory import (
    Memory,
    Row,
    engine_memory,
    peak_memory,
    reserve,
    sampling_memory,
    training_rows,
)

COMPONENTS = ("weights", "gradients", "optimizer", "activations", "logits", "temporary", "total")
SEGMENT = 10_000  # tokens: a long chain of thought, of which several share a row of 32K


def render_costs(config: Config) -> str:
    """Memory of each training stage on the fullest GPU, FLOPs of a token, and the speed they allow on a known GPU."""
    rows = training_rows(config)
    gpu = find_gpu(config.cluster.gpu)
    if not rows:
        return "memory      no stage trains"
    memories = {
        stage: peak_memory(config.scale, config.data.vocab_size, row, on_gpu=bool(config.cluster.gpu))
        for stage, row in rows.items()
    }
    lines = [*_memory_lines(memories, rows, sampling_memory(config)), *_gpu_lines(config, gpu)]
    return "\n".join([*lines, *_flop_lines(config, rows, gpu)])


def _memory_lines(memories: dict[str, Memory], rows: dict[str, Row], sampling: dict[str, int]) -> list[str]:
    unit, name = (1e9, "GB") if max(memory.total for memory in memories.values()) > 1e9 else (1e6, "MB")
    lines = [f"{f'memory of a training step, {name} a process':<44}" + "".join(f"{stage:>15}" for stage in memories)]
    lines.append(f"{'  tokens of a micro-batch':<44}" + "".join(f"{rows[stage].tokens:>15,}" for stage in memories))
    for component in COMPONENTS:
        values = "".join(f"{getattr(memory, component) / unit:>15.2f}" for memory in memories.values())
        lines.append(f"  {component:<42}{values}")
    if sampling:
        listed = ", ".join(f"{stage} {needed / unit:.1f}" for stage, needed in sampling.items())
        lines.append(f"  sampling in the training process, {name}: {listed}")
    return lines


def _gpu_lines(config: Config, gpu: Gpu | None) -> list[str]:
    if gpu:
        room = gpu.memory_bytes - reserve(gpu)
        over = [stage for stage, needed in sampling_memory(config).items() if needed > room]
        note = (
            f"  note: {', '.join(over)}: the responses do not fit side by side in the training process; they need an "
            "engine of their own or a smaller max_response_length"
        )
        first = f"  on {gpu.name}: {gpu.memory_gb:g} GB, of which {reserve(gpu) / 1e9:.1f} are kept in reserve"
        return [first, *([note] if over else []), *_engine_line(config, gpu)]
    if config.cluster.gpu:
        known = ", ".join(known.name for known in GPUS)
        return [
            f"  note: cluster.gpu={config.cluster.gpu} is not known ({known}): no check of memory, no speed, no MFU"
        ]
    return []


def _engine_line(config: Config, gpu: Gpu) -> list[str]:
    shared = engine_memory(config, gpu)
    if shared is None:
        return []
    engine, states = (part / 1e9 for part in shared)
    return [
        f"  while vLLM samples: up to {engine:.1f} GB for its engine (rollout.gpu_memory), {states:.1f} for the trainer"
    ]


def _flop_lines(config: Config, rows: dict[str, Row], gpu: Gpu | None) -> list[str]:
    lines = ["GFLOP for each trained token, attention included"]
    longest = max(row.segment for row in rows.values())
    for segment in sorted({row.segment for row in rows.values()} | ({SEGMENT} if longest > SEGMENT else set())):
        flops = _flops(config, segment)
        lines.append(
            f"  samples of {segment:>6,} tokens: {flops.forward / 1e9:.3g} forward, "
            f"{flops.backward / 1e9:.3g} backward, {flops.recompute / 1e9:.3g} computed again"
        )
    if gpu and "sft" in rows:
        lines.append(_speed(config, estimate(config, config.scale, gpu), gpu, rows["sft"]))
    return lines


def _flops(config: Config, segment: float) -> TokenFlops:
    scale = config.scale
    return token_flops(
        scale.model,
        config.data.vocab_size,
        segment,
        recompute=scale.recompute,
        chunked_logits=bool(scale.logprob_chunk),
    )


def _speed(config: Config, found: Estimate, gpu: Gpu, row: Row) -> str:
    share = mfu(found.tokens_per_s * _flops(config, row.segment).model, gpu.name)
    assert share is not None
    return (
        f"  sft speed, assumed: {found.tokens_per_s:,.0f} tokens/s a GPU, MFU {share:.0%}, where kernels reach "
        f"{config.cluster.efficiency:.0%} of {gpu.bf16_tflops:g} TFLOP/s (cluster.efficiency)"
    )


def render_layouts(command: Command) -> str:
    """Every layout of `cluster.processes` GPUs that the model allows: those that fit first, the fastest first.

    Raises:
        ValueError: `cluster.gpu` is not known.
    """
    config = command.config
    found = ranked(config)
    lines = [
        f"layouts of {config.scale.name} on {config.cluster.processes} {config.cluster.gpu}: memory on the fullest, "
        f"speed of SFT where kernels reach {config.cluster.efficiency:.0%} of the peak (assumed, cluster.efficiency)",
        "  tensor  pipeline  context  data  recompute  memory GB  fits  GFLOP/token  tokens/s a GPU",
        *(_layout_line(one, config) for one in found),
        "* as configured; no measurement: kernels, NVLink and network at the assumed shares of "
        "nemo_vibethinker/costs/layouts.py",
    ]
    return "\n".join(lines)


def _layout_line(one: Estimate, config: Config) -> str:
    scale, parallel = one.scale, one.scale.parallel
    mine = (scale.recompute, parallel) == (config.scale.recompute, config.scale.parallel)
    return (
        f"{'*' if mine else ' '} {parallel.tensor:>6}  {parallel.pipeline:>8}  {parallel.context:>7}  "
        f"{parallel.data:>4}  {scale.recompute:>9}  {one.memory.total / 1e9:>9.1f}  "
        f"{'yes' if one.fits else 'no':>4}  {one.gflops:>11.1f}  {one.tokens_per_s:>14,.0f}"
    )
