"""Memory of one training step on one rank, for the layers as `model.qwen2` builds them.

Per-token sums count what autograd keeps for each operation of the local layer spec: RMSNorm in fp32 whatever the
precision, RoPE, torch's scaled dot-product attention (no score matrix, but under context parallelism, where it gets an
explicit mask), SwiGLU unfused. `tests/test_memory_model.py` compares them with the bytes that a step really holds.
"""

from dataclasses import dataclass

from nemo_vibethinker.config import SIGNAL_STAGES, Config, MgpoConfig, ModelConfig, ParallelConfig, ScaleConfig
from nemo_vibethinker.costs.gpus import Gpu, find_gpu
from nemo_vibethinker.costs.parameters import attention_widths, rank_parameters, stage_layers

RESERVE_BYTES = 2 * 1024**3  # assumed: CUDA context, NCCL buffers, workspaces of matrix products
DECODED_ROWS = 256  # responses side by side, `rollout.megatron_engine.ROWS`
RESERVE_SHARE = 0.05  # assumed: of the GPU's memory, lost to the allocator's fragmentation


@dataclass(frozen=True)
class Row:
    """The packed rows that a replica trains on in a step.

    Attributes:
        tokens: of one row (micro-batch), over all context-parallel ranks.
        segment: tokens of its samples: one for all; a mask under context parallelism grows with its square.
        count: micro-batches of a replica in an optimizer step.
        entropy: the loss also asks for the entropy of the distribution (reinforcement learning).
    """

    tokens: int
    segment: float
    count: int
    entropy: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank at the fullest moment of a step.

    Attributes:
        weights: in the scale's precision.
        gradients: Megatron's contiguous fp32 buffers.
        optimizer: two fp32 moments, and fp32 master weights of a bf16 model.
        activations: kept for the backward pass, or computed again for it.
        logits: fp32 softmax that the loss keeps.
        temporary: logits in the model's precision, gradients on their way.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    temporary: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.temporary


def training_rows(config: Config) -> dict[str, Row]:
    """The largest rows of each training stage of a run: one sample may fill the whole of it."""
    sft, replicas = config.sft, config.scale.parallel.data
    tokens = sft.micro_batch_size * sft.seq_length
    rows = {"sft": Row(tokens, sft.seq_length, sft.global_batch_size // sft.micro_batch_size // replicas)}
    for name in (stage for stage in config.stages if stage.startswith("mgpo.")):
        mgpo: MgpoConfig = getattr(config.signal, name.removeprefix("mgpo."))
        tokens = max(mgpo.tokens_per_micro_batch, mgpo.sampling.max_response_length)
        samples = mgpo.prompts_per_step * mgpo.group_size // mgpo.updates_per_rollout // replicas
        longest = min(tokens, mgpo.sampling.max_response_length)
        rows[name] = Row(tokens, longest, -(-samples * longest // tokens), entropy=True)
    return {stage: row for stage, row in rows.items() if stage in config.stages}


def peak_memory(scale: ScaleConfig, vocab_size: int, row: Row, *, on_gpu: bool = True) -> Memory:
    """The fullest rank of the layout at its fullest moment.

    Args:
        vocab_size: of the embeddings.
        row: what a replica trains on.
        on_gpu: masked attention keeps its scores (see `_attention_core`).
    """
    stages = range(scale.parallel.pipeline)
    found = [m for stage in stages for m in rank_moments(scale, vocab_size, row, stage, on_gpu=on_gpu)]
    return max(found, key=lambda memory: memory.total)


def rank_moments(scale: ScaleConfig, vocab_size: int, row: Row, stage: int, *, on_gpu: bool) -> list[Memory]:
    """Memory of a rank of pipeline stage `stage` while the loss is computed, and while a layer runs backward."""
    model, parallel = scale.model, scale.parallel
    weights, gradients, optimizer = _states(scale, vocab_size, stage)
    tokens = row.tokens / parallel.context
    last = stage == parallel.pipeline - 1
    ends = last * _norm(scale)  # the last RMSNorm and the input of the output layer
    # Token ids, weights and targets are small; so are the RoPE angles of the longest sample, made once.
    kept = tokens * (
        _kept_per_layer(scale, row, on_gpu) * layers_in_flight(model, parallel, stage, row.count) + ends + 8
    )
    logits, temporary = _loss_bytes(scale, vocab_size, tokens, row.entropy) if last else (0, 0)
    working = tokens * _recomputed(scale, row, on_gpu)
    gradient = tokens * _bytes(scale) * 4 * model.ffn_hidden_size / parallel.tensor
    at_loss = Memory(weights, gradients, optimizer, round(kept), logits, temporary)
    in_layer = Memory(weights, gradients, optimizer, round(kept - tokens * ends + working), 0, round(gradient))
    return [at_loss, in_layer]


def _bytes(scale: ScaleConfig) -> int:
    return 2 if scale.precision == "bf16" else 4


def _states(scale: ScaleConfig, vocab_size: int, stage: int) -> tuple[int, int, int]:
    parallel = scale.parallel
    held = rank_parameters(scale.model, vocab_size, parallel, stage)
    states = held * (12 if scale.precision == "bf16" else 8)
    shards = parallel.data * parallel.context if parallel.distributed_optimizer else 1
    return held * _bytes(scale), held * 4, states // shards


def layers_in_flight(model: ModelConfig, parallel: ParallelConfig, stage: int, micro_batches: int) -> float:
    """Layers times micro-batches whose activations a pipeline stage holds at once, under 1F1B or its interleaved form.

    Source: Megatron-Core's schedules: pipeline - stage - 1 warm-up micro-batches, or with v chunks a rank
    2 (pipeline - stage - 1) + (v - 1) pipeline warm-up chunks, and the one under way.
    """
    layers, behind = stage_layers(model.num_layers, parallel.pipeline, stage), parallel.pipeline - stage - 1
    chunks = parallel.virtual_pipeline
    warmup = behind if chunks == 1 else 2 * behind + (chunks - 1) * parallel.pipeline
    return layers / chunks * min(warmup + 1, micro_batches * chunks)


def _kept_per_layer(scale: ScaleConfig, row: Row, on_gpu: bool) -> float:
    """Bytes that a layer keeps for each token of its rank."""
    if scale.recompute == "full":
        return _share(scale) * _bytes(scale) * scale.model.hidden_size
    return _layer(scale) + (_attention_core(scale, row, on_gpu) if scale.recompute == "none" else 0.0)


def _recomputed(scale: ScaleConfig, row: Row, on_gpu: bool) -> float:
    """Bytes for each token that come back while a layer runs backward."""
    if scale.recompute == "none":
        return 0.0
    return _attention_core(scale, row, on_gpu) + (_layer(scale) if scale.recompute == "full" else 0.0)


def _share(scale: ScaleConfig) -> float:
    """Part of the tokens that a tensor-parallel rank keeps outside of its matrix products."""
    return 1 / scale.parallel.tensor if scale.parallel.sequence else 1.0


def _norm(scale: ScaleConfig) -> float:
    """RMSNorm: input and normalised input in fp32, a root each token; and its output, which a product keeps."""
    return _share(scale) * ((8 + _bytes(scale)) * scale.model.hidden_size + 4)


def _layer(scale: ScaleConfig) -> float:
    """A layer but for its core attention."""
    model, size = scale.model, _bytes(scale)
    query, key_value = attention_widths(model)
    # Input and normalised input in fp32; an fp32 key is a view of the product that stays anyway.
    qk_norm = (8 * query + (4 if size == 4 else 8) * key_value) * model.qk_norm
    rope = 4 * size * model.kv_channels  # sine and cosine, of query and of key
    # The rotated query and key; the values are a view of the whole product, which therefore stays.
    qkv = size * (query + key_value + (query + 2 * key_value))
    swiglu = size * 4 * model.ffn_hidden_size  # gate and up, silu(gate), their product
    return 2 * _norm(scale) + rope + (qkv + qk_norm + size * query + swiglu) / scale.parallel.tensor


def _attention_core(scale: ScaleConfig, row: Row, on_gpu: bool) -> float:
    """Core attention: its output by sample and a log-sum-exp each head; with the masks of context parallelism.

    No fused CUDA kernel of torch takes a mask together with grouped heads: the fallback keeps the fp32 scores.
    """
    model, size, context = scale.model, _bytes(scale), scale.parallel.context
    query, key_value = attention_widths(model)
    split = size * query + 4 * model.num_attention_heads
    if context == 1:
        return split / scale.parallel.tensor
    # Keys and values of all ranks are gathered and put in order; the rank's own are no longer needed.
    split += size * (2 * context * key_value - (query + 3 * key_value) * (scale.recompute == "none"))
    seen = masked_keys(row.segment, context)
    split += seen * 4 * model.num_attention_heads * on_gpu
    return split / scale.parallel.tensor + 8 * context + size * seen


def masked_keys(segment: float, context: int) -> float:
    """Keys that a query is masked against under context parallelism: two chunks of n/2c queries, all keys before."""
    return segment * (2 * context + 1) / (4 * context)


def _loss_bytes(scale: ScaleConfig, vocab_size: int, tokens: float, entropy: bool) -> tuple[int, int]:
    """(kept, temporary) bytes of the loss: an fp32 softmax is kept of whole logits, nearly nothing of chunked ones."""
    size, width, hidden = _bytes(scale), vocab_size / scale.parallel.tensor, scale.model.hidden_size
    if not scale.logprob_chunk:
        # The logits themselves, and for their entropy three or four more in fp32.
        extra = size + entropy * (16 if size == 2 else 12)
        return round(tokens * (4 * width + 13)), round(tokens * extra * width)
    chunk = min(tokens, scale.logprob_chunk) * 8 * width  # logits and their exponentials in fp32
    gradients = width * hidden * (4 if size == 4 else 6) + tokens * size * hidden  # of weights, in fp32, and of input
    return round(tokens * 17), round(chunk + gradients)


def sampling_memory(config: Config) -> dict[str, int]:
    """Bytes on one rank while a stage samples with the engine in the training process: weights or states, and cache.

    The engine makes room for the whole length of every response it decodes side by side. Prompts are not counted.
    Empty where vLLM samples.
    """
    if config.rollout.engine != "megatron":
        return {}
    scale, replicas = config.scale, config.scale.parallel.data
    weights, gradients, optimizer = _states(scale, config.data.vocab_size, 0)
    lengths = {name: getattr(config, name).sampling.max_response_length for name in ("probe", "evaluate")}
    cache = DECODED_ROWS * _cache_bytes(scale)
    found = {stage: weights + cache * length for stage, length in lengths.items()}
    for name in SIGNAL_STAGES:
        mgpo: MgpoConfig = getattr(config.signal, name)
        rows = min(DECODED_ROWS, -(-mgpo.prompts_per_step // replicas) * mgpo.group_size)
        cache = rows * _cache_bytes(scale) * mgpo.sampling.max_response_length
        found[f"mgpo.{name}"] = weights + gradients + optimizer + cache
    return {stage: found[stage] for stage in config.stages if stage in found}


def engine_memory(config: Config, gpu: Gpu) -> tuple[int, int] | None:
    """Bytes of a GPU while colocated vLLM engines sample: (theirs, the trainer's weights, gradients and optimizer).

    None where nothing of vLLM shares the trainer's GPUs.
    """
    if config.rollout.engine != "vllm" or config.rollout.placement != "colocated":
        return None
    states = sum(_states(config.scale, config.data.vocab_size, 0)) if training_rows(config) else 0
    return round(config.rollout.gpu_memory * gpu.memory_bytes), states


def _cache_bytes(scale: ScaleConfig) -> int:
    """Keys and values of one token on a rank of the first pipeline stage."""
    layers = stage_layers(scale.model.num_layers, scale.parallel.pipeline, 0)
    return 2 * attention_widths(scale.model)[1] * _bytes(scale) * layers // scale.parallel.tensor


def reserve(gpu: Gpu) -> int:
    """Bytes of a GPU that a step cannot count on."""
    return RESERVE_BYTES + round(RESERVE_SHARE * gpu.memory_bytes)


def fits(memory: Memory, gpu: Gpu) -> bool:
    """Whether a step has room on the GPU beside the reserve."""
    return memory.total + reserve(gpu) <= gpu.memory_bytes


def require_fit(config: Config) -> None:
    """Refuse a run whose training stages cannot fit `cluster.gpu`; an unknown or unnamed GPU is not judged.

    Raises:
        ValueError: the stage, what it needs, and what would make it smaller.
    """
    gpu = find_gpu(config.cluster.gpu)
    if gpu is None:
        return
    for stage, row in training_rows(config).items():
        memory = peak_memory(config.scale, config.data.vocab_size, row)
        if not fits(memory, gpu):
            raise ValueError(
                f"{stage} needs {memory.total / 1e9:.1f} GB and a reserve of {reserve(gpu) / 1e9:.1f} GB on each "
                f"{gpu.name}, which has {gpu.memory_gb:g}: choose a layout that fits (plan=layouts lists them), "
                "scale.recompute=full, scale.logprob_chunk=2048 or shorter rows"
            )
    engine, states = engine_memory(config, gpu) or (0, 0)
    if engine + states + RESERVE_BYTES > gpu.memory_bytes:
        raise ValueError(
            f"rollout.gpu_memory={config.rollout.gpu_memory:g} of {gpu.name}'s {gpu.memory_gb:g} GB leaves too little "
            f"for the trainer's {states / 1e9:.1f} GB of weights, gradients and optimizer: lower it"
        )
