"""Files, folders and hub names: the same rows whatever holds them, and one line on what cannot be read."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from nemo_vibethinker.data.readers import Dataset, iterate_dataset, read_dataset
from nemo_vibethinker.data.readers.files import file_rows, hub_rows, is_hub_name
from nemo_vibethinker.data.records import Record

ROWS = [{"problem": f"What is {i}?", "answer": str(i), "solution": f"\\boxed{{{i}}}"} for i in range(600)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def write(path: Path) -> Path:
    """The rows as `path`'s suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=70)
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(ROWS))
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(LINES))
    elif path.name.endswith(".zst"):
        with pyarrow.output_stream(path, compression="zstd") as stream:
            stream.write(LINES)
    else:
        path.write_bytes(LINES)
    return path


def answers(path: Path | str) -> list[str]:
    return [record.answer for record in read_dataset(path, kind="sft").records]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "jsonl.gz", "jsonl.zst", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    result = read_dataset(write(tmp_path / f"d.{suffix}"), kind="sft")
    assert [(record.id, record.answer) for record in result.records] == [(f"d:{i + 1}", str(i)) for i in range(600)]


@pytest.mark.parametrize(
    "line",
    [
        '{"a": 1}\n',
        ' \t{"a": 1} \r\n',
        '{"a": 1}',
        '{"a": 1} {"a": 2}\n',
        '{"a": 1}x\n',
        '{"a": 1}\x0b\n',
        '{"a": NaN, "b": 123456789012345678901234567890, "c": 1e400, "a": 2}\n',
        '{"a": \n',
        '{"a": }\n',
        "[1]\n",
        "x\n",
        '\ufeff{"a": 1}\n',
        '{"a": "\\ud83d\\ude00"}\n',
    ],
)
def test_a_line_is_decoded_as_json_loads_does(tmp_path: Path, line: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"{}\n" + line.encode())
    _, (number, row, reason, source) = file_rows(path)
    try:
        expected = json.loads(line.encode().decode()), ""
        if not isinstance(expected[0], dict):
            expected = {}, "bad JSON: not an object"
    except ValueError as error:
        expected = {}, f"bad JSON: {error}"
    assert (number, repr((row, reason)), source) == (2, repr(expected), line.encode())


def test_a_repeated_id_drops_a_row_only_where_there_is_a_kind(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows = [{"problem": f"What is {i}?", "answer": "1", "solution": "\\boxed{1}", "id": "same"} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind, usable in ((None, 3), ("sft", 1), ("rl", 1)):
        assert sum(row.record is not None for row in iterate_dataset(path, kind=kind)) == usable
    assert [row.prompt for row in Dataset(path).source_rows()] == [row["problem"] for row in rows]


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    write(tmp_path / "set" / "b" / "x.parquet")
    write(tmp_path / "set" / "a.jsonl.gz")
    write(tmp_path / "set" / ".cache" / "hidden.jsonl")
    (tmp_path / "set" / "README.md").write_text("a dataset")
    records = read_dataset(tmp_path / "set", kind="rl").records
    assert [record.id for record in records] == [f"{stem}:{i}" for stem in ("a", "b/x") for i in range(1, 601)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no file of \.jsonl"):
        Dataset(tmp_path / "empty")


def test_json_files_of_one_object_and_of_lines(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(ROWS[3], indent=1))
    (tmp_path / "lines.json").write_bytes(LINES)
    assert answers(tmp_path / "one.json") == ["3"]
    assert len(answers(tmp_path / "lines.json")) == 600
    (tmp_path / "mixed.json").write_text(json.dumps([1, ROWS[0], ROWS[1] | {"problem": "\ud800"}]))
    result = read_dataset(tmp_path / "mixed.json", kind="rl")
    assert [record.answer for record in result.records] == ["0"]
    reasons = [(row.line, row.reason[:20]) for row in result.dropped]
    assert reasons == [(1, "bad JSON: not an obj"), (3, "bad JSON: 'utf-8' co")]


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.zst", "parquet"])
def test_a_torn_file_is_one_line(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"d.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"d\.{suffix} cannot be read") as caught:
        read_dataset(path, kind="rl")
    assert "\n" not in str(caught.value)


def test_hostile_lines_are_dropped(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"problem": "p", "answer": "1"}',
        b'{"problem": "\\ud800", "answer": "1"}',
        b"[" * 100_000,
        b'{"problem": "q", "answer": ' + b"9" * 5_000 + b"}",
        b'{"problem": "\xff", "answer": "1"}',
        b"\x00",
        b"   ",
        b'{"problem": "\\ud83d\\ude00", "answer": "1"}',
    ]
    (tmp_path / "d.jsonl").write_bytes(b"\r\n".join(lines))
    result = read_dataset(tmp_path / "d.jsonl", kind="rl")
    assert [record.prompt for record in result.records] == ["p", "\U0001f600"]
    assert [row.line for row in result.dropped] == [2, 3, 4, 5, 6]
    assert all(row.reason.startswith("bad JSON: ") for row in result.dropped)


@pytest.mark.parametrize("name", ["owner/name", "owner/name:main", "owner/na-me.2:main:test", "owner/name::test"])
def test_hub_names(name: str) -> None:
    assert is_hub_name(name)


@pytest.mark.parametrize("name", ["name", "a/b/c", "/owner/name", "./name", "o/name.jsonl", "o/na me", "a/b:c:d:e"])
def test_what_is_no_hub_name(name: str) -> None:
    assert not is_hub_name(name)


def test_an_existing_path_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "owner" / "name" / "d.jsonl")
    assert answers("owner/name")[:2] == ["0", "1"]


def test_the_datasets_library_streams_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "set" / "train.parquet")
    rows = list(hub_rows(str(tmp_path / "set")))
    assert [(line, row["answer"], reason) for line, row, reason, _ in rows] == [(i + 1, str(i), "") for i in range(600)]
    with pytest.raises(ValueError, match="cannot be loaded from the hub") as caught:
        list(hub_rows(f"{tmp_path / 'set'}::absent"))
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_is_one_line() -> None:
    environment = dict(os.environ) | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "nemo_vibethinker.data.readers", "owner/absent:main", "--kind", "rl"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "python -m nemo_vibethinker.data.readers: dataset owner/absent:main cannot be loaded from the hub ("
    )
    assert "network" in last


def test_duplicates_are_dropped_by_name(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": 1}, {"id": 2}, {"id": 1}, {"id": None}, {"id": ""}, {"id": True}]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(ROWS[i] | row) + "\n" for i, row in enumerate(rows)))
    result = read_dataset(path, kind="rl")
    assert [record.id for record in result.records] == ["1", "2", "d:4", "d:5", "True"]
    assert [(row.line, row.id, row.reason) for row in result.dropped] == [(3, "1", "an earlier row has the same id")]
    assert isinstance(result.records[0], Record)
