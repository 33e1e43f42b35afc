"""Raw rows of a dataset's files, one at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BOM = b"\xef\xbb\xbf"

RawRow = tuple[int, dict[str, Any], str]  # line from 1, the decoded row, why it could not be decoded


def json_lines(path: Path) -> Iterator[RawRow]:
    """The lines of a JSON-lines file but for blank ones; a bad line has an empty row and a reason."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and line.startswith(_BOM):
                line = line[len(_BOM) :]
            if line.isspace() or not line:
                continue
            row, reason = _decode(line)
            yield number, row, reason


def _decode(line: bytes) -> tuple[dict[str, Any], str]:
    try:
        row = json.loads(line.decode())
        if b"\\ud" in line or b"\\uD" in line:  # half a surrogate pair is valid JSON, but no text can hold it
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        return {}, f"bad JSON: {error}"
    return (row, "") if isinstance(row, dict) else ({}, "bad JSON: not an object")
