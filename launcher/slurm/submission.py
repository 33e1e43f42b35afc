"""Submits the chain of a run: all of it or nothing, and never twice."""

import fcntl
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from launcher.local import REPOSITORY, show_result
from launcher.slurm import commands
from launcher.slurm.chain import Job, chain
from launcher.slurm.commands import SlurmError
from launcher.slurm.scripts import render_scripts
from launcher.slurm.snapshot import take_snapshot
from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.config import Config
from nemo_vibethinker.metrics_log import STAGE_WIDTH
from nemo_vibethinker.pipeline import survey
from nemo_vibethinker.run_folder import RunFolder, open_run

RECORD = "slurm/submitted.json"  # the latest submission: job name -> number, and whether all were accepted


def execute(config: Config, reference: Config | None = None) -> int:
    """Submit what is not done, and return without waiting for it. Returns the exit code.

    Raises:
        ValueError: another configuration has this name, Slurm refuses a job, or cannot be asked.
    """
    commands.require_slurm()
    config.run_folder.mkdir(parents=True, exist_ok=True)
    with open(config.run_folder / ".submit", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of two launchers the second sees what the first has submitted
        return _execute(config, reference)


def _execute(config: Config, reference: Config | None) -> int:
    folder = config.run_folder
    at_work = [job for job in commands.queue(read_record(folder).values()) if not job.ended]
    if at_work and not _was_completed(folder):
        commands.cancel({job.base for job in at_work})  # held: a launcher that died left them
    elif at_work:
        shown = ", ".join(f"{job.name.removeprefix(f'{folder.name}.')} {job.id} {job.state}" for job in at_work[:4])
        print(f"{folder} is in flight: {shown}{', ...' if len(at_work) > 4 else ''}; nothing was submitted")
        print(_hints(folder))
        return 0
    run = open_run(config, reference)
    found = survey(run, report=lambda line: None)  # the jobs say it
    run.unlock()
    if all(found.values()) and (run.path / "report.html").is_file():
        for stage, manifest in found.items():
            print(f"{stage:<{STAGE_WIDTH}}  done earlier ({manifest.seconds if manifest else 0:.1f} s)")
        show_result(run)
        return 0
    done = [stage for stage, manifest in found.items() if manifest]
    jobs = chain(config, done[:-1] if len(done) == len(config.stages) else done)  # else the report alone is missing
    code = take_snapshot(REPOSITORY, run.path / "slurm" / "code")
    numbers = submit_chain(run.path, jobs, write_scripts(run.path, render_scripts(config, jobs, run.path, code)))
    for job in jobs:
        after = f", after {' '.join(numbers[name] for name in job.after)}" if job.after else ""
        print(f"{job.title:<22}  job {numbers[job.name]}, {job.nodes} nodes{after}")
    print(_hints(run.path))
    return 0


def _hints(folder: Path) -> str:
    place = "" if folder.parent.name == "runs" and folder.parent.parent == Path.cwd() else f" run.root={folder.parent}"
    words = f"run.name={folder.name}{place}"
    return f"\nlook: status {words}    read: logs {words}    stop: cancel {words}    (after: python launcher/run.py)"


def read_record(run_dir: Path) -> dict[str, str]:
    """Job name -> number, as the latest submission left it; empty where there was none."""
    file = run_dir / RECORD
    return json.loads(file.read_text())["jobs"] if file.is_file() else {}


def _was_completed(run_dir: Path) -> bool:
    return json.loads((run_dir / RECORD).read_text())["complete"]


def _write_record(run_dir: Path, numbers: Mapping[str, str], complete: bool) -> None:
    atomic_write_text(run_dir / RECORD, json.dumps({"complete": complete, "jobs": numbers}, indent=1))


def write_scripts(run_dir: Path, scripts: Mapping[str, str]) -> dict[str, Path]:
    """Write the scripts to `slurm/`; returns their paths."""
    folder = run_dir / "slurm"
    for name in ("logs", "jobs"):
        (folder / name).mkdir(parents=True, exist_ok=True)  # Slurm does not make the folder of an output
    paths = {name: folder / f"{name}.sh" for name in scripts}
    for name, text in scripts.items():
        atomic_write_text(paths[name], text)
    return paths


def submit_chain(run_dir: Path, jobs: Sequence[Job], scripts: Mapping[str, Path]) -> dict[str, str]:
    """Submit all jobs or none; returns their numbers.

    The first is held until all are accepted. So a launcher that dies on the way leaves jobs that do nothing and are
    recorded: the next one finds them in the queue.

    Raises:
        SlurmError: Slurm refuses one; the others are cancelled.
    """
    numbers: dict[str, str] = {}
    try:
        for job in jobs:
            after = [numbers[name] for name in job.after]
            numbers[job.name] = commands.submit(scripts[job.name], after=after, hold=not after)
            _write_record(run_dir, numbers, complete=False)
        for job in jobs:
            if not job.after:
                commands.release(numbers[job.name])
        _write_record(run_dir, numbers, complete=True)
    except SlurmError as error:
        with suppress(SlurmError):  # the first message is the one that tells
            commands.cancel(numbers.values())
        (run_dir / RECORD).unlink(missing_ok=True)
        refused = jobs[min(len(numbers), len(jobs) - 1)].name
        raise SlurmError(f"{refused}: {error}; nothing was submitted") from None
    return numbers


def stop_jobs(run: RunFolder) -> list[str]:
    """Cancel the run's jobs; returns the numbers of those that were in the queue."""
    queued = commands.queue(read_record(run.path).values())
    found = list(dict.fromkeys(job.base for job in queued if not job.ended))
    commands.cancel(found)
    return found
