"""`python -m nemo_vibethinker.data.readers`: what it prints of a dataset, and its one line on bad input."""

import json
from pathlib import Path

import pytest

from nemo_vibethinker.data.lengths import Lengths, bars
from nemo_vibethinker.data.readers.__main__ import main
from nemo_vibethinker.data.reasons import Reasons
from nemo_vibethinker.data.tokenizer import train_tokenizer


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rows = [{"id": f"r{i}", "problem": "x" * (i + 1), "answer": "1", "solution": "\\boxed{1}"} for i in range(9)]
    lines = [*map(json.dumps, rows), "{torn", json.dumps(rows[0]), json.dumps({"problem": "p"})]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    return tmp_path / "d.jsonl"


def test_what_is_printed(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(dataset), "--kind", "sft", "--head", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["id"] for line in lines[:2]] == ["r0", "r1"]
    assert lines[2:5] == [
        "format    math, files: 1",
        "records   12 read, 9 usable for sft, 3 dropped",
        "domains   math 9",
    ]
    dropped = [line for line in lines if line.startswith("dropped")]
    assert len(dropped) == 3
    assert "dropped   1 an earlier row has the same id (first: line 11, r0)" in dropped
    assert any(line.startswith("prompt    p50 5, p90 9, p99 9, max 9 characters") for line in lines)
    assert [line.split() for line in lines if line.split()[:1] == ["8"]] == [["8", "#" * 40, "4"]]


def test_limit_and_tokens(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(["some text"], 320).save_pretrained(tmp_path / "tokenizer")
    assert main([str(dataset), "--limit", "3", "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    out = capsys.readouterr().out
    assert "records   3 read, 3 usable, 0 dropped" in out
    assert "prompt    p50 2, p90 3, p99 3, max 3 tokens" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.jsonl"], "dataset absent.jsonl does not exist"),
        (["{tmp}/empty.jsonl"], "empty.jsonl is empty"),
        (["{tmp}/other.jsonl"], "has columns label, text; known formats: "),
        (["{tmp}/d.jsonl", "--tokenizer", "{tmp}"], "no tokenizer.json there"),
    ],
)
def test_bad_input_is_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "other.jsonl").write_text('{"text": "t", "label": 1}\n')
    assert main([word.replace("{tmp}", str(tmp_path)) for word in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("python -m nemo_vibethinker.data.readers: ")
    assert message in err
    assert err.count("\n") == 1


def test_lengths_in_closed_form() -> None:
    lengths = Lengths()
    assert lengths.summary() == {}
    lengths.add(range(1, 101))
    assert lengths.summary() == {
        "p50": 51,
        "p90": 91,
        "p99": 100,
        "max": 100,
        "histogram": [[1, 1], [2, 1], [4, 2], [8, 4], [16, 8], [32, 16], [64, 32], [128, 36]],
    }
    lines = bars(lengths.summary()["histogram"])
    assert [line.split()[-1] for line in lines] == ["1", "1", "2", "4", "8", "16", "32", "36"]


def test_reasons_are_counted_without_their_details() -> None:
    reasons = Reasons()
    for number in range(30):
        reasons.add(number, "", f"{number} tokens, more than 7 (window)")
    for number in range(200):
        reasons.add(number, "", f"unknown domain {chr(0x4E00 + number)}: known ones are others")
    assert reasons.total == 230
    counts = reasons.by_reason()
    assert counts["N tokens, more than N (window)"] == 30
    assert len(counts) == 51
    assert sum(counts.values()) == 230
    assert reasons.lines()[1] == "30 N tokens, more than N (window) (first: line 0: 0 tokens, more than 7 (window))"
