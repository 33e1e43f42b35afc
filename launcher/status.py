"""`status run.name=NAME`: where a run stands, from its folder and, on a cluster, from Slurm. Imports no torch."""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.existing_run import open_existing, split_words
from launcher.slurm.states import JobState, preflight_state, stage_states
from nemo_vibethinker.ledger import Attempt, Book, total
from nemo_vibethinker.metrics_log import STAGE_WIDTH
from nemo_vibethinker.progress import format_duration
from nemo_vibethinker.run_folder import RunFolder

TAIL_BYTES = 1 << 18  # of run.jsonl: some hundred steps
BROKEN = ("failed", "killed", "interrupted")
SILENCE_S = 600  # without a line in the ledger, after which an attempt on another machine counts as dead
PREFLIGHT_NUMBER = "--"
RECENT_STEPS = 20  # the ETA's moving average


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """A stage of a run as `status` shows it."""

    number: str  # of its folder
    stage: str
    state: str  # done | running | interrupted | failed | killed | waiting | pending | cancelled
    attempts: int
    progress: str  # "step 40/120 33%", empty before the first step
    eta_s: float | None
    hours: float
    note: str = ""  # its jobs, why it waits, what went wrong


def main(arguments: list[str]) -> int:
    """Print the status. Returns 0.

    Raises:
        ValueError: no such run.
    """
    _, given = split_words("status", arguments)
    print(render(open_existing("status", given)))
    return 0


def render(run: RunFolder) -> str:
    """The run's status as text."""
    stages = survey_stages(run)
    if run.config.cluster.scheduler == "slurm":
        stages = with_jobs(stages, stage_states(run))
    costs = Book(run.path / "ledger.jsonl").update().costs()
    spent, budget = total(costs), run.config.budget
    unit = "GPU-hours" if spent.device == "gpu" else "process-hours"
    hours = f"{spent.process_hours:,.2f} of {budget.gpu_hours:,.0f} {unit}, {spent.lost_hours:,.2f} of them lost"
    config = run.config
    head = [
        f"run      {run.path}",
        f"what     recipe={config.recipe} scale={config.scale.name} cluster={config.cluster.name}",
        f"state    {_headline(stages)}",
        f"spent    {hours}",
        "",
    ]
    return "\n".join(head + table(stages))


def table(stages: Sequence[StageStatus]) -> list[str]:
    """One line a stage, under column names."""
    width = max(len("state"), *(len(stage.state) for stage in stages))
    lines = [f"   {'stage':<{STAGE_WIDTH}}  {'state':<{width}}  tries  {'hours':>8}  progress"]
    for s in stages:
        eta = f"eta {format_duration(s.eta_s)}" if s.eta_s is not None and s.state == "running" else ""
        rest = " | ".join(filter(None, [s.progress, eta, s.note]))
        tries, hours = s.attempts or "", f"{s.hours:,.2f}" if s.attempts else ""
        lines.append(
            f"{s.number:<2} {s.stage:<{STAGE_WIDTH}}  {s.state:<{width}}  {tries:>5}  {hours:>8}  {rest}".rstrip()
        )
    return lines


def _headline(stages: Sequence[StageStatus]) -> str:
    of_run = [stage for stage in stages if stage.number != PREFLIGHT_NUMBER]
    done = sum(stage.state == "done" for stage in of_run)
    if done == len(of_run):
        return "finished"
    states = [stage.state for stage in stages]
    broken = [stage for stage in stages if stage.state in BROKEN]
    queued = any(stage.state == "pending" or (stage.state == "waiting" and stage.note) for stage in stages)
    word = "running" if "running" in states else "queued" if queued else "stopped"
    if word == "stopped" and not (broken or done or "cancelled" in states):
        return "not started"
    named = "".join(f", {stage.stage} {stage.state}" for stage in broken)
    if broken and (left := states.count("cancelled")):
        named += f", {left} stages after it cancelled"
    go_on = "; the same command goes on" if word == "stopped" else ""
    return f"{word}, {done} of {len(of_run)} stages done{named}{go_on}"


def with_jobs(stages: Sequence[StageStatus], jobs: Mapping[str, JobState]) -> list[StageStatus]:
    """The stages as the states of their jobs complete them, led by a preflight that is not done."""
    found = [_with_job(stage, jobs.get(stage.stage)) for stage in stages]
    first = preflight_state(jobs)
    if first is None or all(stage.state == "done" for stage in stages):
        return found
    about = {"progress": "", "eta_s": None, "hours": 0.0, "attempts": first.attempts}
    return [
        StageStatus(number=PREFLIGHT_NUMBER, stage=first.stage, state=first.state, note=first.note, **about),
        *found,
    ]


def _with_job(stage: StageStatus, job: JobState | None) -> StageStatus:
    if job is None or stage.state == "done":
        return stage
    return replace(stage, state=job.state, note=job.note)


def survey_stages(run: RunFolder) -> list[StageStatus]:
    """The stages of a run on this machine, from what it has written."""
    book = Book(run.path / "ledger.jsonl").update()
    hours = {cost.stage: cost.process_hours for cost in book.costs()}
    steps = recent_steps(run.path / "run.jsonl")
    alive = is_held(run.path / ".lock")
    found = []
    for number, stage in enumerate(run.config.stages):
        tries = [attempt for attempt in book.attempts.values() if attempt.stage == stage]
        state = _state(run, stage, tries, alive)
        found.append(
            StageStatus(
                number=f"{number:02d}",
                stage=stage,
                state=state,
                attempts=len(tries),
                progress="" if state == "done" else progress(steps.get(stage, [])),
                eta_s=eta(steps.get(stage, [])),
                hours=hours.get(stage, 0.0),
            )
        )
    return found


def _state(run: RunFolder, stage: str, tries: Sequence[Attempt], alive: bool) -> str:
    if tries and not tries[-1].status and alive:
        return "running"
    if (run.stage_folder(stage) / "manifest.json").is_file():
        return "done"
    return (tries[-1].status or "killed") if tries else "waiting"


def is_held(lock: Path) -> bool:
    """Whether a process holds the run's lock: by the kernel's table, for one on another machine by its traces."""
    if not lock.is_file():
        return False
    if f" on {platform.node()}\n" not in lock.read_text():
        ledger = lock.parent / "ledger.jsonl"
        return ledger.exists() and time.time() - ledger.stat().st_mtime < SILENCE_S
    inode = str(lock.stat().st_ino)
    return any(f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())


def recent_steps(log: Path) -> dict[str, list[dict[str, Any]]]:
    """Stage -> its lines at the end of `run.jsonl`, those of its latest attempt."""
    if not log.is_file():
        return {}
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        text = file.read()
    stages: dict[str, list[dict[str, Any]]] = {}
    for raw in text.split(b"\n"):
        try:
            line = json.loads(raw)
        except ValueError:  # cut off at the beginning, or not yet whole
            continue
        lines = stages.setdefault(line["stage"], [])
        if lines and "part" not in line and lines[-1]["attempt"] != line["attempt"]:
            lines.clear()
        lines.append(line)
    return stages


def progress(lines: Sequence[dict[str, Any]]) -> str:
    """`step 40/120 33%`; of a stage that jobs share, how many of its steps are done."""
    if not lines:
        return ""
    step, of = lines[-1]["step"], lines[-1]["total"]
    if "part" in lines[-1]:
        step = len({line["step"] for line in lines})
    return f"step {step}/{of} {100 * step // of}%"


def eta(lines: Sequence[dict[str, Any]]) -> float | None:
    """Seconds until the stage's last step, by the speed of its recent ones; None where there are too few."""
    recent = lines[-RECENT_STEPS - 1 :]
    if len(recent) < 2 or recent[-1]["step"] == recent[0]["step"] or "part" in recent[-1]:
        return None
    pace = (recent[-1]["time"] - recent[0]["time"]) / (recent[-1]["step"] - recent[0]["step"])
    return pace * (recent[-1]["total"] - recent[-1]["step"])
