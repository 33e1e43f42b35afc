"""Runs the stages on this machine: one worker process, or several under torchrun."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from nemo_vibethinker.config import Config
from nemo_vibethinker.interruption import SAVED
from nemo_vibethinker.loggers import require_packages
from nemo_vibethinker.metrics_log import STAGE_WIDTH
from nemo_vibethinker.pipeline import die_with_parent, survey
from nemo_vibethinker.run_folder import LOCK_VARIABLE, RunFolder, open_run

REPOSITORY = Path(__file__).resolve().parent.parent
GRACE_S = 20  # from a forwarded signal to SIGKILL


def execute(config: Config, reference: Config | None = None) -> int:
    """Run what is not done and show the result. Returns the exit code.

    Raises:
        ValueError: the run folder belongs to another configuration or process, or a logger's package is missing.
    """
    require_packages(config.loggers)
    run = open_run(config, reference)
    found = survey(run, report=lambda line: None)  # the worker says it
    if all(found.values()) and (run.path / "report.html").is_file():
        for stage, manifest in found.items():
            print(f"{stage:<{STAGE_WIDTH}}  done earlier ({manifest.seconds if manifest else 0:.1f} s)")
        code = 0
    else:
        environment = worker_environment(config) | {LOCK_VARIABLE: str(run.path)}
        code = 0
        for command in worker_commands(config, run.path, prepared=found.get("prepare") is not None):
            code = code or run_process(command, environment, keep_open=[run.lock_descriptor])
    if code == 0:
        show_result(run)
    return code


def worker_commands(config: Config, run_dir: Path, prepared: bool) -> list[list[str]]:
    """Command lines to run one after the other: the worker, under torchrun for more than one process.

    Then `prepare`, which is where unusable data shows, goes first and alone: its one line of error is all that is seen.
    """
    worker = ["-m", "nemo_vibethinker.pipeline", "--run-dir", str(run_dir)]
    if config.world_size == 1:
        return [[sys.executable, *worker]]
    first = [[sys.executable, *worker, "--stage", "prepare"]] if "prepare" in config.stages and not prepared else []
    layout = ["--standalone", "--nproc-per-node", str(config.world_size)]
    return [*first, [sys.executable, "-m", "launcher.torchrun", *layout, *worker]]


def worker_environment(config: Config) -> dict[str, str]:
    """This process's environment with the thread count and the place of the packages."""
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = str(config.cluster.threads_per_process)
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": threads}


def run_process(command: Sequence[str], environment: Mapping[str, str], keep_open: Sequence[int] = ()) -> int:
    """Run a command in a process group of its own and leave none of it behind. Returns the exit code.

    SIGTERM and SIGINT are handed on, SIGKILL follows after `GRACE_S`. The command gets SIGTERM when this process dies.
    A command that a signal made save and end ends here with 128 + that signal, as if it had been killed by it.
    """
    received: list[int] = []
    process = subprocess.Popen(
        command, env=environment, pass_fds=keep_open, start_new_session=True, preexec_fn=die_with_parent
    )

    def kill_group(number: int = 0, frame: FrameType | None = None) -> None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        os.kill(process.pid, number)
        signal.signal(signal.SIGALRM, kill_group)
        signal.alarm(GRACE_S)

    earlier = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
    finally:
        signal.alarm(0)
        kill_group()
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if code == SAVED and received:
        return 128 + received[0]
    return code if code >= 0 else 128 - code


def show_result(run: RunFolder) -> None:
    """Print the score table and where the report is."""
    if "evaluate" in run.config.stages:
        print("\n" + (run.stage_folder("evaluate") / "scores.txt").read_text().rstrip())
    print(f"\nreport: {run.path / 'report.html'}")
