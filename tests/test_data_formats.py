"""Every known layout: which columns tell it, what becomes of its rows, and which rows cannot be used."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nemo_vibethinker.data.readers import Dataset, Kind, read_dataset
from nemo_vibethinker.data.records import Record

DATA_DIR = Path(os.environ.get("NVT_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
USER = {"role": "user", "content": "What is 1+1?"}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, kind: Kind, *rows: dict[str, Any]) -> tuple[str, list[Record], list[str]]:
    """(format, records, reasons of the dropped rows)."""
    result = read_dataset(write(path / "d.jsonl", *rows), kind=kind)
    return result.format, result.records, [row.reason for row in result.dropped]


@pytest.mark.parametrize(
    ("name", "rows", "known"),
    [
        ("gsm8k/train", 7_473, "gsm8k"),
        ("gsm8k/test", 1_319, "gsm8k"),
        ("math/math500", 500, "math"),
        ("math/pool_4500", 4_500, "math"),
        ("competitions/aime24", 30, "math"),
        ("competitions/aime25", 30, "math"),
        ("competitions/aime_1983_2023", 975, "math"),
        ("code/humaneval", 164, "humaneval"),
        ("code/mbpp", 974, "mbpp"),
    ],
)
@pytest.mark.parametrize("kind", [None, "rl"])
def test_real_files_are_recognised_and_read_completely(name: str, rows: int, known: str, kind: Kind | None) -> None:
    path = DATA_DIR / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set NVT_DATA_DIR to the folder of the datasets")
    dataset = Dataset(path)
    read_rows = list(dataset.rows(kind))
    assert (dataset.format, len(read_rows)) == (known, rows)
    assert Counter(row.reason for row in read_rows) == {"": rows}
    assert len({row.id for row in read_rows}) == rows


@pytest.mark.parametrize(
    "rows",
    [
        [{"question": "q", "answer": "a <<1+1=2>>2\n#### 2"}, {"question": " ", "answer": "#### 2"}],
        [{"problem": "p", "solution": "so 2", "answer": 2}, {"problem": ["p"], "answer": "2"}, {"other": 1}],
        [{"Problem": "p", "Answer": "2", "ID": "own"}, {"problem": "p", "answer": ["2"]}],
        [{"messages": [USER]}, {"messages": [USER, USER]}, {"messages": "none"}],
        [{"prompt": [USER], "reward_model": {"ground_truth": "2"}}, {"prompt": [], "reward_model": {}}],
        [{"problem": "p", "generations": ["a", "b"]}, {"problem": "p", "generations": None}],
        [{"id": "a", "domain": "math", "prompt": "p"}, {"id": "b", "domain": "math"}],
        [{"text": "t", "code": "c", "test_list": ["assert f()"]}, {"text": "t", "code": "c", "test_list": 1}],
    ],
)
def test_rows_read_for_their_texts_are_those_read_without_a_kind(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = write(tmp_path / "d.jsonl", *rows)
    with open(path, "a") as file:
        file.write("{torn\n")
    given = [(row.line, row.id, row.columns, row.prompt, row.reason) for row in Dataset(path).source_rows()]
    assert given == [
        (row.line, row.id, row.raw, row.record.prompt if row.record else "", row.reason)
        for row in Dataset(path).rows(None)
    ]
    assert len(given) == len(rows) + 1


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "1+1?", "answer": "2"},  # math-ai/aime25
        {"ID": "2024-I-1", "Problem": "1+1?", "Solution": "", "Answer": 2},  # Maxwell-Jia/AIME_2024
        {"question": "1+1?", "answer": "2"},  # opencompass/AIME2025
        {"id": 60, "problem": "1+1?", "solution": None, "answer": "2", "url": "u", "year": "2024"},
        {"problem_idx": 1, "problem": "1+1?", "answer": 2, "problem_type": ["Algebra"]},  # MathArena
        {"question": "1+1?", "final_answer": "2", "difficulty": 4.0, "topic": "t", "r1_solution_1": "s"},
    ],
)
def test_competition_layouts(tmp_path: Path, row: dict[str, Any]) -> None:
    known, records, _ = read(tmp_path, "rl", row)
    assert known in ("math", "question-answer")
    assert [(record.prompt, record.answer, record.domain) for record in records] == [("1+1?", "2", "math")]
    assert records[0].id == str(row.get("ID") or row.get("id") or "d:1")


def test_an_answer_column_without_an_answer(tmp_path: Path) -> None:
    rows = [
        {"problem": "p", "answer": "proof", "solution": "s"},
        {"problem": "p", "answer": "notfound"},
        {"problem": "p", "answer": "long " * 200},
        {"problem": "p", "answer": "2"},
    ]
    _, records, reasons = read(tmp_path, "rl", *rows)
    assert [record.id for record in records] == ["d:4"]
    assert [reason.partition(":")[0] for reason in reasons] == ["no answer"] * 3


def openr1(**columns: Any) -> dict[str, Any]:
    row = {
        "problem": "p",
        "solution": "s",
        "answer": "2",
        "problem_type": "Geometry",
        "uuid": "u",
        "generations": ["g0", "g1", "g2", "g3"],
        "correctness_math_verify": [True, False, True, False],
        "correctness_llama": None,
        "is_reasoning_complete": [True, True, False, True],
        "messages": [USER],
    }
    return row | columns


def test_openr1_uses_each_complete_and_correct_generation(tmp_path: Path) -> None:
    rows = [
        openr1(),
        openr1(uuid="v", correctness_llama=[False, False, False, True]),
        openr1(uuid="w", correctness_math_verify=[False] * 4),
        openr1(uuid="x", correctness_math_verify=[True], is_reasoning_complete=None),
        openr1(uuid="y", generations="text"),
    ]
    known, records, reasons = read(tmp_path, "sft", *rows)
    assert known == "openr1"
    assert [(record.id, record.response) for record in records] == [
        ("u#0", "g0"),
        ("v#0", "g0"),
        ("v#3", "g3"),
        ("x#0", "g0"),
    ]
    assert {(record.domain, record.answer) for record in records} == {("geometry", "2")}
    assert reasons == [
        "no solution: none of the generations is complete and correct",
        "column generations is not a list of texts",
    ]
    _, problems, _ = read(tmp_path, "rl", *rows)
    assert [(record.id, record.answer, record.response) for record in problems] == [
        (identity, "2", "") for identity in "uvwxy"
    ]


def test_rows_of_several_solutions_keep_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", openr1(), openr1(uuid="v"))
    assert [(row.line, row.id) for row in Dataset(path).rows("sft")] == [(1, "u#0"), (2, "v#0")]


def open_math(**columns: Any) -> dict[str, Any]:
    row = {"problem": "p", "generated_solution": "g \\boxed{2}", "expected_answer": "2", "inference_mode": "cot"}
    return row | {"problem_type": "has_answer_extracted", "pass_rate_72b_tir": "0.5", "problem_source": "s"} | columns


def test_open_math_reasoning(tmp_path: Path) -> None:
    rows = [
        open_math(),
        open_math(generated_solution="h \\boxed{2}"),
        open_math(inference_mode="tir"),
        open_math(inference_mode="genselect", problem="choose"),
        open_math(problem="q"),
    ]
    known, records, reasons = read(tmp_path, "sft", *rows)
    assert known == "openmathreasoning"
    assert [(record.id, record.prompt, record.response[:1]) for record in records] == [
        ("d:1", "p", "g"),
        ("d:2", "p", "h"),
        ("d:5", "q", "g"),
    ]
    assert reasons == [f"inference_mode {mode}: only cot solutions stand alone" for mode in ("tir", "genselect")]
    _, problems, reasons = read(tmp_path, "rl", *rows)
    assert [(record.prompt, record.answer, record.response) for record in problems] == [("p", "2", ""), ("q", "2", "")]
    assert reasons.count("an earlier row has the same id") == 2
    assert [row.record is not None for row in Dataset(tmp_path / "d.jsonl").rows(None)] == [True] * 5


def test_mixture_of_thoughts(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "<think>t</think> 2"}
    rows = [
        {"messages": [USER, answer], "num_tokens": 9, "source": "open-r1/codeforces-cots"},
        {"messages": [USER, answer], "num_tokens": 9, "source": "open-r1/numina"},
    ]
    known, records, _ = read(tmp_path, "sft", *rows)
    assert (known, [record.domain for record in records]) == ("chat", ["code", "math"])
    assert [record.source for record in records] == ["open-r1/codeforces-cots", "open-r1/numina"]


def verl(content: str, truth: Any, **columns: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": content}]
    row = {"data_source": "math_dapo", "prompt": prompt, "ability": "MATH", "reward_model": {"ground_truth": truth}}
    return row | {"extra_info": {"index": 3}} | columns


def test_verl_layout_is_unwrapped_and_taken_once(tmp_path: Path) -> None:
    dapo = (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\nWhat is 1+1?\n\n"
        'Remember to put your answer on its own line after "Answer:".'
    )
    skywork = "What is 2+2? Let's think step by step and output the final answer within \\boxed{}."
    stdin = json.dumps([{"input": "1\n", "output": "2\n", "testtype": "stdin"}])
    rows = [
        verl(dapo, "2"),
        verl(dapo, "2"),
        verl(skywork, '["4", "four"]', data_source="train-math"),
        verl("Read a number.", stdin, ability="code", data_source="train-code"),
        verl("none", None),
        verl("Broken.", "[1]", ability="code"),
    ]
    known, records, reasons = read(tmp_path, "rl", *rows)
    assert known == "verl"
    assert [(record.prompt, record.answer, record.domain) for record in records] == [
        ("What is 1+1?", "2", "math"),
        ("What is 2+2?", "4", "math"),
        ("Read a number.", "", "code"),
    ]
    assert records[2].tests == ({"stdin": "1\n", "stdout": "2\n"},)
    assert [reason[:14] for reason in reasons] == ["an earlier row", "no answer: rew", "test 1 must be"]


def test_humaneval_row(tmp_path: Path) -> None:
    prompt = 'def double(x):\n    """Twice x."""\n'
    check = "def check(candidate):\n    assert candidate(2) == 4\n"
    row = {"task_id": "H/0", "prompt": prompt, "canonical_solution": "    return 2 * x\n", "test": check}
    row["entry_point"] = "double"
    _, (record,), _ = read(tmp_path, "rl", row)
    assert record.response == f"```python\n{prompt}    return 2 * x\n```"
    assert (record.id, record.domain, len(record.tests)) == ("H/0", "code", 1)
    namespace: dict[str, Any] = {"double": lambda x: 2 * x}
    exec(str(record.tests[0]), namespace)
    with pytest.raises(AssertionError):
        exec(str(record.tests[0]), {"double": lambda x: x})


def test_mbpp_rows_of_both_sets(tmp_path: Path) -> None:
    common = {
        "task_id": 7,
        "code": "def f(x):\r\n\treturn x + K",
        "test_list": ["assert f(1) == 3", "assert f(2) == 4"],
    }
    for row, first in (
        (common | {"text": "Add K.", "test_setup_code": "K = 2", "challenge_test_list": []}, ("K = 2",)),
        (common | {"prompt": "Add K.", "test_imports": ["import math"], "source_file": "s"}, ("import math",)),
        (common | {"text": "Add K.", "test_setup_code": ""}, ()),
    ):
        known, (record,), _ = read(tmp_path, "rl", row)
        assert (known, record.id) == ("mbpp", "7")
        assert record.prompt == "Add K.\nIt must pass this test:\nassert f(1) == 3"
        assert record.response == "```python\ndef f(x):\n\treturn x + K\n```"
        assert record.tests == (*first, "assert f(1) == 3", "assert f(2) == 4")


def test_problems_with_tests(tmp_path: Path) -> None:
    pairs = json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})
    calls = json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}])
    deepcoder = {"problem": "Add one.", "solutions": ["```python\nprint(2)\n```"], "tests": pairs}
    lcb = {"problem": "Add.", "starter_code": "def add(a, b):\n    pass", "tests": calls}
    lcb |= {"metadata": {"func_name": "add"}}
    taco = {"question": "Add one.", "solutions": '["print(2)", "print(3)"]', "input_output": pairs, "starter_code": ""}
    broken = {"problem": "p", "tests": json.dumps({"inputs": ["1"], "outputs": []})}
    known, records, reasons = read(tmp_path, "rl", deepcoder, lcb, taco, broken, {"problem": "no tests"})
    assert known == "code-problems"
    assert [record.tests for record in records] == [
        ({"stdin": "1\n", "stdout": "2\n"},),
        ({"function": "add", "args": [1, 2], "expected": 3},),
        ({"stdin": "1\n", "stdout": "2\n"},),
    ]
    assert records[1].prompt == "Add.\n\nBegin with this code:\n```python\ndef add(a, b):\n    pass\n```"
    assert reasons == ["1 inputs but 0 outputs", "no tests"]
    _, solved, reasons = read(tmp_path, "sft", deepcoder, lcb, taco)
    assert [(record.response, record.tests) for record in solved] == [("```python\nprint(2)\n```", ())] * 2
    assert reasons == ["no solution"]


def test_own_rows_with_messages(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "2"}
    row = {"id": "a", "domain": "algebra", "messages": [USER, answer], "answer": "2", "difficulty": 3, "strategy": "s"}
    _, (record,), _ = read(tmp_path, "sft", row)
    assert (record.prompt, record.response, record.difficulty, record.strategy) == ("What is 1+1?", "2", 3, "s")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, 3]},
        {"messages": [{"role": "user", "content": 3}]},
        {"messages": {"role": "user"}},
        {"messages": None},
        {"problem": 3.5, "answer": ["2"]},
        {"problem": {"a": 1}, "generations": [1]},
        {"problem": "p", "generated_solution": ["x"]},
        {"prompt": [], "reward_model": {}},
        {"prompt": [USER], "reward_model": "x"},
        {"task_id": 1, "prompt": "p", "test": 3, "entry_point": "f"},
        {"text": "t", "code": "c", "test_list": "assert"},
        {"problem": "p", "tests": "[}"},
        {"problem": "p", "tests": {"a": 1}, "metadata": "x"},
        {"question": "q", "answer": {"#### 1": 2}},
        {"id": {}, "domain": "math", "prompt": "p"},
        {"id": "a", "domain": "code", "prompt": "p", "tests": [3]},
    ],
)
@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_rows_of_wrong_types_are_dropped_with_a_reason(tmp_path: Path, row: dict[str, Any], kind: Kind) -> None:
    path = write(tmp_path / "d.jsonl", row)
    (read_row,) = Dataset(path).rows(kind)
    assert read_row.record is None
    assert read_row.reason


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_references_pass_the_tests_as_they_are_read(name: str) -> None:
    from nemo_vibethinker.reward.code import CodeVerifier

    path = DATA_DIR / "code" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set NVT_DATA_DIR to the folder of the datasets")
    responses = {record.id: record.response for record in read_dataset(path, kind="sft").records}
    records = read_dataset(path, kind="rl").records[::40]
    verdicts = CodeVerifier().grade_many([(record.tests, responses[record.id]) for record in records])
    assert [record.id for record, verdict in zip(records, verdicts, strict=True) if not verdict.is_right] == []
