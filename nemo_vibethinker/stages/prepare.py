"""Prepare: training, probing and evaluation sets that share no 10-gram, the tokenizer, and SFT's tokens.

Sets are streamed from the users' files to the stage's folder; what is held in memory grows by some tens of bytes a row
(offsets, lengths, ids), plus the held-out sets.
"""

import json
import random
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_vibethinker.config import CODE_DOMAIN, Config
from nemo_vibethinker.data.decontaminate import find_overlaps
from nemo_vibethinker.data.funnel import DROPPED_FILE, Funnel
from nemo_vibethinker.data.progress import Progress
from nemo_vibethinker.data.readers import Dataset, Kind
from nemo_vibethinker.data.record_files import RecordFile, Selection
from nemo_vibethinker.data.records import DOMAINS, Record, iterate_jsonl, read_jsonl, write_jsonl
from nemo_vibethinker.data.token_files import TokenFileWriter
from nemo_vibethinker.data.tokenizer import encode_stream, sample_positions, tokenizer_sha256, train_tokenizer
from nemo_vibethinker.data.world.generate import WorldSizes, generate_world
from nemo_vibethinker.pipeline import StageContext, StageResult, stage_main
from nemo_vibethinker.reward.sandbox import SandboxError, find_sandbox
from nemo_vibethinker.run_folder import atomic_write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TRAINING_SETS = ("sft", "rl_math", "rl_code")
HELD_OUT_SETS = ("probe", "evaluation")
TOKENIZER_BYTES = 100_000_000  # of records that the tokenizer is trained on; of more, a seeded sample

Sets = dict[str, Selection]


def run(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
    """Write the sets, SFT's tokens and the tokenizer to `folder`.

    Raises:
        ValueError: no sandbox for the code domain, an unusable data file, sets that overlap, or one that ends up empty.
    """
    spool = _empty_spool(folder)
    funnel = Funnel(folder)
    sets = _user_sets(config, spool, funnel) if config.data.sft or config.data.rl else _world_sets(config, spool)
    if any(CODE_DOMAIN in records.domains() for records in sets.values()):
        _require_sandbox()
    sets = _decontaminated(sets, funnel)
    tokenizer = train_tokenizer(_sampled_texts(config, sets["sft"]), config.data.vocab_size)
    tokenizer.save_pretrained(folder / "tokenizer")
    counts = _write_sets(config, sets, tokenizer, folder, funnel)
    check_disjoint({name: folder / f"{name}.jsonl" for name in sets})
    funnel.close()
    atomic_write_text(folder / "funnel.json", json.dumps(funnel.to_dict() | {"disjoint": True}, indent=1))
    for line in funnel.lines():
        context.say(line)
    dropped, removed = funnel.lost
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    context.say(f"{shown}; {dropped:,} rows dropped, {removed:,} removed as overlapping ({DROPPED_FILE} names each)")
    shutil.rmtree(spool)
    outputs = {f"{name}_data": folder / f"{name}.jsonl" for name in sets}
    for name, file in (("tokenizer", "tokenizer"), ("sft_tokens", "sft_tokens"), ("funnel", "funnel.json")):
        outputs[name] = folder / file
    return StageResult(
        outputs=outputs | {"dropped": folder / DROPPED_FILE},
        metrics={"records": counts, "vocabulary": len(tokenizer)},
    )


def _empty_spool(folder: Path) -> Path:
    """Where usable records are kept as they were read; what a killed attempt left half-written is removed."""
    spool = folder / "spool"
    shutil.rmtree(spool, ignore_errors=True)
    for leftover in folder.glob(".*.jsonl*"):
        leftover.unlink()
    spool.mkdir()
    return spool


def _require_sandbox() -> None:
    try:
        find_sandbox()
    except SandboxError as error:
        raise ValueError(f"the code domain needs a sandbox: {error}") from error


def _world_sets(config: Config, spool: Path) -> Sets:
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


def _user_sets(config: Config, spool: Path, funnel: Funnel) -> Sets:
    """The user's files; probing and evaluation problems that have no file are held out of the RL file."""
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
    formats: dict[str, None] = {}
    prefixes = _prefixes(paths)

    def records() -> Iterator[Record]:
        for path, prefix in zip(paths, prefixes, strict=True):
            dataset, progress = Dataset(path), Progress(f"reading {path}")
            usable = 0
            first = ""
            for number, row in enumerate(dataset.rows(kind), start=1):
                progress.show(number)
                if row.record:
                    usable += 1
                    yield replace(row.record, id=prefix + row.id) if prefix else row.record
                else:
                    first = first or f"; line {row.line}: {row.reason}"
                    funnel.drop(name, row.line, prefix + row.id, row.reason)
            if not usable:
                raise ValueError(f"dataset {path} has no usable row for {kind}{first}")
            formats[dataset.format] = None

    spooled = RecordFile(file, records())
    funnel.formats[label] = ", ".join(formats)
    return spooled


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


def _decontaminated(sets: Sets, funnel: Funnel) -> Sets:
    """The sets without training rows that share a 10-gram with held-out ones, and probing rows with evaluation ones."""
    evaluation = list(sets["evaluation"])
    probe = _without_overlaps("probe", sets["probe"], evaluation, funnel)
    held_out = [*probe, *evaluation]
    training = {name: _without_overlaps(name, sets[name], held_out, funnel) for name in TRAINING_SETS}
    return training | {"probe": probe, "evaluation": sets["evaluation"]}


def _without_overlaps(name: str, records: Selection, held_out: Sequence[Record], funnel: Funnel) -> Selection:
    overlaps = find_overlaps(records, held_out)
    for overlap in overlaps:
        funnel.remove(name, overlap)
    removed = {overlap.train_id for overlap in overlaps}
    return records.keep(i for i, record in enumerate(records) if record.id not in removed) if removed else records


def check_disjoint(sets: Mapping[str, Path]) -> None:
    """Compare what was written once more.

    Raises:
        ValueError: a training row shares a 10-gram with a held-out one, or a probing row with an evaluation one.
    """
    probe, evaluation = (read_jsonl(sets[name]) for name in HELD_OUT_SETS)
    for name in (*TRAINING_SETS, "probe"):
        held_out = evaluation if name == "probe" else [*probe, *evaluation]
        records = iterate_jsonl(sets[name])
        left = find_overlaps(records, held_out)  # pyright: ignore[reportArgumentType] (it reads them once, in order)
        if left:
            first = left[0]
            raise ValueError(f"{name}: {first.train_id} still shares '{first.shared_text}' with {first.held_out_id}")


def _sampled_texts(config: Config, records: Selection) -> Iterator[str]:
    """Prompts and responses that the tokenizer is trained on."""
    for position in sample_positions(len(records), records.size, TOKENIZER_BYTES, config.seed):
        record = records[position]
        yield record.prompt
        yield record.response


def _write_sets(
    config: Config, sets: Sets, tokenizer: "PreTrainedTokenizerFast", folder: Path, funnel: Funnel
) -> dict[str, int]:
    """Write the records that fit the windows of the stages that would use them; returns how many each set has."""
    counts = {}
    sha256 = tokenizer_sha256(tokenizer)
    with TokenFileWriter(folder / "sft_tokens", vocabulary=len(tokenizer), tokenizer_sha256=sha256) as tokens:
        for name, records in sets.items():
            domains: Counter[str] = Counter()
            fitting = _fitting(config, name, records, tokenizer, funnel, domains, tokens if name == "sft" else None)
            counts[name] = write_jsonl(folder / f"{name}.jsonl", fitting)
            funnel.keep(name, counts[name], domains)
            if not counts[name] and name in ("sft", *HELD_OUT_SETS):
                raise ValueError(f"the {name} set is empty after filtering; first reason: {funnel.first_reason(name)}")
    return counts


def _fitting(
    config: Config,
    name: str,
    records: Selection,
    tokenizer: "PreTrainedTokenizerFast",
    funnel: Funnel,
    domains: Counter[str],
    writer: TokenFileWriter | None,
) -> Iterator[Record]:
    """The records that fit, measured and, for SFT, tokenised on their way."""
    window, what = _window(config, name)
    progress = Progress(f"tokenising {name}", len(records))
    stream = encode_stream(tokenizer, records, config.data.instruction)
    for number, (record, tokens, prompt) in enumerate(stream, start=1):
        progress.show(number)
        counted = len(tokens) if name == "sft" else prompt
        response = len(tokens) - prompt if record.response else 0
        funnel.measure(name, prompt=prompt, response=response, counted=counted, window=window)
        if counted > window:
            funnel.drop(name, None, record.id, f"{counted} tokens, more than {window} ({what})")
            continue
        if writer:
            writer.add(tokens, prompt)
        domains[record.domain] += 1
        yield record


def _window(config: Config, name: str) -> tuple[int, str]:
    """Most tokens of an example, or elsewhere of a prompt, and which limit that is."""
    if name == "sft":
        return config.sft.seq_length, "sft.seq_length"
    stages = (config.signal.math_16k, config.signal.math_32k, config.signal.code, config.probe, config.evaluate)
    longest = max(stage.sampling.max_response_length for stage in stages)
    return max(1, config.scale.model.max_position_embeddings - longest), "window less the longest response"


if __name__ == "__main__":
    stage_main(__file__)
