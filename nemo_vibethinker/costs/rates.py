"""How fast a process (a GPU) does a stage's work: measured by finished runs, or assumed.

The assumptions and where they come from:
    generate_tokens_per_second 2,500   VibeThinker-1.5B's own evaluation: 30 x 64 responses of 18,686 tokens in .49 h on
                                       eight H800 (a result file once in the authors' repository)
    response_share .55                 that file's mean is .46 of its window of 40,960; harder problems and shorter
                                       windows fill more. With it, the paper's scale samples 14,000 tokens a response
    step_overhead .25                  with it, rollouts take 70% of the time of a step; 70 to 90% are reported
    cluster.efficiency .4              published training of 0.6B to 8B models on H100: 17 to 40% of the peak
    sample_share .3                    traces of about 10,000 tokens in rows of 32K
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nemo_vibethinker.config import Config


@dataclass(frozen=True)
class Figure:
    """A number with where it comes from."""

    value: float
    source: str  # "assumed, <key>" or "measured, <run> <stage>"

    @property
    def is_measured(self) -> bool:
        """Whether a run has measured it."""
        return self.source.startswith("measured")


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """What one stage of an earlier run, or of this one, has measured; None: too little of it.

    Attributes:
        run, stage: names.
        hours: process-hours that were useful, of a finished stage.
        amount: what `hours` grows with (`forecast.amount`); 0 for stages that have no such count.
        same_data: the run read the very data that the run to be planned will read.
        generate_tokens_per_second: of a process, while it samples.
        train_flops_per_second: of a process, while it trains.
        response_share: mean length of a response over the window.
        step_overhead: share of the steps' time that was neither sampling nor training.
        startup_seconds: from the start of an attempt to its first step.
    """

    run: str
    stage: str
    hours: float | None = None
    amount: float = 0.0
    same_data: bool = False
    generate_tokens_per_second: float | None = None
    train_flops_per_second: float | None = None
    response_share: float | None = None
    step_overhead: float | None = None
    startup_seconds: float | None = None


MEASURES = ("generate_tokens_per_second", "train_flops_per_second", "response_share", "step_overhead")


def kind(stage: str) -> str:
    """Stages of one kind do the same work: the three of reinforcement learning are one."""
    return stage.partition(".")[0]


def stage_rates(config: Config, stage: str, records: list[StageRecord]) -> Mapping[str, Figure]:
    """Name -> figure for a stage. The nearest record counts: the same stage, then its kind, then any.

    `train_flops_per_second` is missing where nothing has measured it: the peak of the GPU decides; and so is
    `generate_tokens_per_second` on a machine without a GPU.
    """
    budget = config.budget
    found = {
        "response_share": Figure(budget.response_share, "assumed, budget.response_share"),
        "step_overhead": Figure(budget.step_overhead, "assumed, budget.step_overhead"),
        "startup_seconds": Figure(budget.startup_seconds, "assumed, budget.startup_seconds"),
    }
    if config.cluster.gpu:
        speed = budget.generate_tokens_per_second
        found["generate_tokens_per_second"] = Figure(speed, "assumed, budget.generate_tokens_per_second")
    for name in (*MEASURES, "startup_seconds"):
        record = _nearest(records, stage, name)
        if record is not None:
            found[name] = Figure(getattr(record, name), f"measured, {record.run} {record.stage}")
    return found


# Lengths and overhead of one kind of stage say nothing of another's; a GPU's speed does.
_OF_ITS_KIND = ("response_share", "step_overhead")


def _nearest(records: list[StageRecord], stage: str, name: str) -> StageRecord | None:
    known = [record for record in records if getattr(record, name) is not None]
    near = [[r for r in known if r.stage == stage], [r for r in known if kind(r.stage) == kind(stage)]]
    far = [] if name in _OF_ITS_KIND else [known]
    return next((group[0] for group in [*near, *far] if group), None)
