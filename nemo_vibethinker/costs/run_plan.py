"""The forecast of a whole run against its budget: what is done, what was spent, what is to come."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_vibethinker.config import Config
from nemo_vibethinker.costs.calibration import read_records, run_records
from nemo_vibethinker.costs.forecast import StageForecast, forecast
from nemo_vibethinker.costs.layouts import GPUS_PER_NODE
from nemo_vibethinker.costs.memory import peak_memory, sampling_memory, training_rows
from nemo_vibethinker.costs.rates import StageRecord
from nemo_vibethinker.ledger import Book, StageCost
from nemo_vibethinker.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run's cost, in GPU-hours where `device` is gpu and process-hours else.

    Attributes:
        stages: stage -> forecast, in their order.
        done: finished stages.
        costs: stage -> what the ledger says so far.
        budget_hours: `budget.gpu_hours`.
    """

    device: str
    stages: Mapping[str, StageForecast]
    done: frozenset[str]
    costs: Mapping[str, StageCost]
    budget_hours: float

    @property
    def spent_hours(self) -> float:
        """Paid so far, lost hours too."""
        return sum(cost.process_hours for cost in self.costs.values())

    @property
    def unknown(self) -> list[str]:
        """Stages to run whose cost nothing tells."""
        return [stage for stage in self.pending if self.stages[stage].hours is None]

    @property
    def pending(self) -> list[str]:
        """Stages to run."""
        return [stage for stage in self.stages if stage not in self.done]

    def to_come(self, end: str = "hours", besides: str = "") -> float:
        """Hours of the stages to run but for one, less what is done of them; `end`: hours, low or high."""
        return sum(self._left(stage, end) for stage in self.pending if stage != besides)

    def seconds(self, end: str = "hours") -> float:
        """Wall time of what is to come, one stage after the other."""
        at_once = {stage: found.processes * found.side_by_side for stage, found in self.stages.items()}
        return sum(self._left(stage, end) * 3600 / at_once[stage] for stage in self.pending)

    def _left(self, stage: str, end: str) -> float:
        done = self.costs[stage].useful_hours if stage in self.costs else 0.0
        return max(0.0, (getattr(self.stages[stage], end) or 0.0) - done)

    def total(self, end: str = "hours") -> float:
        """Spent and to come; a stage of `unknown` counts as nothing."""
        return self.spent_hours + self.to_come(end)

    @property
    def exceeds(self) -> bool:
        """Whether what is left to run takes the run past its budget."""
        return bool(self.pending) and (self.total() > self.budget_hours or self.spent_hours >= self.budget_hours)


def plan_run(config: Config, folder: Path, others: Sequence[StageRecord] | None = None) -> RunPlan:
    """The plan of a run that has not begun, or goes on in its folder; by the records of the run itself and of others.

    Finished is a stage that has a manifest; its outputs are not looked at.

    Args:
        config: of the run.
        folder: its folder.
        others: records of other runs; None: read those below `run.root`.
    """
    begun = folder.is_dir()
    own = run_records(config, RunFolder(folder, config)) if begun else []
    if others is None:
        others = read_records(config, besides=folder if begun else None)
    costs = Book(folder / "ledger.jsonl").update().costs()
    stages = {stage: folder / "stages" / f"{index:02d}-{stage}" for index, stage in enumerate(config.stages)}
    return RunPlan(
        device="gpu" if config.cluster.gpu else "cpu",
        stages=forecast(config, [*own, *others]),
        done=frozenset(stage for stage, path in stages.items() if (path / "manifest.json").is_file()),
        costs={cost.stage: cost for cost in costs},
        budget_hours=config.budget.gpu_hours,
    )


def require_budget(plan: RunPlan, on_exceed: str) -> None:
    """Refuse a run whose forecast is past its budget, before anything is spent.

    Raises:
        ValueError: what it would cost, and how to go on.
    """
    if on_exceed == "warn" or not plan.exceeds:
        return
    unit = "GPU-hours" if plan.device == "gpu" else "process-hours"
    spent = f"{format_hours(plan.spent_hours)} spent and " if plan.spent_hours else ""
    raise ValueError(
        f"budget.gpu_hours={plan.budget_hours:g}: the run would cost {format_hours(plan.total())} {unit} ({spent}"
        f"{format_hours(plan.to_come())} to come); plan=true shows where, budget.gpu_hours={_above(plan.total())} or "
        "budget.on_exceed=warn lets it run"
    )


def shape(config: Config, processes: int) -> tuple[int, int]:
    """Nodes, and processes (GPUs) on each."""
    if not config.cluster.gpu:
        return 1, processes
    on_slurm = config.cluster.scheduler == "slurm"
    nodes = math.ceil(processes / (config.cluster.gpus_per_node if on_slurm else GPUS_PER_NODE))
    return nodes, processes // nodes


def stage_memory(config: Config) -> dict[str, int]:
    """Stage -> bytes on the fullest process while it trains, or samples in the training process."""
    on_gpu = bool(config.cluster.gpu)
    trained = {
        stage: peak_memory(config.scale, config.data.vocab_size, row, on_gpu=on_gpu).total
        for stage, row in training_rows(config).items()
    }
    return sampling_memory(config) | trained


def dollars(config: Config, plan: RunPlan, hours: float | None) -> float | None:
    """What the hours cost; None for processes without GPUs."""
    return hours * config.budget.dollars_per_gpu_hour if plan.device == "gpu" and hours is not None else None


def _above(hours: float) -> str:
    """A budget with a tenth to spare."""
    return f"{hours * 1.1:.2g}" if hours < 100 else f"{int(hours * 1.1 / 10 + 1) * 10}"


def format_hours(hours: float) -> str:
    """`0.021`, `3.25`, `41.2`, `3,917`."""
    if hours < 0.1:
        return f"{hours:.3f}"
    return f"{hours:.2f}" if hours < 10 else f"{hours:.1f}" if hours < 100 else f"{hours:,.0f}"
