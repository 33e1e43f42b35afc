"""A dataset less the rows that a rule of difficulty drops."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from nemo_vibethinker.data.readers import Row, iterate_dataset
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.spectrum.difficulty import Difficulty, task_hash

RowFilter = Callable[[Record, Difficulty | None], str]


def filter_dataset(
    path: Path, difficulties: Mapping[str, Difficulty], row_filter: RowFilter, out: Path
) -> Counter[str]:
    """Write the kept rows of the dataset with all their columns, in their order; the file appears complete or not.

    Rows are joined to difficulties by `task_hash`. A row that holds several solutions is kept only if each of them
    passes.

    Returns:
        Rows by reason of their dropping; "" counts the kept ones.
    """
    counts: Counter[str] = Counter()
    with _atomic(out) as write:
        for _, group in groupby(iterate_dataset(path, kind="rl"), key=lambda row: row.line):
            rows = list(group)
            reason = next(filter(None, (_reason(row, difficulties, row_filter) for row in rows)), "")
            counts[reason] += 1
            if not reason:
                write(json.dumps(rows[0].raw, ensure_ascii=False) + "\n")
    return counts


def _reason(row: Row, difficulties: Mapping[str, Difficulty], row_filter: RowFilter) -> str:
    if row.record is None:
        return f"unusable ({row.reason})"
    return row_filter(row.record, difficulties.get(task_hash(row.record)))


@contextmanager
def _atomic(path: Path) -> Iterator[Callable[[str], object]]:
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def token_counter(folder: Path) -> Callable[[str], int]:
    """Counts the tokens of a text with the `tokenizer.json` of a folder. ValueError if there is none."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; --tokenizer takes a Hugging Face folder with a fast tokenizer")
    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
