"""SFT that starts from a Hugging Face base model, through the launcher."""

from pathlib import Path

import pytest
import torch
from conftest import Launch, override
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from nemo_vibethinker.data.tokenizer import train_tokenizer
from nemo_vibethinker.run_folder import RunFolder

pytestmark = pytest.mark.e2e


def test_sft_starts_from_the_base_models_weights(
    coin_arguments: tuple[str, ...], launch: Launch, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 128}
    base = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=384, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    )
    base.save_pretrained(tmp_path / "base")
    train_tokenizer(["one two"], 320).save_pretrained(tmp_path / "base")
    arguments = override(
        ("recipe=spectrum", *coin_arguments[1:]),
        f"scale.model.path={tmp_path / 'base'}",
        "stages=[prepare,sft,export]",
        "sft.steps=1",
        "sft.first_checkpoint=0",
        "sft.optimizer.lr=1e-9",  # so small that the weights are still the base model's
        "sft.min_lr=0",
        f"run.root={tmp_path}",
        "run.name=from_base",
    )
    launch(*arguments)
    weights = load_file(RunFolder.load(tmp_path / "from_base").stage_folder("export") / "hf" / "model.safetensors")
    before = load_file(tmp_path / "base" / "model.safetensors")
    assert weights.keys() == before.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6, msg=name)
    assert before["model.embed_tokens.weight"].std() > 1e-3  # a model that was never read would not agree by chance


def test_a_base_model_that_is_not_described_is_refused_before_anything_starts(
    coin_arguments: tuple[str, ...], launch: Launch, tmp_path: Path
) -> None:
    Qwen2ForCausalLM(
        Qwen2Config(vocab_size=384, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    ).save_pretrained(tmp_path / "base")
    refused = launch(*coin_arguments, f"scale.model.path={tmp_path / 'base'}", f"run.root={tmp_path}", code=2)
    assert "set scale.model.num_layers=1 scale.model.hidden_size=64" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
