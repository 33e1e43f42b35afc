"""Slurm's TRES, GRES and node strings, and sacct's output."""

import json
import os
from pathlib import Path

import pytest

from nemo_vibethinker import accounts, slurm_accounting
from nemo_vibethinker.ledger import summarise
from nemo_vibethinker.slurm_accounting import (
    SACCT_FIELDS,
    charged_hours,
    gpu_count,
    gres_type_and_count,
    node_expression,
    node_list,
    parse_sacct,
    range_element,
    range_expression,
)

# The cases of a parser of node lists name the rule of its grammar that they are of.
RULES = {
    "test_nodelist": node_list,
    "test_range_expression_element": range_element,
    "test_range_expression": range_expression,
    "test_node_range_expression": node_expression,
}


def test_recorded_strings() -> None:
    """65 strings with the values that other projects' tests expect of them."""
    file = Path(os.environ.get("NVT_DATA_DIR", "/nonexistent")) / "slurm" / "parse_cases.jsonl"
    if not file.is_file():
        pytest.skip(f"{file} is not there (NVT_DATA_DIR)")
    cases = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(cases) >= 65
    for case in cases:
        text, expected = case["input"], case["expected"]
        if case["kind"] == "tres_gpu_count":
            assert gpu_count(text) == expected, text
        elif case["kind"] == "gres_type_count":
            assert gres_type_and_count(text) == tuple(expected), text
        else:
            assert RULES[case["source"].partition("::")[2]](text) == (expected, case["rest"]), case


@pytest.mark.parametrize(
    ("tres", "gpus"),
    [
        ("billing=16,cpu=16,gres/gpu:a100=2,gres/gpu=2,mem=64G,node=1", 2),
        ("gres/gpu:a100=2,gres/gpu:h100=4,gres/gpu=6", 6),
        ("gres/gpu:nvidia_h100_80gb_hbm3.1g.10gb=3", 3),  # slices of a GPU
        ("gres/gpumem=80G,gres/gpuutil=55", 0),
        ("cpu=4,gres/gpu:h100=4", 4),
    ],
)
def test_gpus_of_tres(tres: str, gpus: int) -> None:
    assert gpu_count(tres) == gpus


@pytest.mark.parametrize(
    ("gres", "expected"),
    [("gpu", (None, 1)), ("gpu:h800", ("h800", 1)), ("gpu:4(IDX:0-3)", (None, 4)), ("shard:8", (None, 0))],
)
def test_gres(gres: str, expected: tuple[str | None, int]) -> None:
    assert gres_type_and_count(gres) == expected


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("a1,b[2-3],c", ["a1", "b2", "b3", "c"]),
        ("r[1-2]n[08-10]", ["r1n08", "r1n09", "r1n10", "r2n08", "r2n09", "r2n10"]),
        ("None assigned", None),
        ("a,", None),
        ("a[3-1]", None),
    ],
)
def test_node_lists(text: str, nodes: list[str] | None) -> None:
    assert node_list(text)[0] == nodes


# As `sacct --parsable2 --duplicates` prints: an array task that was preempted and requeued, its steps, a job that was
# cancelled while it waited, one at work, one of a cluster that does not track GPUs.
SACCT = """\
JobIDRaw|State|Start|End|ElapsedRaw|AllocTRES|NodeList
101|PREEMPTED|2026-11-03T10:00:00|2026-11-03T11:00:00|3600|billing=128,cpu=128,gres/gpu:h800=16,gres/gpu=16,node=2|h[01-02]
101.batch|CANCELLED|2026-11-03T10:00:00|2026-11-03T11:00:00|3600|cpu=64,gres/gpu:h800=8,gres/gpu=8,node=1|h01
101.extern|COMPLETED|2026-11-03T10:00:00|2026-11-03T11:00:00|3600|billing=128,gres/gpu=16,node=2|h[01-02]
101.0|CANCELLED|2026-11-03T10:00:20|2026-11-03T11:00:00|3580|cpu=128,gres/gpu:h800=16,gres/gpu=16,node=2|h[01-02]
101|COMPLETED|2026-11-03T11:02:10|2026-11-03T11:32:10|1800|billing=128,cpu=128,gres/gpu:h800=16,gres/gpu=16,node=2|h[03-04]
101.batch|COMPLETED|2026-11-03T11:02:10|2026-11-03T11:32:10|1800|cpu=64,gres/gpu:h800=8,node=1|h03
102|CANCELLED by 1000|Unknown|Unknown|0||None assigned
103|RUNNING|2026-11-03T11:40:00|Unknown|450|cpu=64,gres/gpu=8,node=1|h05
104|COMPLETED|2026-11-03T09:00:00|2026-11-03T09:10:00|600|cpu=64,node=1|h06
"""


def test_sacct_counts_each_start_once_and_no_steps() -> None:
    uses = parse_sacct(SACCT)
    assert [(use.job, use.state, use.seconds, use.gpus) for use in uses] == [
        ("101", "PREEMPTED", 3600, 16),
        ("101", "COMPLETED", 1800, 16),
        ("102", "CANCELLED", 0, 0),
        ("103", "RUNNING", 450, 8),
        ("104", "COMPLETED", 600, 0),
    ]
    assert uses[1].nodes == ("h03", "h04")
    assert charged_hours(uses) == {"101": 24.0, "103": 1.0}


def test_sacct_output_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="no field ElapsedRaw"):
        parse_sacct("JobIDRaw|State|Start|End|Elapsed|AllocTRES|NodeList\n")
    with pytest.raises(ValueError, match="not the 7 fields"):
        parse_sacct("|".join(SACCT_FIELDS) + "\n1|COMPLETED\n")
    assert parse_sacct("") == []


def ledger_of(path: Path, *attempts: tuple[str, float, float]) -> None:
    """(job, start, last line) of attempts of 16 GPUs."""
    lines = []
    for number, (job, start, last) in enumerate(attempts):
        head = {"stage": "sft", "id": str(number), "job": job}
        lines.append(head | {"event": "start", "time": start, "processes": 16, "device": "gpu"})
        lines.append(head | {"event": "beat", "time": last})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_accounts_charge_the_larger_of_both_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger, recorded = tmp_path / "ledger.jsonl", tmp_path / "sacct.txt"
    recorded.write_text(SACCT)
    # Job 101 by our lines: 3,000 of 3,600 s and 1,500 of 1,800 s; job 103 more than Slurm says; job 105 unknown to it.
    ledger_of(ledger, ("101", 0, 3000), ("101", 4000, 5500), ("103", 6000, 6450), ("105", 7000, 7225))
    assert accounts.main(["--run-dir", str(tmp_path), "--sacct", str(recorded)]) == 0
    said = capsys.readouterr().out
    assert "2 of 3 jobs: sacct 25.00 GPU-hours, own records 22.00" in said
    (cost,) = summarise(ledger)
    assert (cost.process_hours, cost.unseen_hours) == (24.0 + 2.0 + 1.0, 4.0)
    before = ledger.read_text()
    assert accounts.main(["--run-dir", str(tmp_path), "--sacct", str(recorded)]) == 0
    assert ledger.read_text() == before  # nothing new, nothing written


def test_without_accounts_our_own_records_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = tmp_path / "ledger.jsonl"
    assert accounts.account(ledger) == "no job on GPUs in the ledger"
    ledger_of(ledger, ("101", 0, 3600))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert accounts.account(ledger) == "our own records alone: there is no sacct"
    sacct = tmp_path / "sacct"
    sacct.write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    sacct.chmod(0o755)
    assert accounts.account(ledger) == "our own records alone: Slurm accounting storage is disabled"
    sacct.write_text(f"#!/bin/sh\nwhile read -r line; do echo \"$line\"; done <<'END'\n{SACCT}END\n")
    assert "1 of 1 jobs: sacct 24.00" in accounts.account(ledger)
    assert summarise(ledger)[0].process_hours == 24.0


def test_pure() -> None:
    assert not {"subprocess", "os"} & set(vars(slurm_accounting))
