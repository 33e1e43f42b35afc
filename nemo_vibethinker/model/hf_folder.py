"""Hugging Face folders of Qwen2 and Qwen3 (dense) models: their architecture and their weights, read piece by piece.

Imports neither torch nor Megatron: a login node compares a folder with the configuration.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_vibethinker.config import Config, ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

_MODEL_FILES = ("*.json", "*.safetensors", "merges.txt")
INDEX = "model.safetensors.index.json"
_ARCHITECTURES = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}


def hf_config_fields(model: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """The fields of transformers' `Qwen2Config` or `Qwen3Config` for this architecture."""
    own = {"head_dim": model.kv_channels, "attention_bias": model.qkv_bias} if model.qk_norm else {}
    return own | {
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "max_position_embeddings": model.max_position_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "rms_norm_eps": model.rms_norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "hidden_act": "silu",
    }


def read_model_config(folder: Path) -> tuple[ModelConfig, int]:
    """(architecture, vocabulary size) of a Hugging Face folder.

    Raises:
        ValueError: no readable config.json, or an architecture, activation, sliding window or RoPE scaling that the
            model here does not have.
    """
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable Hugging Face configuration: {error}") from None
    name = (fields.get("architectures") or ["none"])[0]
    if name not in _ARCHITECTURES:
        raise ValueError(f"{path}: architecture {name}; known: {', '.join(_ARCHITECTURES)}")
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    for key, ok in (
        ("hidden_act", fields.get("hidden_act", "silu") == "silu"),
        ("use_sliding_window", not fields.get("use_sliding_window")),
        ("rope scaling", scaling == "default"),
    ):
        if not ok:
            raise ValueError(f"{path}: {key} of this model is not supported")
    return _model_config(fields, rope, qwen3=name.startswith("Qwen3")), int(fields["vocab_size"])


def _model_config(fields: dict[str, Any], rope: dict[str, Any], *, qwen3: bool) -> ModelConfig:
    heads = fields["num_attention_heads"]
    return ModelConfig(
        num_layers=fields["num_hidden_layers"],
        hidden_size=fields["hidden_size"],
        ffn_hidden_size=fields["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=fields.get("num_key_value_heads", heads),
        head_dim=(fields.get("head_dim") or 0) if qwen3 else 0,
        max_position_embeddings=fields["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta", fields.get("rope_theta", 10000.0))),
        rms_norm_eps=fields.get("rms_norm_eps", 1e-6),
        tie_embeddings=fields.get("tie_word_embeddings", False),
        qkv_bias=bool(fields.get("attention_bias", False)) if qwen3 else True,
        qk_norm=qwen3,
    )


def check_model_config(model: ModelConfig, folder: Path) -> int:
    """Check that `scale.model` describes the folder's model; returns its vocabulary size.

    A longer window than the folder's is a context extension, which has to raise `rope_theta` with it: NVIDIA's
    OpenMathReasoning trains Qwen2.5-Math-1.5B with a window of 131072 and rope_theta 500000.

    Raises:
        ValueError: what differs, as the settings that would describe the folder; or a window without its rope_theta.
    """
    theirs, vocab_size = read_model_config(folder)
    free = {"max_position_embeddings", "rope_theta", "init_std", "path", "head_dim"}
    fields = [name for name in ModelConfig.__dataclass_fields__ if name not in free]
    wrong = [name for name in fields if getattr(model, name) != getattr(theirs, name)]
    mended = replace(model, **{name: getattr(theirs, name) for name in wrong})
    wrong += ["head_dim"] if mended.kv_channels != theirs.kv_channels else []
    if wrong:
        fix = " ".join(f"scale.model.{name}={getattr(theirs, name)}".replace("True", "true") for name in wrong)
        raise ValueError(f"scale.model does not describe {folder}; set {fix.replace('False', 'false')}")
    longer = model.max_position_embeddings > theirs.max_position_embeddings
    if longer and model.rope_theta <= theirs.rope_theta:
        raise ValueError(
            f"scale.model.max_position_embeddings={model.max_position_embeddings} is past the window of "
            f"{theirs.max_position_embeddings} that {folder} was trained with; raise scale.model.rope_theta, now "
            f"{model.rope_theta:g}, with it (500000 for a window of 131072)"
        )
    return vocab_size


def base_model(config: Config) -> Path | None:
    """The local folder of `scale.model.path`, fetched from the hub where it is not one; None for training from scratch.

    Raises:
        ValueError: the model cannot be fetched, or `scale.model` does not describe it.
    """
    path = config.scale.model.path
    if path is None:
        return None
    folder = local_folder(path, "scale.model.path")
    check_model_config(config.scale.model, folder)
    return folder


def local_folder(path: str, key: str, patterns: Sequence[str] = _MODEL_FILES) -> Path:
    """A folder as it is, or the local copy of a model of the hub, fetched where there is none.

    Raises:
        ValueError: it cannot be fetched; names `key`.
    """
    return Path(path) if Path(path).exists() else _from_hub(path, key, patterns)


def _from_hub(name: str, key: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{key}={name} is no local folder and can't be fetched: {reason}") from None


def hf_shapes(model: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the Hugging Face model; tied output weights are not stored."""
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    heads, groups = model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (heads, hidden),
        "self_attn.k_proj.weight": (groups, hidden),
        "self_attn.v_proj.weight": (groups, hidden),
        "self_attn.o_proj.weight": (hidden, heads),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (ffn, hidden),
        "mlp.up_proj.weight": (ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn),
    }
    if model.qkv_bias:
        layer |= {f"self_attn.{x}_proj.bias": (heads if x == "q" else groups,) for x in "qkv"}
    if model.qk_norm:
        layer |= {f"self_attn.{x}_norm.weight": (model.kv_channels,) for x in "qk"}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab_size, hidden)}
    for index in range(model.num_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    output = {} if model.tie_embeddings else {"lm_head.weight": (vocab_size, hidden)}
    return shapes | {"model.norm.weight": (hidden,)} | output


class HfFolder:
    """The weights of a Hugging Face folder by name; a tensor is in memory only while it is used.

    Raises:
        ValueError: a tensor is missing, is of another shape, or is not part of the architecture, with its name.
    """

    def __init__(self, folder: Path, model: ModelConfig, vocab_size: int) -> None:
        self._files = _files(folder)
        expected = hf_shapes(model, vocab_size)
        found = self._files.keys() - ({"lm_head.weight"} if model.tie_embeddings else set())
        for what, names in (("lacks", expected.keys() - found), ("has unknown", found - expected.keys())):
            if names:
                raise ValueError(f"{folder} {what} {', '.join(sorted(names)[:5])}{' ...' if len(names) > 5 else ''}")
        for name, shape in expected.items():
            if self._shape(name) != shape:
                raise ValueError(f"{folder}: {name} has shape {self._shape(name)}, the architecture says {shape}")

    def __call__(self, name: str) -> "Tensor":
        """The full tensor `name`, in the folder's own type."""
        from safetensors import safe_open

        # The file is mapped for this one tensor only: its pages would count as memory of this process otherwise.
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)

    def _shape(self, name: str) -> tuple[int, ...]:
        from safetensors import safe_open

        with safe_open(self._files[name], framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())


def _files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    from safetensors import SafetensorError, safe_open

    try:
        if (folder / INDEX).exists():
            weight_map: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
            return {name: folder / file for name, file in weight_map.items()}
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            return {name: folder / "model.safetensors" for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: no readable safetensors weights: {error}") from None
