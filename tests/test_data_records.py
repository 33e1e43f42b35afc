import json
from pathlib import Path

import pytest

from nemo_vibethinker.data.records import Record, read_jsonl, write_jsonl

RECORDS = [
    Record(id="a", domain="algebra", prompt="2x = 4?", response="x=2\n\\boxed{2}", answer="2", difficulty=1),
    Record(id="b", domain="code", prompt="\u00c9cris f(x)", tests=("assert f(1) == 2", "assert f(2) == 3"), source="s"),
]


def test_jsonl_round_trip_keeps_every_field(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "deep" / "r.jsonl", RECORDS)
    assert read_jsonl(tmp_path / "deep" / "r.jsonl") == RECORDS


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_jsonl(path, RECORDS)

    def failing():
        yield RECORDS[0]
        raise RuntimeError("source died")

    with pytest.raises(RuntimeError, match="source died"):
        write_jsonl(path, failing())
    assert read_jsonl(path) == RECORDS
    assert [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "not a JSON object"),
        ('{"id": "x", "domain": "algebra"}', "missing field prompt"),
        ('{"id": "x", "domain": "algebra", "prompt": "p", "extra": 1}', "unknown field extra"),
        ('{"id": "x", "domain": "chess", "prompt": "p"}', "domain must be one of"),
        ('{"id": 7, "domain": "algebra", "prompt": "p"}', "id must be a string"),
        ('{"id": "x", "domain": "code", "prompt": "p", "tests": "assert True"}', "tests must be a list"),
        ('{"id": "x", "domain": "code", "prompt": "p", "difficulty": "2"}', "difficulty must be an integer"),
    ],
)
def test_bad_line_is_named_with_file_and_line(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "r.jsonl"
    good = json.dumps({"id": "ok", "domain": "math", "prompt": "p"})
    path.write_text(f"{good}\n\n{row}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"r\.jsonl:3: .*{message}"):
        read_jsonl(path)
