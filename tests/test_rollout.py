"""Generation: sampling against closed forms, independence of the batch, agreement with trainer and transformers."""

# ruff: noqa: E402  (torch is patched before Megatron binds its names)
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nemo_vibethinker.megatron.platform import install_cpu_platform

install_cpu_platform()

from megatron.core.models.gpt import GPTModel

from nemo_vibethinker.config import Config, SamplingConfig
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.data.tokenizer import train_tokenizer
from nemo_vibethinker.megatron.logprobs import vocab_parallel_logprobs
from nemo_vibethinker.megatron.micro_batch import pack_row
from nemo_vibethinker.megatron.train_step import forward_logits
from nemo_vibethinker.model.hf_export import write_hf_folder
from nemo_vibethinker.model.hf_weights import stream_hf_tensors
from nemo_vibethinker.model.qwen2 import build_model
from nemo_vibethinker.reward.verdict import Verdict
from nemo_vibethinker.rollout.engine import Sample
from nemo_vibethinker.rollout.megatron_engine import ROWS, MegatronEngine
from nemo_vibethinker.rollout.responses import Group, Response, check_groups
from nemo_vibethinker.rollout.sampling import sample_tokens, stable_seed, uniform_numbers

VOCAB = 320
EOS, PAD = 2, 0
GRID = 1000
PROBS = [0.5, 0.3, 0.15, 0.05]


def frequencies(logits_V: Tensor, temperature: float, top_p: float) -> list[float]:
    """Share of each token over an even grid of uniform numbers."""
    uniforms = (torch.arange(GRID) + 0.5) / GRID
    tokens, _ = sample_tokens(logits_V.expand(GRID, -1), uniforms, temperature, top_p)
    return (torch.bincount(tokens, minlength=len(logits_V)) / GRID).tolist()


# Drawing tokens


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_tokens_are_drawn_by_their_probability(order: list[int]) -> None:
    probs = torch.tensor(PROBS)[order]
    assert frequencies(probs.log() + 17, 1.0, 1.0) == pytest.approx(probs.tolist(), abs=1.5 / GRID)


def test_temperature_sharpens() -> None:
    squared = torch.tensor(PROBS).pow(2)
    expected = (squared / squared.sum()).tolist()
    assert frequencies(torch.tensor(PROBS).log(), 0.5, 1.0) == pytest.approx(expected, abs=1.5 / GRID)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, [0.5]), (0.49, [0.5]), (0.6, [0.5, 0.3]), (0.9, [0.5, 0.3, 0.15]), (1.0, PROBS)]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: list[float]) -> None:
    shuffled = [3, 0, 2, 1]  # the most probable tokens are not the first
    expected = [PROBS[i] / sum(kept) if PROBS[i] in kept else 0.0 for i in shuffled]
    found = frequencies(torch.tensor(PROBS)[shuffled].log(), 1.0, top_p)
    assert found == pytest.approx(expected, abs=1.5 / GRID)
    assert [value == 0 for value in found] == [value == 0 for value in expected]


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_extreme_uniform_numbers_never_draw_an_impossible_token(top_p: float) -> None:
    possible = torch.tensor([False, True, True, True, False])
    logits = torch.tensor([0.0, 0.3, 0.1, 0.2, 0.0]).masked_fill(~possible, -math.inf)
    largest = float(torch.tensor(1.0).nextafter(torch.tensor(0.0)))
    tokens, _ = sample_tokens(logits.expand(2, -1), torch.tensor([0.0, largest]), 1.0, top_p)
    assert tokens.tolist() == [1, 3]


def test_temperature_zero_takes_the_most_probable_token() -> None:
    logits = torch.randn(50, VOCAB)
    tokens, logprobs = sample_tokens(logits, torch.rand(50), 0.0, 0.5)
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).amax(-1))


def test_logprobs_are_those_before_the_top_p_cut() -> None:
    logits = torch.randn(50, VOCAB) * 3
    tokens, logprobs = sample_tokens(logits, torch.rand(50), 0.7, 0.8)
    expected = (logits / 0.7).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected)


def test_stable_seed_is_fixed() -> None:
    # Another value would make every finished run irreproducible.
    assert stable_seed(0, "mgpo.math_16k", 1, "algebra-00001", 3) == 592202511706058872
    assert stable_seed("a", "b") != stable_seed("ab")
    assert stable_seed(1) != stable_seed("1")
    assert all(0 <= stable_seed(i) < 2**63 for i in range(100))


def test_uniform_numbers_depend_on_their_seed_alone() -> None:
    many = uniform_numbers([5, 6, 7], 40)
    assert torch.equal(uniform_numbers([7], 5)[0], many[2, :5])
    assert not torch.equal(many[0], many[1])


# Generation


@pytest.fixture
def model(tiny_config: Config) -> GPTModel:
    return build_model(tiny_config, VOCAB)


@pytest.fixture
def engine(model: GPTModel) -> MegatronEngine:
    return MegatronEngine([model], EOS, PAD)


def random_prompts(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def assert_same(ours: Sample, theirs: Sample) -> None:
    assert (ours.tokens, ours.finish_reason) == (theirs.tokens, theirs.finish_reason)
    assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def trainer_logprobs(model: GPTModel, prompt: list[int], sample: Sample, temperature: float = 1.0) -> list[float]:
    batch = pack_row([(prompt + sample.tokens, len(prompt))], [1.0])
    with torch.no_grad():
        logprobs = vocab_parallel_logprobs(forward_logits(model, batch) / temperature, batch.targets[None])[0]
    return logprobs[len(prompt) - 1 : -1].tolist()


def test_responses_do_not_depend_on_their_batch(engine: MegatronEngine) -> None:
    prompts = random_prompts([3, 17, 9, 9, 1])
    seeds = [[stable_seed(i, j) for j in range(4)] for i in range(len(prompts))]
    sampling = SamplingConfig(max_response_length=20)
    together = engine.generate(prompts, sampling, seeds)
    assert len({tuple(sample.tokens) for group in together for sample in group}) == 20
    for prompt, group, own in zip(prompts, together, seeds, strict=True):
        for sample, seed in zip(group, own, strict=True):
            assert_same(engine.generate([prompt], sampling, [[seed]])[0][0], sample)


def test_rows_that_end_early_do_not_disturb_the_others(model: GPTModel) -> None:
    # The most frequent token as end of sequence: rows leave the batch at many steps.
    prompts = random_prompts([4, 11, 7])
    seeds = [[stable_seed(i, j) for j in range(16)] for i in range(len(prompts))]
    sampling = SamplingConfig(max_response_length=24)
    endless = MegatronEngine([model], -1, PAD).generate(prompts, sampling, seeds)
    common = torch.tensor([t for group in endless for sample in group for t in sample.tokens]).mode().values.item()
    stopping = MegatronEngine([model], int(common), PAD).generate(prompts, sampling, seeds)
    lengths = [len(sample.tokens) for group in stopping for sample in group]
    assert len(set(lengths)) > 4
    pairs = [pair for groups in zip(stopping, endless, strict=True) for pair in zip(*groups, strict=True)]
    for ours, theirs in pairs:
        assert ours.tokens == theirs.tokens[: len(ours.tokens)]
        assert ours.logprobs == pytest.approx(theirs.logprobs[: len(ours.tokens)], abs=1e-4)
        assert common not in ours.tokens[:-1]
        assert (ours.finish_reason == "stop") == (ours.tokens[-1] == common)
        assert ours.finish_reason == "stop" or len(ours.tokens) == 24


def test_more_responses_than_a_batch_holds(engine: MegatronEngine) -> None:
    prompts = random_prompts([6, 5])
    seeds = [[stable_seed(i, j) for j in range(ROWS - 3)] for i in range(2)]
    sampling = SamplingConfig(max_response_length=2)
    found = engine.generate(prompts, sampling, seeds)
    assert [len(group) for group in found] == [ROWS - 3, ROWS - 3]
    assert_same(found[0][-1], engine.generate(prompts[:1], sampling, [seeds[0][-1:]])[0][0])


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
def test_logprobs_equal_the_trainers(engine: MegatronEngine, model: GPTModel, temperature: float, top_p: float) -> None:
    prompts = random_prompts([3, 17, 9])
    sampling = SamplingConfig(max_response_length=30, temperature=temperature, top_p=top_p)
    groups = engine.generate(prompts, sampling, [[stable_seed(i, j) for j in range(3)] for i in range(3)])
    for prompt, group in zip(prompts, groups, strict=True):
        for sample in group:
            assert sample.logprobs == pytest.approx(trainer_logprobs(model, prompt, sample, temperature), abs=1e-4)


def test_generation_uses_the_weights_of_the_moment(engine: MegatronEngine, model: GPTModel) -> None:
    (prompt,) = random_prompts([8])
    sampling, seeds = SamplingConfig(max_response_length=10), [[1, 2]]
    before = engine.generate([prompt], sampling, seeds)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    after = engine.generate([prompt], sampling, seeds)[0][0]
    assert after != before[0][0]
    assert after.logprobs == pytest.approx(trainer_logprobs(model, prompt, after), abs=1e-4)


def test_generation_leaves_the_training_mode(engine: MegatronEngine, model: GPTModel) -> None:
    for training in (True, False):
        model.train(training)
        engine.generate(random_prompts([4]), SamplingConfig(max_response_length=2), [[1]])
        assert model.training is training


def test_response_limit_and_the_end_of_the_window(engine: MegatronEngine) -> None:
    sampling = SamplingConfig(max_response_length=5)
    window = engine.chunks[0].max_sequence_length
    full = MegatronEngine(engine.chunks, -1, PAD)  # never ends by itself
    for length, expected in ((window - 6, 5), (window - 5, 5), (window - 3, 3), (window - 1, 1)):
        ((sample,),) = full.generate(random_prompts([length]), sampling, [[1]])
        assert (len(sample.tokens), sample.finish_reason) == (expected, "length")
    with pytest.raises(ValueError, match=f"prompt 1 has {window} tokens; the model's window is {window}"):
        full.generate(random_prompts([3, window]), sampling, [[1], [2]])
    with pytest.raises(ValueError, match="prompt 0 has 0 tokens"):
        full.generate([[]], sampling, [[1]])


def test_a_long_prompt_in_the_batch_does_not_shorten_other_responses(engine: MegatronEngine) -> None:
    window = engine.chunks[0].max_sequence_length
    full = MegatronEngine(engine.chunks, -1, PAD)
    sampling = SamplingConfig(max_response_length=10)
    short, long = random_prompts([4, window - 3])
    ((alone,),) = full.generate([short], sampling, [[1]])
    (together,), (cut,) = full.generate([short, long], sampling, [[1], [2]])
    assert_same(together, alone)
    assert (len(cut.tokens), cut.finish_reason) == (3, "length")


def test_no_prompts_give_no_responses(engine: MegatronEngine) -> None:
    assert engine.generate([], SamplingConfig(), []) == []


def test_greedy_equals_transformers(tiny_config: Config, model: GPTModel, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = train_tokenizer(["one two three four"], VOCAB)
    write_hf_folder(tiny_config, stream_hf_tensors([model]), tokenizer, tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    engine = MegatronEngine([model], tokenizer.eos_token_id, tokenizer.pad_token_id)
    prompts = random_prompts([3, 17, 9])
    sampling = SamplingConfig(temperature=0.0, max_response_length=24)
    for prompt, (ours,) in zip(prompts, engine.generate(prompts, sampling, [[1], [2], [3]]), strict=True):
        out = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, len(prompt) :].tolist()
        if out != ours.tokens:
            first = next(i for i, (a, b) in enumerate(zip(out, ours.tokens, strict=False)) if a != b)
            with torch.no_grad():
                logits = theirs(torch.tensor([prompt + out[:first]])).logits[0, -1]
            assert abs(logits[out[first]] - logits[ours.tokens[first]]) < 1e-4, "not a tie"
        assert ours.logprobs == pytest.approx(trainer_logprobs(model, prompt, ours), abs=1e-4)


def test_a_failing_grader_stops_the_run_and_names_its_reason() -> None:
    sample = Sample([1], [0.0], "stop")
    record = Record(id="a", domain="algebra", prompt="p")
    verdicts = [Verdict("right"), Verdict("wrong"), Verdict("wrong"), Verdict("ungraded", "no sandbox")]
    group = Group(record, [1], [Response(sample, "", verdict) for verdict in verdicts])
    check_groups([group], 0.25)
    check_groups([], 0.0)
    with pytest.raises(RuntimeError, match=r"25\.0% of the responses were left ungraded .* no sandbox"):
        check_groups([group], 0.24)
