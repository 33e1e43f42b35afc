"""Comparing runs: paired differences in closed form, the page, and the `report` command."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from report_run import Page, charge, small_config, stage_functions

from launcher import run
from launcher.report import main
from nemo_vibethinker.pipeline import run_stages
from nemo_vibethinker.report.paired import paired_difference, solved_shares
from nemo_vibethinker.run_folder import open_run


def make_run(root: Path, name: str, seed: int, **changes: object) -> Path:
    config = small_config(root, **changes)
    config.run.name, config.seed = name, seed
    run = open_run(config)
    run_stages(run, stage_functions=stage_functions(random.Random(seed)))
    charge(run)
    run.unlock()
    return run.path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("first", 1), ("second", 2)):
        make_run(root, name, seed)
    return root


def test_shares_leave_ungraded_samples_out() -> None:
    lines = [("a", "right"), ("a", "wrong"), ("a", "ungraded"), ("b", "ungraded"), ("c", "right")]
    assert solved_shares({"id": name, "verdict": verdict} for name, verdict in lines) == {"a": 0.5, "c": 1.0}


def test_pairing_takes_the_difficulty_out_of_the_interval() -> None:
    """Every problem gains the same, however hard: the difference is certain, and both scores alone are not."""
    baseline = {f"p{i}": i / 40 for i in range(30)} | {"only here": 1.0}
    found = paired_difference({name: share + 0.25 for name, share in baseline.items() if name != "only here"}, baseline)
    assert found is not None
    assert found.problems == 30
    assert [found.estimate.mean, found.estimate.low, found.estimate.high] == pytest.approx([0.25, 0.25, 0.25])
    assert found.shown


def test_a_difference_that_may_be_chance_is_not_marked() -> None:
    baseline = {f"p{i}": float(i % 2) for i in range(20)}
    found = paired_difference({name: 1 - share for name, share in baseline.items()}, baseline)
    assert found is not None
    assert found.estimate.mean == 0
    assert found.estimate.low < 0 < found.estimate.high
    assert not found.shown
    assert paired_difference({"x": 1.0}, {"y": 1.0}) is None


def test_the_page_compares_with_the_first_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"run.root={root}", "runs=first,second"]) == 0
    path = root / "comparison-first-second.html"
    assert str(path) in capsys.readouterr().out
    page = Page(path.read_text())
    assert {"runs", "scores", "curves", "config"} <= set(page.ids)
    assert ["seed", "1", "2"] in page.rows
    solved = {
        name: solved_shares(
            map(json.loads, next(iter((root / name).glob("stages/*/samples_mgpo.code.jsonl"))).open().readlines())
        )
        for name in ("first", "second")
    }
    maths = {name: {p: s for p, s in shares.items() if int(p[2:]) % 3 < 2} for name, shares in solved.items()}
    difference = paired_difference(maths["second"], maths["first"], seed=2)
    assert difference is not None
    cell = page.row("math")[-1]
    assert cell.startswith(f"{100 * difference.estimate.mean:+.1f} [{100 * difference.estimate.low:+.1f}, ")
    assert "on 8" in cell
    specs = json.loads(page.scripts[0])
    runs = {row["run"] for row in specs["over-reward"]["datasets"]["rows0"]}
    assert runs == {"first", "second"}
    assert "over-loss" in specs
    assert "differences" in specs


def test_the_command_writes_the_page_of_a_run_that_is_not_finished(root: Path, tmp_path: Path) -> None:
    config = small_config(tmp_path)
    config.run.name = "half"
    run = open_run(config)  # holds its lock to the end: it is in flight
    with pytest.raises(RuntimeError, match="machine is gone"):
        run_stages(run, stage_functions=stage_functions(random.Random(1), stop_in="mgpo.math_16k"))
    assert main([f"run.root={tmp_path}", "run.name=half"]) == 0
    assert "4 of 9 stages have finished" in (run.path / "report.html").read_text()


def test_the_headline_is_one_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["headline", f"run.root={root}", "run.name=first"]) == 0
    out = capsys.readouterr().out
    assert "first" in out
    assert "VibeThinker-1.5B" in out
    assert run.main([f"run.root={root}", "run.name=first", "report=headline"]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a run"),
        (["run.name=frist"], "did you mean first"),
        (["runs=first,nothing"], "no run nothing"),
        (["runs=first"], "give two to 7 runs"),
        (["runs=first,first"], "two runs have one name"),
        (["runs=first,second", "run.name=first"], "not both"),
        (["out=x.html", "run.name=first"], "goes with runs=a,b"),
        (["titles"], "unknown word titles"),
        (["name=first"], "unknown key name"),
    ],
)
def test_bad_words_are_named_in_one_line(root: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        main([f"run.root={root}", *words])
    assert "\n" not in str(caught.value)


def test_the_command_imports_no_torch(root: Path) -> None:
    code = "import sys; from launcher import report; report.main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, f"run.root={root}", "runs=first,second"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("False\n")
