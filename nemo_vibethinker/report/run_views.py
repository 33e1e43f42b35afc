"""What the page shows of the run itself: headline, reinforcement-learning curves, cost, data, provenance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_vibethinker.config import CODE_DOMAIN
from nemo_vibethinker.evaluation.scores import MATH_UNION
from nemo_vibethinker.ledger import StageCost, total
from nemo_vibethinker.progress import format_duration
from nemo_vibethinker.report import charts, svg
from nemo_vibethinker.report.gather import RunData
from nemo_vibethinker.report.model_views import ScoreBoard, final_model, percent, stage_colour

_AVERAGED_STEPS = 5
_MAX_ROWS = 200  # of a list that may be as long as the data
_TIME_PARTS = ("generate", "grade", "update", "sync", "idle")  # each logged as PART_share
_TABLE_FIELDS = {  # field -> header, decimals, factor
    "reward": ("reward", 3, 1),
    "response_length": ("length, tokens", 1, 1),
    "truncated_share": ("truncated, %", 1, 100),
    "entropy": ("entropy, nats", 3, 1),
    "w_me": ("w_ME", 3, 1),
    "zero_variance_share": ("zero variance, %", 1, 100),
}


def status_text(run: RunData) -> str:
    """One sentence: how far the run is."""
    stages = run.config.stages
    missing = [stage for stage in stages if stage not in run.done]
    if not missing:
        return f"All {len(stages)} stages have finished."
    return f"{len(run.done)} of {len(stages)} stages have finished; still to do: {', '.join(missing)}."


def cards_view(run: RunData, board: ScoreBoard, stages: Sequence[str]) -> list[dict[str, str]]:
    """The headline figures."""
    config, cost = run.config, total(run.costs)
    final = final_model(board, stages)
    cards = []
    for domain in (MATH_UNION, CODE_DOMAIN):
        estimate = board.estimate(final, domain) if final else None
        if estimate:
            interval = f"{percent(estimate.low)} to {percent(estimate.high)}, {final}"
            cards.append(_card(f"{domain} pass@1", f"{percent(estimate.mean)}%", interval))
    if run.costs:
        lost = f"{_hours(cost.lost_hours)} of them lost" if cost.lost_hours else "none of them lost"
        cards.append(_card(_unit(cost), _hours(cost.process_hours), lost))
        attempts = f"over {cost.attempts} stage attempts"
        cards.append(_card("Wall time", format_duration(cost.seconds), attempts))
    processes = f"{config.world_size} process{'es' if config.world_size > 1 else ''}"
    cards.append(_card("Recipe", config.recipe, f"{len(config.stages)} stages"))
    cards.append(_card("Scale", config.scale.name, f"{config.scale.precision}, {processes}"))
    return [*cards, _card("Seed", str(config.seed), f"cluster {config.cluster.name}")]


def _card(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


def _unit(cost: StageCost) -> str:
    return "GPU-hours" if cost.device == "gpu" else "CPU process-hours"


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}"


def signal_lines(run: RunData, stages: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The metrics lines of the reinforcement-learning stages that have any."""
    return {stage: run.metrics[stage] for stage in stages if run.metrics.get(stage)}


def panels_view(lines: Mapping[str, list[dict[str, Any]]], stages: Sequence[str]) -> list[dict[str, str]]:
    """The small charts that have data."""
    drawn = [(panel, charts.signal_chart(panel, lines, stages)) for panel in charts.PANELS]
    return [{"title": panel.title, "svg": chart, "caption": panel.caption} for panel, chart in drawn if chart]


def bands_view(lines: Mapping[str, Any], stages: Sequence[str]) -> list[tuple[str, str]]:
    """Legend of the stage bands."""
    return [(name, svg.variable_name(stage_colour(stages, name))) for name in lines]


def signal_table(lines: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Start and end of each stage's curves in numbers."""
    head = ["stage", "steps", *(header for header, _, _ in _TABLE_FIELDS.values())]
    rows = []
    for stage, stage_lines in lines.items():
        steps = f"{stage_lines[-1]['step']} of {stage_lines[-1]['total']}"
        rows.append([stage, steps, *(_start_to_end(stage_lines, field) for field in _TABLE_FIELDS)])
    caption = f"Mean of a stage's first {_AVERAGED_STEPS} steps, then of its last {_AVERAGED_STEPS}."
    return {"head": head, "rows": rows, "caption": caption}


def _start_to_end(lines: Sequence[Mapping[str, Any]], field: str) -> str:
    _, decimals, factor = _TABLE_FIELDS[field]
    values = charts.values(lines, field)
    if not values:
        return "-"
    ends = [factor * math.fsum(part) / len(part) for part in (values[:_AVERAGED_STEPS], values[-_AVERAGED_STEPS:])]
    return " to ".join(f"{end:.{decimals}f}" for end in ends)


def hours_view(costs: list[StageCost]) -> dict[str, Any]:
    """Cost per stage as chart and table."""
    whole = total(costs)
    useful = {cost.stage: cost.useful_hours for cost in costs}
    lost = {cost.stage: cost.lost_hours for cost in costs}
    rows = [
        [
            cost.stage,
            str(cost.attempts),
            format_duration(cost.seconds),
            f"{cost.useful_hours:.4f}",
            f"{cost.lost_hours:.4f}",
            f"{_share(cost.process_hours, whole.process_hours)}",
        ]
        for cost in [*costs, whole]
    ]
    return {
        "chart": charts.hours_chart(useful, lost, _unit(whole)),
        "caption": f"{_share(whole.useful_hours, whole.process_hours)}% of the {_unit(whole)} led to a result or can "
        "be resumed from. Look for the longest bar, and for any lost part.",
        "head": ["stage", "attempts", "wall time", "useful, h", "lost, h", "of the run, %"],
        "rows": rows,
        "table_caption": f"{_unit(whole)}: hours times processes, over all attempts.",
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _share(part: float, whole: float) -> str:
    return percent(_ratio(part, whole))


def shares_view(lines: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    """How a reinforcement-learning step's time divides; None if no stage logged it."""
    logged = {field for stage_lines in lines.values() for line in stage_lines for field in line}
    parts = [part for part in _TIME_PARTS if f"{part}_share" in logged]
    if not parts:
        return None
    shares = {stage: _time_shares(stage_lines, parts) for stage, stage_lines in lines.items()}
    parts = [*parts, "other"]
    colours = [svg.variable_name(charts.part_colour(index, part)) for index, part in enumerate(parts)]
    return {
        "chart": charts.share_chart(shares),
        "legend": list(zip(parts, colours, strict=True)),
        "caption": "Mean over the stage's steps, in percent of a step's wall time. The longest part is the one whose "
        "speed decides the stage's cost.",
    }


def _time_shares(lines: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> dict[str, float]:
    logged = {part: charts.values(lines, f"{part}_share") for part in parts}
    known = {part: math.fsum(values) / len(values) if values else 0.0 for part, values in logged.items()}
    return known | {"other": max(0.0, 1 - math.fsum(known.values()))}


def funnel_view(funnel: Mapping[str, Any]) -> dict[str, Any]:
    """How many records of each set were read, kept and dropped, and the proof that held-out problems are disjoint."""
    sets = funnel["sets"]
    dropped = [
        (name, str(item["line"] or "-"), item["id"] or "-", item["reason"])
        for name, counts in sets.items()
        for item in counts["dropped"]
    ]
    overlaps = [
        (str(item["train_id"]), str(item["held_out_id"]), str(item["shared_text"]))
        for item in funnel.get("overlaps_removed", [])
    ]
    rows = [
        [name, f"{c['read']:,}", f"{c['kept']:,}", f"{c.get('dropped_count', len(c['dropped'])):,}"]
        for name, c in sets.items()
    ]
    return {
        "head": ["set", "read", "kept", "dropped"],
        "rows": rows,
        "caption": "Records per set. Read is kept plus dropped plus removed for overlap; each is named below.",
        "disjoint": _disjoint_text(funnel, len(overlaps)),
        "dropped": dropped[:_MAX_ROWS],
        "dropped_summary": _summary("Dropped records", len(dropped)),
        "overlaps": overlaps[:_MAX_ROWS],
        "overlaps_summary": _summary("Training records removed for overlap", len(overlaps)),
    }


def _summary(what: str, count: int) -> str:
    return f"{what}: {count:,}" + (f", the first {_MAX_ROWS} shown" if count > _MAX_ROWS else "")


def _disjoint_text(funnel: Mapping[str, Any], removed: int) -> str:
    checked = {
        True: "After that no training prompt shares a 10-gram with a held-out prompt.",
        False: "Training and held-out prompts still overlap.",
        None: "No check of disjointness was recorded.",
    }[funnel.get("disjoint")]
    return f"Training records removed because they share a 10-gram with a held-out record: {removed:,}. {checked}"


def provenance_view(run: RunData) -> tuple[str, list[tuple[str, str]], list[tuple[str, str, str]]]:
    """The exact command, the facts that fix the run, and every artefact's content hash."""
    command = run.header[1] if len(run.header) > 1 else ""
    facts = [("run folder", str(run.path)), ("seed", str(run.config.seed))]
    versions = {name: version for manifest in run.manifests.values() for name, version in manifest.versions.items()}
    facts += sorted(versions.items()) if versions else [("versions", run.header[0])] if run.header else []
    if run.config.run.from_run:
        facts.append(("starts from", run.config.run.from_run))
    return command, facts, _hashes(run)


def _hashes(run: RunData) -> list[tuple[str, str, str]]:
    """(stage, artefact, SHA-256): what a stage read from outside the run, and what it wrote."""
    made: set[str] = set()
    rows = []
    for stage, manifest in run.manifests.items():
        outside = [item for item in manifest.inputs.values() if item.sha256 not in made]
        rows += [(stage, f"reads {item.path}", item.sha256) for item in outside]
        rows += [(stage, item.path, item.sha256) for item in manifest.outputs.values()]
        made |= {item.sha256 for item in (*manifest.outputs.values(), *manifest.inputs.values())}
    return rows
