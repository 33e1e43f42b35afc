"""Advantages, the MGPO weight and the policy loss against closed forms."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from nemo_vibethinker.signal.advantages import AdvantageStd, group_advantages, nonzero_variance_groups
from nemo_vibethinker.signal.loss import LossNormalisation, PolicyLoss, loss_denominator, policy_loss, token_weight
from nemo_vibethinker.signal.mgpo import max_entropy_divergence, mgpo_advantages, mgpo_weights

STDS: list[AdvantageStd] = ["population", "sample", "none"]
NORMALISATIONS: list[LossNormalisation] = ["sequence_mean", "token_mean", "dr_grpo"]
ONE_OF_EIGHT_PG = torch.tensor([[1.0] + [0.0] * 7])


def random_rewards_PG(prompts: int = 64, group: int = 8) -> Tensor:
    return (torch.rand(prompts, group, generator=torch.Generator().manual_seed(0)) < 0.3).float()


# Advantages


@pytest.mark.parametrize(
    ("std", "right", "wrong"), [("population", 2.6458, -0.37796), ("sample", 2.4749, -0.35355), ("none", 0.875, -0.125)]
)
def test_advantages_of_one_right_answer_in_eight(std: AdvantageStd, right: float, wrong: float) -> None:
    advantages_PG = group_advantages(ONE_OF_EIGHT_PG, std=std)
    torch.testing.assert_close(advantages_PG, torch.tensor([[right] + [wrong] * 7]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("std", STDS)
def test_equal_rewards_have_exactly_zero_advantage(std: AdvantageStd) -> None:
    # The mean of seven times 0.1 is not 0.1 in fp32.
    rewards_PG = torch.stack([torch.full((7,), value) for value in (0.0, 0.1, 1.0, 1e8)])
    assert torch.equal(group_advantages(rewards_PG, std=std), torch.zeros(4, 7))


def test_nonzero_variance_groups() -> None:
    rewards_PG = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert nonzero_variance_groups(rewards_PG).tolist() == [False, False, True, True]


def test_integer_rewards_equal_float_rewards() -> None:
    expected_PG = group_advantages(ONE_OF_EIGHT_PG, std="sample")
    assert torch.equal(group_advantages(ONE_OF_EIGHT_PG.long(), std="sample"), expected_PG)
    assert torch.equal(group_advantages(ONE_OF_EIGHT_PG.bool(), std="sample"), expected_PG)


def test_advantages_reject_lone_responses_and_unknown_std() -> None:
    with pytest.raises(ValueError, match="group >= 2"):
        group_advantages(torch.ones(3, 1), std="sample")
    with pytest.raises(ValueError, match="std must be"):
        group_advantages(ONE_OF_EIGHT_PG, std="biased")  # pyright: ignore[reportArgumentType]


# MGPO

W_ME_TABLE = [  # 16 p, divergence, weights at lambda 0.5, 1, 2, 4
    (1, 0.4594, 0.7948, 0.6317, 0.399, 0.1592),
    (2, 0.3164, 0.8537, 0.7288, 0.5311, 0.2821),
    (3, 0.2106, 0.9001, 0.8101, 0.6563, 0.4307),
    (4, 0.1308, 0.9367, 0.8774, 0.7698, 0.5926),
    (5, 0.0721, 0.9646, 0.9305, 0.8658, 0.7496),
    (6, 0.0316, 0.9843, 0.9689, 0.9388, 0.8813),
    (7, 0.0078, 0.9961, 0.9922, 0.9845, 0.9692),
    (8, 0.0, 1.0, 1.0, 1.0, 1.0),
]


@pytest.mark.parametrize("row", W_ME_TABLE)
def test_weight_table(row: tuple[float, ...]) -> None:
    sixteenths, divergence, *weights = row
    for p in (sixteenths / 16, 1 - sixteenths / 16):
        p_correct_P = torch.tensor([p])
        assert max_entropy_divergence(p_correct_P).item() == pytest.approx(divergence, abs=1e-4)
        for lambda_me, weight in zip((0.5, 1.0, 2.0, 4.0), weights, strict=True):
            assert mgpo_weights(p_correct_P, lambda_me).item() == pytest.approx(weight, abs=1e-4)


@pytest.mark.parametrize("lambda_me", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_weight_at_the_ends_and_the_middle(lambda_me: float) -> None:
    weights_P = mgpo_weights(torch.tensor([0.0, 1.0, 0.5]), lambda_me)
    torch.testing.assert_close(weights_P, torch.tensor([2.0**-lambda_me, 2.0**-lambda_me, 1.0]))
    assert weights_P[2].item() == 1.0


def test_divergence_is_log_two_minus_entropy() -> None:
    p_P = torch.linspace(0, 1, 101, dtype=torch.float64)
    entropy_P = torch.special.entr(p_P) + torch.special.entr(1 - p_P)
    torch.testing.assert_close(max_entropy_divergence(p_P), math.log(2) - entropy_P, rtol=0, atol=1e-15)
    assert (max_entropy_divergence(torch.linspace(0, 1, 1001)) >= 0).all()


def test_weights_fall_with_distance_from_one_half() -> None:
    weights = mgpo_weights(torch.linspace(0.5, 1, 9), 1.0).tolist()
    assert all(nearer > farther for nearer, farther in pairwise(weights))


def test_lambda_zero_gives_ones_and_negative_is_rejected() -> None:
    assert torch.equal(mgpo_weights(torch.tensor([0.0, 0.3, 0.5, 1.0]), 0.0), torch.ones(4))
    with pytest.raises(ValueError, match="lambda_me"):
        mgpo_weights(torch.tensor([0.5]), -1.0)


def test_weight_is_detached() -> None:
    p_correct_P = torch.tensor([0.2, 0.5], requires_grad=True)
    assert not mgpo_weights(p_correct_P, 1.0).requires_grad


def test_mgpo_advantage_of_one_right_answer_in_eight() -> None:
    assert mgpo_weights(torch.tensor([1 / 8]), 1.0).item() == pytest.approx(0.72878, abs=5e-6)
    advantages_PG = mgpo_advantages(ONE_OF_EIGHT_PG, lambda_me=1.0, std="sample")
    assert advantages_PG[0, 0].item() == pytest.approx(1.8036, abs=1e-4)


@pytest.mark.parametrize("std", STDS)
def test_lambda_zero_is_grpo_bit_for_bit(std: AdvantageStd) -> None:
    rewards_PG = random_rewards_PG()
    mgpo_PG = mgpo_advantages(rewards_PG, lambda_me=0.0, std=std)
    assert torch.equal(mgpo_PG.view(torch.int32), group_advantages(rewards_PG, std=std).view(torch.int32))


@pytest.mark.parametrize("std", ["population", "sample"])
def test_scaling_the_rewards_is_a_no_op_but_the_weight_is_not(std: AdvantageStd) -> None:
    rewards_PG = random_rewards_PG()
    weights_P = mgpo_weights(rewards_PG.mean(dim=1), 1.0)
    plain_PG = group_advantages(rewards_PG, std=std, eps=0.0)
    scaled_PG = group_advantages(weights_P[:, None] * rewards_PG, std=std, eps=0.0)
    torch.testing.assert_close(scaled_PG, plain_PG)
    mgpo_PG = mgpo_advantages(rewards_PG, lambda_me=1.0, std=std, eps=0.0)
    torch.testing.assert_close(mgpo_PG, weights_P[:, None] * plain_PG)
    assert (mgpo_PG - plain_PG).abs().max() > 0.1


def test_dr_grpo_equals_mgpo_with_lambda_one_near_one_half() -> None:
    # sqrt(4 p (1 - p)) and exp(-KL(p || 1/2)) are both 1 - 2 (p - 1/2)^2 to second order.
    p_P = torch.tensor([0.49, 0.5, 0.51], dtype=torch.float64)
    torch.testing.assert_close(mgpo_weights(p_P, 1.0), (4 * p_P * (1 - p_P)).sqrt(), rtol=0, atol=1e-7)


def test_shaped_rewards_are_rejected() -> None:
    with pytest.raises(ValueError, match="shaped rewards"):
        mgpo_advantages(torch.tensor([[1.2, 0.0]]), lambda_me=1.0, std="population")


# Policy loss


def loss_of(
    logprobs: list[float], old: list[float], advantages: list[float], weights: list[float]
) -> tuple[PolicyLoss, Tensor]:
    """The loss of hand-written tokens with clipping at 0.2 / 0.28, and its gradient by the log-probs."""
    leaves = [
        torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in (logprobs, old, advantages, weights)
    ]
    result = policy_loss(*leaves, clip_low=0.2, clip_high=0.28)
    (gradient,) = torch.autograd.grad(result.loss, leaves[0])
    return result, gradient


def test_loss_and_gradient_by_the_logits_equal_the_closed_form() -> None:
    # One token over a vocabulary of three: d loss / d logits = -w * rho * A * (onehot - softmax).
    logits_V = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64, requires_grad=True)
    old = math.log(0.30)
    logprob = torch.log_softmax(logits_V, dim=0)[1]
    result = policy_loss(
        logprob[None],
        torch.tensor([old], dtype=torch.float64),
        torch.tensor([1.5], dtype=torch.float64),
        torch.tensor([0.25], dtype=torch.float64),
        clip_low=0.2,
        clip_high=0.2,
    )
    result.loss.backward()
    probabilities_V = torch.softmax(logits_V.detach(), dim=0)
    ratio = probabilities_V[1] / 0.30
    assert 0.8 < ratio < 1
    torch.testing.assert_close(result.loss.detach(), -0.25 * ratio * 1.5)
    onehot_V = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(logits_V.grad, -0.25 * ratio * 1.5 * (onehot_V - probabilities_V))
    torch.testing.assert_close(result.ratio_mean, ratio)


def test_on_policy_gradient_is_the_weighted_advantage() -> None:
    result, gradient_N = loss_of([-0.5, -2.0], [-0.5, -2.0], [2.0, -1.0], [0.25, 0.5])
    assert result.loss.item() == -(0.25 * 2.0 - 0.5 * 1.0)
    assert gradient_N.tolist() == [-0.5, 0.5]
    assert (result.ratio_mean, result.ratio_max, result.clip_fraction, result.kl) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "is_clipped"),
    [
        (1.5, 1.0, 1.28, True),
        (1.5, -1.0, -1.5, False),
        (0.5, 1.0, 0.5, False),
        (0.5, -1.0, -0.8, True),
        (1.2, 1.0, 1.2, False),
        (0.9, -1.0, -0.9, False),
    ],
)
def test_clipping(ratio: float, advantage: float, surrogate: float, is_clipped: bool) -> None:
    result, gradient_N = loss_of([math.log(ratio) - 1], [-1.0], [advantage], [1.0])
    assert result.loss.item() == pytest.approx(-surrogate)
    assert gradient_N.item() == pytest.approx(0.0 if is_clipped else -ratio * advantage)
    assert (gradient_N.item() == 0.0) == is_clipped
    assert result.clip_fraction.item() == is_clipped


def test_the_ratio_is_per_token() -> None:
    # exp of the summed log-ratios would be 1 for both tokens.
    result, gradient_N = loss_of([-0.9, -1.1], [-1.0, -1.0], [1.0, 1.0], [1.0, 1.0])
    assert gradient_N.tolist() == pytest.approx([-math.exp(0.1), -math.exp(-0.1)])
    assert result.ratio_max.item() == pytest.approx(math.exp(0.1))


def test_statistics_are_means_over_response_tokens_and_detached() -> None:
    ratios, advantages = [1.5, 1.0, 0.5, 9.0], [1.0, 1.0, 1.0, 1.0]
    result, _ = loss_of([math.log(ratio) for ratio in ratios], [0.0] * 4, advantages, [0.1, 0.1, 0.1, 0.0])
    assert result.num_tokens.item() == 3
    assert result.ratio_mean.item() == pytest.approx(1.0)
    assert result.ratio_max.item() == pytest.approx(1.5)
    assert result.clip_fraction.item() == pytest.approx(1 / 3)
    assert result.kl.item() == pytest.approx(sum(r - 1 - math.log(r) for r in ratios[:3]) / 3)
    statistics = (result.ratio_mean, result.ratio_max, result.clip_fraction, result.kl, result.num_tokens)
    assert result.loss.requires_grad
    assert not any(statistic.requires_grad for statistic in statistics)


def test_kl_estimate_is_unbiased() -> None:
    # Tokens in the exact proportions of the behaviour policy (1/4, 3/4): the mean of k3 is KL(behaviour || current).
    behaviour, current = [0.25, 0.75], [0.4, 0.6]
    tokens = [0, 1, 1, 1]
    result, _ = loss_of(
        [math.log(current[t]) for t in tokens], [math.log(behaviour[t]) for t in tokens], [1.0] * 4, [1.0] * 4
    )
    expected = sum(b * math.log(b / c) for b, c in zip(behaviour, current, strict=True))
    assert result.kl.item() == pytest.approx(expected)


def test_gradient_flows_through_the_logprobs_alone() -> None:
    logprobs_N, old_N, advantages_N = (torch.full((3,), value, requires_grad=True) for value in (-1.0, -1.1, 0.5))
    policy_loss(logprobs_N, old_N, advantages_N, torch.full((3,), 0.1), clip_low=0.2, clip_high=0.2).loss.backward()
    assert logprobs_N.grad is not None
    assert old_N.grad is None
    assert advantages_N.grad is None


def test_prompt_and_padding_tokens_are_ignored_whatever_their_logprobs() -> None:
    junk = [math.nan, -math.inf, math.inf, 1e30]
    result, gradient_N = loss_of([-1.0, *junk], [-1.1, *junk[::-1]], [1.0] * 5, [0.5, 0.0, 0.0, 0.0, 0.0])
    assert result.loss.item() == pytest.approx(-0.5 * math.exp(0.1))
    assert gradient_N.tolist() == pytest.approx([-0.5 * math.exp(0.1), 0.0, 0.0, 0.0, 0.0])
    assert result.ratio_max.item() == pytest.approx(math.exp(0.1))


def test_a_micro_batch_without_response_tokens_contributes_zero() -> None:
    result, gradient_N = loss_of([-1.0, -2.0], [-1.5, -2.5], [1.0, 1.0], [0.0, 0.0])
    assert gradient_N.tolist() == [0.0, 0.0]
    for value in (result.loss, result.ratio_mean, result.ratio_max, result.clip_fraction, result.kl, result.num_tokens):
        assert value.item() == 0


def token_weights(lengths: Sequence[int], normalisation: LossNormalisation, **counts: int) -> Tensor:
    """Weights that sum to the loss of a whole step: `token_weight` over `loss_denominator`."""
    denominator = loss_denominator(normalisation, **counts)
    weights = [token_weight(length, normalisation) / denominator if length else 0.0 for length in lengths]
    return torch.tensor(weights, dtype=torch.float32)


def test_token_weights_by_hand() -> None:
    counts = {"num_sequences": 3, "num_tokens": 10, "max_response_length": 16}
    expected = {"sequence_mean": [1 / 6, 0, 1 / 24], "token_mean": [0.1, 0, 0.1], "dr_grpo": [1 / 48, 0, 1 / 48]}
    for normalisation in NORMALISATIONS:
        weights_B = token_weights([2, 0, 8], normalisation, **counts)
        torch.testing.assert_close(weights_B, torch.tensor(expected[normalisation], dtype=torch.float32))
    with pytest.raises(ValueError, match="normalisation must be"):
        token_weight(2, "mean")  # pyright: ignore[reportArgumentType]


class Batch:
    """Seven sequences of ragged lengths, one of them empty, with logprobs that drifted off the behaviour policy."""

    lengths = (3, 11, 0, 1, 6, 2, 9)
    max_response_length = 12

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.old = [torch.randn(length, generator=generator, dtype=torch.float64) - 2 for length in self.lengths]
        self.new = [old + 0.3 * torch.randn(len(old), generator=generator, dtype=torch.float64) for old in self.old]
        self.advantages_B = torch.randn(len(self.lengths), generator=generator, dtype=torch.float64)

    def packed_loss(self, indices: list[int], normalisation: LossNormalisation) -> tuple[PolicyLoss, Tensor]:
        """Loss of some of the sequences packed into one [1, T] row, with the counts of the whole batch."""
        lengths_B = torch.tensor([self.lengths[index] for index in indices])
        weights_B = token_weights(
            lengths_B.tolist(),
            normalisation,
            num_sequences=len(self.lengths),
            num_tokens=sum(self.lengths),
            max_response_length=self.max_response_length,
        )
        logprobs_1T = torch.cat([self.new[index] for index in indices])[None].requires_grad_()
        result = policy_loss(
            logprobs_1T,
            torch.cat([self.old[index] for index in indices])[None],
            self.advantages_B[indices].repeat_interleave(lengths_B)[None],
            weights_B.repeat_interleave(lengths_B)[None],
            clip_low=0.2,
            clip_high=0.28,
        )
        (gradient_1T,) = torch.autograd.grad(result.loss, logprobs_1T)
        return result, gradient_1T[0]

    def surrogate(self, index: int) -> Tensor:
        ratio_T = torch.exp(self.new[index] - self.old[index])
        advantage = self.advantages_B[index]
        return torch.minimum(ratio_T * advantage, ratio_T.clamp(0.8, 1.28) * advantage)


def test_normalisations_equal_their_formulas() -> None:
    batch = Batch()
    surrogates = [batch.surrogate(index) for index in range(7)]
    expected = {
        "sequence_mean": -sum(s.mean().item() for s in surrogates if len(s)) / 7,
        "token_mean": -torch.cat(surrogates).mean().item(),
        "dr_grpo": -torch.cat(surrogates).sum().item() / (7 * batch.max_response_length),
    }
    for normalisation in NORMALISATIONS:
        result, _ = batch.packed_loss(list(range(7)), normalisation)
        assert result.loss.item() == pytest.approx(expected[normalisation], rel=1e-6)
        assert 0 < result.clip_fraction < 1


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize(
    "split", [[[0], [1], [2], [3], [4], [5], [6]], [[0, 1, 2], [3, 4, 5, 6]], [[0, 1, 2, 3, 4, 5], [6]]]
)
def test_the_sum_over_micro_batches_does_not_depend_on_the_split(
    normalisation: LossNormalisation, split: list[list[int]]
) -> None:
    batch = Batch()
    whole, whole_gradient_N = batch.packed_loss(list(range(7)), normalisation)
    if [2] in split:  # a row of no tokens at all cannot be packed
        split = [indices for indices in split if indices != [2]]
    parts = [batch.packed_loss(indices, normalisation) for indices in split]
    assert sum(part.loss.item() for part, _ in parts) == pytest.approx(whole.loss.item(), rel=1e-12)
    torch.testing.assert_close(torch.cat([gradient_N for _, gradient_N in parts]), whole_gradient_N)
    tokens = sum(part.num_tokens.item() for part, _ in parts)
    assert tokens == sum(batch.lengths)
    assert sum((part.kl * part.num_tokens).item() for part, _ in parts) / tokens == pytest.approx(whole.kl.item())
