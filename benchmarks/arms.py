"""Contestants of a benchmark in processes of their own, which take turns at blocks of steps in one run."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 600.0
ALARM = 0.95  # of the baseline's ratio


@dataclass
class Arm:
    """A contestant's processes, and what its blocks gave."""

    name: str
    process: subprocess.Popen[bytes]
    line: Connection
    versions: dict[str, str]
    log: Path
    speeds: list[float] = field(default_factory=list)
    cpu_speeds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of a step
    phases: list[dict[str, float]] = field(default_factory=list)  # seconds of a step by part
    first_loss: float | None = None

    def block(self, steps: int) -> None:
        """Train `steps` steps and note tokens a second, and a second of the first process's CPU time."""
        try:
            self.line.send(steps)
            answer = self.line.recv()
        except (EOFError, OSError):
            raise RuntimeError(last_error(self.log)) from None
        self.first_loss = answer["first_loss"]
        self.seconds.append(answer["seconds"] / steps)
        self.phases.append({name: seconds / steps for name, seconds in answer["phases"].items()})
        self.speeds.append(answer["tokens"] / answer["seconds"])
        self.cpu_speeds.append(answer["tokens"] / answer["cpu_seconds"])


def start_arms(
    names: list[str], script: Path, task: dict[str, Any], given: argparse.Namespace, scratch: Path
) -> tuple[list[Arm], dict[str, str]]:
    """The arms of `script` that run here, after `given.warmup` steps, and why the others do not.

    Args:
        given: processes, threads, warmup, peer_python.
    """
    arms: list[Arm] = []
    skipped: dict[str, str] = {}
    for name in names:
        try:
            arm = start_arm(name, script, task, given, scratch)
            arm.block(given.warmup)
            arm.speeds, arm.cpu_speeds, arm.seconds, arm.phases = [], [], [], []
            arms.append(arm)
            print(f"{name}: ready ({', '.join(f'{k} {v}' for k, v in arms[-1].versions.items())})", file=sys.stderr)
        except RuntimeError as error:
            skipped[name] = str(error)
            print(f"{name}: skipped: {error}", file=sys.stderr)
    return arms, skipped


def start_arm(name: str, script: Path, task: dict[str, Any], given: argparse.Namespace, scratch: Path) -> Arm:
    """Start an arm's processes and wait until it has built its trainer."""
    python = sys.executable if name.startswith("ours") else given.peer_python
    fp8 = "hybrid" if name == "ours-fp8" else "none"
    path, socket, log = (scratch / f"{name}.{kind}" for kind in ("json", "socket", "log"))
    path.write_text(json.dumps(task | {"fp8": fp8, "scratch": str(scratch / f"{name}.out")}))
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={given.processes}"]
    command = [python, *(start if given.processes > 1 else []), str(script), name, str(path), str(socket)]
    environment = dict(os.environ) | {"OMP_NUM_THREADS": str(given.threads), "TOKENIZERS_PARALLELISM": "false"}
    if not name.startswith("ours"):
        environment.pop("PYTHONPATH", None)
    with Listener(str(socket)) as listener:
        process = subprocess.Popen(command, env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT)
        listener._listener._socket.settimeout(1.0)  # pyright: ignore
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                line = listener.accept()
                break
            except TimeoutError:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    raise RuntimeError(last_error(log)) from None
    return Arm(name, process, line, line.recv()["ready"], log)


def last_error(log: Path) -> str:
    """The line of a log that says why it ends."""
    words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in words if "Error" in line and "ChildFailedError" not in line]
    return (errors or words or ["it ended without a word"])[-1].strip()


def take_turns(arms: list[Arm], given: argparse.Namespace) -> list[float]:
    """Blocks of every arm, round and round. Returns the matrix-product peak of each round, FLOP/s of all processes."""
    peaks = []
    for number in range(given.rounds):
        peaks.append(matmul_peak(given))
        first = number % len(arms)  # none is always the first
        for arm in arms[first:] + arms[:first]:
            arm.block(given.steps)
        speeds = ", ".join(f"{arm.name} {arm.speeds[-1]:,.0f}" for arm in arms)
        print(f"round {number + 1}/{given.rounds}: {speeds} tokens/s", file=sys.stderr, flush=True)
    return peaks


MATMUL = """
import time, torch
torch.set_num_threads(int({threads}))
a = torch.randn(1024, 1024); b = torch.randn(1024, 1024)
best = 0.0
for _ in range(12):
    began = time.perf_counter(); a @ b
    best = max(best, 2 * 1024**3 / (time.perf_counter() - began))
print(best)
"""


def matmul_peak(given: argparse.Namespace) -> float:
    """FLOP/s of fp32 products of 1024 x 1024 in as many processes and threads as an arm has; 0 where there is a GPU."""
    import torch

    if torch.cuda.is_available():
        return 0.0
    command = [sys.executable, "-c", MATMUL.format(threads=given.threads)]
    environment = dict(os.environ) | {"OMP_NUM_THREADS": str(given.threads)}
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(given.processes)]
    return sum(float(process.communicate()[0]) for process in running)


def machine() -> str:
    """Processor or GPU, and the number of cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
