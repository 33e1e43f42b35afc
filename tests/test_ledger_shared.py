"""The ledger of a run that several jobs write at once, what Slurm adds to it, and the plan beside it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_vibethinker import ledger as ledger_module
from nemo_vibethinker.costs.comparison import compare_costs, planned_hours
from nemo_vibethinker.ledger import Book, Ledger, StageCost, summarise
from nemo_vibethinker.run_folder import read_json_lines

WRITER = """
import sys
from pathlib import Path
from nemo_vibethinker import ledger as module
module.BEAT_INTERVAL_S = 0.0
part, beats = sys.argv[2], int(sys.argv[3])
ledger = module.Ledger(Path(sys.argv[1]), 1, "cpu")
sys.stdin.readline()
with ledger.attempt("probe", part):
    for _ in range(beats):
        ledger.beat()
    if part == "1":
        ledger.path.open("ab").write(b'{"event": "be')  # torn by a kill
        import os
        os._exit(9)
"""


def test_jobs_that_append_at_once_lose_no_line(tmp_path: Path) -> None:
    beats, parts = 200, [str(part) for part in range(4)]
    command = [sys.executable, "-c", WRITER, str(tmp_path / "l")]
    writers = [subprocess.Popen([*command, part, str(beats)], stdin=subprocess.PIPE, text=True) for part in parts]
    for writer in writers:
        writer.communicate("go\n")
    lines = read_json_lines(tmp_path / "l")
    ids = {line["id"] for line in lines if line["event"] == "start"}
    assert len(ids) == len(parts)
    counts = {name: sum(line["event"] == name for line in lines) for name in ("start", "beat", "end")}
    assert counts == {"start": 4, "beat": 4 * beats, "end": 3}
    (cost,) = summarise(tmp_path / "l")
    assert cost.attempts == 4


def line(event: str, identity: str, when: float, **fields: object) -> str:
    return json.dumps({"event": event, "stage": "probe", "id": identity, "time": when} | fields) + "\n"


def start(identity: str, when: float, **fields: object) -> str:
    return line("start", identity, when, processes=4, device="gpu", **fields)


def test_interleaved_attempts_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "l").write_text(
        start("a", 0, part="0")
        + start("b", 100, part="1")
        + line("save", "a", 900)
        + line("end", "b", 1000, status="done")
        + line("beat", "a", 1800)
        + start("c", 2000, part="0")
        + line("end", "c", 2900, status="done")
    )
    (cost,) = summarise(tmp_path / "l")
    assert (cost.attempts, cost.seconds) == (3, 1800 + 900 + 900)
    assert (cost.useful_hours, cost.lost_hours) == (1.0 + 1.0 + 1.0, 1.0)
    assert cost.ettr == 0.75


def test_a_part_that_runs_again_does_not_undo_the_others(tmp_path: Path) -> None:
    done = {"status": "done"}
    lines = [
        start("a", 0, part="0"),
        line("end", "a", 900, **done),
        start("b", 0, part="1"),
        line("end", "b", 900, **done),
    ]
    (tmp_path / "l").write_text("".join([*lines, start("c", 1000, part="0"), line("end", "c", 1900, **done)]))
    (cost,) = summarise(tmp_path / "l")
    assert (cost.useful_hours, cost.lost_hours) == (2.0, 1.0)


def test_a_killed_job_is_charged_up_to_the_end_that_slurm_tells(tmp_path: Path) -> None:
    """Two attempts in one job of 4 GPUs: 1,800 s by our lines, 3,600 s by Slurm's."""
    lines = [
        start("a", 100, job="7"),
        line("save", "a", 1000),
        start("b", 1200, job="7"),
        line("beat", "b", 2100),
        line("accounted", "", 5000, job="7", gpu_hours=3.0),
        line("accounted", "", 6000, job="7", gpu_hours=4.0),
        line("accounted", "", 6000, job="8", gpu_hours=9.0),  # not ours
    ]
    (tmp_path / "l").write_text("".join(lines))
    (cost,) = summarise(tmp_path / "l")
    assert (cost.useful_hours, cost.lost_hours, cost.unseen_hours) == (1.0, 3.0, 2.0)
    assert Book(tmp_path / "l").update().hours() == 4.0


def test_slurm_charging_less_than_our_own_lines_takes_nothing_back(tmp_path: Path) -> None:
    lines = [
        start("a", 0, job="7"),
        line("end", "a", 900, status="done"),
        line("accounted", "", 9, job="7", gpu_hours=0.5),
    ]
    (tmp_path / "l").write_text("".join(lines))
    (cost,) = summarise(tmp_path / "l")
    assert (cost.process_hours, cost.unseen_hours) == (1.0, 0.0)


def test_the_hours_of_jobs_beside_this_one_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(ledger_module.time, "time", lambda: now[0])
    mine, other = Ledger(tmp_path / "l", 2, "cpu"), Ledger(tmp_path / "l", 8, "cpu")
    with mine.attempt("probe", "0"):
        now[0] = 3600
        with other.attempt("probe", "1"):
            now[0] = 7200
        assert mine.process_hours() == 2 * 2 + 8
        now[0] = 7230  # looks again after a minute only
        assert mine.process_hours() == pytest.approx(2 * 7230 / 3600 + 8)
    assert mine.attempt_number == 1


def test_attempts_name_their_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with Ledger(tmp_path / "l", 1, "cpu").attempt("sft"):
        pass
    assert read_json_lines(tmp_path / "l")[0]["job"] == "4711"


def test_plan_beside_cost(tmp_path: Path) -> None:
    costs = [
        StageCost(stage="sft", attempts=2, seconds=9, useful_hours=3.0, lost_hours=1.0, device="gpu", unseen_hours=0.5),
        StageCost(stage="extra", attempts=1, seconds=9, useful_hours=1.0, lost_hours=0.0, device="gpu"),
    ]
    sft, probe, extra, whole = compare_costs({"sft": 2.0, "probe": 5.0}, costs)
    assert (sft.planned_hours, sft.paid_hours, sft.ratio, sft.ettr) == (2.0, 4.0, 2.0, 0.75)
    assert (sft.attempts, sft.lost_hours, sft.unseen_hours) == (2, 1.0, 0.5)
    assert (probe.planned_hours, probe.paid_hours, probe.ratio, probe.ettr, probe.device) == (
        5.0,
        0.0,
        None,
        None,
        "gpu",
    )
    assert (extra.planned_hours, extra.paid_hours, extra.ratio) == (None, 1.0, None)
    assert (whole.stage, whole.planned_hours, whole.paid_hours, whole.ettr) == ("total", 7.0, 5.0, 0.8)
    assert compare_costs({"sft": 2.0, "probe": None}, [])[-1].planned_hours is None
    assert planned_hours(tmp_path) == {}
    (tmp_path / "plan.json").write_text(json.dumps({"stages": [{"stage": "sft", "hours": 2.5}]}))
    assert planned_hours(tmp_path) == {"sft": 2.5}
