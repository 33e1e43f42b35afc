"""`logs run.name=NAME [STAGE]`: the end of a stage's log; of a run on this machine, its last steps.

Imports no torch.
"""

from pathlib import Path

from launcher.existing_run import KEYS, open_existing, split_words
from launcher.status import recent_steps
from nemo_vibethinker.metrics_log import STAGE_WIDTH, format_line
from nemo_vibethinker.run_folder import RunFolder

HEAD = ("time", "stage", "attempt", "part", "step", "total")  # fields of a line that are no figures
TAIL_BYTES = 1 << 18


def main(arguments: list[str]) -> int:
    """Print the log. Returns 0.

    Raises:
        ValueError: no such run or stage, or there is no log yet.
    """
    plain, given = split_words("logs", arguments, (*KEYS, "lines"))
    run = open_existing("logs", given)
    lines = given.get("lines", "40")
    if not lines.isdecimal():
        raise ValueError(f"logs: lines={lines}: expected a number of lines")
    stages = [*run.config.stages, "preflight"]
    if len(plain) > 1 or (plain and plain[0] not in stages):
        raise ValueError(f"logs: '{' '.join(plain)}': name one stage of the run: {', '.join(stages)}")
    stage = plain[0] if plain else ""
    text = job_log(run, stage, int(lines)) if (run.path / "slurm" / "logs").is_dir() else ""
    text = text or step_log(run, stage, int(lines))
    if not text:
        raise ValueError(
            f"logs: {stage or run.path.name} has written nothing yet; look: status run.name={run.path.name}"
        )
    print(text)
    return 0


def job_log(run: RunFolder, stage: str, lines: int) -> str:
    """The last words of the latest job of the stage, or of all stages if it is empty: its script's, its attempt's."""
    folder = run.path / "slurm" / "logs"
    names = (f"{stage}.[0-9]*", f"{stage}.parts.[0-9]*") if stage else ("*",)
    files = [file for name in names for file in folder.glob(name) if file.stat().st_size]
    files.sort(key=lambda file: file.stat().st_mtime_ns)
    shown = [[file for file in files if file.suffix == kind][-1:] for kind in (".out", ".log")]
    return "\n\n".join(f"{file}\n{_tail(file, lines)}" for latest in shown for file in latest)


def _tail(file: Path, lines: int) -> str:
    with open(file, "rb") as log:
        log.seek(max(0, file.stat().st_size - TAIL_BYTES))
        return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


def step_log(run: RunFolder, stage: str, lines: int) -> str:
    """The latest steps as the console showed them."""
    found = [
        line for name, steps in recent_steps(run.path / "run.jsonl").items() if stage in ("", name) for line in steps
    ]
    found.sort(key=lambda line: line["time"])
    return "\n".join(
        f"{line['stage']:<{STAGE_WIDTH}}  "
        + format_line(line["step"], line["total"], {key: v for key, v in line.items() if key not in HEAD}, None)
        for line in found[-lines:]
    )
