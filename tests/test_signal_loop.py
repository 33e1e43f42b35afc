"""From graded groups to policy updates, through Megatron's training step."""

# ruff: noqa: E402  (torch is patched before Megatron binds its names)
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nemo_vibethinker.megatron.platform import install_cpu_platform

install_cpu_platform()


from nemo_vibethinker.config import Config, MgpoConfig, OptimizerConfig, SamplingConfig
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.megatron.logprobs import vocab_parallel_logprobs
from nemo_vibethinker.megatron.micro_batch import pack_row
from nemo_vibethinker.megatron.optimizer import build_optimizer
from nemo_vibethinker.megatron.train_step import forward_logits, train_step
from nemo_vibethinker.model.qwen2 import build_model, wrap_for_training
from nemo_vibethinker.reward.verdict import Kind, Verdict
from nemo_vibethinker.rollout.engine import Sample
from nemo_vibethinker.rollout.megatron_engine import MegatronEngine
from nemo_vibethinker.rollout.responses import Group, Response
from nemo_vibethinker.signal.advantages import group_advantages
from nemo_vibethinker.signal.batches import policy_micro_batches
from nemo_vibethinker.signal.loop import update, weigh
from nemo_vibethinker.signal.metrics import rollout_metrics, update_metrics
from nemo_vibethinker.signal.mgpo import mgpo_advantages
from nemo_vibethinker.signal.objective import make_loss
from nemo_vibethinker.signal.prompts import PromptQueue
from nemo_vibethinker.signal.samples import Rollout, TrainingSample, group_samples, reward

VOCAB = 320
RIGHT, WRONG, UNGRADED = Verdict("right"), Verdict("wrong"), Verdict("ungraded", "the grader ran out of time")


def record(identity: str) -> Record:
    return Record(id=identity, domain="algebra", prompt="p", answer="1")


def response(kind: Kind, *, cut: bool = False, length: int = 2) -> Response:
    sample = Sample([5] * length, [-1.0] * length, "length" if cut else "stop")
    return Response(sample, "", Verdict(kind, "the grader ran out of time" if kind == "ungraded" else ""))


def group_of(*responses: Response, identity: str = "a") -> Group:
    return Group(record(identity), [1, 2, 3], list(responses))


# From verdicts to advantages


def test_reward_of_a_response() -> None:
    assert reward(response("right")) == 1.0
    assert reward(response("wrong")) == 0.0
    assert reward(response("ungraded")) is None
    assert reward(response("right", cut=True)) == 0.0
    assert reward(response("ungraded", cut=True)) == 0.0


@pytest.mark.parametrize("std", ["population", "sample", "none"])
def test_group_samples_have_mgpo_advantages_of_their_graded_responses(std: str) -> None:
    group = group_of(
        response("wrong"), response("ungraded"), response("right"), response("right", cut=True), response("wrong")
    )
    samples = group_samples(group, MgpoConfig(lambda_me=2.0, std=std))
    assert [sample.response for sample in samples] == [group.responses[i] for i in (0, 2, 3, 4)]
    expected = mgpo_advantages(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), lambda_me=2.0, std=std)  # pyright: ignore
    assert [sample.advantage for sample in samples] == expected[0].tolist()
    # By hand for the population: w = exp(-2 * KL(1/4 || 1/2)), A = (r - 1/4) / sqrt(3/16).
    if std == "population":
        divergence = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
        by_hand = [math.exp(-2 * divergence) * (r - 0.25) / math.sqrt(3 / 16) for r in (0, 1, 0, 0)]
        assert [sample.advantage for sample in samples] == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize(
    "group",
    [
        group_of(response("right"), response("right")),
        group_of(response("wrong"), response("wrong", cut=True)),
        group_of(response("right"), response("ungraded")),
        group_of(response("ungraded"), response("ungraded")),
    ],
)
def test_a_group_without_variance_gives_no_samples(group: Group) -> None:
    assert group_samples(group, MgpoConfig()) == []


@pytest.mark.usefixtures("megatron_config")
def test_rollout_metrics_closed_form() -> None:
    config = MgpoConfig(group_size=4, lambda_me=1.0)
    groups = [
        group_of(response("right"), response("wrong"), response("wrong", cut=True, length=8), response("ungraded")),
        group_of(*[response("right", length=4)] * 4, identity="b"),
        group_of(*[response("ungraded")] * 4, identity="c"),
    ]
    found = rollout_metrics(weigh(groups, range(3), config), config)
    weight_of_a_third = math.exp(-(math.log(2 / 3) / 3 + 2 / 3 * math.log(4 / 3)))
    assert found == {
        "prompts": 3,
        "reward": pytest.approx(5 / 7),
        "pass_at_4": pytest.approx(2 / 3),
        "w_me": pytest.approx((weight_of_a_third + 0.5) / 2, rel=1e-5),
        "response_length": pytest.approx((2 + 2 + 8 + 2 + 16 + 8) / 12),
        "truncated_share": pytest.approx(1 / 12),
        "zero_variance_share": pytest.approx(2 / 3),
        "ungraded_share": pytest.approx(5 / 12),
        "ungraded_reasons": ["the grader ran out of time"],
        "p_correct_counts": [0, 1, 0, 0, 1],  # a third of the graded ones, and all
    }


# Updates


class Policy:
    """A tiny model with its optimizer, and groups sampled from it. Verdicts are drawn at random."""

    def __init__(self, config: Config, optimizer: OptimizerConfig | None = None, groups: int = 4) -> None:
        self.chunks = wrap_for_training(config, [build_model(config, VOCAB)])
        (self.ddp,) = self.chunks
        self.optimizer = build_optimizer(self.chunks, optimizer or OptimizerConfig(lr=1e-3, eps=1e-4))
        generator = torch.Generator().manual_seed(1)
        prompts = torch.randint(3, VOCAB, (groups, 6), generator=generator).tolist()
        engine = MegatronEngine([self.ddp.module], eos_token_id=2, pad_token_id=0)
        sampled = engine.generate(
            prompts, SamplingConfig(max_response_length=9), [[10 * i + j for j in range(4)] for i in range(groups)]
        )
        self.groups = []
        for index, (prompt, samples) in enumerate(zip(prompts, sampled, strict=True)):
            # Of different lengths, so that the normalisations differ, and not cut, so that verdicts count.
            whole = [Sample(s.tokens[: 4 + j], s.logprobs[: 4 + j], "stop") for j, s in enumerate(samples)]
            verdicts = [RIGHT if j <= index % 3 else WRONG for j in range(4)]
            responses = [Response(s, "", v) for s, v in zip(whole, verdicts, strict=True)]
            self.groups.append(Group(record(f"p{index}"), prompt, responses))

    def rollout(self, config: MgpoConfig) -> Rollout:
        return weigh(self.groups, range(len(self.groups)), config)

    def samples(self, config: MgpoConfig) -> list[TrainingSample]:
        return [sample for samples in self.rollout(config).samples for sample in samples]

    def logprob(self, sample: TrainingSample) -> float:
        """Log-prob of a whole response under the policy as it is."""
        tokens = sample.prompt + sample.response.sample.tokens
        batch = pack_row([(tokens, len(sample.prompt))], [1.0])
        with torch.no_grad():
            logprobs = vocab_parallel_logprobs(forward_logits(self.ddp, batch), batch.targets[None])[0]
        return float((logprobs * batch.loss_weights).sum())

    def gradients(self) -> list[Tensor]:
        return [p.main_grad.clone() for p in self.ddp.module.parameters()]


def test_lambda_zero_is_grpo_bit_for_bit(tiny_config: Config) -> None:
    mgpo = MgpoConfig(lambda_me=0.0)
    first, second = Policy(tiny_config), Policy(tiny_config)
    ours = first.samples(mgpo)
    theirs = []
    for group in second.groups:
        rewards = torch.tensor([[float(r.verdict.is_right) for r in group.responses]])
        advantages = group_advantages(rewards, std="population")[0].tolist()
        theirs += [TrainingSample(group.prompt, r, a) for r, a in zip(group.responses, advantages, strict=True)]
    results = [
        train_step(policy.chunks, policy.optimizer, policy_micro_batches(samples, mgpo), make_loss(mgpo))
        for policy, samples in ((first, ours), (second, theirs))
    ]
    assert results[0] == results[1]
    assert results[0].grad_norm > 0
    for a, b in zip(first.gradients(), second.gradients(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first.ddp.parameters(), second.ddp.parameters(), strict=True):
        assert torch.equal(a, b)


def test_lambda_changes_the_gradient(tiny_config: Config) -> None:
    norms = []
    for weight in (0.0, 4.0):
        policy, mgpo = Policy(tiny_config), MgpoConfig(lambda_me=weight)
        batches = policy_micro_batches(policy.samples(mgpo), mgpo)
        norms.append(train_step(policy.chunks, policy.optimizer, batches, make_loss(mgpo)).grad_norm)
    assert norms[1] < 0.9 * norms[0]  # no group is further from 1/2 than p = 3/4, whose weight is exp(-4 * 0.13)


def test_ratio_is_one_at_first_and_not_after_an_update(tiny_config: Config) -> None:
    policy, mgpo = Policy(tiny_config), MgpoConfig()
    batches = policy_micro_batches(policy.samples(mgpo), mgpo)
    first, second = (
        update_metrics([train_step(policy.chunks, policy.optimizer, batches, make_loss(mgpo))]) for _ in range(2)
    )
    assert first["ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert first["mismatch_kl"] == pytest.approx(0, abs=1e-8)
    assert first["clip_fraction"] == 0
    assert second["mismatch_kl"] > 1e-5
    assert abs(second["ratio_mean"] - 1) > 1e-4


def test_updates_of_one_rollout_share_its_behaviour_policy(tiny_config: Config) -> None:
    policy = Policy(tiny_config)
    mgpo = MgpoConfig(updates_per_rollout=2, optimizer=OptimizerConfig(lr=1e-3))
    first, second = update(policy.chunks, policy.optimizer, policy.rollout(mgpo), mgpo, step=1)
    kls = [result.statistics["kl"] / result.statistics["tokens"] for result in (first, second)]
    assert kls[0] == pytest.approx(0, abs=1e-8)
    assert kls[1] > 1e-6
    tokens = sum(len(sample.response.sample.tokens) for sample in policy.samples(mgpo))
    assert first.statistics["tokens"] + second.statistics["tokens"] == tokens


def test_update_moves_probability_from_wrong_to_right(tiny_config: Config) -> None:
    policy, mgpo = Policy(tiny_config, OptimizerConfig(lr=1e-3)), MgpoConfig(optimizer=OptimizerConfig(lr=1e-3))
    samples = policy.samples(mgpo)
    before = [policy.logprob(sample) for sample in samples]
    (result,) = update(policy.chunks, policy.optimizer, policy.rollout(mgpo), mgpo, step=1)
    assert result.applied
    moved = [policy.logprob(sample) - start for sample, start in zip(samples, before, strict=True)]
    for sample, change in zip(samples, moved, strict=True):
        assert change * sample.advantage > 0, sample


def test_no_variance_anywhere_means_no_update(tiny_config: Config) -> None:
    policy, mgpo = Policy(tiny_config), MgpoConfig()
    before = [p.clone() for p in policy.ddp.parameters()]
    all_right = [replace(g, responses=[replace(r, verdict=RIGHT) for r in g.responses]) for g in policy.groups]
    rollout = weigh(all_right, range(len(all_right)), mgpo)
    assert update(policy.chunks, policy.optimizer, rollout, mgpo, step=1) == []
    assert update_metrics([]) == {}
    assert all(torch.equal(a, b) for a, b in zip(policy.ddp.parameters(), before, strict=True))


def test_learning_rate_warms_up(tiny_config: Config) -> None:
    policy = Policy(tiny_config, groups=2)
    rates = []
    for step, warmup in ((1, 4), (3, 4), (4, 4), (9, 4), (1, 0)):
        mgpo = MgpoConfig(warmup_steps=warmup, optimizer=OptimizerConfig(lr=8e-6))
        update(policy.chunks, policy.optimizer, policy.rollout(mgpo), mgpo, step)
        rates.append(policy.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2e-6, 6e-6, 8e-6, 8e-6, 8e-6])


@pytest.mark.parametrize("normalisation", ["sequence_mean", "token_mean", "dr_grpo"])
def test_loss_closed_form(tiny_config: Config, normalisation: str) -> None:
    mgpo = MgpoConfig(normalisation=normalisation, sampling=SamplingConfig(max_response_length=50))
    # Response length, advantage, ratio to the behaviour policy, and min(rho A, clip(rho, 0.8, 1.2) A).
    cases = [(5, 2.0, 1.5, 2.4), (3, -1.0, 1.5, -1.5), (4, -1.0, 0.5, -0.8), (6, 3.0, 0.5, 1.5), (7, 0.5, 1.0, 0.5)]
    policy = Policy(tiny_config, groups=1)
    samples = []
    for length, advantage, ratio, _ in cases:
        tokens = list(range(10 + length, 10 + 2 * length))
        batch = pack_row([([7, 8, 9, *tokens], 3)], [1.0])
        with torch.no_grad():
            now = vocab_parallel_logprobs(forward_logits(policy.ddp, batch), batch.targets[None])[0, 2:-1]
        sample = Sample(tokens, (now - math.log(ratio)).tolist(), "stop")
        samples.append(TrainingSample([7, 8, 9], Response(sample, "", RIGHT), advantage))
    tokens = sum(length for length, *_ in cases)
    expected = {
        "sequence_mean": -sum(term for *_, term in cases) / len(cases),
        "token_mean": -sum(length * term for length, _, _, term in cases) / tokens,
        "dr_grpo": -sum(length * term for length, _, _, term in cases) / (len(cases) * 50),
    }
    for room in (8192, 20):  # one micro-batch, or several
        fresh = Policy(tiny_config, groups=1)
        batches = policy_micro_batches(samples, replace(mgpo, tokens_per_micro_batch=room))
        result = train_step(fresh.chunks, fresh.optimizer, batches, make_loss(mgpo))
        assert result.loss == pytest.approx(expected[normalisation], rel=1e-4)
        metrics = update_metrics([result])
        assert metrics["clip_fraction"] == pytest.approx(9 / tokens)  # the first and the third
        assert metrics["ratio_mean"] == pytest.approx(sum(n * rho for n, _, rho, _ in cases) / tokens, rel=1e-4)


def test_loss_is_that_of_the_sampling_temperature(tiny_config: Config) -> None:
    policy = Policy(tiny_config)
    engine = MegatronEngine([policy.ddp.module], eos_token_id=2, pad_token_id=0)
    mgpo = MgpoConfig(sampling=SamplingConfig(temperature=0.6, max_response_length=8))
    ((one, two),) = engine.generate([[5, 6, 7]], mgpo.sampling, [[1, 2]])
    samples = [TrainingSample([5, 6, 7], Response(s, "", RIGHT), a) for s, a in ((one, 1.0), (two, -1.0))]
    result = train_step(policy.chunks, policy.optimizer, policy_micro_batches(samples, mgpo), make_loss(mgpo))
    assert update_metrics([result])["mismatch_kl"] == pytest.approx(0, abs=1e-8)


def test_micro_batches_hold_every_sample_once_within_their_room(tiny_config: Config) -> None:
    policy, mgpo = Policy(tiny_config), MgpoConfig(tokens_per_micro_batch=30)
    samples = policy.samples(mgpo)
    batches = policy_micro_batches(samples, mgpo)
    lengths = [len(s.prompt) + len(s.response.sample.tokens) for s in samples]
    assert [length for batch in batches for length in batch.lengths] == lengths
    assert all(sum(batch.lengths) <= 30 for batch in batches)
    longest = policy_micro_batches(samples, MgpoConfig(tokens_per_micro_batch=5))
    assert [batch.lengths for batch in longest] == [[length] for length in lengths]


def test_a_rank_without_samples_takes_part_and_weighs_nothing(tiny_config: Config) -> None:
    mgpo = MgpoConfig()
    first, second = Policy(tiny_config), Policy(tiny_config)
    batches = policy_micro_batches(first.samples(mgpo), mgpo)
    (empty,) = policy_micro_batches([], mgpo)
    alone = train_step(first.chunks, first.optimizer, batches, make_loss(mgpo))
    both = train_step(second.chunks, second.optimizer, [*batches, empty], make_loss(mgpo))
    assert (both.count, both.statistics["tokens"]) == (alone.count, alone.statistics["tokens"])
    assert both.grad_norm == pytest.approx(alone.grad_norm, rel=1e-5)
    for a, b in zip(first.gradients(), second.gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


# Prompts of a step


@pytest.mark.parametrize(("total", "count"), [(12, 4), (7, 3), (5, 4), (3, 2), (4, 4)])
def test_steps_take_every_prompt_equally_often_and_never_twice_at_once(total: int, count: int) -> None:
    queue = PromptQueue([record(f"p{i}") for i in range(total)], seed=3)
    steps = [queue.draw(count) for _ in range(4 * total)]
    assert all(len({r.id for r in batch}) == count for batch in steps)
    drawn = [r.id for batch in steps for r in batch]
    assert {identity: drawn.count(identity) for identity in drawn} == {f"p{i}": 4 * count for i in range(total)}


def test_prompts_of_a_step_are_a_function_of_the_seed_and_of_how_many_were_drawn() -> None:
    prompts = [record(f"p{i}") for i in range(30)]
    queue = PromptQueue(prompts, seed=1)
    first, second = queue.draw(8), queue.draw(8)
    assert PromptQueue(list(prompts), seed=1, drawn=8).draw(8) == second
    assert PromptQueue(prompts, seed=2).draw(8) != first


def test_fewer_prompts_than_a_step_wants_are_all_taken() -> None:
    queue = PromptQueue([record(f"p{i}") for i in range(3)], seed=0)
    for _ in range(3):
        assert {r.id for r in queue.draw(8)} == {"p0", "p1", "p2"}
    assert queue.drawn == 9
