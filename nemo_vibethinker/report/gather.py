"""Everything the report shows, read from the run folder through the readers of those who wrote it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_vibethinker.config import Config
from nemo_vibethinker.evaluation.scores import Score, scores_from_json
from nemo_vibethinker.ledger import StageCost, summarise
from nemo_vibethinker.metrics_log import read_metrics
from nemo_vibethinker.run_folder import Manifest, RunFolder
from nemo_vibethinker.spectrum.selection import ProbeTable


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run as it lies on disk; what a stage has not declared done is absent."""

    path: Path
    config: Config
    config_text: str  # YAML without the header
    header: tuple[str, ...]  # comment lines of config.yaml: versions, then the command
    manifests: Mapping[str, Manifest]  # by stage, finished stages only
    metrics: Mapping[str, list[dict[str, Any]]]  # by stage, one line per step
    costs: list[StageCost]
    probe_table: ProbeTable | None
    scores: list[Score]
    funnel: dict[str, Any] | None

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
    return RunData(
        path=run.path,
        config=run.config,
        config_text=config_text,
        header=header,
        manifests=manifests,
        metrics=metrics,
        costs=summarise(run_dir / "ledger.jsonl"),
        probe_table=ProbeTable.from_json(probe) if probe else None,
        scores=scores_from_json(scores) if scores else [],
        funnel=json.loads(funnel) if funnel else None,
    )


def _split_config(text: str) -> tuple[tuple[str, ...], str]:
    lines = text.splitlines()
    header = tuple(line[1:].strip() for line in lines if line.startswith("#"))
    return header, "\n".join(line for line in lines if not line.startswith("#"))


def _result(run: RunFolder, manifests: Mapping[str, Manifest], stage: str, name: str) -> str | None:
    """Text of a finished stage's result file; a stage without manifest may have left a half-made one."""
    file = run.stage_folder(stage) / name if stage in manifests else None
    return file.read_text() if file and file.is_file() else None
