"""Programs: HumanEval, MBPP, and the problems with tests of APPS, TACO and DeepCoder.

Prompts are the datasets' own words; a response is the reference program in a fenced block. Tests are read for RL
only: some are megabytes.
"""

import json
from typing import Any

from nemo_vibethinker.data.code_tests import Test, parse_tests
from nemo_vibethinker.data.readers.fields import Fields, Format, Kind, text


def _fenced(program: str) -> str:
    program = program.replace("\r\n", "\n").strip("\n")
    if not program.strip() or "```" in program:
        return program.strip()
    return f"```python\n{program}\n```"


def _humaneval(row: dict[str, Any], kind: Kind | None) -> list[Fields]:
    prompt, solution = _raw(row, "prompt"), _raw(row, "canonical_solution")
    tests = parse_tests(row.get("test"), entry_point=text(row, "entry_point")) if kind == "rl" else ()
    return [
        {
            "domain": "code",
            "prompt": f"Complete this Python function:\n{_fenced(prompt)}" if prompt.strip() else "",
            "response": _fenced(prompt + solution) if solution.strip() else "",
            "tests": tests,
        }
    ]


def _raw(row: dict[str, Any], column: str) -> str:
    """Text whose indentation matters, unstripped."""
    text(row, column)
    return str(row.get(column) or "")


def _mbpp(row: dict[str, Any], kind: Kind | None) -> list[Fields]:
    """The first test is shown, as nothing else names the function."""
    task, listed = text(row, "text", "prompt"), row.get("test_list")
    if not isinstance(listed, list) or not all(isinstance(test, str) for test in listed):
        raise ValueError("column test_list is not a list of texts")
    example = f"\nIt must pass this test:\n{listed[0]}" if listed else ""
    return [
        {
            "domain": "code",
            "prompt": f"{task}{example}" if task else "",
            "response": _fenced(_raw(row, "code")),
            "tests": parse_tests([*_setup(row), *listed]) if kind == "rl" and listed else (),
        }
    ]


def _setup(row: dict[str, Any]) -> list[str]:
    """Statements that run after the program and before the tests."""
    imports = row.get("test_imports") or []
    if not isinstance(imports, list) or not all(isinstance(line, str) for line in imports):
        raise ValueError("column test_imports is not a list of texts")
    lines = "\n".join([*imports, text(row, "test_setup_code")]).strip().replace("\r\n", "\n")
    return [lines] if lines else []


def _problems(row: dict[str, Any], kind: Kind | None) -> list[Fields]:
    """The first reference solution is the response; the starter code, where there is one, is shown."""
    prompt, starter = text(row, "problem", "question"), _raw(row, "starter_code")
    if prompt and starter.strip():
        prompt = f"{prompt}\n\nBegin with this code:\n{_fenced(starter)}"
    return [
        {
            "domain": "code",
            "prompt": prompt,
            "response": _fenced(_first_solution(row)) if kind == "sft" else "",
            "tests": _tests(row) if kind == "rl" else (),
        }
    ]


def _first_solution(row: dict[str, Any]) -> str:
    solutions = _decoded(row.get("solutions"))
    if isinstance(solutions, list):
        solutions = next((one for one in solutions if one), "")
    if solutions is not None and not isinstance(solutions, str):
        raise ValueError("column solutions is not a list of texts")
    return solutions or ""


def _tests(row: dict[str, Any]) -> tuple[Test, ...]:
    metadata = _decoded(row.get("metadata"))
    function = metadata.get("func_name") if isinstance(metadata, dict) else None
    tests = _decoded(row.get("tests") or row.get("input_output"))
    if isinstance(tests, str) and tests.lstrip()[:1] in ("[", "{"):
        raise ValueError("column tests or input_output is torn JSON")
    return parse_tests(tests, entry_point=function or "")


def _decoded(value: Any) -> Any:
    """JSON in a text column, else the value itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


FORMATS = (
    # github.com/openai/human-eval
    Format(
        name="humaneval",
        rule="task_id, prompt, test, entry_point",
        matches=lambda row: {"task_id", "prompt", "test", "entry_point"} <= row.keys(),
        read=_humaneval,
    ),
    # github.com/google-research/google-research/tree/master/mbpp; `prompt` and `test_imports` in the sanitised set
    Format(
        name="mbpp",
        rule="text or prompt, code, test_list",
        matches=lambda row: {"code", "test_list"} <= row.keys() and bool(row.keys() & {"text", "prompt"}),
        read=_mbpp,
    ),
    # huggingface.co/datasets/agentica-org/DeepCoder-Preview-Dataset (tests), BAAI/TACO, codeparrot/apps (input_output)
    Format(
        name="code-problems",
        rule="problem or question, tests or input_output",
        matches=lambda row: bool(row.keys() & {"problem", "question"}) and bool(row.keys() & {"tests", "input_output"}),
        read=_problems,
    ),
)
