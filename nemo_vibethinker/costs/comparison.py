"""What a run was planned to cost against what it has cost, stage by stage."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_vibethinker.ledger import StageCost, total


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """A stage, or the whole run as "total". Hours are GPU-hours where `device` is gpu, else process-hours.

    Attributes:
        planned_hours: None where the plan had no figure.
        useful_hours, lost_hours, paid_hours: of the ledger; 0 for a stage that has not started. Paid is their sum.
        unseen_hours: of the lost ones, those that only Slurm's accounting has seen.
        attempts: of the stage.
        ettr: useful over paid hours; None before anything was paid.
        ratio: paid over planned hours; None where one of them is missing.
    """

    stage: str
    device: str
    planned_hours: float | None
    paid_hours: float
    useful_hours: float
    lost_hours: float
    unseen_hours: float
    attempts: int
    ettr: float | None
    ratio: float | None


def compare_costs(planned: Mapping[str, float | None], costs: Sequence[StageCost]) -> list[CostRow]:
    """A row for each planned stage in its order, then for each other stage with a cost, then the total.

    Args:
        planned: stage -> hours of the plan that was written when the run began (`planned_hours(run folder)`).
        costs: of the ledger (`ledger.summarise`).
    """
    paid = {cost.stage: cost for cost in costs}
    device = total(costs).device
    names = [*planned, *(stage for stage in paid if stage not in planned)]
    rows = [_row(planned.get(name), paid.get(name) or total([], name), device) for name in names]
    figures = [hours for hours in planned.values() if hours is not None]
    whole = sum(figures) if figures and len(figures) == len(planned) else None
    return [*rows, _row(whole, total(costs), device)]


def _row(planned: float | None, cost: StageCost, device: str) -> CostRow:
    return CostRow(
        stage=cost.stage,
        device=device,
        planned_hours=planned,
        paid_hours=cost.process_hours,
        useful_hours=cost.useful_hours,
        lost_hours=cost.lost_hours,
        unseen_hours=cost.unseen_hours,
        attempts=cost.attempts,
        ettr=cost.ettr,
        ratio=cost.process_hours / planned if planned and cost.attempts else None,
    )


def planned_hours(run_dir: Path) -> dict[str, float | None]:
    """Stage -> hours of the run's `plan.json`, written when it began; empty for a run without one."""
    file = run_dir / "plan.json"
    if not file.is_file():
        return {}
    return {stage["stage"]: stage["hours"] for stage in json.loads(file.read_text())["stages"]}
