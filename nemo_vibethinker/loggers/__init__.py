"""TensorBoard, Weights & Biases and MLflow, fed with the fields of run.jsonl. Optional: `loggers=[tensorboard,wandb]`.

`run.jsonl` is the source. A logger gets what it has not had yet, so one that is switched on late catches up, and a
resumed run goes on in the same curves. One that fails is named once and left out; the run goes on. Field names are
those of run.jsonl, x is the stage's own step. Packages are imported only when asked for.
"""

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nemo_vibethinker.config import LOGGERS
from nemo_vibethinker.run_folder import RunFolder, hash_path, read_json_lines

_PACKAGES = {  # the first is the one whose module has the logger's name
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow-skinny", "sqlalchemy", "alembic"),
}
assert set(_PACKAGES) == set(LOGGERS)


class Sink(Protocol):
    """Where a logger's values go. Every method may raise whatever its library raises."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """The values of one step."""
        ...

    def close(self) -> None:
        """Flush, and declare the run ended."""
        ...


def require_packages(names: Sequence[str]) -> None:
    """Check that the packages of the loggers are there, without importing them.

    Raises:
        ValueError: one is not; with the command that installs it.
    """
    for name in names:
        modules = (name, *_PACKAGES[name][1:])
        if not all(map(_is_installed, modules)):
            raise ValueError(f"loggers={name}: its package is not installed; pip install {' '.join(_PACKAGES[name])}")


def _is_installed(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # without origin it is a folder of that name, no package


def numbers(fields: Mapping[str, Any]) -> dict[str, float]:
    """The fields a curve can show: finite numbers."""
    return {
        name: float(value)
        for name, value in fields.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


class Mirror:
    """Hands the lines of run.jsonl on to the loggers of one run; for the main rank.

    Args:
        run: its `config.loggers` names the loggers, its folder `loggers/` holds what they keep.
        sinks: name -> what opens it; default: the libraries'.

    Raises:
        ValueError: a library is not installed.
    """

    def __init__(self, run: RunFolder, sinks: Mapping[str, Callable[[RunFolder, Path], Sink]] | None = None) -> None:
        if sinks is None:
            require_packages(run.config.loggers)
        self._run = run
        self._sinks = sinks if sinks is not None else _LIBRARIES
        self._open: dict[str, tuple[Sink, _Sent]] = {}
        self._failed: set[str] = set()
        self._caught_up = False

    def log(self, line: Mapping[str, Any]) -> None:
        """A line that run.jsonl has just got. The first one of a process brings those before it along."""
        lines = [line] if self._caught_up else self._lines(line["stage"])
        self._caught_up = True
        for name in self._run.config.loggers:
            if name not in self._failed:
                self._guarded(name, lambda name=name: self._send(name, lines))

    def close(self) -> None:
        """End every logger."""
        for name, (sink, _) in list(self._open.items()):
            self._guarded(name, sink.close)
        self._open.clear()

    def _lines(self, stage: str) -> list[dict[str, Any]]:
        """All lines of the stages up to this one."""
        from nemo_vibethinker.metrics_log import read_metrics

        stages = self._run.config.stages
        wanted = stages[: stages.index(stage) + 1]
        return [line for line in read_metrics(self._run.path / "run.jsonl") if line["stage"] in wanted]

    def _send(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        if name not in self._open:
            folder = self._run.path / "loggers"
            folder.mkdir(exist_ok=True)
            self._open[name] = (self._sinks[name](self._run, folder), _Sent(self._run, folder / f"{name}.jsonl"))
        sink, sent = self._open[name]
        for line in lines:
            stage, step = line["stage"], line["step"]
            if sent.is_new(stage, step):
                sink.log(stage, step, numbers({k: v for k, v in line.items() if k not in _HEAD}))
                sent.note(stage, step)

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        """A logger is no reason to lose a run: whatever its library raises is said once."""
        try:
            work()
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"loggers: {name} failed and gets no more: {reason} (run.jsonl has it all)", file=sys.stderr)
            self._failed.add(name)
            self._open.pop(name, None)


_HEAD = frozenset({"time", "stage", "attempt", "step", "total"})


class _Sent:
    """The last step of each stage that a logger has had, kept in a file.

    A stage that runs again because its inputs changed has another `started.json`, and is sent again.
    """

    def __init__(self, run: RunFolder, path: Path) -> None:
        self._run, self._path = run, path
        self._last = {record["stage"]: (record["started"], record["step"]) for record in read_json_lines(path)}
        self._started: dict[str, str] = {}

    def is_new(self, stage: str, step: int) -> bool:
        started, last = self._last.get(stage, ("", 0))
        return started != self._mark(stage) or step > last

    def note(self, stage: str, step: int) -> None:
        mark = self._mark(stage)
        self._last[stage] = (mark, step)
        with open(self._path, "a") as file:
            file.write(json.dumps({"stage": stage, "started": mark, "step": step}) + "\n")

    def _mark(self, stage: str) -> str:
        if stage not in self._started:
            marker = self._run.stage_folder(stage) / "started.json"
            self._started[stage] = hash_path(marker)[:16] if marker.is_file() else "none"
        return self._started[stage]


def _tensorboard(run: RunFolder, folder: Path) -> Sink:
    from nemo_vibethinker.loggers.tensorboard_sink import TensorBoardSink

    return TensorBoardSink(folder / "tensorboard")


def _wandb(run: RunFolder, folder: Path) -> Sink:
    from nemo_vibethinker.loggers.wandb_sink import WandbSink

    return WandbSink(run, folder)


def _mlflow(run: RunFolder, folder: Path) -> Sink:
    from nemo_vibethinker.loggers.mlflow_sink import MlflowSink

    return MlflowSink(run, folder)


_LIBRARIES: Mapping[str, Callable[[RunFolder, Path], Sink]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
