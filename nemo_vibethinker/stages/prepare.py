"""Prepare: training, probing and evaluation sets that share no 10-gram, and the tokenizer."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_vibethinker.config import CODE_DOMAIN, Config
from nemo_vibethinker.data.decontaminate import Overlap, find_overlaps, remove_overlaps
from nemo_vibethinker.data.readers import DroppedRow, ReadResult, read_dataset
from nemo_vibethinker.data.records import Record, write_jsonl
from nemo_vibethinker.data.tokenizer import encode_examples, encode_prompts, train_tokenizer
from nemo_vibethinker.data.world.generate import WorldSizes, generate_world
from nemo_vibethinker.pipeline import StageContext, StageResult, stage_main
from nemo_vibethinker.reward.sandbox import SandboxError, find_sandbox
from nemo_vibethinker.run_folder import atomic_write_text


@dataclass
class _Sets:
    """The record sets on their way, and what was dropped from each."""

    records: dict[str, list[Record]]
    dropped: dict[str, list[DroppedRow]] = field(default_factory=dict)
    overlaps: dict[str, list[Overlap]] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)

    def drop(self, name: str, test: Callable[[Record], str]) -> None:
        """Remove and note the records for which `test` gives a reason."""
        reasons = [(record, test(record)) for record in self.records[name]]
        self.records[name] = [record for record, reason in reasons if not reason]
        self.dropped.setdefault(name, []).extend(
            DroppedRow(line=None, id=record.id, reason=reason) for record, reason in reasons if reason
        )


def run(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
    """Write the sets and the tokenizer to `folder`.

    Raises:
        ValueError: no sandbox for the code domain, an unusable data file, or a set that ends up empty.
    """
    sets = _user_sets(config) if config.data.sft or config.data.rl else _world_sets(config)
    if any(record.domain == CODE_DOMAIN for records in sets.records.values() for record in records):
        _require_sandbox()
    _decontaminate(sets)
    tokenizer = train_tokenizer(
        (text for record in sets.records["sft"] for text in (record.prompt, record.response)), config.data.vocab_size
    )
    _drop_long(config, sets, tokenizer)
    for name in ("sft", "probe", "evaluation"):
        if not sets.records[name]:
            first = sets.dropped.get(name) or [DroppedRow(line=None, id="", reason="none was given")]
            raise ValueError(f"the {name} set is empty after filtering; first reason: {first[0].reason}")
    tokenizer.save_pretrained(folder / "tokenizer")
    for name, records in sets.records.items():
        write_jsonl(folder / f"{name}.jsonl", records)
    funnel = _funnel(sets)
    atomic_write_text(folder / "funnel.json", json.dumps(funnel, indent=1))
    counts = {name: len(records) for name, records in sets.records.items()}
    context.say(f"{', '.join(f'{name} {count:,}' for name, count in counts.items())}; {_losses(sets)}")
    outputs = {f"{name}_data": folder / f"{name}.jsonl" for name in sets.records}
    outputs |= {"tokenizer": folder / "tokenizer", "funnel": folder / "funnel.json"}
    return StageResult(outputs=outputs, metrics={"records": counts, "vocabulary": len(tokenizer)})


def _require_sandbox() -> None:
    try:
        find_sandbox()
    except SandboxError as error:
        raise ValueError(f"the code domain needs a sandbox: {error}") from error


def _world_sets(config: Config) -> _Sets:
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
    return _Sets({name: getattr(world, name) for name in ("sft", "rl_math", "rl_code", "probe", "evaluation")})


def _user_sets(config: Config) -> _Sets:
    """The user's files: probing and evaluation problems are held out of the RL file, the rest trains."""
    sft_path = config.data.sft or config.data.rl
    rl_path = config.data.rl or config.data.sft
    assert sft_path is not None
    assert rl_path is not None
    sft, rl = read_dataset(sft_path, kind="sft"), read_dataset(rl_path, kind="rl")
    probe, evaluation, rest = _hold_out(config, rl)
    sets = _Sets(
        {
            "sft": sft.records,
            "rl_math": [record for record in rest if record.domain != CODE_DOMAIN],
            "rl_code": [record for record in rest if record.domain == CODE_DOMAIN],
            "probe": probe,
            "evaluation": evaluation,
        }
    )
    sets.dropped = {"sft": list(sft.dropped), "rl_math": list(rl.dropped)}
    sets.formats = {"sft": sft.format, "rl": rl.format}
    return sets


def _hold_out(config: Config, rl: ReadResult) -> tuple[list[Record], list[Record], list[Record]]:
    """(probing, evaluation, rest): of each domain at most the configured number, never more than a fifth each."""
    probe: list[Record] = []
    evaluation: list[Record] = []
    rest: list[Record] = []
    for domain in sorted({record.domain for record in rl.records}):
        records = [record for record in rl.records if record.domain == domain]
        random.Random(f"{config.seed}/{domain}").shuffle(records)
        fifth = max(1, len(records) // 5)
        probes = 0 if domain == CODE_DOMAIN else min(config.data.probe_problems_per_domain, fifth)
        wanted = config.data.evaluation_code_problems if domain == CODE_DOMAIN else None
        held = probes + min(wanted or config.data.evaluation_problems_per_domain, fifth)
        probe += records[:probes]
        evaluation += records[probes:held]
        rest += records[held:]
    return probe, evaluation, rest


def _decontaminate(sets: _Sets) -> None:
    """Remove training rows that share a 10-gram with a held-out row, and probing rows that share one with evaluation.

    Raises:
        ValueError: an overlap is left.
    """
    probe, evaluation = sets.records["probe"], sets.records["evaluation"]
    sets.records["probe"], sets.overlaps["probe"] = remove_overlaps(probe, evaluation)
    probe = sets.records["probe"]
    for name in ("sft", "rl_math", "rl_code"):
        sets.records[name], sets.overlaps[name] = remove_overlaps(sets.records[name], [*probe, *evaluation])
    training = [record for name in ("sft", "rl_math", "rl_code") for record in sets.records[name]]
    left = find_overlaps(training, [*probe, *evaluation]) + find_overlaps(probe, evaluation)
    if left:
        raise ValueError(f"{left[0].train_id} still shares '{left[0].shared_text}' with {left[0].held_out_id}")


def _drop_long(config: Config, sets: _Sets, tokenizer: Any) -> None:
    """Drop, by name, rows that do not fit the windows of the stages that would use them."""
    instruction, window = config.data.instruction, config.scale.model.max_position_embeddings
    lengths = [len(tokens) for tokens, _ in encode_examples(tokenizer, sets.records["sft"], instruction)]
    _drop_by_length(sets, "sft", lengths, config.sft.seq_length, "sft.seq_length")
    longest = max(config.evaluate.sampling.max_response_length, config.probe.sampling.max_response_length)
    for stage in ("math_16k", "math_32k", "code"):
        longest = max(longest, getattr(config.signal, stage).sampling.max_response_length)
    for name in ("rl_math", "rl_code", "probe", "evaluation"):
        prompts = encode_prompts(tokenizer, [record.prompt for record in sets.records[name]], instruction)
        limit = max(1, window - longest)
        _drop_by_length(sets, name, [len(p) for p in prompts], limit, "window less the longest response")


def _drop_by_length(sets: _Sets, name: str, lengths: Sequence[int], limit: int, what: str) -> None:
    length_of = {record.id: length for record, length in zip(sets.records[name], lengths, strict=True)}
    sets.drop(
        name,
        lambda r: f"{length_of[r.id]} tokens, more than {limit} ({what})" if length_of[r.id] > limit else "",
    )


def _funnel(sets: _Sets) -> dict[str, Any]:
    rows = {}
    for name, records in sets.records.items():
        dropped, overlaps = sets.dropped.get(name, []), sets.overlaps.get(name, [])
        rows[name] = {
            "read": len(records) + len(dropped) + len(overlaps),
            "kept": len(records),
            "dropped": [asdict(row) for row in dropped],
        }
    return {
        "sets": rows,
        "formats": sets.formats,
        "overlaps_removed": [asdict(overlap) for overlaps in sets.overlaps.values() for overlap in overlaps],
        "disjoint": True,  # _decontaminate has checked it on the final sets, else the stage has failed
    }


def _losses(sets: _Sets) -> str:
    dropped = sum(len(rows) for rows in sets.dropped.values())
    removed = sum(len(overlaps) for overlaps in sets.overlaps.values())
    return f"{dropped} rows dropped, {removed} removed as overlapping (funnel.json names each)"


if __name__ == "__main__":
    stage_main(__file__)
