"""The first job of a chain: whether all nodes can do the run, before its hours are spent. Ends within a minute.

    srun --ntasks-per-node=GPUS python -m nemo_vibethinker.preflight --run-dir runs/NAME      (or under torchrun)

One process for each that the run will have. Exit code 0; 2 and one line with the cause.
"""

import argparse
import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_vibethinker.config import Config
from nemo_vibethinker.costs.storage import run_storage
from nemo_vibethinker.preflight import judge
from nemo_vibethinker.preflight.facts import code_versions, existing_parent, find_gpus
from nemo_vibethinker.preflight.meeting import Meeting, Place, PreflightError, UnreachableError, find_place
from nemo_vibethinker.preflight.ring import check_ring
from nemo_vibethinker.preflight.shared_folder import check_shared_folder
from nemo_vibethinker.run_folder import RunFolder

Say = Callable[[str, str], None]


def preflight(place: Place, run_dir: Path, seconds: float) -> None:
    """All checks, by all processes together.

    Raises:
        PreflightError: why the run must not start.
    """
    began = time.monotonic()
    meeting = Meeting(place, seconds / 2)

    def say(name: str, found: str) -> None:
        if meeting.is_first:
            print(f"preflight  {name:<14}  ok  {found}", flush=True)

    try:
        meeting.meet(seconds / 2)
        hosts = dict.fromkeys(meeting.hosts.values())
        say("processes", f"{meeting.place.size} on {', '.join(list(hosts)[:8])}{', ...' if len(hosts) > 8 else ''}")
        _check_machines(meeting, run_dir, 0.4 * seconds, say)
        say("folder", check_shared_folder(meeting, run_dir))
        clocks = meeting.round(
            "clock", meeting.clock_offset_s, lambda o: judge.check_clocks(o, meeting.hosts), 5.0, _GONE
        )
        say("clocks", clocks)
        if meeting.place.size > 1:
            left = began + seconds - 10 - time.monotonic()
            say("all-reduce", check_ring(meeting, max(5.0, left)))
        say("time", f"{time.monotonic() - began:.1f} s")
    finally:
        meeting.leave()


_GONE = "ended in the middle of the preflight; see its own message"


def _check_machines(meeting: Meeting, run_dir: Path, seconds: float, say: Say) -> None:
    def judge_facts(answers: list[dict[str, Any]]) -> list[tuple[str, str]]:
        config = RunFolder.load(run_dir).config
        written = sum(file.stat().st_size for file in (run_dir / "stages").rglob("*") if file.is_file())
        return [
            ("gpus", judge.check_gpus(answers, _expected(config))),
            ("versions", judge.check_versions(answers, meeting.name_ranks)),
            ("disk", judge.check_disk(answers, max(0, run_storage(config).needed - written))),
        ]

    silence = "did not say what it has: nvidia-smi, the driver or the file system of the packages hangs"
    for name, found in meeting.round("facts", gather_facts(meeting.host, run_dir), judge_facts, seconds, silence):
        say(name, found)


def _expected(config: Config) -> judge.Expected:
    cluster = config.cluster
    return judge.Expected(cluster.gpu, cluster.gpus_per_node if cluster.scheduler == "slurm" else 0)


def gather_facts(host: str, run_dir: Path) -> dict[str, Any]:
    """What this process sees of its machine, of JSON types."""
    import torch

    smi_fault, gpus = "", []
    try:
        gpus = [dataclasses.asdict(gpu) for gpu in find_gpus()]
    except ValueError as error:
        smi_fault = str(error)
    versions = code_versions() | ({"cuda": torch.version.cuda} if torch.version.cuda else {})
    if gpus:
        versions |= {"driver": gpus[0]["driver"]}
    if torch.cuda.is_available():
        from torch.cuda import nccl

        versions |= {"nccl": ".".join(map(str, nccl.version()))}
    return {
        "host": host,
        "folder": str(run_dir.absolute()),
        "free_bytes": shutil.disk_usage(existing_parent(run_dir)).free,
        "gpus": gpus,
        "smi_fault": smi_fault,
        "torch_gpus": torch.cuda.device_count(),
        "versions": versions,
    }


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m nemo_vibethinker.preflight", description="Whether all nodes can do the run."
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="folder with the run's config.yaml")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="the whole preflight ends by then (default: 60)")
    arguments = parser.parse_args(argv)
    try:
        place = find_place()
    except ValueError as error:
        if os.environ.get("SLURM_PROCID") == "0":
            print(f"preflight: {error}", file=sys.stderr)
        return 2
    try:
        preflight(place, arguments.run_dir, arguments.timeout_s)
    except PreflightError as error:
        if place.rank == 0 or isinstance(error, UnreachableError):
            print(f"preflight: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # a stuck all-reduce has threads that never end
