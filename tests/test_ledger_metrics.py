"""Cost of a run, also of what was lost; the metrics file and its console line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_vibethinker import ledger as ledger_module
from nemo_vibethinker import metrics_log
from nemo_vibethinker.budget_watch import Spending
from nemo_vibethinker.ledger import Ledger, summarise, total
from nemo_vibethinker.metrics_log import MetricsLog, format_line, read_metrics
from nemo_vibethinker.progress import format_duration
from nemo_vibethinker.run_folder import read_json_lines


def write_lines(path: Path, *lines: tuple) -> None:
    """(event, stage, time) or (event, stage, time, status); starts use 4 processes."""
    records = []
    for event, stage, when, *status in lines:
        extra = {"processes": 4, "device": "gpu"} if event == "start" else {"status": status[0]} if status else {}
        records.append({"event": event, "stage": stage, "attempt": 1, "time": when} | extra)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_finished_attempt_is_useful(tmp_path: Path) -> None:
    write_lines(tmp_path / "l", ("start", "sft", 0), ("beat", "sft", 900), ("end", "sft", 1800, "done"))
    (cost,) = summarise(tmp_path / "l")
    assert (cost.attempts, cost.seconds, cost.useful_hours, cost.lost_hours, cost.device) == (1, 1800, 2.0, 0.0, "gpu")


def test_killed_attempt_is_charged_to_its_last_beat_and_useful_to_its_last_save(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "l",
        ("start", "sft", 0),
        ("save", "sft", 900),
        ("beat", "sft", 3600),
        ("start", "sft", 9000),
        ("end", "sft", 9900, "done"),
        ("start", "probe", 9900),
        ("end", "probe", 10800, "failed"),
    )
    sft, probe = summarise(tmp_path / "l")
    assert (sft.attempts, sft.seconds, sft.useful_hours, sft.lost_hours) == (2, 4500, 2.0, 3.0)
    assert (probe.useful_hours, probe.lost_hours) == (0.0, 1.0)
    whole = total([sft, probe])
    assert (whole.stage, whole.attempts, whole.process_hours, whole.lost_hours) == ("total", 3, 6.0, 4.0)


def test_what_a_repeated_stage_had_done_is_lost(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "l",
        ("start", "sft", 0),
        ("end", "sft", 900, "done"),
        ("start", "sft", 1000),
        ("end", "sft", 2800, "done"),
    )
    (cost,) = summarise(tmp_path / "l")
    assert (cost.useful_hours, cost.lost_hours) == (2.0, 1.0)


def test_torn_last_line_does_not_hurt(tmp_path: Path) -> None:
    write_lines(tmp_path / "l", ("start", "sft", 0), ("beat", "sft", 900))
    with open(tmp_path / "l", "a") as file:
        file.write('{"event": "be')
    assert summarise(tmp_path / "l")[0].lost_hours == 1.0
    ledger = Ledger(tmp_path / "l", 4, "gpu")
    with ledger.attempt("sft"):
        assert ledger.attempt_number == 2
    assert summarise(tmp_path / "l")[0].attempts == 2


def test_no_ledger_no_cost(tmp_path: Path) -> None:
    assert summarise(tmp_path / "none") == []


def test_attempt_ends_as_what_happened(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l", 1, "cpu")
    with ledger.attempt("a"):
        pass
    with pytest.raises(RuntimeError), ledger.attempt("b"):
        raise RuntimeError
    with pytest.raises(SystemExit), ledger.attempt("c"):
        sys.exit(143)
    ends = [(line["stage"], line["status"]) for line in read_json_lines(tmp_path / "l") if line["event"] == "end"]
    assert ends == [("a", "done"), ("b", "failed"), ("c", "interrupted")]


def test_beats_are_rate_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(ledger_module.time, "time", lambda: now[0])
    ledger = Ledger(tmp_path / "l", 2, "cpu")
    with ledger.attempt("a"):
        for _ in range(12):
            now[0] += 1
            ledger.beat()
        assert ledger.process_hours() == pytest.approx(12 * 2 / 3600)
    assert [line["time"] for line in read_json_lines(tmp_path / "l")] == [1000, 1005, 1010, 1012]


def test_kill_9_is_charged(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from nemo_vibethinker import ledger as module
module.BEAT_INTERVAL_S = 0.05
ledger = module.Ledger(Path(sys.argv[1]), 1, "cpu")
with ledger.attempt("sft"):
    for beat in range(1000):
        time.sleep(0.02)
        ledger.beat()
        if beat == 20:
            print("alive", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "l")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (cost,) = summarise(tmp_path / "l")
    assert cost.seconds >= 0.35
    assert (cost.useful_hours, cost.lost_hours) == (0.0, pytest.approx(cost.seconds / 3600))


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(None, 2, "cpu")
    with ledger.attempt("sft"):
        ledger.saved()
        MetricsLog(None, "sft", 3, ledger).log(1, loss=1.0)
    assert capsys.readouterr().out == ""


SIGNAL_FIELDS = {
    "reward": 0.412,
    "pass_at_8": 0.63,
    "w_me": 0.82,
    "response_length": 9812.0,
    "truncated_share": 0.03,
    "entropy": 0.41,
    "mismatch_kl": 7e-4,
    "generate_share": 0.61,
    "update_share": 0.27,
    "sync_share": 0.02,
    "idle_share": 0.1,
    "tokens_per_second": 1930.4,
    "mfu": 0.31,
    "loss": 0.001,
    "clip_share": 0.02,
}


def test_line_of_a_reinforcement_learning_step() -> None:
    assert format_line(120, 580, SIGNAL_FIELDS, 250, spent=Spending(412, 3900, 3652), device="gpu") == (
        "step 120/580 20% | reward .412 | pass@8 .63 | w_me .82 | len 9.8k trunc  3% | ent .41 | mkl 7e-4 | "
        "gen 61% upd 27% sync  2% idle 10% |  1,930 tok/s/gpu mfu 31% | 412/3,900 GPU-h, 3,652 in all | eta 4m 10s"
    )


def test_line_of_a_supervised_step() -> None:
    fields = {"loss": 1.23456, "lr": 1e-3, "grad_norm": 0.98765, "tokens_per_second": 17000}
    assert format_line(5, 300, fields, 3725, spent=Spending(0.021)) == (
        "step   5/300  1% | loss 1.2346 | lr 1.0e-3 | grad .988 | 17,000 tok/s/proc | 0.02 CPU-h | eta 1h 02m"
    )


def test_line_of_a_probe_step_and_of_one_without_fields() -> None:
    fields = {"checkpoint": "step-150", "domain": "algebra", "pass_at_1": 0.3, "pass_at_16": 1.0}
    assert format_line(3, 24, fields, None) == (
        "step  3/24 12% | checkpoint step-150 domain algebra    | pass@1 .30 pass@16 1.0"
    )
    assert format_line(1, 1, {}, None) == "step 1/1 100%"


def test_columns_stay_in_place_over_steps() -> None:
    values = [
        {"reward": 0.0, "entropy": 0.004, "mismatch_kl": 3.2e-6, "response_length": 87, "truncated_share": 0.0},
        {"reward": 0.99999, "entropy": 1.239, "mismatch_kl": 0.0, "response_length": 9996, "truncated_share": 0.99},
        {"reward": 0.5, "entropy": 12.34, "mismatch_kl": 0.5, "response_length": 31999, "truncated_share": 0.12},
    ]
    lines = [format_line(step, 100, fields, None) for step, fields in zip((1, 42, 99), values, strict=True)]
    bars = [[place for place, letter in enumerate(line) if letter == "|"] for line in lines]
    assert bars[0] == bars[1] == bars[2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_shown(value: float) -> None:
    line = format_line(1, 10, dict.fromkeys(SIGNAL_FIELDS, value) | {"ungraded_share": value}, 1)
    assert line.count(str(value)) == 14  # every column once; loss and clip_share have none beside a reward


def test_ungraded_share_shows_up_only_when_there_is_one() -> None:
    assert "ungraded" not in format_line(1, 2, {"reward": 0.5, "ungraded_share": 0.0}, 1)
    assert "reward .500 ungraded  2% |" in format_line(1, 2, {"reward": 0.5, "ungraded_share": 0.02}, 1)


@pytest.mark.parametrize(
    ("value", "width", "text"),
    [
        (0.9996, 4, "1.00"),
        (9.996, 4, "10.0"),
        (-0.5, 3, "-.50"),
        (123.4, 4, " 123"),
        (12345.0, 3, "12345"),
        (0, 3, ".00"),
    ],
)
def test_number(value: float, width: int, text: str) -> None:
    assert metrics_log._number(value, width) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (250, "4m 10s"), (3599.7, "1h 00m"), (100800, "1d 4h")],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_log_writes_and_prints_the_same_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(tmp_path / "l", 1, "cpu")
    with ledger.attempt("sft"):
        MetricsLog(tmp_path / "m", "sft", 10, ledger).log(1, loss=2.0, rows=3)
    (line,) = read_metrics(tmp_path / "m")
    measured = {"time", "seconds", "spent_hours", "host_memory_mb"}
    assert measured <= line.keys()
    assert {key: value for key, value in line.items() if key not in measured} == {
        "stage": "sft", "attempt": 1, "step": 1, "total": 10, "loss": 2.0, "rows": 3,
    }  # fmt: skip
    assert capsys.readouterr().out.startswith("sft            step  1/10 10% | loss 2.0000 | 0.00 CPU-h | eta ")


def test_quiet_log_still_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MetricsLog(tmp_path / "m", "sft", 10, Ledger(None, 1, "cpu"), quiet=True).log(1, loss=2.0)
    assert len(read_metrics(tmp_path / "m")) == 1
    assert capsys.readouterr().out == ""


def test_eta_follows_recent_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(metrics_log.time, "monotonic", lambda: now[0])
    log = MetricsLog(tmp_path / "m", "sft", 140, Ledger(None, 1, "cpu"), start_step=40)
    for step in range(41, 121):
        now[0] += 10.0 if step < 80 else 2.0  # slow at first; 20 steps remain at 2 s
        log.log(step)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("eta 16m 30s")
    assert lines[-1].endswith("eta 40s")


def test_steps_must_go_on(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m", "sft", 10, Ledger(None, 1, "cpu"), start_step=4, quiet=True)
    with pytest.raises(AssertionError, match="step 4 after step 4"):
        log.log(4)


def test_metrics_after_a_kill_and_resume_hold_each_step_once(tmp_path: Path) -> None:
    file = tmp_path / "m"
    for start, end, loss in ((0, 7, 1.0), (4, 6, 2.0)):  # killed after step 7 and saved at 4; now at 6
        log = MetricsLog(file, "sft", 10, Ledger(None, 1, "cpu"), start_step=start, quiet=True)
        for step in range(start + 1, end + 1):
            log.log(step, loss=loss)
        with open(file, "a") as stream:
            stream.write('{"time": 3, "sta')
    MetricsLog(file, "probe", 10, Ledger(None, 1, "cpu"), quiet=True).log(1)
    lines = [(line["stage"], line["step"], line.get("loss")) for line in read_metrics(file)]
    assert lines == [("sft", step, 1.0 if step <= 4 else 2.0) for step in range(1, 7)] + [("probe", 1, None)]


def test_full_disk_is_not_silent(tmp_path: Path) -> None:
    (tmp_path / "m").symlink_to("/dev/full")
    log = MetricsLog(tmp_path / "m", "sft", 10, Ledger(None, 1, "cpu"), quiet=True)
    with pytest.raises(OSError, match="No space left"):
        log.log(1, loss=1.0)
