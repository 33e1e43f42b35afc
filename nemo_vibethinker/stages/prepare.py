"""Prepare: training, probing and evaluation sets that share no 10-gram, the tokenizer, and SFT's tokens.

Sets are streamed from the users' files to the stage's folder; what is held in memory grows by some tens of bytes a row
(offsets, lengths, ids), plus the held-out sets.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.config import CODE_DOMAIN, Config
from nemo_vibethinker.data.decontaminate import find_overlaps
from nemo_vibethinker.data.funnel import DROPPED_FILE, Funnel
from nemo_vibethinker.data.record_files import Selection
from nemo_vibethinker.data.records import Record, iterate_jsonl, read_jsonl, write_jsonl
from nemo_vibethinker.data.sets import HELD_OUT_SETS, TRAINING_SETS, Sets, user_sets, world_sets
from nemo_vibethinker.data.token_files import TokenFileWriter
from nemo_vibethinker.data.tokenizer import (
    chat_tokenizer,
    encode_stream,
    sample_positions,
    tokenizer_sha256,
    train_tokenizer,
)
from nemo_vibethinker.model.hf_folder import base_model
from nemo_vibethinker.pipeline import StageContext, StageResult, stage_main
from nemo_vibethinker.progress import Progress
from nemo_vibethinker.reward.sandbox import SandboxChoice, SandboxError, find_sandbox

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER_BYTES = 100_000_000  # of records that the tokenizer is trained on; of more, a seeded sample


def run(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
    """Write the sets, SFT's tokens and the tokenizer to `folder`.

    Raises:
        ValueError: no sandbox for the code domain, an unusable data file, sets that overlap, or one that ends up empty.
    """
    spool = _empty_spool(folder)
    funnel = Funnel(folder)
    sets = user_sets(config, spool, funnel) if config.data.sft or config.data.rl else world_sets(config, spool)
    if any(CODE_DOMAIN in records.domains() for records in sets.values()):
        _require_sandbox(config.reward.sandbox)
    sets = _decontaminated(sets, funnel)
    base = base_model(config)
    if base is None:
        tokenizer = train_tokenizer(_sampled_texts(config, sets["sft"]), config.data.vocab_size)
    else:
        tokenizer = chat_tokenizer(base)
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
    if base is not None:
        outputs["base_model"] = _link(folder / "base_model", base)
    return StageResult(
        outputs=outputs | {"dropped": folder / DROPPED_FILE},
        metrics={"records": counts, "vocabulary": len(tokenizer)},
    )


def _link(link: Path, target: Path) -> Path:
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve(), target_is_directory=True)
    return link


def _empty_spool(folder: Path) -> Path:
    """Where usable records are kept as they were read; what a killed attempt left half-written is removed."""
    spool = folder / "spool"
    shutil.rmtree(spool, ignore_errors=True)
    for leftover in folder.glob(".*.jsonl*"):
        leftover.unlink()
    spool.mkdir()
    return spool


def _require_sandbox(choice: str) -> None:
    try:
        find_sandbox(cast(SandboxChoice, choice))
    except SandboxError as error:
        raise ValueError(f"the code domain needs a sandbox: {error}") from error


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
    for record, tokens, prompt in stream:
        progress.advance()
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
