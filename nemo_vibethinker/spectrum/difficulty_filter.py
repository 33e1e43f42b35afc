"""A dataset less the rows that a rule of difficulty drops."""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path

from nemo_vibethinker.atomic_files import atomic_files
from nemo_vibethinker.data.readers import Kind, Row, iterate_dataset, json_line
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.spectrum.difficulty import (
    Difficulty,
    hard_sft_drop_reason,
    prompt_hash,
    rl_drop_reason,
    task_hash,
)

Rule = Callable[[Record], str]  # why a record is dropped; "" to keep it


def rl_rule(difficulties: Mapping[str, Difficulty]) -> Rule:
    """`rl_drop_reason` of records by their task."""
    return lambda record: rl_drop_reason(difficulties.get(task_hash(record)))


def hard_sft_rule(
    difficulties: Mapping[str, Difficulty], tokenizer: Path, min_trace_tokens: int, min_error_rate: float
) -> Rule:
    """`hard_sft_drop_reason` of records by their prompt, as rows read for SFT may come without their answer.

    `tokenizer` is a folder with a `tokenizer.json`, which counts the tokens of a response. ValueError if there is none.
    """
    by_prompt = {row.prompt: row for row in difficulties.values()}
    count = token_counter(tokenizer)
    return lambda record: hard_sft_drop_reason(
        by_prompt.get(prompt_hash(record)),
        count(record.response),
        min_trace_tokens=min_trace_tokens,
        min_error_rate=min_error_rate,
    )


def filter_dataset(path: Path, kind: Kind, rule: Rule, out: Path) -> Counter[str]:
    """Write the kept rows of the dataset with all their columns, in their order; the file appears complete or not.

    A row that holds several solutions is kept only if each of them passes.

    Returns:
        Rows by reason of their dropping; "" counts the kept ones.
    """
    counts: Counter[str] = Counter()
    with atomic_files([out]) as (file,):
        # The records of one row share its columns, and the next row is read while these are still held.
        for _, group in groupby(iterate_dataset(path, kind=kind), key=lambda row: id(row.raw)):
            rows = list(group)
            reason = next(filter(None, (_reason(row, rule) for row in rows)), "")
            counts[reason] += 1
            if not reason:
                file.write(json_line(rows[0].raw))
    return counts


def _reason(row: Row, rule: Rule) -> str:
    return rule(row.record) if row.record else f"unusable ({row.reason})"


def token_counter(folder: Path) -> Callable[[str], int]:
    """Counts the tokens of a text with the `tokenizer.json` of a folder. ValueError if there is none."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; --tokenizer takes a Hugging Face folder with a fast tokenizer")
    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
