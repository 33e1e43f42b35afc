"""The on-policy loop: sample, grade, weigh, update. Imports Megatron; the rest of `signal` does not."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from nemo_vibethinker.config import MgpoConfig
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.megatron.distributed import (
    data_parallel_rank_and_size,
    gather_over_data_parallel,
    host_data_parallel_group,
)
from nemo_vibethinker.megatron.logprobs import ModelOutput, token_logprobs
from nemo_vibethinker.megatron.micro_batch import MicroBatch, pack_row
from nemo_vibethinker.megatron.optimizer import set_lr
from nemo_vibethinker.megatron.train_step import LossTerms, StepResult, train_step
from nemo_vibethinker.rollout.responses import Group, Response, Sampler
from nemo_vibethinker.signal.advantages import AdvantageStd, nonzero_variance_groups
from nemo_vibethinker.signal.loss import LossNormalisation, loss_denominator, policy_loss, token_weight
from nemo_vibethinker.signal.mgpo import mgpo_advantages, mgpo_weights
from nemo_vibethinker.spectrum.pass_at_k import pass_at_k


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One response as the loss sees it."""

    prompt: list[int]
    response: Response
    advantage: float


@dataclass(frozen=True, slots=True)
class Rollout:
    """A step's groups on this rank, and the samples they give to train on."""

    groups: list[Group]
    samples: list[list[TrainingSample]]  # of each group; empty for a group without reward variance


def reward(response: Response) -> float | None:
    """1 for a right response that was not cut off, 0 for any other, None if it was left ungraded."""
    if response.is_truncated:
        return 0.0
    return float(response.verdict.is_right) if response.verdict.is_graded else None


def group_samples(group: Group, config: MgpoConfig) -> list[TrainingSample]:
    """The weighted samples of a group, or none if its graded rewards are all the same: they carry no gradient."""
    graded = [(response, value) for response in group.responses if (value := reward(response)) is not None]
    rewards_1G = torch.tensor([[value for _, value in graded]])
    if len(graded) < 2 or not nonzero_variance_groups(rewards_1G)[0]:
        return []
    advantages = mgpo_advantages(rewards_1G, lambda_me=config.lambda_me, std=cast(AdvantageStd, config.std))[0]
    return [
        TrainingSample(group.prompt, response, advantage)
        for (response, _), advantage in zip(graded, advantages.tolist(), strict=True)
    ]


def policy_micro_batches(samples: Sequence[TrainingSample], config: MgpoConfig) -> list[MicroBatch]:
    """Pack samples into rows of at most `tokens_per_micro_batch` tokens (a longer sample gets its own row)."""
    rows: list[list[TrainingSample]] = []
    room = 0
    for sample in samples:
        length = len(sample.prompt) + len(sample.response.sample.tokens)
        if length > room:
            rows.append([])
            room = config.tokens_per_micro_batch
        rows[-1].append(sample)
        room -= length
    return [_pack(row, config) for row in rows] or [_empty_row()]


def _pack(row: list[TrainingSample], config: MgpoConfig) -> MicroBatch:
    normalisation = cast(LossNormalisation, config.normalisation)
    return pack_row(
        [(s.prompt + s.response.sample.tokens, len(s.prompt)) for s in row],
        [token_weight(len(s.response.sample.tokens), normalisation) for s in row],
        advantages=[s.advantage for s in row],
        behaviour_logprobs=[s.response.sample.logprobs for s in row],
    )


def _empty_row() -> MicroBatch:
    """Keeps a rank without samples in step with the others' collectives; weighs nothing."""
    return pack_row([([0, 0], 1)], [0.0], advantages=[0.0], behaviour_logprobs=[0.0])


def loss_count(batch: MicroBatch, config: MgpoConfig) -> Tensor:
    """The micro-batch's part of the denominator; Megatron sums it over micro-batches and ranks."""
    num_tokens = int((batch.loss_weights > 0).sum())
    denominator = loss_denominator(
        cast(LossNormalisation, config.normalisation),
        num_sequences=batch.num_sequences,
        num_tokens=num_tokens,
        max_response_length=config.sampling.max_response_length,
    )
    return batch.loss_weights.new_tensor(denominator)


def make_loss(config: MgpoConfig) -> Callable[[MicroBatch, ModelOutput], LossTerms]:
    """The loss function of one stage, for `train_step`."""
    temperature = config.sampling.temperature or 1.0

    def loss_function(batch: MicroBatch, output: ModelOutput) -> LossTerms:
        logprobs_T, entropy_T = token_logprobs(output, batch.targets, temperature=temperature, entropy=True)
        assert entropy_T is not None
        result = policy_loss(
            logprobs_T,
            batch.extra["behaviour_logprobs"],
            batch.extra["advantages"],
            batch.loss_weights,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
        )
        entropy = (entropy_T * (batch.loss_weights > 0)).sum()
        tokens = result.num_tokens
        sums = {"clip": result.clip_fraction * tokens, "kl": result.kl * tokens, "ratio": result.ratio_mean * tokens}
        return result.loss, loss_count(batch, config), {"entropy": entropy, "tokens": tokens, **sums}

    return loss_function


def collect(sampler: Sampler, records: Sequence[Record], config: MgpoConfig, *seed_parts: object) -> Rollout:
    """Sample this rank's share of a step's prompts and weigh the responses."""
    groups = sampler.sample(records, config.group_size, config.sampling, *seed_parts)
    return Rollout(groups, [group_samples(group, config) for group in groups])


def update(
    chunks: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    rollout: Rollout,
    config: MgpoConfig,
    step: int,
) -> list[StepResult]:
    """`updates_per_rollout` optimizer steps, each on its share of the prompts; none where no group has variance."""
    set_lr(optimizer, learning_rate(config, step))
    loss_function = make_loss(config)
    results = []
    for batches in update_batches(rollout, config):
        result = train_step(chunks, optimizer, batches, loss_function)
        if not result.applied:
            raise RuntimeError(f"step {step}: the policy gradient is not finite; lower the stage's optimizer.lr")
        results.append(result)
    return results


def learning_rate(config: MgpoConfig, step: int) -> float:
    """Of all updates on the rollout of step `step` (from 1): linear warm-up, then constant."""
    return config.optimizer.lr * min(1.0, step / (config.warmup_steps or 1))


def update_batches(rollout: Rollout, config: MgpoConfig) -> Iterator[list[MicroBatch]]:
    """This rank's micro-batches of each update on a rollout; an update for which no rank has samples is left out."""
    parts = _parts(len(rollout.samples), config.updates_per_rollout)
    for part in range(config.updates_per_rollout):
        samples = [s for group, its_part in zip(rollout.samples, parts, strict=True) if its_part == part for s in group]
        if _count_everywhere(len(samples)) > 0:
            yield policy_micro_batches(samples, config)


def _parts(prompts: int, updates: int) -> list[int]:
    """The update that each prompt of this rank takes part in: by its place among all ranks' prompts."""
    rank, size = data_parallel_rank_and_size()  # the sampler deals prompts out round robin
    total = _count_everywhere(prompts)
    return [(rank + i * size) * updates // total for i in range(prompts)]


def _count_everywhere(count: int) -> int:
    total = torch.tensor([count])
    torch.distributed.all_reduce(total, group=host_data_parallel_group())
    return int(total)


def rollout_metrics(rollout: Rollout, config: MgpoConfig) -> dict[str, Any]:
    """What the responses of a step tell, over all ranks."""
    facts = [fact for share in gather_over_data_parallel(_facts(rollout, config)) for fact in share]
    graded = [fact for fact in facts if fact["graded"]]
    count = len(facts) * config.group_size
    k = config.group_size
    return {
        "reward": sum(f["right"] for f in graded) / max(1, sum(f["graded"] for f in graded)),
        f"pass_at_{k}": sum(f["solved"] for f in facts) / len(facts),
        "w_me": sum(f["w_me"] for f in graded) / max(1, len(graded)),
        "response_length": sum(f["tokens"] for f in facts) / count,
        "truncated_share": sum(f["truncated"] for f in facts) / count,
        "zero_variance_share": sum(f["degenerate"] for f in facts) / len(facts),
        "ungraded_share": 1 - sum(f["graded"] for f in facts) / count,
        "ungraded_reasons": sorted({reason for f in facts for reason in f["reasons"]}),
        "p_correct_counts": _p_correct_counts(facts, k),
    }


def _p_correct_counts(facts: Sequence[dict[str, Any]], group_size: int) -> list[int]:
    """Prompts by their share of right responses, rounded to 0/G, 1/G, ... G/G; those without a grade are left out."""
    counts = [0] * (group_size + 1)
    for fact in facts:
        if fact["graded"]:
            counts[round(group_size * fact["right"] / fact["graded"])] += 1
    return counts


def _facts(rollout: Rollout, config: MgpoConfig) -> list[dict[str, Any]]:
    facts = []
    for group, samples in zip(rollout.groups, rollout.samples, strict=True):
        rewards = [value for response in group.responses if (value := reward(response)) is not None]
        right = int(sum(rewards))
        p_correct = torch.tensor([right / max(1, len(rewards))])
        facts.append(
            {
                "graded": len(rewards),
                "right": right,
                "solved": pass_at_k(len(rewards), right, len(rewards)) if rewards else 0.0,
                "w_me": float(mgpo_weights(p_correct, config.lambda_me)),
                "tokens": sum(len(response.sample.tokens) for response in group.responses),
                "truncated": sum(response.is_truncated for response in group.responses),
                "degenerate": not samples,
                "reasons": [r.verdict.reason for r in group.responses if not r.verdict.is_graded],
            }
        )
    return facts


def update_metrics(results: Sequence[StepResult]) -> dict[str, float]:
    """Loss, gradient norm and token means over the updates of a step; empty if there was none."""
    if not results:
        return {}
    tokens = sum(r.statistics["tokens"] for r in results)
    names = {"entropy": "entropy", "mismatch_kl": "kl", "clip_fraction": "clip", "ratio_mean": "ratio"}
    means = {name: sum(r.statistics[key] for r in results) / tokens for name, key in names.items()}
    return means | {
        "loss": sum(r.loss for r in results) / len(results),
        "grad_norm": sum(r.grad_norm for r in results) / len(results),
        "tokens_trained": tokens,
    }


class StepTimer:
    """Shares of a step's wall time."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._began = time.monotonic()
        self._generated, self._graded = sampler.generate_seconds, sampler.grade_seconds
        self._synced = sampler.sync_seconds
        self._update = 0.0

    def updated(self, seconds: float) -> None:
        """Note the time spent in optimizer steps."""
        self._update = seconds

    def metrics(self, tokens: float, processes: int) -> dict[str, float]:
        """Shares in 0 to 1, and tokens per second and process."""
        total = time.monotonic() - self._began
        generate = (self._sampler.generate_seconds - self._generated) / total
        grade = (self._sampler.grade_seconds - self._graded) / total
        sync = (self._sampler.sync_seconds - self._synced) / total
        update_share = self._update / total
        return {
            "generate_share": generate,
            "grade_share": grade,
            "update_share": update_share,
            "sync_share": sync,
            "idle_share": max(0.0, 1 - generate - grade - update_share - sync),
            "tokens_per_second": tokens / total / processes,
        }
