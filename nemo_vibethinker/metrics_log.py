"""One line per step: the same fields as JSON in `run.jsonl` and, in fixed columns, on the console.

Fields with a column (all optional; others go to `run.jsonl` only):
    checkpoint, domain                                 probe: what is being sampled
    reward, ungraded_share                             mean reward of graded responses; share left ungraded, 0 to 1
    loss, lr, grad_norm                                hidden where there is a reward
    pass_at_<k>                                        estimate in 0 to 1
    w_me                                               mean entropy-deviation weight
    response_length, truncated_share                   mean tokens; share cut at the limit
    entropy, mismatch_kl                               nats per token
    generate_share, grade_share, update_share, sync_share, idle_share   of the step's wall time
    tokens_per_second, mfu                             per process (GPU); model FLOP utilisation, 0 to 1

Without a column, for the report: p_correct_counts, prompts by their share of right responses (0/G, 1/G, ... G/G).
"""

import math
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nemo_vibethinker.budget_watch import BudgetWatch, Spending
from nemo_vibethinker.config import STAGES
from nemo_vibethinker.ledger import Ledger
from nemo_vibethinker.process_memory import memory_fields
from nemo_vibethinker.progress import format_duration
from nemo_vibethinker.run_folder import append_json_line, read_json_lines

STAGE_WIDTH = max(len(stage) for stage in STAGES)
RECENT_STEPS = 20  # the ETA's moving average
CONSOLE_INTERVAL_S = 1.0  # run.jsonl holds every step


class MetricsLog:
    """The metrics of one stage attempt.

    Args:
        path: `run.jsonl`; None (ranks other than the main one) neither writes nor prints.
        stage: name of the stage.
        total_steps: number of steps of the whole stage.
        ledger: told that the attempt is alive, asked for the run's cost.
        start_step: last finished step of the attempt that this one resumes.
        quiet: write, do not print.
        mirror: called with every line that was written, for the optional loggers.
        part: what of the stage, where several jobs share it.
        watch: told of every step, adds what it has cost.
    """

    def __init__(
        self,
        path: Path | None,
        stage: str,
        total_steps: int,
        ledger: Ledger,
        start_step: int = 0,
        quiet: bool = False,
        mirror: Callable[[Mapping[str, Any]], None] | None = None,
        part: str = "",
        watch: BudgetWatch | None = None,
    ) -> None:
        self.path = path
        self.stage = stage
        self.total_steps = total_steps
        self.ledger = ledger
        self.quiet = quiet
        self.mirror = mirror
        self.part = part
        self.watch = watch
        self._printed = -math.inf
        self._recent = deque([(time.monotonic(), start_step)], maxlen=RECENT_STEPS + 1)

    def log(self, step: int, **fields: Any) -> None:
        """Record the finished step `step` (from 1, increasing); values are JSON scalars."""
        assert step > self._recent[-1][1], f"{self.stage}: step {step} after step {self._recent[-1][1]}"
        now = time.monotonic()
        fields = {"seconds": round(now - self._recent[-1][0], 4)} | fields
        self._recent.append((now, step))
        self.ledger.beat()
        if self.path is None:
            return
        spent = self.watch.after_step(self._eta()) if self.watch else Spending(self.ledger.process_hours())
        head = {"time": round(time.time(), 3), "stage": self.stage, "attempt": self.ledger.attempt_number}
        head |= {"part": self.part} if self.part else {}
        line = head | {"step": step, "total": self.total_steps} | memory_fields() | fields | spent.fields()
        append_json_line(self.path, line)
        if self.mirror:
            self.mirror(line)
        if not self.quiet and (spent.warning or self._due(step)):
            text = format_line(step, self.total_steps, fields, self._eta(), spent=spent, device=self.ledger.device)
            print(f"{self.stage:<{STAGE_WIDTH}}  {text}", flush=True)
        if spent.warning:
            print(f"{self.stage:<{STAGE_WIDTH}}  {spent.warning}", flush=True)

    def event(self, step: int, event: str, text: str, **fields: Any) -> None:
        """Record and print what happened besides the figures of step `step`."""
        if self.path is None:
            return
        head = {"time": round(time.time(), 3), "stage": self.stage, "attempt": self.ledger.attempt_number}
        append_json_line(self.path, head | {"step": step, "event": event, "text": text} | fields)
        print(f"{self.stage:<{STAGE_WIDTH}}  step {step}: {text}", flush=True)

    def _due(self, step: int) -> bool:
        """Whether the console gets this step: not more often than it can be read, but always the last."""
        now = time.monotonic()
        if step < self.total_steps and now - self._printed < CONSOLE_INTERVAL_S:
            return False
        self._printed = now
        return True

    def _eta(self) -> float:
        (first_time, first_step), (last_time, last_step) = self._recent[0], self._recent[-1]
        return (last_time - first_time) / (last_step - first_step) * (self.total_steps - last_step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of `run.jsonl` with figures, one per stage and step.

    A later attempt overrules an earlier one from the step where it resumed, so steps that a kill has undone do not
    show up after it.
    """
    stages: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for record in read_json_lines(path):
        if "event" in record:
            continue
        lines = stages.setdefault(record["stage"], {}).setdefault(record.get("part", ""), [])
        while lines and lines[-1]["step"] >= record["step"]:
            lines.pop()
        lines.append(record)
    return [line for parts in stages.values() for line in _in_order(parts)]


def _in_order(parts: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The lines of a stage by step. Parts have steps of their own; of two lines for one step the newer holds."""
    lines = sorted((line for part in parts.values() for line in part), key=lambda line: line["time"])
    by_step = {line["step"]: line for line in lines}
    return [by_step[step] for step in sorted(by_step)]


def read_events(path: Path) -> list[dict[str, Any]]:
    """The lines of `run.jsonl` that `MetricsLog.event` wrote, also of steps that were undone later."""
    return [record for record in read_json_lines(path) if "event" in record]


def format_line(
    step: int,
    total: int,
    fields: Mapping[str, Any],
    eta_s: float | None,
    *,
    spent: Spending | None = None,
    device: str = "cpu",
) -> str:
    """The console line of a step. Columns that the stage has no field for are left out.

    Args:
        step: finished steps.
        total: steps of the stage.
        fields: see the module's docstring.
        eta_s: seconds until the stage is done; None leaves the column out.
        spent: process-hours of the run so far, its budget and its forecast.
        device: cpu | gpu, names the unit of the hours and of the throughput.
    """
    fields = {key: value for key, value in fields.items() if value is not None}
    progress = f"{100 * step // total}%" if total else ""
    columns = [f"step {step:>{len(str(total))}}/{total} {progress:>3}"]
    columns += [_group(group, fields) for group in (_WHERE, _REWARD)]
    if "reward" not in fields:
        columns += [_group((name,), fields) for name in _SUPERVISED]
    columns.append(_pass_at_k(fields))
    columns += [_group(group, fields) for group in _REST]
    columns.append(_throughput(fields, "gpu" if device == "gpu" else "proc"))
    if spent is not None:
        columns.append(_spending(spent, device))
    if eta_s is not None:
        columns.append(f"eta {format_duration(eta_s)}")
    return " | ".join(column for column in columns if column)


def _group(names: tuple[str, ...], fields: Mapping[str, Any]) -> str:
    shown = [name for name in names if name in fields and not (name == "ungraded_share" and not fields[name])]
    return " ".join(f"{_LABELS[name][0]} {_LABELS[name][1](fields[name])}" for name in shown)


def _pass_at_k(fields: Mapping[str, Any]) -> str:
    matches = [re.fullmatch(r"pass_at_(\d+)", name) for name in fields]
    return " ".join(f"pass@{match[1]} {_number(fields[match[0]], 3)}" for match in matches if match)


def _throughput(fields: Mapping[str, Any], unit: str) -> str:
    parts = []
    if "tokens_per_second" in fields:
        parts.append(f"{fields['tokens_per_second']:>6,.0f} tok/s/{unit}")
    return " ".join([*parts, *filter(None, [_group(("mfu",), fields)])])


def _number(value: float, width: int) -> str:
    """`width` characters where the value allows it: .412, 1.24, 12.3; no zero before the point."""
    if not math.isfinite(value):
        return f"{value:>{width}}"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    text = f"{abs(value):.{max(0, width - 1 - whole)}f}"
    text = text.removeprefix("0") if "." in text else text
    if "." in text:  # rounding may have added a digit: .9996 is 1.00
        text = text[:width].rstrip(".")
    return (("-" if value < 0 else "") + text).rjust(width)


def _share(value: float) -> str:
    return (f"{100 * value:.0f}%" if math.isfinite(value) else str(value)).rjust(3)


def _count(value: float) -> str:
    if not math.isfinite(value) or value < 999.5:
        return f"{value:.0f}".rjust(4)
    return (f"{value / 1000:.1f}k" if value < 9950 else f"{value / 1000:.0f}k").rjust(4)


def _exponent(value: float, digits: int) -> str:
    text = f"{value:.{digits}e}"
    mantissa, found, exponent = text.partition("e")
    return (f"{mantissa}e{int(exponent)}" if found else text).rjust(digits + 4)


def _spending(spent: Spending, device: str) -> str:
    """`412/3,900 GPU-h, 3,652 in all`."""
    budget = f"/{spent.budget:,.7g}" if spent.budget is not None else ""
    whole = f", {_hours(spent.projected)} in all" if spent.projected is not None else ""
    return f"{_hours(spent.hours)}{budget} {device.upper()}-h{whole}"


def _hours(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


_LABELS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "checkpoint": ("checkpoint", str),
    "domain": ("domain", lambda value: f"{value:<10}"),
    "reward": ("reward", lambda value: _number(value, 4)),
    "ungraded_share": ("ungraded", _share),
    "loss": ("loss", lambda value: f"{value:.4f}"),
    "lr": ("lr", lambda value: _exponent(value, 1)),
    "grad_norm": ("grad", lambda value: _number(value, 4)),
    "w_me": ("w_me", lambda value: _number(value, 3)),
    "response_length": ("len", _count),
    "truncated_share": ("trunc", _share),
    "entropy": ("ent", lambda value: _number(value, 3)),
    "mismatch_kl": ("mkl", lambda value: _exponent(value, 0)),
    "generate_share": ("gen", _share),
    "grade_share": ("grade", _share),
    "update_share": ("upd", _share),
    "sync_share": ("sync", _share),
    "idle_share": ("idle", _share),
    "mfu": ("mfu", _share),
}
_WHERE = ("checkpoint", "domain")
_REWARD = ("reward", "ungraded_share")
_SUPERVISED = ("loss", "lr", "grad_norm")
_REST = (
    ("w_me",),
    ("response_length", "truncated_share"),
    ("entropy",),
    ("mismatch_kl",),
    ("generate_share", "grade_share", "update_share", "sync_share", "idle_share"),
)
