"""Everything the report shows, read from the run folder through the readers of those who wrote it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_vibethinker.config import Config, load_config
from nemo_vibethinker.costs.comparison import CostRow, compare_costs, planned_hours
from nemo_vibethinker.evaluation.scores import Score, scores_from_json
from nemo_vibethinker.ledger import Attempt, Book, StageCost
from nemo_vibethinker.metrics_log import read_metrics
from nemo_vibethinker.report.samples import Explorer, Source, gather_samples, sources
from nemo_vibethinker.run_folder import REFERENCE, Manifest, RunFolder
from nemo_vibethinker.spectrum.selection import ProbeTable

SHOWN_MODELS = 3  # of the sample explorer: where SFT ended, the fused one, the last
SFT_LAST, FUSED = "sft_last", "fused"


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run as it lies on disk; what a stage has not declared done is absent."""

    path: Path
    config: Config
    config_text: str  # YAML without the header
    header: tuple[str, ...]  # comment lines of config.yaml: versions, then the command
    manifests: Mapping[str, Manifest]  # by stage, finished stages only
    metrics: Mapping[str, list[dict[str, Any]]]  # by stage, one line per step
    reference: Config | None  # the recipe as its files have it, without the command line's keys
    attempts: list[Attempt]
    costs: list[StageCost]
    plan: list[CostRow]  # cost beside plan, a row for each stage and one for the total
    probe_table: ProbeTable | None
    scores: list[Score]
    funnel: dict[str, Any] | None
    sources: list[Source]
    samples: Explorer | None

    @property
    def done(self) -> set[str]:
        """Names of the finished stages."""
        return set(self.manifests)


def gather(run_dir: Path) -> RunData:
    """Read a run folder, finished or not.

    Raises:
        ValueError: it is not a run folder, or its config.yaml is of another version.
    """
    run = RunFolder.load(run_dir)
    found = {stage: run.read_manifest(stage, verify=False, report=lambda _: None) for stage in run.config.stages}
    manifests = {stage: manifest for stage, manifest in found.items() if manifest is not None}
    header, config_text = _split_config((run_dir / "config.yaml").read_text())
    metrics: dict[str, list[dict[str, Any]]] = {}
    for line in read_metrics(run_dir / "run.jsonl"):
        metrics.setdefault(line["stage"], []).append(line)
    probe, scores, funnel = (
        _result(run, manifests, stage, name)
        for stage, name in (("probe", "probe_table.json"), ("evaluate", "scores.json"), ("prepare", "funnel.json"))
    )
    reference = run_dir / REFERENCE
    found_samples = sample_sources(run, manifests)
    book = Book(run_dir / "ledger.jsonl").update()
    planned = planned_hours(run_dir) or dict.fromkeys(run.config.stages)
    return RunData(
        path=run.path,
        config=run.config,
        config_text=config_text,
        header=header,
        manifests=manifests,
        metrics=metrics,
        reference=load_config(reference) if reference.is_file() else None,
        attempts=list(book.attempts.values()),
        costs=book.costs(),
        plan=compare_costs(planned, book.costs()),
        probe_table=ProbeTable.from_json(probe) if probe else None,
        scores=scores_from_json(scores) if scores else [],
        funnel=json.loads(funnel) if funnel else None,
        sources=found_samples,
        samples=gather_samples(_shown(found_samples)),
    )


def sample_sources(run: RunFolder, manifests: Mapping[str, Manifest]) -> list[Source]:
    """Samples of the models that `evaluate` has finished so far, whether the stage has or not."""
    if "evaluate" not in run.config.stages:
        return []
    return sources(run.stage_folder("evaluate"), _evaluation_data(run, manifests))


def _shown(found: list[Source]) -> list[Source]:
    """The sources of the models that the explorer shows."""
    last_first = [source.model for source in reversed(found)]
    there = [model for model in dict.fromkeys((SFT_LAST, FUSED, *last_first)) if model in last_first]
    return [source for source in found if source.model in there[:SHOWN_MODELS]]


def _evaluation_data(run: RunFolder, manifests: Mapping[str, Manifest]) -> Path | None:
    """The evaluation set: made here, or read by a finished stage of a run that starts from another."""
    for manifest in manifests.values():
        artefact = manifest.outputs.get("evaluation_data") or manifest.inputs.get("evaluation_data")
        if artefact and run.resolve(artefact).is_file():
            return run.resolve(artefact)
    return None


def _split_config(text: str) -> tuple[tuple[str, ...], str]:
    lines = text.splitlines()
    header = tuple(line[1:].strip() for line in lines if line.startswith("#"))
    return header, "\n".join(line for line in lines if not line.startswith("#"))


def _result(run: RunFolder, manifests: Mapping[str, Manifest], stage: str, name: str) -> str | None:
    """Text of a finished stage's result file; a stage without manifest may have left a half-made one."""
    file = run.stage_folder(stage) / name if stage in manifests else None
    return file.read_text() if file and file.is_file() else None
