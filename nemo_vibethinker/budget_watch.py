"""The budget of a run at work: what was spent, what it will be in all, a warning when that is over it, and a stop.

Hours are GPU-hours, or process-hours where there is no GPU. The forecast of the stage at work is its speed so far, that
of later stages the plan's, by the speeds that this run and finished ones have measured.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_vibethinker import interruption
from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.config import Config
from nemo_vibethinker.costs.calibration import LEAST_STEPS, read_records
from nemo_vibethinker.costs.plan_json import to_json
from nemo_vibethinker.costs.rates import StageRecord
from nemo_vibethinker.costs.run_plan import format_hours, plan_run
from nemo_vibethinker.interruption import OVER_BUDGET
from nemo_vibethinker.ledger import Ledger

REFRESH_S = 60.0  # between forecasts of later stages


@dataclass(frozen=True)
class Spending:
    """What a run has cost when a step ends; None: not known."""

    hours: float
    budget: float | None = None
    projected: float | None = None  # of the whole run
    warning: str = ""  # when the projection has just passed the budget

    def fields(self) -> dict[str, Any]:
        """For the step's line of `run.jsonl`."""
        found = {"spent_hours": round(self.hours, 5)}
        if self.projected is not None:
            found["projected_hours"] = round(self.projected, 5)
        return found | ({"budget_warning": self.warning} if self.warning else {})


class BudgetWatch:
    """Watches the stages of a run one after the other, on the main rank."""

    def __init__(self, config: Config, folder: Path, ledger: Ledger) -> None:
        self._config, self._folder, self._ledger = config, folder, ledger
        self._others: Sequence[StageRecord] | None = None
        self._over = False

    def begin(self, stage: str) -> None:
        """Watch this stage from now on. Asks the run to stop where its budget is spent."""
        self._stage, self._steps = stage, 0
        self._later = 0.0  # hours of the stages after it
        self._all_known = False
        self._refreshed = -REFRESH_S
        self._stop_if_spent(self._ledger.process_hours())

    def after_step(self, eta_s: float) -> Spending:
        """What was spent when a step of the stage has ended; asks the run to stop where that is the budget.

        Args:
            eta_s: seconds until the stage's last step, by its speed so far.
        """
        self._steps += 1
        budget, spent = self._config.budget.gpu_hours, self._ledger.process_hours()
        self._stop_if_spent(spent)
        if self._steps < LEAST_STEPS:
            return Spending(spent, budget)
        self._refresh()
        projected = spent + eta_s * self._ledger.processes / 3600 + self._later
        crossed = projected > budget and not self._over
        self._over = projected > budget
        warning = self._warning(projected) if crossed else ""
        return Spending(spent, budget, projected if self._all_known else None, warning)

    def _stop_if_spent(self, spent: float) -> None:
        budget = self._config.budget
        if budget.on_exceed == "stop" and spent >= budget.gpu_hours:
            reason = f"budget.gpu_hours={budget.gpu_hours:g} is spent ({format_hours(spent)} {self._unit()})"
            interruption.request(reason, OVER_BUDGET, "raise budget.gpu_hours and run the same command")

    def _warning(self, projected: float) -> str:
        budget = self._config.budget
        least = "" if self._all_known else "at least "
        then = "it stops there, saved" if budget.on_exceed == "stop" else "it goes on (budget.on_exceed=warn)"
        return (
            f"warning: the run will cost {least}{format_hours(projected)} {self._unit()}, over "
            f"budget.gpu_hours={budget.gpu_hours:g}: {then}"
        )

    def _unit(self) -> str:
        return "GPU-hours" if self._ledger.device == "gpu" else "process-hours"

    def _refresh(self) -> None:
        if time.monotonic() - self._refreshed < REFRESH_S:
            return
        self._refreshed = time.monotonic()
        if self._others is None:
            self._others = read_records(self._config, besides=self._folder)
        plan = plan_run(self._config, self._folder, self._others)
        self._later = plan.to_come(besides=self._stage)
        self._all_known = set(plan.unknown) <= {self._stage}


def write_plan(config: Config, folder: Path) -> None:
    """`plan.json` of a run that begins: what its report sets the cost against. An earlier one stays."""
    if not (folder / "plan.json").exists():
        atomic_write_text(folder / "plan.json", to_json(config, plan_run(config, folder)) + "\n")
