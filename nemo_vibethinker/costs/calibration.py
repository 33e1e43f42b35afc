"""What runs have measured of the cost of stages, from their ledgers and `run.jsonl`. Reads files, imports no torch."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nemo_vibethinker.config import Config
from nemo_vibethinker.costs.forecast import amount, hardware_flops
from nemo_vibethinker.costs.rates import StageRecord, kind
from nemo_vibethinker.costs.work import stage_work
from nemo_vibethinker.ledger import Book
from nemo_vibethinker.run_folder import RunFolder, read_json_lines

RUNS_READ = 5  # the newest ledgers that are looked at
LEAST_STEPS = 3  # of a stage that says something about speed
STARTING_STAGES = ("sft", "probe", "evaluate")  # those whose first step comes right after their start


def read_records(config: Config, besides: Path | None = None) -> list[StageRecord]:
    """Records of the newest runs below `run.root` on the same machines, the newest first.

    Counted are runs of the same model, precision, layout (but for the number of replicas), threads and GPU.

    Args:
        config: of the run to be planned.
        besides: a run folder that is not read.
    """
    ledgers = sorted(Path(config.run.root).glob("*/ledger.jsonl"), key=lambda file: -file.stat().st_mtime)
    folders = [ledger.parent.resolve() for ledger in ledgers[:RUNS_READ]]
    others = [folder for folder in folders if besides is None or folder != besides.resolve()]
    return [record for folder in others for record in _others_records(config, folder)]


def _others_records(config: Config, folder: Path) -> list[StageRecord]:
    try:
        run = RunFolder.load(folder)
    except ValueError:  # of another version
        return []
    return run_records(config, run) if _same_machine_work(run.config, config) else []


def run_records(config: Config, run: RunFolder) -> list[StageRecord]:
    """Records of one comparable run, also of its unfinished stages."""
    folder = run.path
    book = Book(folder / "ledger.jsonl").update()
    useful = {cost.stage: cost.useful_hours for cost in book.costs()}
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in read_json_lines(folder / "run.jsonl"):
        if "event" not in line:
            lines.setdefault(line["stage"], []).append(line)
    starts = {(a.stage, number): a.start for a, number in _numbered(book)}
    return [_record(config, run, stage, useful.get(stage), lines.get(stage, []), starts) for stage in run.config.stages]


def _numbered(book: Book) -> Iterator[tuple[Any, int]]:
    seen: dict[tuple[str, str], int] = {}
    for attempt in book.attempts.values():
        key = (attempt.stage, attempt.part)
        seen[key] = seen.get(key, 0) + 1
        yield attempt, seen[key]


def _same_machine_work(one: Config, other: Config) -> bool:
    def comparable(config: Config) -> tuple[Any, ...]:
        replicas = dataclasses.replace(config.scale.parallel, data=1)
        scale = dataclasses.replace(config.scale, name="", parallel=replicas)
        return scale, config.cluster.gpu, config.cluster.threads_per_process

    return comparable(one) == comparable(other)


def _record(
    config: Config,
    run: RunFolder,
    stage: str,
    useful_hours: float | None,
    lines: Sequence[dict[str, Any]],
    starts: dict[tuple[str, int], float],
) -> StageRecord:
    work = stage_work(run.config, stage, run.config.budget.response_share)
    finished = (run.stage_folder(stage) / "manifest.json").is_file()
    alike = kind(stage) != "evaluate" or config.stages == run.config.stages  # as many models
    return StageRecord(
        run=run.path.name,
        stage=stage,
        hours=useful_hours if finished and alike else None,
        amount=amount(work),
        same_data=config.data == run.config.data,
        **(measures(run.config, stage, lines, starts) if len(lines) >= LEAST_STEPS else {}),
    )


def measures(
    config: Config, stage: str, lines: Sequence[dict[str, Any]], starts: dict[tuple[str, int], float]
) -> dict[str, float | None]:
    """Speeds and shares over all steps of a stage, those of attempts that died too.

    Args:
        config: of the run that wrote the lines.
        stage: their stage.
        lines: of `run.jsonl`, with the fields `seconds`, `tokens_generated`, `response_length`,
            `generate_seconds`, `tokens_trained` and `update_seconds` where the stage has them.
        starts: (stage, number of the attempt) -> when it started.
    """

    def total(name: str) -> float:
        return sum(line.get(name, 0) for line in lines)

    def rate(count: float, seconds: float) -> float | None:
        return count / seconds / config.world_size if count and seconds else None

    sampled, trained = total("tokens_generated"), total("tokens_trained")
    counted = [line for line in lines if "tokens_generated" in line and line.get("response_length")]
    responses = sum(line["tokens_generated"] / line["response_length"] for line in counted)
    seconds = total("seconds")
    work = stage_work(config, stage, config.budget.response_share)
    share = sampled / responses / work.window if responses and work.window else None
    segment = work.segment if share is None else share * work.window
    busy = total("generate_seconds") + total("update_seconds")
    train = rate(trained * hardware_flops(config, segment), total("update_seconds"))
    return {
        "generate_tokens_per_second": rate(sampled, total("generate_seconds")),
        "train_flops_per_second": train,
        "response_share": share,
        "step_overhead": min(0.95, max(0.0, 1 - busy / seconds)) if sampled and seconds else None,
        "startup_seconds": _startup(stage, lines, starts),
    }


def _startup(stage: str, lines: Sequence[dict[str, Any]], starts: dict[tuple[str, int], float]) -> float | None:
    """Mean time from the start of an attempt to its first step."""
    if stage not in STARTING_STAGES:
        return None
    first = {line["attempt"]: line for line in reversed(lines)}
    found = [
        line["time"] - line["seconds"] - starts[stage, attempt]
        for attempt, line in first.items()
        if "seconds" in line and (stage, attempt) in starts
    ]
    return max(0.0, sum(found) / len(found)) if found else None
