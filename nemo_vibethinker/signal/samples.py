"""From graded groups to weighted training samples: rewards, advantages and the weight of each prompt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch

from nemo_vibethinker.config import MgpoConfig
from nemo_vibethinker.signal.advantages import AdvantageStd, group_advantages, nonzero_variance_groups
from nemo_vibethinker.signal.long2short import long2short_rewards
from nemo_vibethinker.signal.mgpo import mgpo_weights
from nemo_vibethinker.signal.overlong import overlong_penalty

if TYPE_CHECKING:
    from nemo_vibethinker.rollout.responses import Group, Response


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One response as the loss sees it."""

    prompt: list[int]
    response: "Response"
    advantage: float


@dataclass(frozen=True, slots=True)
class Rollout:
    """A step's groups on this rank, and the samples they give to train on."""

    groups: "list[Group]"
    samples: list[list[TrainingSample]]  # of each group; empty for a group without reward variance
    places: list[int]  # of each group among the step's groups on all ranks, in the order they were drawn


def reward(response: "Response") -> float | None:
    """1 for a right response that was not cut off, 0 for any other, None if it was left ungraded."""
    if response.is_truncated:
        return 0.0
    return float(response.verdict.is_right) if response.verdict.is_graded else None


def graded_rewards(group: "Group") -> list[float]:
    """The rewards of a group's graded responses."""
    return [value for response in group.responses if (value := reward(response)) is not None]


def has_variance(group: "Group") -> bool:
    """Whether some graded responses of a group are right and some are not: else it carries no gradient.

    Decided by the verdicts, before any shaping: in a group of equal verdicts shaped rewards differ by length alone,
    and dividing by their spread would blow that up to unit advantages.
    """
    rewards = graded_rewards(group)
    return len(rewards) >= 2 and bool(nonzero_variance_groups(torch.tensor([rewards]))[0])


def prompt_weight(group: "Group", config: MgpoConfig) -> float:
    """The entropy-deviation weight of a group's share of right responses."""
    rewards = graded_rewards(group)
    p_correct = torch.tensor([int(sum(rewards)) / max(1, len(rewards))])
    return float(mgpo_weights(p_correct, config.lambda_me))


def group_samples(group: "Group", config: MgpoConfig) -> list[TrainingSample]:
    """The weighted samples of a group, none if it has no variance; cut-off ones left out where they are masked.

    The advantage is that of the shaped rewards, the weight that of the share of right responses.
    """
    if not has_variance(group):
        return []
    graded = [(response, value) for response in group.responses if (value := reward(response)) is not None]
    rewards_1G = torch.tensor([[value for _, value in graded]])
    lengths_1G = torch.tensor([[len(response.sample.tokens) for response, _ in graded]])
    weight_1 = mgpo_weights(rewards_1G.mean(dim=1), config.lambda_me)
    shaped_1G = shaped_rewards(rewards_1G, lengths_1G, config)
    advantages_1G = weight_1[:, None] * group_advantages(shaped_1G, std=cast(AdvantageStd, config.std))
    return [
        TrainingSample(group.prompt, response, advantage)
        for (response, _), advantage in zip(graded, advantages_1G[0].tolist(), strict=True)
        if not (config.overlong == "mask" and response.is_truncated)
    ]


def shaped_rewards(rewards_PG: torch.Tensor, lengths_PG: torch.Tensor, config: MgpoConfig) -> torch.Tensor:
    """Rewards of 0 and 1 with what the stage adds by length."""
    shaped_PG = rewards_PG
    if config.long2short:
        shaped_PG = long2short_rewards(rewards_PG, lengths_PG, scale=config.long2short)
    if config.overlong == "soft":
        longest = config.sampling.max_response_length
        buffer = round(config.overlong_buffer * longest)
        shaped_PG = shaped_PG + overlong_penalty(lengths_PG, max_length=longest, buffer=buffer)
    return shaped_PG


def renormalised(samples: Sequence[list[TrainingSample]], mean_weight: float) -> list[list[TrainingSample]]:
    """The samples of each group with advantages divided by the batch's mean prompt weight."""
    return [[replace(sample, advantage=sample.advantage / mean_weight) for sample in group] for group in samples]


def mean_weight(weights: Sequence[float]) -> float:
    """Mean of the prompt weights of all ranks; exactly rounded, so that their order does not matter. 1 of none."""
    return math.fsum(weights) / len(weights) if weights else 1.0
