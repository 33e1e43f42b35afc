"""The switches of the algorithm in whole updates through Megatron's training step."""

# ruff: noqa: E402  (torch is patched before Megatron binds its names)
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from test_signal_loop import Policy, group_of, response

from nemo_vibethinker.megatron.platform import install_cpu_platform

install_cpu_platform()

from nemo_vibethinker.config import Config, MgpoConfig, OptimizerConfig, SamplingConfig
from nemo_vibethinker.megatron.checkpoint import save_model
from nemo_vibethinker.megatron.row_logprobs import row_logprobs
from nemo_vibethinker.megatron.train_step import StepResult
from nemo_vibethinker.rollout.responses import Group
from nemo_vibethinker.signal.advantages import AdvantageStd, group_advantages
from nemo_vibethinker.signal.batches import policy_micro_batches, update_batches
from nemo_vibethinker.signal.loop import update, weigh
from nemo_vibethinker.signal.metrics import update_metrics
from nemo_vibethinker.signal.mgpo import mgpo_weights
from nemo_vibethinker.signal.reference import Reference
from nemo_vibethinker.signal.samples import Rollout, TrainingSample, group_samples, shaped_rewards

SWITCHES: dict[str, dict[str, Any]] = {
    "paper": {},
    "sample_std": {"std": "sample"},
    "dr_grpo": {"std": "none", "normalisation": "dr_grpo"},
    "token_mean": {"normalisation": "token_mean"},
    "renormalised": {"renormalise_weights": True},
    "gspo": {"surrogate": "gspo", "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"surrogate": "cispo", "clip_high": 0.3},
    "overlong_mask": {"overlong": "mask"},
    "overlong_soft": {"overlong": "soft"},
    "long2short": {"long2short": 0.2},
    "updates": {"updates_per_rollout": 2, "clip_high": 0.28},
    "kl": {"kl_coef": 0.1},
    "packing": {"packing": "in_order", "tokens_per_micro_batch": 20},
}


def settings(**switches: Any) -> MgpoConfig:
    window = SamplingConfig(max_response_length=8)  # the policy's responses have 4 to 7 tokens
    return MgpoConfig(sampling=window, optimizer=OptimizerConfig(lr=1e-3), **switches)


def unweighted(group: Group, config: MgpoConfig) -> list[TrainingSample]:
    """The samples of plain GRPO, without any code of the weight."""
    rewards_1G = torch.tensor([[float(r.verdict.is_right) for r in group.responses]])
    lengths_1G = torch.tensor([[len(r.sample.tokens) for r in group.responses]])
    shaped_1G = shaped_rewards(rewards_1G, lengths_1G, config)
    advantages = group_advantages(shaped_1G, std=cast(AdvantageStd, config.std))[0].tolist()
    return [TrainingSample(group.prompt, r, a) for r, a in zip(group.responses, advantages, strict=True)]


def step(
    policy: Policy, rollout: Rollout, config: MgpoConfig, folder: Path, engine_is_trainer: bool
) -> list[StepResult]:
    reference = None
    if config.kl_coef:
        save_model([policy.ddp.module], folder)
        reference = Reference(policy.chunks, folder, folder / "later", 0)
        reference.prepare(1)
    return update(
        policy.chunks,
        policy.optimizer,
        rollout,
        config,
        1,
        engine_is_trainer=engine_is_trainer,
        entropy_coefficient=0.01,
        reference=reference,
    )


@pytest.mark.parametrize("engine_is_trainer", [True, False])
@pytest.mark.parametrize("name", SWITCHES)
def test_lambda_zero_is_grpo_bit_for_bit_under_every_switch(
    tiny_config: Config, tmp_path: Path, name: str, engine_is_trainer: bool
) -> None:
    config = settings(lambda_me=0.0, **SWITCHES[name])
    ours, theirs = Policy(tiny_config), Policy(tiny_config)
    plain = Rollout(theirs.groups, [unweighted(group, config) for group in theirs.groups], [0, 1, 2, 3])
    found = step(ours, ours.rollout(config), config, tmp_path / "ours", engine_is_trainer)
    expected = step(theirs, plain, config, tmp_path / "theirs", engine_is_trainer)
    assert found == expected
    assert all(result.applied and result.grad_norm > 0 for result in found)
    for a, b in zip(ours.ddp.parameters(), theirs.ddp.parameters(), strict=True):
        assert torch.equal(a, b)


# Not here: the first on-policy update of cispo and of a reference is that of the paper's form; nothing is cut off.
@pytest.mark.parametrize(
    "name", ["sample_std", "dr_grpo", "token_mean", "renormalised", "gspo", "overlong_soft", "long2short", "updates"]
)
def test_a_switch_changes_the_update(tiny_config: Config, tmp_path: Path, name: str) -> None:
    one, two = Policy(tiny_config), Policy(tiny_config)
    for policy, config in ((one, settings()), (two, settings(**SWITCHES[name]))):
        for _ in range(2):  # at a ratio of 1 gspo has the gradient of the paper's form
            step(policy, policy.rollout(config), config, tmp_path, True)
    assert any(not torch.equal(a, b) for a, b in zip(one.ddp.parameters(), two.ddp.parameters(), strict=True))


def test_masked_responses_count_in_the_group_and_have_no_loss() -> None:
    group = group_of(response("right"), response("wrong"), response("wrong", cut=True, length=8))
    wrong, masked = (group_samples(group, settings(overlong=overlong)) for overlong in ("wrong", "mask"))
    assert [s.advantage for s in masked] == [s.advantage for s in wrong][:2]
    assert len(wrong) == 3


def test_weight_comes_from_the_verdicts_where_rewards_are_shaped() -> None:
    group = group_of(response("right", length=2), response("right", length=4), response("wrong"), response("wrong"))
    shaped = group_samples(group, settings(lambda_me=2.0, long2short=0.2))
    plain = group_samples(group, settings(lambda_me=0.0, long2short=0.2))
    assert [s.advantage for s in shaped] == [s.advantage for s in plain]  # p = 1/2 weighs 1
    assert shaped[0].advantage > shaped[1].advantage > 0
    all_right = group_of(response("right", length=2), response("right", length=4))
    assert group_samples(all_right, settings(long2short=0.2)) == []


@pytest.mark.usefixtures("megatron_config")
def test_renormalised_weights_have_mean_one() -> None:
    groups = [
        group_of(*[response("right")] * right, *[response("wrong")] * (8 - right), identity=str(right))
        for right in (1, 2, 4, 8)
    ]
    config = settings(lambda_me=4.0, renormalise_weights=True)
    found = weigh(groups, range(4), config).samples
    plain = weigh(groups, range(4), replace(config, lambda_me=0.0)).samples
    factors = [ours[0].advantage / theirs[0].advantage for ours, theirs in zip(found, plain, strict=True) if ours]
    assert sum(factors) / 3 == pytest.approx(1)  # the group without variance takes no part
    weights = mgpo_weights(torch.tensor([1 / 8, 2 / 8, 4 / 8]), 4.0)
    assert factors == pytest.approx((weights / weights.mean()).tolist(), rel=1e-5)


# The engine is another program than the trainer


def shifted(policy: Policy, by: float, config: MgpoConfig) -> Rollout:
    """The policy's rollout as an engine reports it whose log-probs are `by` lower than the trainer's."""
    groups = [
        replace(
            group,
            responses=[
                replace(r, sample=replace(r.sample, logprobs=[value - by for value in r.sample.logprobs]))
                for r in group.responses
            ],
        )
        for group in policy.groups
    ]
    return weigh(groups, range(len(groups)), config)


@pytest.mark.parametrize(("by", "weight"), [(0.5, math.exp(0.5)), (-0.5, math.exp(-0.5)), (2.0, 2.0)])
@pytest.mark.parametrize("updates", [1, 2])
def test_importance_weights_correct_for_the_engine(tiny_config: Config, by: float, weight: float, updates: int) -> None:
    config = settings(updates_per_rollout=updates)
    policy, exact = Policy(tiny_config), Policy(tiny_config)
    found = update(policy.chunks, policy.optimizer, shifted(policy, by, config), config, 1, engine_is_trainer=False)
    plain = update(exact.chunks, exact.optimizer, exact.rollout(config), config, 1)
    assert found[0].grad_norm == pytest.approx(weight * plain[0].grad_norm, rel=1e-4)
    metrics, per_token = update_metrics(found[:1]), math.expm1(by) - by
    assert metrics["mismatch_kl"] == pytest.approx(per_token, rel=1e-3)
    assert metrics["ratio_outliers"] == (1.0 if abs(by) > math.log(2) else 0.0)
    assert metrics["policy_kl"] == pytest.approx(0, abs=1e-7)  # the ratio of the loss is to the trainer
    if updates == 2:
        assert update_metrics(found[1:])["policy_kl"] > 1e-7  # and its policy is that of the rollout


def test_no_cap_means_no_correction(tiny_config: Config) -> None:
    config = settings(tis_cap=0.0)
    policy, exact = Policy(tiny_config), Policy(tiny_config)
    found = update(policy.chunks, policy.optimizer, shifted(policy, 1.0, config), config, 1, engine_is_trainer=False)
    plain = update(exact.chunks, exact.optimizer, exact.rollout(config), config, 1)
    assert found[0].grad_norm == pytest.approx(plain[0].grad_norm, rel=1e-4)


def test_row_logprobs_are_those_of_the_sampling_policy(tiny_config: Config) -> None:
    policy, config = Policy(tiny_config), settings(tokens_per_micro_batch=30)
    batches = policy_micro_batches(policy.samples(config), config)
    assert len(batches) > 2
    for batch, row in zip(batches, row_logprobs(policy.chunks, batches, 1.0), strict=True):
        torch.testing.assert_close(row, batch.extra["behaviour_logprobs"], rtol=0, atol=1e-5)
        assert not row.requires_grad


# The reference


def test_reference_stays_while_the_policy_moves_and_is_found_again(tiny_config: Config, tmp_path: Path) -> None:
    policy, config = Policy(tiny_config), settings(kl_coef=0.5)
    save_model([policy.ddp.module], tmp_path / "first")
    (batches,) = update_batches(policy.rollout(config), config)
    at_first = row_logprobs(policy.chunks, batches, 1.0)
    reference = Reference(policy.chunks, tmp_path / "first", tmp_path / "later", 2)
    for number in (1, 2, 3, 4):
        reference.prepare(number)
        weights = [p.clone() for p in policy.ddp.parameters()]
        then = reference.logprobs(batches, 1.0)
        assert all(torch.equal(a, b) for a, b in zip(policy.ddp.parameters(), weights, strict=True))
        if number <= 2:
            assert all(torch.equal(a, b) for a, b in zip(then, at_first, strict=True))
        else:
            assert not torch.equal(then[0], at_first[0])
        resumed = Reference(policy.chunks, tmp_path / "first", tmp_path / "later", 2)
        resumed.prepare(number)
        assert all(torch.equal(a, b) for a, b in zip(then, resumed.logprobs(batches, 1.0), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(policy.ddp.parameters(), weights, strict=True))
        update(policy.chunks, policy.optimizer, policy.rollout(config), config, number, reference=reference)


def test_kl_penalty_holds_the_policy_near_the_reference(tiny_config: Config, tmp_path: Path) -> None:
    moved = []
    for kl_coef in (1e-6, 100.0):
        policy, config = Policy(tiny_config), settings(kl_coef=kl_coef, clip_low=1.0, clip_high=100.0)
        save_model([policy.ddp.module], tmp_path / f"first{kl_coef}")
        reference = Reference(policy.chunks, tmp_path / f"first{kl_coef}", tmp_path / "later", 0)
        reference.prepare(1)
        for _ in range(6):
            (result,) = update(policy.chunks, policy.optimizer, policy.rollout(config), config, 1, reference=reference)
        moved.append(update_metrics([result])["mismatch_kl"])
    assert moved[1] < 0.5 * moved[0]


# Guards


def test_an_update_that_is_not_permitted_leaves_weights_and_optimizer(tiny_config: Config) -> None:
    config = settings(updates_per_rollout=2)
    refused, plain = Policy(tiny_config), Policy(tiny_config)
    before = [p.clone() for p in refused.ddp.parameters()]
    seen: list[StepResult] = []
    results = update(
        refused.chunks, refused.optimizer, refused.rollout(config), config, 1, permit=lambda r: bool(seen.append(r))
    )
    assert len(results) == len(seen) == 1
    assert not results[0].applied
    assert math.isfinite(seen[0].grad_norm)
    assert all(torch.equal(a, b) for a, b in zip(refused.ddp.parameters(), before, strict=True))
    for policy in (refused, plain):  # it goes on as if nothing had been
        assert all(r.applied for r in update(policy.chunks, policy.optimizer, policy.rollout(config), config, 1))
    assert all(torch.equal(a, b) for a, b in zip(refused.ddp.parameters(), plain.ddp.parameters(), strict=True))


def test_a_gradient_that_is_no_number_does_not_reach_the_weights(tiny_config: Config) -> None:
    policy, config = Policy(tiny_config), settings()
    before = [p.clone() for p in policy.ddp.parameters()]
    samples = [[replace(sample, advantage=math.nan) for sample in group] for group in policy.rollout(config).samples]
    (result,) = update(
        policy.chunks,
        policy.optimizer,
        Rollout(policy.groups, samples, [0, 1, 2, 3]),
        config,
        1,
        permit=lambda r: math.isfinite(r.grad_norm),
    )
    assert not result.applied
    assert all(torch.equal(a, b) for a, b in zip(policy.ddp.parameters(), before, strict=True))
