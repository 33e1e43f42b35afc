"""The part of the evaluate stage that scores published benchmarks (no stage of its own)."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_vibethinker.config import Config
from nemo_vibethinker.evaluation.benchmark_scores import model_folder, score_folder
from nemo_vibethinker.evaluation.benchmarks import LoadedBenchmark, load_benchmark
from nemo_vibethinker.evaluation.protocols import Protocol, chosen_benchmarks, protocol_of
from nemo_vibethinker.evaluation.provenance import Provenance, verifier_version
from nemo_vibethinker.evaluation.regrade import regrade_rows
from nemo_vibethinker.evaluation.samples import SampleFolder, SampleRow, batches, missing_units, unit_record
from nemo_vibethinker.evaluation.scores import Score
from nemo_vibethinker.megatron.distributed import broadcast_object
from nemo_vibethinker.metrics_log import MetricsLog
from nemo_vibethinker.pipeline import StageContext
from nemo_vibethinker.reward.math import MathVerifier
from nemo_vibethinker.rollout.engine import RolloutEngine
from nemo_vibethinker.rollout.megatron_engine import MegatronEngine
from nemo_vibethinker.rollout.responses import Group, Sampler, check_ungraded
from nemo_vibethinker.run_folder import code_version


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """What is sampled of each model, the same on all ranks."""

    protocol: Protocol
    benchmarks: tuple[LoadedBenchmark, ...]

    @property
    def responses(self) -> int:
        """Of one model."""
        kinds = self.protocol.kinds
        return sum(len(each.records) * kinds[each.benchmark.kind].samples for each in self.benchmarks)


def plan_benchmarks(config: Config, context: StageContext) -> BenchmarkPlan:
    """Read the benchmarks that are asked for; says where one differs from the published set.

    Raises:
        ValueError: one cannot be read, or this shard has none of its problems.
    """
    settings = config.eval
    loaded = []
    for name in chosen_benchmarks(settings):
        whole = load_benchmark(name, settings.path(name), settings.shuffle_seed)
        part = whole.part(settings.problems, settings.shard_index)
        if not part.records:
            raise ValueError(f"eval.shard={settings.shard}: no problem of the {part.total} of {name} is in it")
        for note in part.notes:
            context.say(note)
        loaded.append(part)
    return BenchmarkPlan(protocol=protocol_of(settings), benchmarks=tuple(loaded))


@dataclass(kw_only=True)
class BenchmarkRun:
    """Scoring the models of one evaluate stage, one after the other. All ranks call `score` together.

    Attributes:
        log: its steps are responses; `done` of them so far.
    """

    config: Config
    plan: BenchmarkPlan
    sampler: Sampler
    folder: Path
    context: StageContext
    log: MetricsLog
    done: int

    def score(self, model: str, model_hash: str) -> list[Score]:
        """The scores of the model whose weights the sampler has; responses that are kept are not sampled again."""
        scores = []
        for loaded in self.plan.benchmarks:
            store = model_folder(self.folder, model, loaded.benchmark.name)
            self._complete(store, loaded, self._provenance(loaded, model, model_hash))
            scores.append(self._score(store))
        return scores

    def _complete(self, store: SampleFolder, loaded: LoadedBenchmark, provenance: Provenance) -> None:
        """Sample what is missing, batch by batch."""
        if self.context.is_main:
            self._begin(store, loaded, provenance)
        there = broadcast_object({(row.id, row.sample) for row in store.rows()} if self.context.is_main else None)
        sampling = self.plan.protocol.sampling(loaded.benchmark.kind, self.config.scale.model.max_position_embeddings)
        missing = missing_units(loaded.records, provenance.samples, there)
        for units in batches(missing, self.config.eval.batch):
            if stop := self.context.stop_requested():
                raise stop
            records = [unit_record(unit) for unit in units]
            groups = self.sampler.sample_all(records, 1, sampling, "benchmark", loaded.benchmark.name)
            rows = [_row(record.id, sample, group) for (record, sample), group in zip(units, groups, strict=True)]
            if self.context.is_main:
                store.append(rows)
                self.context.ledger.saved()
            self.done += len(units)
            self.log.log(self.done, benchmark=loaded.benchmark.name, model=provenance.model, **_figures(rows))

    def _begin(self, store: SampleFolder, loaded: LoadedBenchmark, provenance: Provenance) -> None:
        """What an earlier attempt has left is graded as this version grades."""
        earlier = store.provenance().verifier_version if store.exists() else provenance.verifier_version
        store.begin(loaded.records, provenance)
        if earlier != provenance.verifier_version:
            kept = list(store.rows())
            self.context.say(f"{loaded.benchmark.name}: {len(kept):,} responses are graded again by this version")
            store.replace_rows(regrade_rows(kept, loaded.records, self.sampler.grader))

    def _score(self, store: SampleFolder) -> Score:
        score = None
        if self.context.is_main:
            with MathVerifier(self.config.reward.math_deadline_s, boxed_only=True) as verifier:
                score = score_folder(store, verifier)
        score = broadcast_object(score)
        reasons = [row.reason for row in store.rows() if row.verdict == "ungraded"] if self.context.is_main else [""]
        check_ungraded(score.ungraded_share, self.config.reward.max_ungraded_share, broadcast_object(reasons) or [""])
        return score

    def _provenance(self, loaded: LoadedBenchmark, model: str, model_hash: str) -> Provenance:
        protocol, settings = self.plan.protocol, self.config.eval
        engine, version = engine_facts(self.sampler.engine)
        return Provenance(
            **loaded.facts(),
            **protocol.facts(loaded.benchmark.kind),
            model=model,
            model_hash=model_hash,
            window=self.config.scale.model.max_position_embeddings,
            engine=engine,
            engine_version=version,
            verifier_version=verifier_version(),
            code_version=code_version()["commit"],
            seed=self.config.seed,
            shard=settings.shard,
        )


def engine_facts(engine: RolloutEngine) -> tuple[str, str]:
    """Name and version of what generates."""
    if isinstance(engine, MegatronEngine):
        versions = code_version()
        return "megatron", f"megatron-core {versions['megatron-core']}, torch {versions['torch']}"
    name = type(engine).__name__.removesuffix("Engine").lower()
    try:
        return name, f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return name, f"{name} of another environment"


def _row(identity: str, sample: int, group: Group) -> SampleRow:
    (response,) = group.responses
    return SampleRow(
        id=identity,
        sample=sample,
        response=response.text,
        tokens=len(response.sample.tokens),
        finish_reason=response.sample.finish_reason,
        verdict=response.verdict.kind,
        reason=response.verdict.reason,
    )


def kept_responses(folder: Path, models: Sequence[str], plan: BenchmarkPlan) -> int:
    """How many responses an earlier attempt has left in the stage's folder."""
    stores = [model_folder(folder, model, loaded.benchmark.name) for model in models for loaded in plan.benchmarks]
    return sum(1 for store in stores for _ in store.rows())


def _figures(rows: Sequence[SampleRow]) -> dict[str, float]:
    """Of one batch, for the log."""
    return {
        "pass_at_1": sum(row.verdict == "right" for row in rows) / len(rows),
        "mean_tokens": sum(row.tokens for row in rows) / len(rows),
        "truncated_share": sum(row.finish_reason == "length" for row in rows) / len(rows),
    }
