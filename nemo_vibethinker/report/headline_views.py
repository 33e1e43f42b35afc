"""The top of the page: how far the run is and its headline figures."""

from collections.abc import Sequence

from nemo_vibethinker.ledger import total
from nemo_vibethinker.progress import format_duration
from nemo_vibethinker.report.cost_views import hours, share, unit
from nemo_vibethinker.report.gather import RunData
from nemo_vibethinker.report.numbers import percent
from nemo_vibethinker.report.score_views import ScoreBoard, final_model

Card = dict[str, str]


def status_text(run: RunData) -> str:
    """One sentence: how far the run is."""
    stages = run.config.stages
    missing = [stage for stage in stages if stage not in run.done]
    if not missing:
        return f"All {len(stages)} stages have finished."
    return f"{len(run.done)} of {len(stages)} stages have finished; still to do: {', '.join(missing)}."


def cards_view(run: RunData, board: ScoreBoard, stages: Sequence[str]) -> list[Card]:
    """The headline figures."""
    config = run.config
    processes = f"{config.world_size} process{'es' if config.world_size > 1 else ''}"
    return [
        *_score_cards(board, final_model(board, stages)),
        *(_cost_cards(run) if run.costs else []),
        _card("Recipe", config.recipe, f"{len(config.stages)} stages, seed {config.seed}"),
        _card("Scale", config.scale.name, f"{config.scale.precision}, {processes}, cluster {config.cluster.name}"),
    ]


def _score_cards(board: ScoreBoard, model: str | None) -> list[Card]:
    cards = []
    for domain in board.unions:
        estimate = board.estimate(model, domain) if model else None
        if estimate:
            interval = f"{percent(estimate.low)} to {percent(estimate.high)}, {model}"
            cards.append(_card(f"{domain} pass@1", f"{percent(estimate.mean)}%", interval))
    return cards


def _cost_cards(run: RunData) -> list[Card]:
    cost = total(run.costs)
    plan = run.plan[-1].planned_hours
    in_part = any(row.planned_hours for row in run.plan)
    beside = f"planned {hours(plan)}" if plan else "planned in part" if in_part else "no plan on record"
    lost = f"{hours(cost.lost_hours)} hours lost" if cost.lost_hours else "nothing lost"
    return [
        _card(unit(cost.device), hours(cost.process_hours), beside),
        _card("Useful / paid (ETTR)", f"{share(cost.ettr)}%", lost),
        _card("Wall time", format_duration(cost.seconds), f"over {cost.attempts} stage attempts"),
    ]


def _card(label: str, value: str, note: str) -> Card:
    return {"label": label, "value": value, "note": note}
