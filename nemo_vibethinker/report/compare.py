"""Several runs on one page: curves over each other, scores with paired differences, costs, and what sets them apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.config import CODE_DOMAIN, flatten
from nemo_vibethinker.data.records import iterate_jsonl
from nemo_vibethinker.evaluation.scores import MATH_UNION
from nemo_vibethinker.ledger import total
from nemo_vibethinker.progress import format_duration
from nemo_vibethinker.report import vega
from nemo_vibethinker.report.compare_charts import difference_chart, overlay_chart
from nemo_vibethinker.report.cost_views import hours, share, unit
from nemo_vibethinker.report.curves import PANELS, Panel
from nemo_vibethinker.report.gather import RunData, gather
from nemo_vibethinker.report.numbers import format_estimate
from nemo_vibethinker.report.paired import Difference, paired_difference, solved_shares
from nemo_vibethinker.report.render import render
from nemo_vibethinker.report.samples import read_samples
from nemo_vibethinker.report.score_views import ScoreBoard, final_model, interval_chart, signal_stages
from nemo_vibethinker.report.signal_views import signal_lines
from nemo_vibethinker.report.vega import Chart, Row

_LOSS = Panel("loss", "SFT loss", "nats per token", "", from_zero=False)
_MOST_RUNS = len(vega.SERIES)


def write_comparison(run_dirs: Sequence[Path], page: Path) -> Path:
    """Write a page that compares runs with the first of them, and return its path.

    Raises:
        ValueError: fewer than two runs or too many, two of one name, or one that is not a run folder.
    """
    names = [path.resolve().name for path in run_dirs]
    if len(set(names)) != len(names):
        raise ValueError(f"runs={','.join(names)}: two runs have one name; compare runs of different names")
    if not 2 <= len(run_dirs) <= _MOST_RUNS:
        raise ValueError(f"runs={','.join(names)}: give two to {_MOST_RUNS} runs, runs=a,b")
    atomic_write_text(page, render("compare.html", comparison_context([gather(path) for path in run_dirs])))
    return page


_SECTIONS = (
    ("runs", "Runs"),
    ("scores", "Scores"),
    ("curves", "Curves"),
    ("config", "Configuration"),
)


def comparison_context(runs: Sequence[RunData]) -> dict[str, Any]:
    """Everything the template of a comparison shows."""
    colours = {run.path.name: vega.SERIES[index] for index, run in enumerate(runs)}
    differences = _differences(runs)
    rows = [row for (run, domain), found in differences.items() for row in _difference_row(run, domain, found)]
    baseline = runs[0].path.name
    return {
        "title": "Comparison of " + ", ".join(colours),
        "subtitle": f"Differences are against {baseline}, the run that was named first.",
        "sections": _SECTIONS,
        "runs": {"head": _RUN_HEAD, "rows": [_run_row(run) for run in runs]},
        "colours": list(colours.items()),
        "score_table": _score_table(runs, differences),
        "score_charts": _score_charts(runs, colours),
        "difference_chart": difference_chart(rows, colours, baseline) if rows else None,
        "curves": _curves(runs, colours),
        "changed": _changed(runs),
        "names": list(colours),
    }


_RUN_HEAD = ["run", "recipe", "scale", "seed", "stages done", "final model", "hours", "of", "ETTR, %", "wall time"]


def _run_row(run: RunData) -> list[str]:
    cost, config = total(run.costs), run.config
    done = f"{len(run.done)} of {len(config.stages)}"
    final = _final(run) or "-"
    what = [run.path.name, config.recipe, config.scale.name, str(config.seed), done, final]
    return [*what, hours(cost.process_hours), unit(cost.device), share(cost.ettr), format_duration(cost.seconds)]


def _final(run: RunData) -> str | None:
    return final_model(ScoreBoard(run.scores), signal_stages(run.config))


def _solved(run: RunData) -> dict[str, dict[str, float]]:
    """Domain -> problem -> share of right responses of the run's final model."""
    found: dict[str, dict[str, float]] = {}
    for source in run.sources:
        if source.model != _final(run):
            continue
        shares = solved_shares(read_samples(source.samples))
        if source.benchmark:
            found[source.benchmark] = shares
            continue
        for record in iterate_jsonl(source.problems):
            if record.id in shares:
                kind = CODE_DOMAIN if record.domain == CODE_DOMAIN else MATH_UNION
                for domain in dict.fromkeys((kind, record.domain)):
                    found.setdefault(domain, {})[record.id] = shares[record.id]
    return found


def _differences(runs: Sequence[RunData]) -> dict[tuple[str, str], Difference | None]:
    """(run, domain) -> its difference to the first run, for every other run and every domain of the first."""
    baseline, *others = [(run, _solved(run)) for run in runs]
    return {
        (run.path.name, domain): paired_difference(solved.get(domain, {}), theirs, seed=run.config.seed)
        for domain, theirs in baseline[1].items()
        for run, solved in others
    }


def _difference_row(run: str, domain: str, found: Difference | None) -> list[Row]:
    if found is None:
        return []
    e = found.estimate
    ends = {"v": round(100 * e.mean, 2), "low": round(100 * e.low, 2), "high": round(100 * e.high, 2)}
    return [{"label": f"{domain}: {run}", "run": run, "n": found.problems} | ends]


def _score_table(
    runs: Sequence[RunData], differences: Mapping[tuple[str, str], Difference | None]
) -> dict[str, Any] | None:
    boards = {run.path.name: ScoreBoard(run.scores) for run in runs}
    domains = list(dict.fromkeys(domain for board in boards.values() for domain in board.domains))
    others = list(boards)[1:]
    head = ["pass@1, %", *boards, *(f"{name} \N{MINUS SIGN} {runs[0].path.name}" for name in others)]
    rows = []
    for domain in domains:
        finals = [(_final(run), boards[run.path.name]) for run in runs]
        estimates = [board.estimate(model, domain) if model else None for model, board in finals]
        shown = [_difference_text(differences.get((name, domain))) for name in others]
        rows.append([domain, *map(format_estimate, estimates), *shown])
    return {"head": head, "rows": rows} if rows else None


def _difference_text(found: Difference | None) -> str:
    if found is None:
        return "no common problems"
    e = found.estimate
    text = f"{100 * e.mean:+.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}] on {found.problems:,}"
    return text + (" *" if found.shown else "")


def _score_charts(runs: Sequence[RunData], colours: Mapping[str, str]) -> list[Chart]:
    boards = {run.path.name: (ScoreBoard(run.scores), _final(run)) for run in runs}
    domains = list(dict.fromkeys(domain for board, _ in boards.values() for domain in board.domains))
    charts = []
    for index, domain in enumerate(domains):
        found = {name: board.estimate(model, domain) for name, (board, model) in boards.items() if model}
        rows = [
            {"model": name, "v": round(100 * e.mean, 2), "low": round(100 * e.low, 2), "high": round(100 * e.high, 2)}
            for name, e in found.items()
            if e
        ]
        if rows:
            charts.append(interval_chart(f"score-{index}", domain, rows, colours, max(row["high"] for row in rows)))
    return charts


def _curves(runs: Sequence[RunData], colours: Mapping[str, str]) -> list[Chart]:
    signal = {run.path.name: list(signal_lines(run).values()) for run in runs}
    sft = {run.path.name: [run.metrics["sft"]] for run in runs if run.metrics.get("sft")}
    drawn = [overlay_chart(_LOSS, sft, colours, "SFT step")]
    drawn += [overlay_chart(panel, signal, colours, "RL step, all stages") for panel in PANELS]
    return [chart for chart in drawn if chart]


def _changed(runs: Sequence[RunData]) -> list[list[str]]:
    """Key, then its value in each run, where they are not all the same; names and places left out."""
    flat = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for config in flat for key in config))
    apart = [key for key in keys if len({str(config.get(key)) for config in flat}) > 1]
    left_out = ("run.root", "run.name")
    return [[key, *(str(config.get(key)) for config in flat)] for key in apart if key not in left_out]
