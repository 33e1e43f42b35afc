"""Parameters of a Qwen2 or dense Qwen3 model, whole and of one rank's part."""

from nemo_vibethinker.config import ModelConfig, ParallelConfig


def layer_matrices(model: ModelConfig) -> int:
    """Weights of the matrix products of one layer: Q, K, V, projection, gate, up, down."""
    query, key_value = attention_widths(model)
    return model.hidden_size * (2 * query + 2 * key_value + 3 * model.ffn_hidden_size)


def attention_widths(model: ModelConfig) -> tuple[int, int]:
    """Channels of all query heads, and of all key (or value) heads."""
    return model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels


def parameter_count(model: ModelConfig, vocab_size: int) -> int:
    """Parameters of the whole model: two RMSNorms a layer and a last one, no biases but on Q, K, V."""
    return rank_parameters(model, vocab_size, ParallelConfig(), 0)


def rank_parameters(model: ModelConfig, vocab_size: int, parallel: ParallelConfig, stage: int) -> int:
    """Parameters that a rank of pipeline stage `stage` (from 0) holds; the last stage has its own tied embeddings."""
    first, last = stage == 0, stage == parallel.pipeline - 1
    query, key_value = attention_widths(model)
    layers = stage_layers(model.num_layers, parallel.pipeline, stage)
    biases = (query + 2 * key_value) * model.qkv_bias
    embeddings = first + last - (first and last and model.tie_embeddings)
    split = layers * (layer_matrices(model) + biases) + embeddings * vocab_size * model.hidden_size
    norms = layers * (2 * model.hidden_size + 2 * model.kv_channels * model.qk_norm) + last * model.hidden_size
    return split // parallel.tensor + norms


def stage_layers(num_layers: int, stages: int, stage: int) -> int:
    """Layers of a pipeline stage; the first takes the remainder, as `model.qwen2.first_stage_layers` says."""
    each = num_layers // stages
    return num_layers - each * (stages - 1) if stage == 0 else each
