"""Our scores beside the published ones. A gap stays a gap: nothing is filled in from the paper."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_vibethinker.costs.parameters import parameter_count
from nemo_vibethinker.evaluation.paper_tables import paper_costs, paper_row
from nemo_vibethinker.evaluation.scores import Score, scores_from_json
from nemo_vibethinker.ledger import summarise
from nemo_vibethinker.run_folder import RunFolder
from nemo_vibethinker.spectrum.pass_at_k import Estimate

REFERENCE = "VibeThinker-1.5B"
HEADLINE_BENCHMARKS = ("aime24", "aime25", "hmmt25")
TITLES = {
    "aime24": "AIME24",
    "aime25": "AIME25",
    "aime26": "AIME26",
    "hmmt25": "HMMT25",
    "brumo25": "BruMO25",
    "math500": "MATH-500",
    "gpqa": "GPQA-Diamond",
    "lcb_v5": "LiveCodeBench v5",
    "lcb_v6": "LiveCodeBench v6",
    "lcb_v6_454": "LiveCodeBench v6 (454 problems)",
}
_PAPER_SAMPLES = {"gpqa": 16, "lcb_v5": 8, "lcb_v6": 8}  # all others 64
_MATH_SAMPLES = 64


@dataclass(frozen=True)
class ComparisonRow:
    """One benchmark: our pass@1 and the paper's, as shares in [0, 1]; None where there is none.

    `outside` says whether the paper's number lies outside our interval, which measures the choice of problems alone.
    `caveats` name what differs from the published conditions.
    """

    benchmark: str
    model: str
    ours: Estimate | None
    paper: float | None
    difference: float | None  # ours minus the paper's
    outside: bool | None
    caveats: tuple[str, ...]
    source: str


def comparison_rows(scores: Iterable[Score], reference: str = REFERENCE) -> list[ComparisonRow]:
    """A row for each benchmark score, then one for each benchmark that the paper reports and we have not measured.

    Raises:
        ValueError: no published table has `reference`.
    """
    published, table = paper_row(reference)
    measured = [score for score in scores if score.benchmark]
    rows = [_row(score, published.scores.get(score.benchmark), table.source) for score in measured]
    missing = [name for name in published.scores if name not in {score.benchmark for score in measured}]
    for name in missing:
        if (value := published.scores[name]) is not None:
            rows.append(ComparisonRow(name, "", None, value / 100, None, None, ("not measured",), table.source))
    return rows


def _row(score: Score, percent: float | None, source: str) -> ComparisonRow:
    ours = score.pass_at.get(1)
    paper = None if percent is None else percent / 100
    difference = outside = None
    if ours is not None and paper is not None:
        difference, outside = ours.mean - paper, not ours.low <= paper <= ours.high
    return ComparisonRow(score.benchmark, score.model, ours, paper, difference, outside, _caveats(score), source)


def _caveats(score: Score) -> tuple[str, ...]:
    """What differs from the published protocol (METHOD: sampling of the 1.5B report, section 4.1)."""
    found: list[str] = []
    provenance = score.provenance
    samples = _PAPER_SAMPLES.get(score.benchmark, _MATH_SAMPLES)
    if score.samples_per_problem != samples:
        found.append(f"{score.samples_per_problem} samples a problem, not {samples}")
    if provenance is None:
        return (*found, "conditions unknown")
    if score.num_problems != provenance.expected_problems:
        found.append(f"{score.num_problems} of {provenance.expected_problems} problems")
    if (provenance.top_p, provenance.top_k) != (0.95, -1):
        found.append(f"top_p {provenance.top_p:g}, top_k {provenance.top_k}")
    if 0 < provenance.max_tokens < 40960:
        found.append(f"at most {provenance.max_tokens:,} tokens")
    if 0 < provenance.window < 40960:
        found.append(f"the model's window is {provenance.window:,} tokens")
    if provenance.shuffle_seed is not None:
        found.append("options shuffled (all references of the published file are A)")
    return tuple(found)


def format_comparison(rows: Sequence[ComparisonRow], reference: str = REFERENCE) -> str:
    """The rows as an aligned text table, in percent."""
    head = ["benchmark", "model", "ours", reference, "difference", "", "differs from the published conditions"]
    cells = [
        [
            TITLES.get(row.benchmark, row.benchmark),
            row.model,
            _with_interval(row.ours),
            _percent(row.paper),
            "-" if row.difference is None else f"{100 * row.difference:+.1f}",
            "" if row.outside is None else "outside" if row.outside else "inside",
            "; ".join(row.caveats),
        ]
        for row in rows
    ]
    return _aligned([head, *cells])


@dataclass(frozen=True)
class HeadlineRow:
    """One model of the headline table; None: not measured, or not published.

    `gpu_hours` of our run are of all its stages and attempts but evaluation; `device` "cpu" says that they are
    process-hours of CPUs, which have no price.
    """

    model: str
    parameters: str | None
    scores: dict[str, Estimate | float | None]  # AIME24, AIME25, HMMT25: our estimate, or a published share
    device: str
    gpu_hours: float | None
    dollars: float | None
    source: str


def headline_table(run_folder: Path) -> list[HeadlineRow]:
    """Our run's final model first, then the models whose cost is published.

    Raises:
        ValueError: `run_folder` is not a run.
    """
    return [_our_row(RunFolder.load(run_folder)), *_published_rows()]


def _our_row(run: RunFolder) -> HeadlineRow:
    file = run.stage_folder("evaluate") / "scores.json" if "evaluate" in run.config.stages else None
    scores = scores_from_json(file.read_text()) if file and file.is_file() else []
    measured = [score for score in scores if score.benchmark]
    model = measured[-1].model if measured else scores[-1].model if scores else ""
    found = {score.benchmark: score.pass_at.get(1) for score in measured if score.model == model}
    hours, device = _training_hours(run)
    return HeadlineRow(
        model=f"{run.path.name}: {model}" if model else run.path.name,
        parameters=_parameters(run),
        scores={name: found.get(name) for name in HEADLINE_BENCHMARKS},
        device=device,
        gpu_hours=hours,
        dollars=hours * run.config.budget.dollars_per_gpu_hour if hours is not None and device == "gpu" else None,
        source="measured by this run",
    )


def _training_hours(run: RunFolder) -> tuple[float | None, str]:
    """Process-hours of the run and of those that it started from, evaluation left out; None if it trained nothing."""
    costs = [cost for cost in summarise(run.path / "ledger.jsonl") if cost.stage != "evaluate"]
    hours = sum(cost.process_hours for cost in costs) if costs else None
    devices = {cost.device for cost in costs}
    if run.config.run.from_run:
        earlier, device = _training_hours(RunFolder.load(Path(run.config.run.from_run)))
        hours = earlier if hours is None else hours + (earlier or 0.0)
        devices |= {device} - {""}
    return hours, "+".join(sorted(devices))


def _parameters(run: RunFolder) -> str:
    """Of the model's shape, as read from an exported or base model where there is one."""
    hf = run.path / "hf" / "config.json"
    vocabulary = json.loads(hf.read_text())["vocab_size"] if hf.is_file() else run.config.data.vocab_size
    count = parameter_count(run.config.scale.model, vocabulary)
    return f"{count / 1e9:.2f}B" if count >= 1e8 else f"{count / 1e6:.2f}M"


def _published_rows() -> list[HeadlineRow]:
    rows = []
    for cost in paper_costs():
        row, table = paper_row(cost.model)
        scores: dict[str, Estimate | float | None] = {
            name: None if (value := row.scores.get(name)) is None else value / 100 for name in HEADLINE_BENCHMARKS
        }
        source = f"{table.source}; cost: {cost.source}"
        rows.append(HeadlineRow(cost.model, cost.parameters, scores, cost.gpu, cost.gpu_hours, cost.dollars, source))
    return rows


def format_headline(rows: Sequence[HeadlineRow]) -> str:
    """The headline table as text: scores in percent, published ones marked by the missing interval."""
    head = ["model", "size", *(TITLES[name] for name in HEADLINE_BENCHMARKS), "hours", "device", "cost"]
    cells = [
        [
            row.model,
            row.parameters or "-",
            *(_score(row.scores[name]) for name in HEADLINE_BENCHMARKS),
            "-"
            if row.gpu_hours is None
            else f"{row.gpu_hours:,.2f}"
            if row.gpu_hours < 10
            else f"{row.gpu_hours:,.0f}",
            row.device or "-",
            "-" if row.dollars is None else f"${row.dollars:,.0f}",
        ]
        for row in rows
    ]
    return _aligned([head, *cells]) + "\n\n-: not measured, or not published; rows without intervals are published"


def _score(value: Estimate | float | None) -> str:
    return _with_interval(value) if isinstance(value, Estimate) else _percent(value)


def _with_interval(value: Estimate | None) -> str:
    return "-" if value is None else f"{100 * value.mean:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
