import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_vibethinker.atomic_files import atomic_files
from nemo_vibethinker.data.readers import Dataset, json_line
from nemo_vibethinker.progress import Progress

WRITE = """
import resource, signal, sys
from pathlib import Path
from nemo_vibethinker.atomic_files import atomic_files
from nemo_vibethinker.command import run_command
import argparse

def command(arguments):
    with atomic_files([Path(sys.argv[1]), Path(sys.argv[2])]) as (first, second):
        first.write(b"x" * 1000)
        print("writing", flush=True)
        while True:
            second.write(b"y" * 100)
parser = argparse.ArgumentParser(prog="tool")
parser.add_argument("paths", nargs="*")
arguments = parser.parse_args()
sys.exit(run_command(parser.prog, lambda: command(arguments)))
"""


def limit_file_size() -> None:
    """As a full disk does, a write fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_is_one_line_and_leaves_the_old_files(tmp_path: Path) -> None:
    old = tmp_path / "a"
    old.write_text("old")
    command = [sys.executable, "-c", WRITE, str(old), str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit_file_size, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_text() == "old"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_command_leaves_nothing(number: int, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE, str(tmp_path / "a"), str(tmp_path / "b")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        os.kill(child.pid, number)
        child.communicate(timeout=60)
    assert child.returncode == code
    assert list(tmp_path.iterdir()) == []


def test_files_appear_together(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    with atomic_files([first, second]) as files:
        for file in files:
            file.write(b"x")
        assert not first.exists()
    assert first.read_bytes() == second.read_bytes() == b"x"
    with pytest.raises(RuntimeError):
        _fail_while_writing([first, second])
    assert first.read_bytes() == b"x"
    assert sorted(tmp_path.iterdir()) == [first, second]


def _fail_while_writing(paths: list[Path]) -> None:
    with atomic_files(paths) as files:
        files[0].write(b"y")
        raise RuntimeError


def test_rows_stand_beside_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\n{"problem": "a", "answer": "1"}\r\n \n{bad}\n{"problem": "\xe2\x80\xa8", "answer": "2"}')
    rows = list(Dataset(path).source_rows())
    assert [(row.line, row.source, not row.reason) for row in rows] == [
        (2, b'{"problem": "a", "answer": "1"}\r\n', True),
        (4, b"{bad}\n", False),
        (5, b'{"problem": "\xe2\x80\xa8", "answer": "2"}\n', False),
    ]
    assert rows[0].place == {"file": str(path), "line": 2, "id": "d:2"}


def test_half_a_surrogate_pair_stays_an_escape() -> None:
    assert json_line({"a": "\ud83d\u00e9"}) == b'{"a": "\\ud83d\xc3\xa9"}\n'


def test_progress_says_rows_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(number / 10 for number in range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(Progress, "_printed", -1.0)
    progress = Progress("reading", total_bytes=40_000_000)
    for _ in range(25):
        progress.advance(2, 1_000_000)
    for _ in range(10):
        Progress("labels", 40, unit="problems").advance(note="$1")
    assert capsys.readouterr().err.splitlines() == [
        "reading: 20 rows | 20.0 rows/s | 10.0 MB/s | eta 3s",
        "reading: 40 rows | 20.0 rows/s | 10.0 MB/s | eta 2s",
    ]
    progress = Progress("labels", 40, unit="problems")
    for _ in range(10):
        progress.advance(note="$1")
    assert capsys.readouterr().err == "labels: 10/40 problems | 10.0 problems/s | eta 3s | $1\n"
