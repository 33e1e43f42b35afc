"""A row of a dataset beside its original line, with all its texts."""

import json
from typing import Any, NamedTuple

# The names that the code datasets of the field give to columns of tests.
TEST_COLUMNS = frozenset(
    {
        "test",
        "tests",
        "test_list",
        "test_setup_code",
        "challenge_test_list",
        "test_cases",
        "public_tests",
        "private_tests",
        "generated_tests",
        "public_test_cases",
        "private_test_cases",
        "input_output",
        "verification_info",
        "reward_model",
        "ground_truth",
        "examples",
    }
)


class SourceRow(NamedTuple):
    """A row of a dataset file: its line (from 1) as it stands there, its prompt and response as read, and, where it
    cannot be used, the reason.

    `source` is the line with its line feed; where the rows of a file are not its lines it is the columns as JSON.
    """

    file: str
    line: int
    id: str
    source: bytes
    columns: dict[str, Any]
    prompt: str
    response: str
    reason: str

    def texts(self) -> dict[str, str]:
        """Text -> the field that holds it: the prompt as read, every other text of any column, the response as read.

        All of them, since a row's line is kept as it is and the reader may use but some of its solutions. Only tests
        are left out (`TEST_COLUMNS`): inputs such as "1 2 3 4 5 6 7 8 9 10" are shared by unrelated problems.
        """
        texts = {self.prompt: "prompt"}
        _add_texts(self.columns, "", texts)
        texts.setdefault(self.response, "response")
        return texts

    @property
    def place(self) -> dict[str, Any]:
        """What a report says to name this row."""
        return {"file": self.file, "line": self.line, "id": self.id}


def _add_texts(value: dict[str, Any] | list[Any], prefix: str, texts: dict[str, str]) -> None:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if key in TEST_COLUMNS:
            continue
        if isinstance(item, str):
            texts.setdefault(item.strip(), f"{prefix}{key}")
        elif isinstance(item, dict | list):
            _add_texts(item, f"{prefix}{key}.", texts)


def json_line(value: Any) -> bytes:
    """A line of JSON; half a surrogate pair, which UTF-8 cannot hold, stays the escape that it was in the source."""
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n"
