"""Benchmarks beside the published numbers, and the conditions that each score rests on. A gap stays a gap."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_vibethinker.evaluation.comparison import (
    HEADLINE_BENCHMARKS,
    REFERENCE,
    TITLES,
    ComparisonRow,
    HeadlineRow,
    comparison_rows,
    headline_table,
)
from nemo_vibethinker.evaluation.scores import Score
from nemo_vibethinker.report.cost_views import hours
from nemo_vibethinker.report.numbers import format_estimate, percent
from nemo_vibethinker.spectrum.pass_at_k import Estimate

_HASH = 12  # digits shown


def paper_view(scores: Sequence[Score], run_dir: Path) -> dict[str, Any] | None:
    """Our scores on benchmarks beside the paper's; None if none was measured."""
    measured = [score for score in scores if score.benchmark]
    if not measured:
        return None
    return {
        "comparison": {
            "head": ["benchmark", "model", "ours, %", f"{REFERENCE}, %", "difference", "its number is", "differs in"],
            "rows": [_comparison_row(row) for row in comparison_rows(scores)],
            "caption": f"pass@1 with 95% bootstrap intervals over problems, beside the published {REFERENCE}; whether "
            "its number lies inside our interval; and what differs from the published conditions.",
        },
        "headline": {
            "head": ["model", "size", *(TITLES[name] for name in HEADLINE_BENCHMARKS), "hours", "device", "cost, $"],
            "rows": [_headline_row(row) for row in headline_table(run_dir)],
            "caption": "Rows without intervals are published numbers; a dash was not measured, or not published.",
        },
        "conditions": {
            "head": _CONDITIONS,
            "rows": [_conditions_row(score) for score in measured],
        },
    }


def _comparison_row(row: ComparisonRow) -> list[str]:
    difference = "-" if row.difference is None else f"{100 * row.difference:+.1f}"
    place = "-" if row.outside is None else "outside" if row.outside else "inside"
    paper = "-" if row.paper is None else percent(row.paper)
    what = [TITLES.get(row.benchmark, row.benchmark), row.model or "-", format_estimate(row.ours)]
    return [*what, paper, difference, place, "; ".join(row.caveats) or "nothing"]


def _headline_row(row: HeadlineRow) -> list[str]:
    figures = [_shown(row.scores[name]) for name in HEADLINE_BENCHMARKS]
    cost = "-" if row.dollars is None else f"{row.dollars:,.0f}"
    return [
        row.model,
        row.parameters or "-",
        *figures,
        "-" if row.gpu_hours is None else hours(row.gpu_hours),
        row.device or "-",
        cost,
    ]


def _shown(value: Estimate | float | None) -> str:
    if value is None or isinstance(value, Estimate):
        return format_estimate(value)
    return percent(value)


_CONDITIONS = ["benchmark", "model", "problems x samples", "maj@k, %", "ungraded, %", "temperature", "top_p"]
_CONDITIONS += ["most tokens", "engine", "verifier", "template", "benchmark hash"]


def _conditions_row(score: Score) -> list[str]:
    size = f"{score.num_problems:,} x {score.samples_per_problem}"
    votes = ", ".join(f"{k}: {percent(estimate.mean)}" for k, estimate in score.maj_at.items()) or "-"
    row = [TITLES.get(score.benchmark, score.benchmark), score.model, size, votes, percent(score.ungraded_share)]
    known = score.provenance
    if known is None:
        return [*row, *["unknown"] * 7]
    limit = f"{known.max_tokens:,}" if known.max_tokens else "the window"
    settings = [f"{known.temperature:g}", f"{known.top_p:g}", limit, f"{known.engine} {known.engine_version}"]
    return [*row, *settings, known.verifier_version, known.template_hash[:_HASH], known.benchmark_hash[:_HASH]]
