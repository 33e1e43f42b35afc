"""What a run will cost: per stage the process-hours (GPU-hours), their phases, an interval, and what they rest on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from nemo_vibethinker.config import Config
from nemo_vibethinker.costs.flops import token_flops
from nemo_vibethinker.costs.gpus import find_gpu
from nemo_vibethinker.costs.layouts import step_seconds
from nemo_vibethinker.costs.memory import Row, training_rows
from nemo_vibethinker.costs.rates import Figure, StageRecord, stage_rates
from nemo_vibethinker.costs.work import Work, stage_processes, stage_work

# Half-widths of the interval, as factors. Published speeds of 1.5B to 8B models differ by the first: 1,600 to 3,000
# tokens/s/GPU of rollouts, 24 to 40% of the peak in training. The others are assumed.
ASSUMED_SPREAD, RATES_SPREAD, STAGE_SPREAD = 1.4, 1.25, 1.15
PHASES = ("start", "sample", "train", "wait", "move")
ARRAYS = ("probe", "evaluate")  # on Slurm a job for each model
SPEEDS = ("generate_tokens_per_second", "train_flops_per_second")

Rates = Mapping[str, Figure]
Timed = tuple[float, Rates]  # seconds, and the figures that they rest on


@dataclass(frozen=True, kw_only=True)
class StageForecast:
    """What a stage will cost.

    Attributes:
        stage: name.
        processes: GPUs where there are some.
        work: what it does.
        response_share: mean length of a response over the window.
        jobs: that the work is dealt out to, of so many processes each; `side_by_side` at a time.
        hours: process-hours; None: nothing is known of its speed. `low` and `high` bound them.
        phases: phase of `PHASES` -> process-hours; empty where the whole stage was measured.
        figures: name -> what the hours rest on.
        unknown: why there is no figure, or what is not in it; else empty.
    """

    stage: str
    processes: int
    work: Work
    response_share: float
    jobs: int = 1
    side_by_side: int = 1
    hours: float | None = None
    spread: float = ASSUMED_SPREAD
    phases: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    unknown: str = ""

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.hours is None else self.hours / self.spread

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.hours is None else self.hours * self.spread

    @property
    def seconds(self) -> float | None:
        """Wall time."""
        return None if self.hours is None else self.hours * 3600 / (self.processes * self.side_by_side)

    @property
    def sampled_tokens(self) -> float:
        """Expected tokens of all responses."""
        return self.work.sampled_tokens(self.response_share)


def forecast(config: Config, records: Sequence[StageRecord] = ()) -> dict[str, StageForecast]:
    """Every stage of a run, by the records of runs on the same machines (`calibration.read_records`)."""
    return {stage: forecast_stage(config, stage, list(records)) for stage in config.stages}


def forecast_stage(config: Config, stage: str, records: list[StageRecord]) -> StageForecast:
    """One stage: as a finished one of an earlier run, scaled by the tokens; else by speeds."""
    rates = stage_rates(config, stage, records)
    share = rates["response_share"].value
    work = stage_work(config, stage, share)
    jobs = work.models if stage in ARRAYS and config.cluster.scheduler == "slurm" else 1
    blank = StageForecast(
        stage=stage,
        processes=stage_processes(config, stage),
        work=work,
        response_share=share,
        jobs=jobs,
        side_by_side=min(jobs, config.cluster.tasks_at_once),
    )
    return _as_before(blank, records) or _by_speeds(config, blank, rates)


def amount(work: Work) -> float:
    """What the cost of a stage grows with: the most tokens that it may sample or train on."""
    return work.sampled_tokens(1.0) or work.trained_tokens


def _as_before(blank: StageForecast, records: Sequence[StageRecord]) -> StageForecast | None:
    mine = amount(blank.work)
    for record in records:
        if record.stage != blank.stage or record.hours is None or (blank.work.open and not record.same_data):
            continue
        if bool(mine) != bool(record.amount) or not (record.amount or record.same_data):
            continue
        ratio = mine / record.amount if record.amount else 1.0
        source = f"measured, {record.run} {record.stage}" + (f", times {ratio:.3g} by its tokens" if ratio != 1 else "")
        hours = record.hours * ratio
        return replace(blank, hours=hours, spread=STAGE_SPREAD, figures={"hours": Figure(hours, source)})
    return None


def _by_speeds(config: Config, blank: StageForecast, rates: Rates) -> StageForecast:
    no_gpu = not config.cluster.gpu
    if no_gpu and (blank.stage == "prepare" or not rates["startup_seconds"].is_measured):
        return replace(blank, unknown="nothing has measured it")
    seconds = {
        "start": _start_seconds(config, blank, rates),
        "sample": _sample_seconds(blank, rates),
        "train": _train_seconds(config, blank, rates),
        "move": (blank.work.moved_bytes / (config.budget.checkpoint_gb_per_second * 1e9), {}),
    }
    if missing := [phase for phase, found in seconds.items() if found is None]:
        return replace(blank, unknown=f"no speed to {missing[0]} at: cluster.gpu is not known, no run has measured it")
    phases = {phase: found[0] * blank.processes / 3600 for phase, found in seconds.items() if found}
    figures = {name: figure for found in seconds.values() if found for name, figure in found[1].items()}
    if blank.work.responses:
        figures["step_overhead"] = rates["step_overhead"]
        share = rates["step_overhead"].value
        phases["wait"] = (phases["sample"] + phases["train"]) * share / (1 - share)
    speeds = [figures[name] for name in SPEEDS if name in figures]
    return replace(
        blank,
        hours=sum(phases.values()),
        spread=RATES_SPREAD if speeds and all(figure.is_measured for figure in speeds) else ASSUMED_SPREAD,
        phases={phase: phases[phase] for phase in PHASES if phases.get(phase)},
        figures=figures,
        unknown="not in it: reading the data, on processors" if blank.stage == "prepare" else blank.work.open,
    )


def _start_seconds(config: Config, blank: StageForecast, rates: Rates) -> Timed:
    """Of all jobs of the stage, one after the other."""
    engines = blank.work.models if blank.work.responses and config.cluster.gpu else 0
    startup = rates["startup_seconds"]
    seconds = blank.jobs * startup.value + engines * config.budget.engine_startup_seconds
    return seconds, {"startup_seconds": startup}


def _sample_seconds(blank: StageForecast, rates: Rates) -> Timed | None:
    if not blank.work.responses:
        return 0.0, {}
    if "generate_tokens_per_second" not in rates:
        return None
    used = {name: rates[name] for name in ("generate_tokens_per_second", "response_share")}
    return blank.sampled_tokens / (used["generate_tokens_per_second"].value * blank.processes), used


def _train_seconds(config: Config, blank: StageForecast, rates: Rates) -> Timed | None:
    """Seconds of all optimizer steps: FLOPs at the measured speed, else by the GPU's peak, traffic and bubbles."""
    work, gpu = blank.work, find_gpu(config.cluster.gpu)
    if not work.trained_tokens:
        return 0.0, {}
    flops = work.trained_tokens * hardware_flops(config, work.segment)
    if "train_flops_per_second" in rates:
        figure = rates["train_flops_per_second"]
        return flops / (figure.value * blank.processes), {"train_flops_per_second": figure}
    if gpu is None:
        return None
    row = _mean_row(config, blank)
    seconds = work.steps * step_seconds(config, config.scale, gpu, row, flops / work.trained_tokens)
    source = f"assumed, cluster.efficiency of {gpu.name}'s {gpu.bf16_tflops:g} TFLOP/s, less traffic"
    return seconds, {"train_flops_per_second": Figure(flops / seconds / blank.processes, source)}


def _mean_row(config: Config, blank: StageForecast) -> Row:
    """A replica's rows of a step, each as full as they are on the mean."""
    full = training_rows(config)[blank.stage]
    tokens = blank.work.trained_tokens / blank.work.steps / config.scale.parallel.data
    rows = math.ceil(tokens / full.tokens)
    return Row(round(tokens / rows), blank.work.segment, rows, full.entropy)


def hardware_flops(config: Config, segment: float) -> float:
    """FLOPs that are computed for one trained token of samples of this length."""
    scale = config.scale
    flops = token_flops(
        scale.model,
        config.data.vocab_size,
        segment,
        recompute=scale.recompute,
        chunked_logits=bool(scale.logprob_chunk),
    )
    return flops.hardware
