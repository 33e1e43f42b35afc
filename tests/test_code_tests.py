import json
from typing import Any

import pytest

from nemo_vibethinker.data.code_tests import parse_tests

STDIN = {"stdin": "2\n", "stdout": "8\n"}
CALL = {"function": "f", "args": [2, "a"], "expected": [8]}
LAYOUTS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "none": (None, ()),
    "empty text": (" ", ()),
    "empty list": ([], ()),
    "one text": ("assert f(2) == 8", ("assert f(2) == 8",)),
    "texts": (["x = 1", "assert f(2) == 8"], ("x = 1", "assert f(2) == 8")),
    "canonical": (["assert f(2) == 8", STDIN, CALL], ("assert f(2) == 8", STDIN, CALL)),
    "canonical in text": (json.dumps([STDIN, CALL]), (STDIN, CALL)),
    "text that is no JSON": ("[] == f()\nassert f() == []", ("[] == f()\nassert f() == []",)),
    "pairs": ([{"input": "2\n", "output": "8\n"}], (STDIN,)),
    "pair": ({"input": "2\n", "output": "8\n"}, (STDIN,)),
    "columns": ({"input": ["2\n"], "output": ["8\n"]}, (STDIN,)),
    "lines": ({"inputs": [["2", ""]], "outputs": [["8", ""]]}, (STDIN,)),
    "APPS stdin": ({"inputs": ["2\n"], "outputs": ["8\n"], "fn_name": None}, (STDIN,)),
    "APPS call": ({"inputs": [[2, "a"]], "outputs": [[[8]]], "fn_name": "f"}, (CALL,)),
    "TACO call": (json.dumps({"inputs": [[1], [2]], "outputs": [[], [8]], "fn_name": "f"}), (
        {"function": "f", "args": [1], "expected": []}, {"function": "f", "args": [2], "expected": [8]},
    )),
    "PRIME": ([{"type": "function_call", "fn_name": "f", "input": [2, "a"], "output": [[8]]}], (CALL,)),
    "PRIME stdin": ({"language": "python", "test_cases": [
        {"type": "stdin_stdout", "fn_name": None, "input": "2\n", "output": "8\n"},
    ]}, (STDIN,)),
    "LiveCodeBench stdin": ([{"input": "2\n", "output": "8\n", "testtype": "stdin"}], (STDIN,)),
    "LiveCodeBench call": (json.dumps([
        {"input": '2\n"a"', "output": "[8]", "testtype": "functional", "metadata": {"func_name": "f"}},
    ]), (CALL,)),
    "LiveCodeBench outer name": ({
        "tests": [{"input": '2\n"a"', "output": "[8]", "testtype": "functional"}], "metadata": '{"func_name": "f"}',
    }, (CALL,)),
}  # fmt: skip
FAULTS: dict[str, tuple[Any, str]] = {
    "number": (3, "must be text, a list or an object, not int"),
    "item": ([3], "test 1 must be text or an object, not 3"),
    "keys": ([STDIN, {"a": 1}], "test 2: a test with a; known: stdin and stdout"),
    "stdout": ({"stdin": "", "stdout": 3}, "stdout must be text, not 3"),
    "columns": ({"inputs": ["1"], "outputs": []}, "1 inputs but 0 outputs"),
    "values on stdin": ({"inputs": [[2]], "outputs": [[8]]}, "input must be text or a list of lines"),
    "no name": ([{"input": "2", "output": "8", "testtype": "functional"}], "a call without a name"),
    "bad name": ({"function": "os.system", "args": [], "expected": 1}, "'os.system' is no function name"),
    "args": ({"function": "f", "args": {"x": 1}, "expected": 1}, "args of f must be a list"),
    "kind": ([{"input": "2", "output": "8", "testtype": "interactive"}], "unknown kind of test 'interactive'"),
    "not JSON": ([{"input": "x", "output": "8", "fn_name": "f"}], "input of a test is not JSON: 'x'"),
    "pickle": ("eJxrYJkqwAABGlM" * 4, "never unpickled"),
    "check": ("def check(candidate):\n    assert candidate(2) == 8", "name the function in entry_point"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    raw, tests = LAYOUTS[name]
    assert parse_tests(raw) == tests
    assert parse_tests(list(tests)) == tests


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name: str) -> None:
    raw, message = FAULTS[name]
    with pytest.raises(ValueError, match=message):
        parse_tests(raw)


def test_entry_point() -> None:
    check = "def check(candidate):\n    assert candidate(2) == 8\n"
    assert parse_tests(check, entry_point="f") == (f"{check}\ncheck(f)\n",)
    assert parse_tests([f"{check}check(f)"], entry_point="f") == (f"{check}check(f)",)
    pairs = [{"input": '2\n"a"', "output": "[8]"}, {"input": [2, "a"], "output": [8]}]
    assert parse_tests(pairs, entry_point="Solution().f") == (CALL, CALL)


@pytest.mark.parametrize(
    ("raw", "test"),
    [
        ({"call": "f(1, [2])", "expected": 3}, {"function": "f", "args": [1, [2]], "expected": 3}),
        ({"fn": "f", "arguments": [1], "result": 2}, {"function": "f", "args": [1], "expected": 2}),
        (
            {"type": "call", "function": "f", "args": [], "expected_output": None},
            {"function": "f", "args": [], "expected": None},
        ),
        ({"input": "3", "expected": "4"}, {"stdin": "3", "stdout": "4"}),
        ({"stdin": "3", "expected_stdout": "4"}, {"stdin": "3", "stdout": "4"}),
        ({"type": "assert", "code": "assert f(1) == 1"}, "assert f(1) == 1"),
    ],
)
def test_other_names_of_the_same(raw: dict[str, Any], test: Any) -> None:
    assert parse_tests([raw]) == (test,)


@pytest.mark.parametrize("call", ["f(x)", "f(1) + 1", "f(k=1)", "f(", "a.f(1)"])
def test_a_call_that_is_not_plain_is_refused(call: str) -> None:
    with pytest.raises(ValueError, match="not a call of a function with literal arguments"):
        parse_tests([{"call": call, "expected": 1}])
