"""The sets of a run before anything is taken from them: read from the user's datasets, or the generated world."""

import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nemo_vibethinker.config import CODE_DOMAIN, Config
from nemo_vibethinker.data.funnel import Funnel
from nemo_vibethinker.data.readers import Dataset, Kind
from nemo_vibethinker.data.record_files import RecordFile, Selection
from nemo_vibethinker.data.records import DOMAINS, Record
from nemo_vibethinker.data.world.generate import WorldSizes, generate_world
from nemo_vibethinker.progress import Progress

TRAINING_SETS = ("sft", "rl_math", "rl_code")
HELD_OUT_SETS = ("probe", "evaluation")

Sets = dict[str, Selection]


def world_sets(config: Config, spool: Path) -> Sets:
    """The generated world's sets, kept in files of the folder `spool`."""
    data = config.data
    sizes = WorldSizes(
        sft_problems_per_domain=data.sft_problems_per_domain,
        rl_per_domain=data.rl_problems_per_domain,
        probe_per_domain=data.probe_problems_per_domain,
        evaluation_per_domain=data.evaluation_problems_per_domain,
        sft_code_problems=data.sft_code_problems,
        rl_code=data.rl_code_problems,
        probe_code=0,
        evaluation_code=data.evaluation_code_problems,
    )
    world = generate_world(config.seed, sizes)
    names = (*TRAINING_SETS, *HELD_OUT_SETS)
    return {name: Selection(RecordFile(spool / f"{name}.jsonl", getattr(world, name))) for name in names}


def user_sets(config: Config, spool: Path, funnel: Funnel) -> Sets:
    """The user's datasets, kept in files of the folder `spool`; unusable rows are dropped into `funnel`.

    Probing and evaluation problems that have no dataset of their own are held out of the RL one. ValueError for an
    unusable dataset.
    """
    data = config.data
    sft_path, rl_path = data.sft or data.rl, data.rl or data.sft
    assert sft_path is not None
    assert rl_path is not None
    sft = _spooled([sft_path], "sft", spool / "sft.jsonl", funnel, "sft", "sft")
    rl = _spooled([rl_path], "rl", spool / "rl.jsonl", funnel, "rl_math", "rl")
    probe, evaluation, rest = hold_out(config, rl)
    sets = {
        "sft": Selection(sft),
        "rl_math": Selection(rl, (number for number in rest if rl.domain(number) != CODE_DOMAIN)),
        "rl_code": Selection(rl, (number for number in rest if rl.domain(number) == CODE_DOMAIN)),
        "probe": Selection(rl, probe),
        "evaluation": Selection(rl, evaluation),
    }
    for name, paths in (("probe", data.probe), ("evaluation", data.evaluation)):
        if paths:
            sets[name] = Selection(_spooled(paths, "rl", spool / f"{name}.jsonl", funnel, name, name))
    return sets


def _spooled(paths: Sequence[str], kind: Kind, file: Path, funnel: Funnel, name: str, label: str) -> RecordFile:
    """The usable records of some datasets; the others are dropped from set `name`. `label` names the formats."""
    datasets = [Dataset(path) for path in paths]
    pairs = zip(datasets, _prefixes(paths), strict=True)
    records = (record for dataset, prefix in pairs for record in _usable(dataset, prefix, kind, funnel, name))
    spooled = RecordFile(file, records)
    funnel.formats[label] = ", ".join(dict.fromkeys(dataset.format for dataset in datasets))
    return spooled


def _usable(dataset: Dataset, prefix: str, kind: Kind, funnel: Funnel, name: str) -> Iterator[Record]:
    """The records of a dataset, `prefix` before their ids; ValueError, at the end, if there was none."""
    progress = Progress(f"reading {dataset.name}")
    usable, first = 0, ""
    for row in dataset.rows(kind):
        progress.advance()
        if row.record:
            usable += 1
            yield replace(row.record, id=prefix + row.id) if prefix else row.record
        else:
            first = first or f"; line {row.line}: {row.reason}"
            funnel.drop(name, row.line, prefix + row.id, row.reason)
    if not usable:
        raise ValueError(f"dataset {dataset.name} has no usable row for {kind}{first}")


def _prefixes(paths: Sequence[str]) -> list[str]:
    """What tells the ids of several datasets apart: as much of the end of their paths as differs; "" for one alone."""
    if len(paths) == 1:
        return [""]
    for parts in range(1, max(len(Path(path).parts) for path in paths) + 1):
        labels = ["/".join(Path(path).parts[-parts:]) for path in paths]
        if len(set(labels)) == len(labels):
            return [f"{label}:" for label in labels]
    raise ValueError(f"{', '.join(paths)}: the same dataset is named twice")


def hold_out(config: Config, rl: RecordFile) -> tuple[list[int], list[int], array]:
    """Numbers of the (probing, evaluation, other) records.

    Of each domain at most the configured number is held out, never more than a fifth each, and none for a set that
    has files of its own.
    """
    data = config.data
    probe: list[int] = []
    evaluation: list[int] = []
    rest = array("i")
    for domain in sorted(DOMAINS):
        numbers = array("i", (number for number in range(len(rl)) if rl.domain(number) == domain))
        random.Random(f"{config.seed}/{domain}").shuffle(numbers)
        fifth, is_code = max(1, len(numbers) // 5), domain == CODE_DOMAIN
        wanted = (data.evaluation_code_problems if is_code else 0) or data.evaluation_problems_per_domain
        probes = 0 if is_code or data.probe else min(data.probe_problems_per_domain, fifth)
        held = probes + (0 if data.evaluation else min(wanted, fifth))
        probe += numbers[:probes]
        evaluation += numbers[probes:held]
        rest += numbers[held:]
    return probe, evaluation, rest
