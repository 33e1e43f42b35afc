"""Sampling from vLLM engines: groups are graded as they finish, and the slowest of a step may be cut."""

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from nemo_vibethinker.rollout.engine import Sample
from nemo_vibethinker.rollout.feeding import GroupRequest
from nemo_vibethinker.rollout.responses import Group, Response, Sampler
from nemo_vibethinker.rollout.sampling import stable_seed
from nemo_vibethinker.rollout.vllm_engine import VllmEngine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Work = tuple[Record, GroupRequest]
Graded = tuple[str, Verdict]  # text of a response, and its verdict


class FeedingSampler(Sampler):
    """Samples from the engines of this replica.

    A training step (`wanted` given) may draw more prompts than it wants groups (`rollout.oversampling`); the groups
    that finish first make the step. The others, and those past `rollout.group_deadline_s`, are cut: dropped, or, with
    `rollout.partial_rollout`, gone on with in the next step before anything new. Tokens of a resumed response keep the
    log-probs of the policy that sampled them.
    """

    engine: VllmEngine

    def __init__(
        self, config: Config, engine: VllmEngine, tokenizer: "PreTrainedTokenizerFast", grader: Grader
    ) -> None:
        super().__init__(config, engine, tokenizer, grader)
        self._cut: list[Work] = []  # groups of this replica that the next step goes on with
        self._cut_groups = 0  # of the last step, over all replicas

    def draw(self, groups: int) -> int:
        """Prompts to draw for a step of so many groups, a multiple of the replicas."""
        _, replicas = data_parallel_rank_and_size()
        return math.ceil(groups * (1 + self.config.rollout.oversampling) / replicas) * replicas

    def sample(
        self,
        records: Sequence[Record],
        samples: int,
        sampling: SamplingConfig,
        *seed_parts: object,
        wanted: int | None = None,
    ) -> list[Group]:
        """See `Sampler`. The responses depend on the engine's batches too, but for vLLM's batch-invariant mode.

        Args:
            wanted: groups of all replicas together that are enough; None: all, and no deadline.

        Raises:
            RuntimeError: all groups of all replicas were cut, or the engines fail again and again.
        """
        rank, size = data_parallel_rank_and_size()
        work = self._take_cut() if wanted is not None else []
        begun = {record.id for record, _ in work}
        new = [record for record in records[rank::size] if record.id not in begun]
        work += self._requests(new, samples, seed_parts)
        groups = self._generate_and_grade(work, sampling, None if wanted is None else math.ceil(wanted / size))
        if wanted is not None:
            self._keep_cut(work, len(groups))
        return groups

    def _requests(self, records: Sequence[Record], samples: int, seed_parts: tuple[object, ...]) -> list[Work]:
        prompts = encode_prompts(self.tokenizer, [record.prompt for record in records], self.config.data.instruction)
        seed = self.config.seed
        return [
            (record, GroupRequest(prompt, [stable_seed(seed, *seed_parts, record.id, i) for i in range(samples)]))
            for record, prompt in zip(records, prompts, strict=True)
        ]

    def _generate_and_grade(self, work: Sequence[Work], sampling: SamplingConfig, wanted: int | None) -> list[Group]:
        """The finished groups, in the order of `work`."""
        grading: dict[int, Future[list[Graded]]] = {}
        busy = self.engine.busy_seconds
        with ThreadPoolExecutor(1) as grader:

            def grade(index: int) -> None:
                record, request = work[index]
                grading[index] = grader.submit(self._grade_texts, record, list(request.samples))

            requests = [request for _, request in work]
            filled = self.engine.generate_groups(requests, sampling, wanted=wanted, on_group=grade)
            generated = time.monotonic()
            graded = once_per_replica(lambda: {index: result.result() for index, result in sorted(grading.items())})
        self.generate_seconds += self.engine.busy_seconds - busy
        self.grade_seconds += time.monotonic() - generated  # what generation did not hide
        for (_, request), its_samples in zip(work, filled, strict=True):
            request.samples = its_samples
        return [_group(work[index], results) for index, results in graded.items()]

    def _grade_texts(self, record: Record, samples: Sequence[Sample | None]) -> list[Graded]:
        tokens = [sample.tokens for sample in samples if sample]
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return list(zip(texts, self.grader.grade([record] * len(texts), texts), strict=True))

    def _take_cut(self) -> list[Work]:
        work, self._cut = self._cut, []
        return work

    def _keep_cut(self, work: Sequence[Work], finished: int) -> None:
        cut = [(record, request) for record, request in work if not request.is_finished()]
        self._cut = cut if self.config.rollout.partial_rollout else []
        counts = gather_over_data_parallel((finished, len(cut)))
        self._cut_groups = sum(count for _, count in counts)
        if not sum(count for count, _ in counts):
            raise RuntimeError(
                f"all {self._cut_groups} groups of the step were cut: raise "
                f"rollout.group_deadline_s={self.config.rollout.group_deadline_s:g}"
            )

    def metrics(self) -> dict[str, Any]:
        """Of the last step, but for the restarts, which are all so far."""
        found: dict[str, Any] = {"engine_restarts": self.engine.restarts, "cut_groups": self._cut_groups}
        return found | ({"engine_freed_gb": self.engine.freed_gb} if self.engine.freed_gb else {})


def _group(work: Work, graded: Sequence[Graded]) -> Group:
    record, request = work
    samples = [sample for sample in request.samples if sample]
    responses = [Response(sample, *result) for sample, result in zip(samples, graded, strict=True)]
    return Group(record, request.prompt, responses)
