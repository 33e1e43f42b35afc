"""What a step of the on-policy loop reports. Imports Megatron."""

import time
from collections.abc import Sequence
from typing import Any

from nemo_vibethinker.config import MgpoConfig
from nemo_vibethinker.megatron.distributed import gather_over_data_parallel
from nemo_vibethinker.megatron.train_step import StepResult
from nemo_vibethinker.rollout.responses import Sampler
from nemo_vibethinker.signal.samples import Rollout, graded_rewards, prompt_weight
from nemo_vibethinker.spectrum.pass_at_k import pass_at_k


def rollout_metrics(rollout: Rollout, config: MgpoConfig) -> dict[str, Any]:
    """What the responses of a step tell, over all ranks."""
    facts = [fact for share in gather_over_data_parallel(_facts(rollout, config)) for fact in share]
    graded = [fact for fact in facts if fact["graded"]]
    count = len(facts) * config.group_size
    k = config.group_size
    return {
        "prompts": len(facts),
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
        rewards = graded_rewards(group)
        right = int(sum(rewards))
        facts.append(
            {
                "graded": len(rewards),
                "right": right,
                "solved": pass_at_k(len(rewards), right, len(rewards)) if rewards else 0.0,
                "w_me": prompt_weight(group, config),
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
    names |= {"ratio_outliers": "outliers", "policy_kl": "policy_kl"}
    means = {
        name: sum(r.statistics[key] for r in results) / tokens
        for name, key in names.items()
        if key in results[0].statistics
    }
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
        """Shares in 0 to 1, tokens per second and process; and the tokens and seconds they come from."""
        total = time.monotonic() - self._began
        generate_seconds = self._sampler.generate_seconds - self._generated
        generate = generate_seconds / total
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
            "tokens_generated": round(tokens),
            "generate_seconds": round(generate_seconds, 4),
            "update_seconds": round(self._update, 4),
        }
