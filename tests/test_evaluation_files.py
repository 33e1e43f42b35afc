"""Kept responses: resumed, merged, graded again, checked against known verdicts, exchanged with other harnesses."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_rows import write_rows
from test_comparison import PROVENANCE

from nemo_vibethinker.config import RewardConfig
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.evaluation import exchange, merge, regrade, selfcheck
from nemo_vibethinker.evaluation.benchmark_scores import score_folder, score_rows
from nemo_vibethinker.evaluation.folders import write_scores
from nemo_vibethinker.evaluation.provenance import verifier_version
from nemo_vibethinker.evaluation.samples import SampleFolder, SampleRow, batches, missing_units, unit_record
from nemo_vibethinker.evaluation.scores import scores_from_json
from nemo_vibethinker.reward.grader import Grader
from nemo_vibethinker.reward.math import MathVerifier

PROBLEMS = [Record(id=f"p{n}", domain="math", prompt=f"What is {n}?", answer=str(n)) for n in range(5)]
SAMPLES = 4
FACTS = replace(PROVENANCE, samples=SAMPLES, benchmark_problems=5, verifier_version=verifier_version())


def row(record: Record, sample: int, verdict: str = "") -> SampleRow:
    """A response that is right for even numbers of problem and sample together."""
    right = (int(record.id[1:]) + sample) % 2 == 0
    response = rf"\boxed{{{record.answer if right else 77}}}"
    kind = verdict or ("right" if right else "wrong")
    return SampleRow(  # pyright: ignore
        id=record.id,
        sample=sample,
        response=response,
        tokens=10 + sample,
        finish_reason="stop",
        verdict=kind,
        reason="",
    )


def write_evaluation(folder: Path, problems: Sequence[Record] = PROBLEMS, shard: str = "0/1") -> SampleFolder:
    """An evaluation folder with the responses to these problems and their score."""
    store = SampleFolder(folder / "benchmarks" / "m" / "aime24")
    store.begin(problems, replace(FACTS, shard=shard))
    store.append(row(record, sample) for record in problems for sample in range(SAMPLES))
    with MathVerifier(boxed_only=True) as verifier:
        write_scores(folder, [score_folder(store, verifier)])
    return store


def test_a_score_has_pass_and_majority_rates_with_intervals() -> None:
    rows = [row(record, sample) for record in PROBLEMS for sample in range(SAMPLES)]
    with MathVerifier(boxed_only=True) as verifier:
        score = score_rows("aime24", PROBLEMS, rows, FACTS, verifier)
    assert score.pass_at[1].mean == 0.5
    assert score.pass_at[4].mean == 1.0
    assert score.pass_at[2].mean == pytest.approx(5 / 6)  # 1 - C(2,2)/C(4,2)
    assert score.maj_at[4].mean == 0.5  # two right and two equal wrong answers: drawn
    assert score.mean_tokens == 11.5
    assert (score.benchmark, score.provenance) == ("aime24", FACTS)


def test_a_missing_double_or_foreign_response_is_named() -> None:
    rows = [row(record, sample) for record in PROBLEMS for sample in range(SAMPLES)]
    with MathVerifier(boxed_only=True) as verifier:
        for wrong, message in (
            (rows[1:], "1 of 4 responses to p0 are missing"),
            ([*rows, rows[3]], "response 3 to p0 is there twice"),
            ([*rows, replace(rows[0], id="q")], "response 0 to q belongs to no problem"),
        ):
            with pytest.raises(ValueError, match=message):
                score_rows("aime24", PROBLEMS, wrong, FACTS, verifier)


def test_only_missing_responses_are_generated_and_ids_are_their_own(tmp_path: Path) -> None:
    store = SampleFolder(tmp_path)
    store.begin(PROBLEMS, FACTS)
    store.append([row(PROBLEMS[0], 1), row(PROBLEMS[4], 3)])
    with open(tmp_path / "samples.jsonl", "a") as file:
        file.write('{"id": "p1", "sample": 0, "resp')  # torn by a kill
    there = {(each.id, each.sample) for each in store.rows()}
    assert there == {("p0", 1), ("p4", 3)}
    units = missing_units(PROBLEMS, SAMPLES, there)
    assert len(units) == 18
    assert [len(part) for part in batches(units, 8)] == [8, 8, 2]
    assert unit_record(units[0]).id == "p0#0"
    store.append([row(PROBLEMS[1], 0)])
    assert ("p1", 0) in {(each.id, each.sample) for each in store.rows()}


def test_other_conditions_are_refused_by_name(tmp_path: Path) -> None:
    store = SampleFolder(tmp_path)
    store.begin(PROBLEMS, FACTS)
    with pytest.raises(ValueError, match=r"temperature: 1.0 and 0.6"):
        store.begin(PROBLEMS, replace(FACTS, temperature=0.6))
    store.begin(PROBLEMS, replace(FACTS, code_version="another"))  # same numbers


def test_two_shards_merge_to_the_same_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evaluation(tmp_path / "whole")
    for index in range(2):
        write_evaluation(tmp_path / f"part{index}", PROBLEMS[index::2], f"{index}/2")
    parts = [str(tmp_path / "part1"), str(tmp_path / "part0")]
    assert merge.main([*parts, "--out", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "scores.json").read_text() == (tmp_path / "whole" / "scores.json").read_text()
    assert merge.main([parts[0], "--out", str(tmp_path / "half")]) == 2
    assert "shard 0/2 is missing" in capsys.readouterr().err
    assert merge.main([parts[0], parts[0], "--out", str(tmp_path / "twice")]) == 2
    assert merge.main([*parts, "--out", str(tmp_path / "merged")]) == 2  # exists


def test_grading_again_needs_no_generation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_evaluation(tmp_path / "run")
    store.replace_rows(replace(each, verdict="wrong") for each in list(store.rows()))  # a verifier that was at fault
    assert regrade.main(["--from", str(tmp_path / "run"), "--out", str(tmp_path / "again")]) == 0
    assert "10 of 20 verdicts changed" in capsys.readouterr().out
    (score,) = scores_from_json((tmp_path / "again" / "scores.json").read_text())
    assert score.pass_at[1].mean == 0.5
    assert {each.verdict for each in store.rows()} == {"wrong"}  # the source stays as it is


def test_self_check_reports_agreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"id": "a", "gold": "204", "response": r"\boxed{204}", "correct": True},
        {"id": "b", "gold": "204", "response": r"\boxed{205}", "correct": False},
        {"id": "c", "gold": "204", "response": r"\boxed{205}", "correct": True},
        {"gold": "B", "response": r"\boxed{\text{B}}", "correct": False},
    ]
    path = write_rows(tmp_path / "outputs.jsonl", rows)
    assert selfcheck.main(["--outputs", str(path), "--out", str(tmp_path / "verdicts.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "2 of 4 verdicts agree (50.00%)" in said
    assert "graded right, known wrong: 1 (line 4)" in said
    assert "graded wrong, known right: 1 (c)" in said
    assert len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 4
    assert selfcheck.main(["--outputs", str(path), "--min-agreement", "0.9"]) == 1
    write_rows(path, [{"gold": "1", "response": "x"}])
    assert selfcheck.main(["--outputs", str(path)]) == 2
    assert "outputs.jsonl:1: needs the known verdict" in capsys.readouterr().err


def test_self_check_on_real_responses_with_known_verdicts() -> None:
    folder = os.environ.get("NVT_DATA_DIR", "")
    cases = Path(folder) / "verifier" / "cases.jsonl"
    if not folder or not cases.exists():
        pytest.skip("needs verifier/cases.jsonl in the folder NVT_DATA_DIR")
    rows = map(json.loads, cases.read_text().splitlines())
    known = [case for case in rows if case.get("gold") and "boxed" in case.get("prediction", "")]
    outputs = [
        selfcheck.StoredOutput(
            Record(id=case["id"], domain="math", prompt="", answer=case["gold"]), case["prediction"], case["expected"]
        )
        for case in known
    ]
    with Grader(RewardConfig(), workers=1) as grader:
        agreement = selfcheck.compare(outputs, selfcheck.grade_outputs(outputs, grader))
    assert agreement.total > 30
    assert agreement.accepted_wrong == ()
    assert agreement.share > 0.95


@pytest.mark.parametrize("layout", list(exchange.LAYOUTS))
def test_other_harnesses_files_round_trip(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_evaluation(tmp_path / "run")
    store.replace_rows([*list(store.rows())[:-1], row(PROBLEMS[4], 3, "ungraded")])
    assert exchange.main(["export", "--from", str(tmp_path / "run"), "--layout", layout, "--out", str(tmp_path)]) == 0
    assert "1 ungraded responses left out" in capsys.readouterr().out
    file = tmp_path / "m" / exchange.LAYOUTS[layout].file.format(benchmark="aime24")
    arguments = ["import", "--file", str(file), "--layout", layout, "--out", str(tmp_path / "outputs.jsonl")]
    assert exchange.main(arguments) == 0
    lines = [json.loads(line) for line in (tmp_path / "outputs.jsonl").read_text().splitlines()]
    kept = [each for each in store.rows() if each.verdict != "ungraded"]
    answers = {record.id: record.answer for record in PROBLEMS}
    assert lines == [
        {
            "id": f"{each.id}/{each.sample}",
            "gold": answers[each.id],
            "response": each.response,
            "correct": each.verdict == "right",
        }
        for each in kept
    ]
    assert selfcheck.main(["--outputs", str(tmp_path / "outputs.jsonl"), "--min-agreement", "1"]) == 0


def test_rows_in_the_harnesses_own_words_are_read(tmp_path: Path) -> None:
    lm_eval = {
        "doc_id": 3,
        "doc": {"problem": "?", "answer": "7"},
        "target": "7",
        "arguments": {"gen_args_0": {"arg_0": "?", "arg_1": {"until": []}}},
        "resps": [[r"\boxed{7}"]],
        "filtered_resps": ["7"],
        "filter": "none",
        "metrics": ["exact_match"],
        "exact_match": 1,
        "doc_hash": "0",
    }
    path = write_rows(tmp_path / "samples_aime24_2026.jsonl", [lm_eval])
    assert list(exchange.import_file(path, exchange.LAYOUTS["lm-eval"])) == [
        {"id": "3", "gold": "7", "response": r"\boxed{7}", "correct": True}
    ]
    write_rows(path, [lm_eval | {"exact_match": 0.25, "resps": [["a", "b", "c", "d"]]}])
    with pytest.raises(ValueError, match="4 responses in one row"):
        list(exchange.import_file(path, exchange.LAYOUTS["lm-eval"]))
    write_rows(path, [lm_eval | {"exact_match": 0.25}])
    with pytest.raises(ValueError, match="one metric that is 0 or 1"):
        list(exchange.import_file(path, exchange.LAYOUTS["lm-eval"]))
    with pytest.raises(ValueError, match="no field problem_idx"):
        list(exchange.import_file(path, exchange.LAYOUTS["matharena"]))
    arena = {"problem_idx": "1", "problem": "?", "model_name": "m", "idx_answer": 0, "answer": r"\boxed{3}"}
    arena |= {"gold_answer": "3", "parsed_answer": "3", "correct": True, "output_tokens": 12, "cost": 0.0}
    path = write_rows(tmp_path / "arena.jsonl", [arena])
    assert next(exchange.import_file(path, exchange.LAYOUTS["matharena"]))["id"] == "1/0"
