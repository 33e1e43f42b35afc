import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from nemo_vibethinker.data.boxed import last_boxed
from nemo_vibethinker.data.readers import MATH_SUBJECT_DOMAINS, Kind, read_dataset
from nemo_vibethinker.data.records import Record, write_jsonl

DATA_DIR = Path(os.environ.get("NVT_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))


def real(name: str) -> Path:
    path = DATA_DIR / name
    if not path.is_file():
        pytest.skip(f"{path} is absent; set NVT_DATA_DIR to the folder of the datasets")
    return path


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("so \\boxed{12}", "12"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\fbox{363}", "363"),
        ("$\\boxed 5$", "5"),
        ("\\boxed{ x }", "x"),
        ("\\boxed{1", None),
        ("\\boxedness{1}", None),
        ("no box", None),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(("split", "rows"), [("train", 7_473), ("test", 1_319)])
@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_gsm8k_is_read_completely(split: str, rows: int, kind: Kind) -> None:
    result = read_dataset(real(f"gsm8k/{split}.jsonl"), kind=kind)
    assert (result.format, len(result.records), result.dropped) == ("gsm8k", rows, [])
    for record in result.records:
        assert re.fullmatch(r"-?\d+(\.\d+)?", record.answer)
        assert record.response.endswith(f"\n\\boxed{{{record.answer}}}")
        assert not re.search(r"<<|>>|####", record.response)
    assert {record.domain for record in result.records} == {"math"}
    assert len({record.id for record in result.records}) == rows


@pytest.mark.parametrize(("name", "rows"), [("math/math500", 500), ("math/pool_4500", 4_500)])
def test_math_is_read_completely(name: str, rows: int) -> None:
    path = real(f"{name}.jsonl")
    result = read_dataset(path, kind="sft")
    assert (result.format, len(result.records), result.dropped) == ("math", rows, [])
    assert all(last_boxed(record.response) == record.answer for record in result.records)
    assert {record.domain for record in result.records} == {"algebra", "geometry", "calculus", "statistics"}
    assert {record.difficulty for record in result.records} == {1, 2, 3, 4, 5}
    subjects = [json.loads(line)["subject"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert [record.domain for record in result.records] == [MATH_SUBJECT_DOMAINS[subject] for subject in subjects]


def test_competition_files_serve_rl_but_answers_alone_are_no_sft_data() -> None:
    path = real("competitions/aime24.jsonl")
    assert len(read_dataset(path, kind="rl").records) == 30
    with pytest.raises(ValueError, match="no usable row for sft; line 1: no solution"):
        read_dataset(path, kind="sft")
    pool = read_dataset(real("competitions/aime_1983_2023.jsonl"), kind="sft")
    assert (len(pool.records), pool.dropped) == (975, [])
    assert all(last_boxed(record.response) for record in pool.records)


def test_gsm8k_row(tmp_path: Path) -> None:
    row = {"question": " How many? ", "answer": "She has 3*400=<<3*400=1200>>1200 coins.\n#### 1,200"}
    (record,) = read_dataset(write_rows(tmp_path / "g.jsonl", row), kind="sft").records
    assert record == Record(
        id="g:1",
        domain="math",
        prompt="How many?",
        response="She has 3*400=1200 coins.\n\\boxed{1200}",
        answer="1200",
        source="gsm8k",
    )


def test_math_row_without_answer_column_or_box(tmp_path: Path) -> None:
    rows = [
        {"problem": "p1", "solution": "so $\\boxed{\\frac12}$", "type": "Precalculus", "level": "Level 4"},
        {"problem": "p2", "solution": "it is 3", "answer": 3, "subject": "Topology"},
        {"problem": "p3", "solution": "it is 3"},
        {"problem": "p4", "solution": "it is $\\boxed 5$"},
    ]
    result = read_dataset(write_rows(tmp_path / "m.jsonl", *rows), kind="sft")
    first, second, third = result.records
    assert (first.answer, first.domain, first.difficulty) == ("\\frac12", "calculus", 4)
    assert (second.answer, second.domain, second.response) == ("3", "math", "it is 3\n\\boxed{3}")
    assert (third.answer, third.response) == ("5", "it is $\\boxed 5$\n\\boxed{5}")
    assert [(row.line, row.id) for row in result.dropped] == [(3, "m:3")]
    assert "no answer" in result.dropped[0].reason


def test_chat_rows_and_every_reason_to_drop_one(tmp_path: Path) -> None:
    user, assistant = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a \\boxed{1}"}
    rows = [
        {"messages": [user, assistant], "answer": "1", "domain": "geometry", "id": "good"},
        {"messages": [user, assistant], "tests": ["assert f(1) == 1"]},
        "{broken",
        "[1]",
        {"messages": [user, assistant, user, assistant], "answer": "1"},
        {"messages": [{"role": "system", "content": "s"}, user, assistant], "answer": "1"},
        {"messages": [assistant], "answer": "1"},
        {"messages": "hello", "answer": "1"},
        {"messages": [user], "answer": "1"},
        {"messages": [{"role": "user", "content": " "}, assistant], "answer": "1"},
        {"messages": [user, assistant], "answer": "1", "domain": "chess"},
        {"messages": [user, assistant], "answer": "1", "id": "good"},
        {"messages": [user, assistant], "answer": ["1"]},
        {"messages": [user, assistant], "tests": "assert True"},
        {"problem": "from another dataset", "answer": "1"},
    ]
    result = read_dataset(write_rows(tmp_path / "c.jsonl", *rows), kind="sft")
    assert [(r.id, r.domain, r.answer, r.tests) for r in result.records] == [
        ("good", "geometry", "1", ()),
        ("c:2", "code", "", ("assert f(1) == 1",)),
    ]
    reasons = {row.line: row.reason for row in result.dropped}
    expected = [
        "bad JSON",
        "not an object",
        "more than one user turn",
        "turns are system, user, assistant",
        "no user turn",
        "messages is not a list",
        "no solution",
        "empty question",
        "unknown domain chess",
        "same id",
        "answer is not text",
        "tests must be a list",
        "messages",
    ]
    assert list(reasons) == list(range(3, 16))
    for reason, words in zip(reasons.values(), expected, strict=True):
        assert words in reason


def test_rl_needs_an_answer_or_tests(tmp_path: Path) -> None:
    user = {"role": "user", "content": "q"}
    rows = [
        {"messages": [user]},
        {"messages": [user], "domain": "code", "answer": "1"},
        {"messages": [user], "answer": 7},
    ]
    result = read_dataset(write_rows(tmp_path / "c.jsonl", *rows), kind="rl")
    assert [record.answer for record in result.records] == ["7"]
    assert [row.reason for row in result.dropped] == ["no answer", "no tests"]


def test_own_records_are_read_back(tmp_path: Path) -> None:
    records = [
        Record(id="a", domain="code", prompt="p", response="r", tests=("assert True",), difficulty=2, source="s")
    ]
    write_jsonl(tmp_path / "own.jsonl", records)
    result = read_dataset(tmp_path / "own.jsonl", kind="sft")
    assert (result.records, result.format) == (records, "records")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ('{"text": "x", "label": 1}\n', "columns label, text; known formats: problem, generations"),
        ('{"question": "q", "answer": ""}\n', "no usable row for rl; line 1: no answer"),
        ("not json\n", "no usable row for rl; line 1: bad JSON"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"bad.jsonl.*{message}"):
        read_dataset(path, kind="rl")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.jsonl does not exist"):
        read_dataset(tmp_path / "absent.jsonl", kind="rl")


def test_rows_that_are_not_utf8_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    path.write_bytes(b'{"question": "q", "answer": "x\\n#### 1"}\n{"question": "\xff", "answer": "#### 1"}\n')
    result = read_dataset(path, kind="rl")
    assert (len(result.records), result.dropped[0].line) == (1, 2)
