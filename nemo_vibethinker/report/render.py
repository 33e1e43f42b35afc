"""The page of a run: views of what was gathered, put into the template and written atomically."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.report import (
    cost_views,
    curves,
    data_views,
    headline_views,
    lineage_views,
    paper_views,
    probe_views,
    provenance_views,
    samples,
    score_views,
    signal_views,
    vega,
    weights,
)
from nemo_vibethinker.report.gather import RunData, gather
from nemo_vibethinker.report.numbers import percent
from nemo_vibethinker.report.vega import Chart

_PAGE = Path(__file__).with_name("page")


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder, finished or half-way, and return its path.

    The page needs no network and no other file. What the run does not have is left out with a sentence.

    Raises:
        ValueError: `run_dir` is not a run folder.
    """
    page = run_dir / "report.html"
    atomic_write_text(page, render("run.html", run_context(gather(run_dir))))
    return page


def render(template: str, context: dict[str, Any]) -> str:
    """Fill a template of `page/` and give it the charts of the context's `charts`, the style sheet and the scripts."""
    # StrictUndefined: a name missing in the context is our fault, not an empty place in the page.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    shared = {
        "style": Markup((_PAGE / "style.css").read_text()),
        "library": Markup(vega.library()),
        "script": Markup((_PAGE / "page.js").read_text()),
        "specs": Markup(vega.specs_json(_charts(context))),
        "written": written,
    }
    return environment.get_template(template).render(context | shared)


def _charts(value: Any) -> list[Chart]:
    """Every chart in a template's context, wherever it is."""
    if isinstance(value, Chart):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [chart for part in parts for chart in _charts(part)]


_SECTIONS = (  # id, entry in the table of contents, shown if one of these has content
    ("headline", "Headline", None),
    ("lineage", "Lineage", None),
    ("probe", "Pass@K map", ("probe", "probe_planned")),
    ("sft", "SFT", ("sft_chart", "sft_planned")),
    ("signal", "RL curves", ("panels", "signal_planned")),
    ("weights", "MGPO weights", ("weights", "signal_planned")),
    ("scores", "Scores", ("scores", "scores_planned")),
    ("samples", "Samples", ("samples", "scores_planned")),
    ("time", "Time and cost", None),
    ("data", "Data", ("funnel", "data_planned")),
    ("config", "Configuration", None),
    ("provenance", "Provenance", None),
)


def run_context(run: RunData) -> dict[str, Any]:
    """Everything the template of a run shows."""
    board = score_views.ScoreBoard(run.scores)
    context = {
        **_head(run, board),
        **_models(run, board),
        **_training(run),
        **_samples(run),
        **_time(run),
        **_data(run),
        **_record(run),
    }
    context["sections"] = [(id, name) for id, name, shown in _SECTIONS if shown is None or any(map(context.get, shown))]
    return context


def _head(run: RunData, board: score_views.ScoreBoard) -> dict[str, Any]:
    config, stages = run.config, score_views.signal_stages(run.config)
    return {
        "title": f"Run {run.path.name}",
        "subtitle": f"Recipe {config.recipe}, scale {config.scale.name}, seed {config.seed}",
        "status": headline_views.status_text(run),
        "cards": headline_views.cards_view(run, board, stages),
        "gains": score_views.gains_view(board, stages),
    }


def _models(run: RunData, board: score_views.ScoreBoard) -> dict[str, Any]:
    table, k, stages = run.probe_table, run.config.probe.select_k, score_views.signal_stages(run.config)
    scores = {
        "charts": score_views.score_charts(board, stages),
        "tables": score_views.score_tables(board, stages),
        "notes": score_views.score_notes(board),
    }
    return {
        "graph": lineage_views.lineage_chart(run.config, run.done, table, board),
        "probe": {"chart": probe_views.probe_chart(table, k), "tables": probe_views.probe_tables(table, k)}
        if table
        else None,
        "probe_planned": "probe" in run.config.stages,
        "scores": scores if board.scores else None,
        "paper": paper_views.paper_view(run.scores, run.path),
        "scores_planned": "evaluate" in run.config.stages,
    }


def _training(run: RunData) -> dict[str, Any]:
    lines = signal_views.signal_lines(run)
    stages = score_views.stage_colours(score_views.signal_stages(run.config))
    sft = run.metrics.get("sft", [])
    return {
        "sft_chart": curves.loss_chart(sft, signal_views.specialist_marks(run)) if sft else None,
        "sft_planned": "sft" in run.config.stages,
        "panels": signal_views.panel_charts(run),
        "bands": [(stage, stages[stage]) for stage in lines],
        "signal_table": signal_views.signal_table(lines),
        "signal_planned": bool(stages),
        "weights": signal_views.weight_charts(run),
        "spread": weights.spread_chart(lines) if lines else None,
        "shares": cost_views.shares_chart(lines),
    }


def _samples(run: RunData) -> dict[str, Any]:
    found = run.samples
    return {
        "samples": Markup(vega.as_json(samples.explorer_data(found))) if found else None,
        "samples_note": samples.explorer_note(found) if found else "",
    }


def _time(run: RunData) -> dict[str, Any]:
    if not run.costs:
        return {"hours": None}
    seconds = {cost.stage: cost.seconds for cost in run.costs}
    seconds["total"] = sum(seconds.values())
    return {
        "hours": {
            "chart": cost_views.hours_chart(run.plan),
            "table": cost_views.hours_table(run.plan, seconds),
            "attempts": cost_views.attempts_table(run.attempts),
        }
    }


def _data(run: RunData) -> dict[str, Any]:
    found = run.funnel
    chart = data_views.funnel_chart(found) if found else None
    return {
        "funnel": data_views.funnel_view(found) | {"chart": chart} if found else None,
        "data_planned": "prepare" in run.config.stages,
    }


def _record(run: RunData) -> dict[str, Any]:
    changed: Sequence[tuple[str, str, str]] | None = None
    if run.reference is not None:
        changed = provenance_views.differences(run.reference, run.config)
    return {
        "command": provenance_views.command(run),
        "provenance": provenance_views.facts(run),
        "hashes": provenance_views.hashes(run),
        "reference": provenance_views.reference_name(run.config),
        "changed": changed,
        "config_text": run.config_text,
    }
