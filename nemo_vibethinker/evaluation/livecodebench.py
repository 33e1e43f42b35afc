"""LiveCodeBench: its problems by release and date, its prompt, and its hidden tests, read without unpickling."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_vibethinker.data.code_tests import Test, parse_tests
from nemo_vibethinker.data.pickled_text import pickled_text
from nemo_vibethinker.data.readers.files import data_files, file_rows, is_hub_name
from nemo_vibethinker.data.records import Record

# The wording is part of the benchmark (LiveCodeBench, lcb_runner/prompts/code_generation.py). VibeThinker's evaluation
# code puts the system text and the question into one user turn; how it joins them is not published: a blank line here.
_SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
    "correct Python program that matches the specification and passes all tests."
)
_WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
_WITHOUT_STARTER = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it reads the "
    "inputs, runs the algorithm and writes output to STDOUT."
)
_RELEASE_FILE = re.compile(r"test(\d*)\.jsonl")  # test.jsonl is release 1, test6.jsonl what release 6 added


def code_turn(question: str, starter_code: str) -> str:
    """The user turn of a problem."""
    told, code = (_WITH_STARTER, starter_code) if starter_code else (_WITHOUT_STARTER, "# YOUR CODE HERE")
    return (
        f"{_SYSTEM}\n\n### Question:\n{question}\n\n### Format: {told}\n```python\n{code}\n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )


def read_livecodebench(source: str, since: str, release: int) -> Iterator[Record]:
    """The problems dated `since` (YYYY-MM-DD) and later, of the files up to `release`.

    `source` is the folder of the published test*.jsonl files, one file of such rows (which is then taken as it is,
    whatever its release), or the hub name. ValueError for a row of another layout.
    """
    folder = _fetched(source) if is_hub_name(source) else Path(source)
    for file in data_files(folder):
        if folder.is_dir() and _release(file) > release:
            continue
        for number, row, reason, _ in file_rows(file):
            try:
                if reason:
                    raise ValueError(reason)
                if str(row["contest_date"])[:10] >= since:
                    yield _record(row)
            except KeyError as error:
                raise ValueError(f"{file}, row {number}: no column {error.args[0]}; see {_COLUMNS}") from None
            except ValueError as error:
                raise ValueError(f"{file}, row {number}: {error}") from None


_COLUMNS = "livecodebench/code_generation_lite for the columns that are needed"


def _fetched(name: str) -> Path:
    """The published files; the hub's loading script for them no longer runs in the `datasets` library."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=["test*.jsonl"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{name} is no local folder and can't be fetched from the hub: {reason}") from None


def _release(file: Path) -> int:
    named = _RELEASE_FILE.fullmatch(file.name)
    return int(named.group(1) or 1) if named else 0


def _record(row: dict[str, Any]) -> Record:
    metadata = row.get("metadata") or "{}"
    function = (json.loads(metadata) if isinstance(metadata, str) else metadata).get("func_name") or ""
    tests = [*_tests(row["public_test_cases"], function), *_tests(row["private_test_cases"], function)]
    if not tests:
        raise ValueError(f"problem {row['question_id']} has no tests")
    return Record(
        id=str(row["question_id"]),
        domain="code",
        prompt=code_turn(str(row["question_content"]), str(row.get("starter_code") or "")),
        tests=tuple(tests),
    )


def _tests(column: str, function: str) -> tuple[Test, ...]:
    """Tests as JSON, or as a compressed pickle of the same JSON."""
    plain = column.lstrip().startswith("[")
    return parse_tests(column if plain else pickled_text(column), entry_point=function)
