"""The exported folder's card and tokenizer: what a reader, the Hub and another engine make of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from nemo_vibethinker.config import Config, ModelConfig, SamplingConfig, ScaleConfig
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.data.tokenizer import encode_examples, encode_prompts, train_tokenizer, user_turn
from nemo_vibethinker.evaluation.scores import Score
from nemo_vibethinker.ledger import StageCost
from nemo_vibethinker.model.hf_export import write_hf_folder
from nemo_vibethinker.model.hf_folder import hf_shapes
from nemo_vibethinker.report.model_card import CardFacts, model_card
from nemo_vibethinker.spectrum.pass_at_k import Estimate

INSTRUCTION = "Put the answer in \\boxed{}."
FUNNEL: dict[str, Any] = {
    "sets": {"sft": {"read": 1204, "kept": 1200, "dropped": [], "dropped_count": 3}},
    "disjoint": True,
}
COST = StageCost(stage="sft", attempts=2, seconds=60, useful_hours=3000.0, lost_hours=120.0, device="gpu")


def score(model: str, mean: float, domain: str = "math", benchmark: str = "") -> Score:
    return Score(
        model=model,
        domain=benchmark or domain,
        benchmark=benchmark,
        num_problems=300,
        samples_per_problem=4,
        pass_at={1: Estimate(mean, mean - 0.05, mean + 0.05)},
        left_out={1: 0},
        mean_tokens=41.0,
        truncated_share=0.02,
        num_ungraded=0,
    )


@pytest.fixture
def config() -> Config:
    model = ModelConfig(num_layers=2, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=2)
    config = Config(scale=ScaleConfig(model=replace(model, tie_embeddings=True, rope_theta=500000.0)))
    config.data.instruction = INSTRUCTION
    config.evaluate.sampling = SamplingConfig(temperature=1.0, top_p=0.95, max_response_length=128)
    return config


@pytest.fixture
def facts() -> CardFacts:
    scores = [score("fused", 0.3), score("mgpo.code", 0.48), score("mgpo.code", 0.65, "code")]
    scores.append(score("mgpo.code", 0.2, benchmark="aime24"))
    return CardFacts(
        name="mine", model="mgpo.code", scores=scores, funnel=FUNNEL, costs=[COST], versions={"torch": "2"}
    )


def test_the_front_matter_is_what_the_hub_reads(config: Config, facts: CardFacts) -> None:
    config.scale.model.path, config.data.sft = "Qwen/Qwen2.5-Math-1.5B", "nvidia/OpenMathReasoning:default:cot"
    config.export.license = "apache-2.0"
    data = ModelCard(model_card(config, facts)).data
    assert (data.license, data.base_model, data.library_name) == ("apache-2.0", config.scale.model.path, "transformers")
    assert data.datasets == ["nvidia/OpenMathReasoning"]
    found = {(result.dataset_name, result.metric_type, result.metric_value) for result in data.eval_results}
    sets = [("held-out problems, math", 48.0), ("held-out problems, code", 65.0), ("aime24", 20.0)]
    assert found == {(name, "pass@1", value) for name, value in sets}


def test_the_card_tells_scores_data_cost_recipe_licences_and_limits(config: Config, facts: CardFacts) -> None:
    config.export.base_license = "apache-2.0"
    text = model_card(config, facts)
    for part in (
        "| mgpo.code | math | 48.0 [43.0, 53.0] | 300 x 4 | 41 | 2.0 |",
        "| fused | math | 30.0 [25.0, 35.0] |",
        "| sft | 1,204 | 3 | 1 | 1,200 |",
        "3,120.00 GPU-hours before the export, 120.00 of them lost; $6,240 at $2 a GPU-hour",
        "- this model: not stated",
        "- the base model: apache-2.0",
        "lambda 1",
        "temperature 1, top_p 0.95",
        json.dumps(INSTRUCTION).replace("'", "\\u0027"),
        "## Limits",
    ):
        assert part in text, part


def test_a_run_without_scores_and_records_says_so(config: Config) -> None:
    text = model_card(config, CardFacts(name="mine", model="sft_last"))
    assert "Not evaluated in this run." in text
    assert "not on record" in text
    assert ModelCard(text).data.eval_results is None


@pytest.fixture
def folder(config: Config, tmp_path: Path) -> Path:
    texts = ["Find the sum of 2 and 3.", f"The answer is \\boxed{{5}}. {INSTRUCTION}"] * 20
    tokenizer = train_tokenizer(texts, 320)
    torch.manual_seed(0)
    shapes = hf_shapes(config.scale.model, len(tokenizer))
    write_hf_folder(config, ((name, torch.randn(shape) * 0.1) for name, shape in shapes.items()), tokenizer, tmp_path)
    return tmp_path


def test_the_folders_tokenizer_writes_the_tokens_of_training(config: Config, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    record = Record(id="a", domain="algebra", prompt="Find the sum of 2 and 3.", response="It is \\boxed{5}.")
    asked = [{"role": "user", "content": user_turn(record.prompt, INSTRUCTION)}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert tokenizer(text)["input_ids"] == encode_prompts(tokenizer, [record.prompt], INSTRUCTION)[0]
    answered = [*asked, {"role": "assistant", "content": record.response}]
    whole = tokenizer(tokenizer.apply_chat_template(answered, tokenize=False).rstrip("\n"))["input_ids"]
    assert whole == encode_examples(tokenizer, [record], INSTRUCTION)[0][0]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(whole, skip_special_tokens=True).endswith("It is \\boxed{5}.")


def test_the_folder_loads_with_tied_weights_and_the_evaluations_sampling(config: Config, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    sampling = GenerationConfig.from_pretrained(folder)
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (1.0, 0.95, 128)
    assert sampling.eos_token_id == AutoTokenizer.from_pretrained(folder).eos_token_id


def test_older_readers_find_what_they_look_for(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    assert fields["rope_theta"] == fields["rope_parameters"]["rope_theta"] == 500000.0
    assert fields["architectures"] == ["Qwen2ForCausalLM"]
    fields = json.loads((folder / "tokenizer_config.json").read_text())
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert fields["chat_template"] == (folder / "chat_template.jinja").read_text()
    assert not isinstance(fields.get("extra_special_tokens"), list)
