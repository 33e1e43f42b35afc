"""Sampled and graded responses to records, on this process's share of the prompts."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemo_vibethinker.config import Config, SamplingConfig
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.data.tokenizer import encode_prompts
from nemo_vibethinker.megatron.distributed import (
    data_parallel_rank_and_size,
    gather_over_data_parallel,
    once_per_replica,
)
from nemo_vibethinker.reward.grader import Grader
from nemo_vibethinker.reward.verdict import Verdict
from nemo_vibethinker.rollout.engine import RolloutEngine, Sample
from nemo_vibethinker.rollout.sampling import stable_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Response:
    """A sampled response with its text and verdict."""

    sample: Sample
    text: str
    verdict: Verdict

    @property
    def is_truncated(self) -> bool:
        """Cut at the length limit."""
        return self.sample.finish_reason == "length"


@dataclass(frozen=True, slots=True)
class Group:
    """The responses to one record's prompt."""

    record: Record
    prompt: list[int]
    responses: list[Response]


class Sampler:
    """Samples and grades; prompts are dealt out to the data-parallel ranks."""

    def __init__(
        self, config: Config, engine: RolloutEngine, tokenizer: "PreTrainedTokenizerFast", grader: Grader
    ) -> None:
        self.config = config
        self.engine = engine
        self.tokenizer = tokenizer
        self.grader = grader
        self.generate_seconds = 0.0
        self.grade_seconds = 0.0
        self.sync_seconds = 0.0

    def sync(self, version: str) -> None:
        """Sample from the trainer's present weights from now on; `version` names them."""
        started = time.monotonic()
        self.engine.sync(version)
        self.sync_seconds += time.monotonic() - started

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def draw(self, groups: int) -> int:
        """Prompts to draw for a step of so many groups."""
        return groups

    def sample(
        self,
        records: Sequence[Record],
        samples: int,
        sampling: SamplingConfig,
        *seed_parts: object,
        wanted: int | None = None,
    ) -> list[Group]:
        """Sample `samples` responses to this rank's share of `records` and grade them.

        A response is a function of the weights, the record's id, `seed_parts` and the run's seed; not of the layout.

        Args:
            wanted: groups of a training step, for engines that are given more prompts than that (`draw`).
        """
        assert wanted is None or wanted >= len(records)
        rank, size = data_parallel_rank_and_size()
        mine = records[rank::size]
        prompts = encode_prompts(self.tokenizer, [record.prompt for record in mine], self.config.data.instruction)
        seeds = [[stable_seed(self.config.seed, *seed_parts, record.id, i) for i in range(samples)] for record in mine]
        started = time.monotonic()
        sampled = self.engine.generate(prompts, sampling, seeds)
        generated = time.monotonic()
        responses = iter(self._grade(mine, sampled))
        self.generate_seconds += generated - started
        self.grade_seconds += time.monotonic() - generated
        return [
            Group(record, prompt, [next(responses) for _ in group])
            for record, prompt, group in zip(mine, prompts, sampled, strict=True)
        ]

    def sample_all(
        self, records: Sequence[Record], samples: int, sampling: SamplingConfig, *seed_parts: object
    ) -> list[Group]:
        """`sample`, gathered over all ranks, in the order of `records`."""
        shares = gather_over_data_parallel(self.sample(records, samples, sampling, *seed_parts))
        by_id = {group.record.id: group for share in shares for group in share}
        return [by_id[record.id] for record in records]

    def metrics(self) -> dict[str, Any]:
        """What the engine has to say of the last step."""
        return {}

    def _grade(self, records: Sequence[Record], sampled: list[list[Sample]]) -> list[Response]:
        flat = [(record, sample) for record, group in zip(records, sampled, strict=True) for sample in group]
        if not flat:  # fewer prompts than ranks; batch_decode takes an empty batch for one empty text
            return []
        texts = self.tokenizer.batch_decode([sample.tokens for _, sample in flat], skip_special_tokens=True)
        verdicts = self._verdicts([record for record, _ in flat], texts)
        return [Response(sample, text, v) for (_, sample), text, v in zip(flat, texts, verdicts, strict=True)]

    def _verdicts(self, records: list[Record], texts: list[str]) -> list[Verdict]:
        """Graded once per replica: verdicts can depend on time, and its ranks must agree."""
        return once_per_replica(lambda: self.grader.grade(records, texts))


def sampling_metrics(groups: Sequence[Group], generate_seconds: float) -> dict[str, float]:
    """What the groups of all ranks cost to sample, as fields of a metrics line."""
    lengths = [len(response.sample.tokens) for group in groups for response in group.responses]
    return {
        "tokens_generated": sum(lengths),
        "response_length": sum(lengths) / max(1, len(lengths)),
        "generate_seconds": round(generate_seconds, 4),
    }


def check_groups(groups: Sequence[Group], limit: float) -> None:
    """`check_ungraded` over the responses of these groups."""
    verdicts = [response.verdict for group in groups for response in group.responses]
    reasons = [verdict.reason for verdict in verdicts if not verdict.is_graded]
    check_ungraded(len(reasons) / max(1, len(verdicts)), limit, reasons)


def check_ungraded(share: float, limit: float, reasons: Sequence[str]) -> None:
    """Stop a run whose grader is failing.

    Raises:
        RuntimeError: more than `limit` of the responses were left ungraded.
    """
    if share > limit:
        raise RuntimeError(
            f"{share:.1%} of the responses were left ungraded (limit reward.max_ungraded_share={limit:.1%}); "
            f"first reason: {reasons[0]}"
        )
