"""Layouts of the training stages on a number of GPUs, by predicted memory and time; `plan=layouts` prints them.

The time of a step is the FLOPs at an assumed share of the peak plus the traffic that nothing hides. It ranks layouts;
it is no measurement.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from nemo_vibethinker.config import Config, ParallelConfig, ScaleConfig, validate
from nemo_vibethinker.costs.flops import token_flops
from nemo_vibethinker.costs.gpus import GPUS, Gpu, find_gpu
from nemo_vibethinker.costs.memory import Memory, Row, fits, masked_keys, peak_memory, training_rows
from nemo_vibethinker.costs.parameters import attention_widths, rank_parameters

NVLINK_SHARE = 0.4  # assumed: of both directions' bandwidth; one direction is half of it, NCCL reaches 80% of that
NETWORK_GB_PER_S = 40.0  # assumed: of one GPU between nodes, 400 Gbit/s InfiniBand at 80%
GPUS_PER_NODE = 8
SCORE_PASSES = 12  # assumed: reads and writes of unfused scores: product, mask, softmax, values, and their gradients
TENSORS, PIPELINES, CONTEXTS = (1, 2, 4, 8), (1, 2, 4), (1, 2, 4, 8)
RECOMPUTES = ("none", "selective", "full")


@dataclass(frozen=True)
class Estimate:
    """What a layout would need and do, the worst of its training stages for memory.

    Attributes:
        scale: the layout.
        memory: of the fullest rank.
        fits: with the reserve, in the GPU's memory.
        gflops: hardware FLOPs of a token of a whole-row sample, in 10^9.
        tokens_per_s: SFT tokens for each GPU and second, at rows of one sample each.
    """

    scale: ScaleConfig
    memory: Memory
    fits: bool
    gflops: float
    tokens_per_s: float


def candidates(config: Config) -> Iterator[ScaleConfig]:
    """Layouts of `cluster.processes` GPUs that the model and the batch sizes allow."""
    for tensor, pipeline, context, recompute in itertools.product(TENSORS, PIPELINES, CONTEXTS, RECOMPUTES):
        data, rest = divmod(config.cluster.processes, tensor * pipeline * context)
        parallel = ParallelConfig(tensor=tensor, pipeline=pipeline, context=context, data=data, sequence=tensor > 1)
        scale = replace(config.scale, recompute=recompute, parallel=parallel)
        if data and not rest and _is_valid(replace(config, scale=scale)):
            yield scale


def _is_valid(config: Config) -> bool:
    try:
        validate(config)
    except ValueError:
        return False
    return True


def estimate(config: Config, scale: ScaleConfig, gpu: Gpu) -> Estimate:
    """Memory and speed of a layout.

    Args:
        config: the run, with its rows and `cluster.efficiency`.
        scale: its scale with the layout to judge.
    """
    rows = training_rows(replace(config, scale=scale))
    vocab_size = config.data.vocab_size
    memory = max((peak_memory(scale, vocab_size, row) for row in rows.values()), key=lambda memory: memory.total)
    row = rows.get("sft") or next(iter(rows.values()))
    flops = token_flops(
        scale.model, vocab_size, row.segment, recompute=scale.recompute, chunked_logits=bool(scale.logprob_chunk)
    )
    seconds = step_seconds(config, scale, gpu, row, flops.hardware)
    parallel = scale.parallel
    speed = row.tokens * row.count / seconds / (parallel.tensor * parallel.pipeline * parallel.context)
    return Estimate(scale, memory, fits(memory, gpu), flops.hardware / 1e9, speed)


def step_seconds(config: Config, scale: ScaleConfig, gpu: Gpu, row: Row, flops: float) -> float:
    """Seconds of an optimizer step: pipeline of micro-batches with its bubble, then gradients and parameters."""
    parallel = scale.parallel
    ranks = parallel.tensor * parallel.pipeline * parallel.context
    compute = row.tokens * flops / ranks / (gpu.bf16_tflops * 1e12 * config.cluster.efficiency)
    compute += row.tokens * _score_bytes(scale, row) / (gpu.memory_gb_per_s * 1e9)
    micro_batch = compute + row.tokens * _traffic(scale) / (gpu.nvlink_gb_per_s * 1e9 * NVLINK_SHARE)
    bubble = (parallel.pipeline - 1) / parallel.virtual_pipeline
    return micro_batch * (row.count + bubble) + _update_seconds(config, scale, gpu)


def _traffic(scale: ScaleConfig) -> float:
    """Bytes that a rank sends for each token of a row, forward and backward, over NVLink.

    Tensor parallelism: an all-reduce (or, with sequence parallelism, an all-gather and a reduce-scatter, as many bytes)
    after attention and after the MLP, forward and backward, and again where a layer is computed again; with sequence
    parallelism two more all-gathers in the backward pass (Korthikanti et al. 2022). Context parallelism: keys and
    values are gathered in each layer and their gradients scattered.
    """
    model, parallel, size = scale.model, scale.parallel, 2 if scale.precision == "bf16" else 4
    passes = 3 if scale.recompute == "full" else 2
    tensor, context = parallel.tensor, parallel.context
    hidden = (4 * passes + 2 * parallel.sequence) * (tensor - 1) / tensor * model.hidden_size / context
    gathers = passes + (scale.recompute == "selective")
    key_value = gathers * 2 * (context - 1) / context * attention_widths(model)[1] / tensor
    pipeline = 2 * model.hidden_size / context / (tensor if parallel.sequence else 1) if parallel.pipeline > 1 else 0
    return size * ((hidden + key_value) * model.num_layers / parallel.pipeline + pipeline)


def _score_bytes(scale: ScaleConfig, row: Row) -> float:
    """Bytes of attention scores that a rank moves for each token of a row where masks keep fused kernels away."""
    model, parallel = scale.model, scale.parallel
    if parallel.context == 1:
        return 0.0
    passes = SCORE_PASSES if scale.recompute == "none" else SCORE_PASSES * 1.5
    scores = 4 * model.num_attention_heads / parallel.tensor * masked_keys(row.segment, parallel.context)
    return passes * scores * model.num_layers / parallel.pipeline / parallel.context


def _update_seconds(config: Config, scale: ScaleConfig, gpu: Gpu) -> float:
    """Gradients in fp32 scattered and parameters gathered over the replicas, not overlapped with anything."""
    parallel = scale.parallel
    replicas = parallel.data * parallel.context
    held = rank_parameters(scale.model, config.data.vocab_size, parallel, 0)
    sent = held * (4 + (2 if scale.precision == "bf16" else 4)) * (replicas - 1) / replicas
    inside = replicas * parallel.tensor * parallel.pipeline <= GPUS_PER_NODE
    return sent / (gpu.nvlink_gb_per_s * 1e9 * NVLINK_SHARE if inside else NETWORK_GB_PER_S * 1e9)


def ranked(config: Config) -> list[Estimate]:
    """Every candidate's estimate: those that fit first, the fastest first.

    Raises:
        ValueError: `cluster.gpu` is not known.
    """
    gpu = find_gpu(config.cluster.gpu)
    if gpu is None:
        known = ", ".join(gpu.name for gpu in GPUS)
        raise ValueError(f"cluster.gpu='{config.cluster.gpu}': layouts are judged for a known GPU: {known}")
    found = [estimate(config, scale, gpu) for scale in candidates(config)]
    return sorted(found, key=lambda e: (not e.fits, -e.tokens_per_s))
