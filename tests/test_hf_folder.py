"""Hugging Face folders: what is read of their configuration, and what is refused, each by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_vibethinker.config import Config, ModelConfig
from nemo_vibethinker.data.tokenizer import IM_END, chat_tokenizer, encode_prompts, train_tokenizer
from nemo_vibethinker.model.hf_export import write_weights
from nemo_vibethinker.model.hf_folder import HfFolder, base_model, check_model_config, hf_shapes, read_model_config

MODEL = ModelConfig(num_layers=2, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=2)
VOCAB = 64
FIELDS: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_theta": 10000,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "use_sliding_window": False,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    tensors = ((name, torch.randn(shape)) for name, shape in hf_shapes(MODEL, VOCAB).items())
    write_weights(tensors, tmp_path, shard_bytes=10_000)
    return tmp_path


def rewrite(folder: Path, **fields: Any) -> None:
    (folder / "config.json").write_text(json.dumps(FIELDS | fields))


def test_published_fields_are_read(folder: Path) -> None:
    model, vocab_size = read_model_config(folder)
    assert vocab_size == VOCAB
    assert model == replace(MODEL, max_position_embeddings=4096)


def test_qwen3_has_head_norms_and_its_own_head_width(folder: Path) -> None:
    rewrite(folder, architectures=["Qwen3ForCausalLM"], head_dim=16, rope_theta=1e6)
    model, _ = read_model_config(folder)
    assert (model.qk_norm, model.qkv_bias, model.kv_channels, model.rope_theta) == (True, False, 16, 1e6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "architecture LlamaForCausalLM; known: Qwen2ForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope scaling"),
    ],
)
def test_another_kind_of_model_is_refused(folder: Path, fields: dict[str, Any], message: str) -> None:
    rewrite(folder, **fields)
    with pytest.raises(ValueError, match=message):
        read_model_config(folder)


def test_the_error_lists_the_settings_that_describe_the_folder(folder: Path) -> None:
    model = ModelConfig(num_layers=3, hidden_size=32, ffn_hidden_size=48, tie_embeddings=False)
    with pytest.raises(ValueError, match=r"set scale.model.num_layers=2 scale.model.tie_embeddings=true$"):
        check_model_config(model, folder)


def test_a_longer_window_needs_its_rope_theta(folder: Path) -> None:
    longer = replace(MODEL, max_position_embeddings=131072)
    with pytest.raises(ValueError, match=r"raise scale.model.rope_theta, now 10000"):
        check_model_config(longer, folder)
    assert check_model_config(replace(longer, rope_theta=500000.0), folder) == VOCAB


def test_weights_are_read_by_name_from_several_files(folder: Path) -> None:
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    source = HfFolder(folder, MODEL, VOCAB)
    whole = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for name, shape in hf_shapes(MODEL, VOCAB).items():
        assert source(name).shape == shape
        assert torch.equal(source(name), whole[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.layers.1.mlp.up_proj.weight": None}, "lacks model.layers.1.mlp.up_proj.weight$"),
        ({"model.layers.2.mlp.up_proj.weight": (48, 32)}, "has unknown model.layers.2.mlp.up_proj.weight$"),
        ({"model.norm.weight": (31,)}, r"model.norm.weight has shape \(31,\), the architecture says \(32,\)"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    shapes = {name: shape for name, shape in (hf_shapes(MODEL, VOCAB) | change).items() if shape}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        HfFolder(tmp_path, MODEL, VOCAB)


def test_stored_output_weights_of_a_tied_model_are_ignored(tmp_path: Path) -> None:
    shapes = hf_shapes(MODEL, VOCAB) | {"lm_head.weight": (VOCAB, 32)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    assert HfFolder(tmp_path, MODEL, VOCAB)("model.norm.weight").shape == (32,)


@pytest.mark.parametrize("content", [None, "torn"])
def test_unreadable_weights_are_one_line(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "model.safetensors").write_text(content)
    with pytest.raises(ValueError, match="no readable safetensors weights"):
        HfFolder(tmp_path, MODEL, VOCAB)


def test_training_from_scratch_has_no_base_model(folder: Path) -> None:
    config = Config()
    assert base_model(config) is None
    config.scale.model = replace(MODEL, path=str(folder), max_position_embeddings=4096)
    assert base_model(config) == folder


def test_a_base_models_tokenizer_is_set_up_for_chat(tmp_path: Path) -> None:
    made = train_tokenizer(["one two"], 320)
    made.eos_token = "<|endoftext|>"  # as Qwen2.5's base models have it
    made.save_pretrained(tmp_path)
    tokenizer = chat_tokenizer(tmp_path)
    assert tokenizer.eos_token == IM_END
    assert encode_prompts(tokenizer, ["one"], "") == encode_prompts(made, ["one"], "")
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text().replace("<|im_end|>", "<|other|>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match=r"has no <\|im_end\|>"):
        chat_tokenizer(tmp_path)
