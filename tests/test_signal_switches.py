"""Each switch of the algorithm against its closed form, values and gradients."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nemo_vibethinker.signal.cispo import cispo_surrogate
from nemo_vibethinker.signal.dynamic_sampling import prompts_to_draw
from nemo_vibethinker.signal.entropy_target import entropy_surrogate, next_coefficient
from nemo_vibethinker.signal.importance import truncated_importance_weights
from nemo_vibethinker.signal.long2short import long2short_rewards
from nemo_vibethinker.signal.loss import PolicyLoss, policy_loss
from nemo_vibethinker.signal.overlong import overlong_penalty
from nemo_vibethinker.signal.reference_kl import k3_divergence, reference_step
from nemo_vibethinker.signal.samples import mean_weight
from nemo_vibethinker.signal.sequence_ratio import sequence_mean
from nemo_vibethinker.signal.stage_switch import truncation_plateau, validation_plateau


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradient(compute: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(compute(leaf).sum(), leaf)
    return found


# Rewards by length


@pytest.mark.parametrize(
    ("length", "penalty"), [(1, 0), (80, 0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1), (130, -1)]
)
def test_overlong_penalty(length: int, penalty: float) -> None:
    found = overlong_penalty(torch.tensor([length]), max_length=100, buffer=20)
    assert found.item() == pytest.approx(penalty)


def test_overlong_buffer_of_more_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer must be 1 to 100"):
        overlong_penalty(torch.tensor([3]), max_length=100, buffer=101)


def test_long2short_of_the_report() -> None:
    rewards_PG, lengths_PG = torch.tensor([[1.0, 0.0, 1.0, 1.0]]), torch.tensor([[100, 50, 200, 400]])
    found = long2short_rewards(rewards_PG, lengths_PG, scale=0.2)
    torch.testing.assert_close(found, torch.tensor([[1.2, 0.0, 0.96, 0.84]]))
    assert found.sum().item() == pytest.approx(3.0)  # the shifts sum to zero


@pytest.mark.parametrize(
    ("rewards", "lengths"), [([1, 0, 0], [7, 9, 9]), ([0, 0, 0], [1, 2, 3]), ([1, 1, 1], [7, 7, 7])]
)
def test_long2short_leaves_groups_without_spread_as_they_are(rewards: list[float], lengths: list[int]) -> None:
    rewards_PG = torch.tensor([rewards], dtype=torch.float32)
    assert torch.equal(long2short_rewards(rewards_PG, torch.tensor([lengths]), scale=0.2), rewards_PG)


# Ratios


def loss_of(surrogate: str, logprobs: Tensor, old: Tensor, advantages: Tensor, sequence: Tensor) -> PolicyLoss:
    """Token weights 1/|y| of the sequences, clipping at 0.2 / 0.3."""
    lengths = torch.bincount(sequence)[sequence]
    return policy_loss(
        logprobs,
        old,
        advantages,
        1 / lengths,
        clip_low=0.2,
        clip_high=0.3,
        surrogate=surrogate,  # pyright: ignore[reportArgumentType]
        sequence_mean=lambda values, mask: sequence_mean(values, sequence, mask, lambda sums: sums),
    )


SEQUENCE = torch.tensor([0, 0, 0, 1, 1])
OLD = doubles(-1.0, -2.0, -0.5, -1.5, -0.7)


def test_gspo_is_the_sequence_ratio_with_its_gradient() -> None:
    new, advantages = OLD + doubles(0.3, -0.1, 0.1, -0.2, 0.1), doubles(2.0, 2.0, 2.0, -1.0, -1.0)

    def by_hand(logprobs: Tensor) -> Tensor:
        ratios = [(logprobs[part] - OLD[part]).mean().exp() for part in (slice(0, 3), slice(3, 5))]
        return -(ratios[0] * 2.0 + ratios[1] * -1.0)  # mean log-ratios 0.1 and -0.05: not clipped

    assert loss_of("gspo", new, OLD, advantages, SEQUENCE).loss.item() == pytest.approx(by_hand(new).item())
    ours = gradient(lambda logprobs: loss_of("gspo", logprobs, OLD, advantages, SEQUENCE).loss, new)
    torch.testing.assert_close(ours, gradient(by_hand, new))


def test_gspo_clips_whole_sequences() -> None:
    new, advantages = OLD + doubles(1.5, 0.0, 0.0, 0.4, 0.4), doubles(1.0, 1.0, 1.0, -1.0, -1.0)
    result = loss_of("gspo", new, OLD, advantages, SEQUENCE)
    assert result.loss.item() == pytest.approx(-(1.3 - math.exp(0.4)))  # the first is clipped above, the second is not
    assert result.clip_fraction.item() == pytest.approx(3 / 5)
    found = gradient(lambda logprobs: loss_of("gspo", logprobs, OLD, advantages, SEQUENCE).loss, new)
    assert found[:3].tolist() == [0, 0, 0]
    assert found[3:].tolist() == pytest.approx([math.exp(0.4) / 2] * 2)
    assert result.ratio_max.item() == pytest.approx(math.exp(1.5))  # statistics stay per token


def test_sequence_mean_adds_up_the_parts_of_other_ranks() -> None:
    values, mask = doubles(1.0, 2.0, 9.0, 4.0), torch.tensor([True, True, False, True])
    sequence = torch.tensor([0, 0, 0, 1])
    whole = sequence_mean(values, sequence, mask, lambda sums: sums)
    assert whole.tolist() == [1.5, 1.5, 0, 4]
    other = torch.tensor([[3.0, 0.0], [1.0, 0.0]], dtype=torch.float64)  # another rank: one token of the first, of 3
    assert sequence_mean(values, sequence, mask, lambda sums: sums + other).tolist() == [2, 2, 0, 4]


@pytest.mark.parametrize(("log_ratio", "weight"), [(0.5, 1.3), (0.1, math.exp(0.1)), (-0.9, 0.8)])
@pytest.mark.parametrize("advantage", [2.0, -1.0])
def test_cispo_keeps_the_gradient_of_clipped_tokens(log_ratio: float, weight: float, advantage: float) -> None:
    def surrogate(logprobs: Tensor) -> Tensor:
        return cispo_surrogate(logprobs, (logprobs + 1).exp(), doubles(advantage), clip_low=0.2, clip_high=0.3)

    assert gradient(surrogate, doubles(-1.0 + log_ratio)).item() == pytest.approx(weight * advantage)
    one = torch.tensor([0])
    found = gradient(
        lambda logprobs: loss_of("cispo", logprobs, doubles(-1.0), doubles(advantage), one).loss,
        doubles(-1.0 + log_ratio),
    )
    assert found.item() == pytest.approx(-weight * advantage)


def test_clip_higher_is_asymmetric() -> None:
    one = torch.tensor([0])
    for log_ratio, advantage, term in ((0.25, 1.0, math.exp(0.25)), (0.3, 1.0, 1.3), (-0.3, -1.0, -0.8)):
        loss = loss_of("clip", doubles(log_ratio), doubles(0.0), doubles(advantage), one).loss
        assert loss.item() == pytest.approx(-term)


# Between engine and trainer


def test_truncated_importance_weights() -> None:
    trainer, engine = doubles(-1.0, -1.0, -2.0).requires_grad_(), doubles(-1.0, -3.0, -1.5).requires_grad_()
    weights = truncated_importance_weights(trainer, engine, cap=2.0)
    assert weights.tolist() == pytest.approx([1.0, 2.0, math.exp(-0.5)])
    assert not weights.requires_grad
    with pytest.raises(ValueError, match="1 or more"):
        truncated_importance_weights(trainer, engine, cap=0.5)


def test_importance_weights_multiply_loss_and_gradient() -> None:
    new, old, importance = doubles(-0.9, -2.1), doubles(-1.0, -2.0), doubles(2.0, 0.5).requires_grad_()

    def loss(logprobs: Tensor, weights: Tensor | None) -> Tensor:
        ones = doubles(1.0, 1.0)
        return policy_loss(logprobs, old, ones, ones, clip_low=0.2, clip_high=0.2, importance_N=weights).loss

    ratios = (new - old).exp()
    assert loss(new, importance).item() == pytest.approx(-(2.0 * ratios[0] + 0.5 * ratios[1]).item())
    torch.testing.assert_close(
        gradient(lambda leaf: loss(leaf, importance), new), gradient(lambda leaf: loss(leaf, None), new) * importance
    )
    assert torch.equal(loss(new, doubles(1.0, 1.0)), loss(new, None))


# Reference and entropy


def test_k3_divergence_and_gradient() -> None:
    new, reference = doubles(-1.0, -2.0), doubles(-1.3, -1.0)
    ratios = (reference - new).exp()
    torch.testing.assert_close(k3_divergence(new, reference), ratios - 1 - (reference - new))
    torch.testing.assert_close(gradient(lambda leaf: k3_divergence(leaf, reference), new), 1 - ratios)
    assert (k3_divergence(new, new) == 0).all()
    probabilities, other = doubles(0.25, 0.75), doubles(0.4, 0.6)  # in expectation it is KL(pi || pi_ref)
    expected = (probabilities * (probabilities / other).log()).sum()
    torch.testing.assert_close((probabilities * k3_divergence(probabilities.log(), other.log())).sum(), expected)


@pytest.mark.parametrize(
    ("step", "interval", "taken"), [(1, 0, 0), (99, 0, 0), (1, 4, 0), (4, 4, 0), (5, 4, 4), (9, 4, 8)]
)
def test_reference_is_reset_every_interval(step: int, interval: int, taken: int) -> None:
    assert reference_step(step, interval) == taken


def test_entropy_surrogate_has_the_gradient_of_the_entropy_in_expectation() -> None:
    logits = doubles(0.3, -1.0, 0.7, 0.1)

    def entropy(leaf: Tensor) -> Tensor:
        return torch.special.entr(leaf.softmax(0)).sum()

    def expected_surrogate(leaf: Tensor) -> Tensor:
        logprobs = leaf.log_softmax(0)
        return logprobs.detach().exp() * entropy_surrogate(logprobs, entropy(leaf).detach().expand(4))

    torch.testing.assert_close(gradient(expected_surrogate, logits), gradient(entropy, logits))


def test_entropy_coefficient_moves_towards_the_target() -> None:
    settings = {"target": 0.3, "rate": 0.25, "ceiling": 0.6}
    found = [0.0]
    for entropy in (0.2, 0.1, 0.29, 0.3, 0.5, 0.9, 0.4):
        found.append(next_coefficient(found[-1], entropy, **settings))
    assert found == pytest.approx([0.0, 0.25, 0.5, 0.6, 0.35, 0.1, 0.0, 0.0])


def test_mean_weight_does_not_depend_on_the_order() -> None:
    weights = [0.1, 1e16, 0.3, -1e16, 0.7]
    assert mean_weight(weights) == mean_weight(weights[::-1]) == pytest.approx(1.1 / 5)
    assert mean_weight([]) == 1.0
    assert mean_weight([1.0] * 7) == 1.0  # lambda 0


# Steps and stages


@pytest.mark.parametrize(
    ("useful", "drawn", "available", "redraws", "count"),
    [(5, 8, 100, 0, 3), (8, 8, 100, 0, 0), (5, 8, 10, 0, 2), (5, 8, 8, 0, 0), (5, 8, 100, 2, 0), (0, 8, 100, 1, 8)],
)
def test_prompts_are_drawn_until_enough_are_useful(
    useful: int, drawn: int, available: int, redraws: int, count: int
) -> None:
    found = prompts_to_draw(wanted=8, useful=useful, drawn=drawn, available=available, redraws=redraws, limit=2)
    assert found == count


def test_validation_plateau() -> None:
    rising, level = [0.1, 0.2, 0.3, 0.4], [0.1, 0.4, 0.401, 0.39]
    assert not validation_plateau(rising, patience=2, min_gain=0.01)
    assert validation_plateau(level, patience=2, min_gain=0.01)
    assert not validation_plateau(level, patience=2, min_gain=0.0)
    assert not validation_plateau(level[:2], patience=2, min_gain=0.01)  # too few
    assert not validation_plateau(level, patience=0, min_gain=0.01)


def test_truncation_plateau() -> None:
    assert truncation_plateau([0.5, 0.11, 0.1, 0.1, 0.11], window=2, tolerance=0.01)
    assert not truncation_plateau([0.3, 0.3, 0.1, 0.1], window=2, tolerance=0.01)
    assert not truncation_plateau([0.1, 0.1, 0.1], window=2, tolerance=0.01)
