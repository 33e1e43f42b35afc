"""Tests of a code record in one form, whatever layout a dataset gives them in.

A test is one of

- a string: Python statements such as `assert f(2) == 8`; passed if they raise nothing;
- `{"stdin": str, "stdout": str}`: a whole program, what it reads and what it must print;
- `{"function": str, "args": [...], "expected": value}`: a call with JSON values and the value it must return.

Layouts read: these, also under the other names of `_SYNONYMS`, and `{"call": "f(2, [3])", "expected": value}`;
HumanEval's `check(candidate)`; `{"input", "output"}` pairs, also in columns; APPS, TACO and
DeepCoder (`inputs`, `outputs`, `fn_name`; `type`); LiveCodeBench (`testtype`, `metadata.func_name`); each also as JSON
in a string. LiveCodeBench's private tests are pickles and are refused: unpickling runs whatever they hold.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Test = str | dict[str, Any]

_FORMS = ({"stdin", "stdout"}, {"function", "args", "expected"})
_SYNONYMS = {
    "function": ("function", "fn", "func", "function_name", "fn_name", "func_name", "entry_point", "method"),
    "args": ("args", "arguments", "params", "inputs", "input"),
    "expected": ("expected", "expected_value", "expected_output", "result", "output"),
    "stdin": ("stdin", "input"),
    "stdout": ("stdout", "expected_stdout", "expected_output", "expected", "output"),
    "assertion": ("assert", "assertion", "snippet", "code"),
}
_COLUMNS = (("inputs", "outputs"), ("input", "output"))
_KINDS = {"stdin": "stdin", "stdin_stdout": "stdin", "functional": "call", "function_call": "call"}
_CHECK, _CHECK_CALL = re.compile(r"^def check\(", re.MULTILINE), re.compile(r"^check\(", re.MULTILINE)
_COMPRESSED_PICKLE = re.compile(r"eJ[A-Za-z0-9+/]{30,}={0,2}")


def parse_tests(raw: Any, *, entry_point: str = "") -> tuple[Test, ...]:
    """The tests that `raw` holds, in order; none for None and for an empty string, list or object.

    Args:
        raw: tests in a layout that the module names.
        entry_point: the function under test, where the layout names none; a pair with it is a call.

    Raises:
        ValueError: naming what is wrong: no known layout, unequal columns, a call without a function's name.
    """
    if isinstance(raw, str):
        return _from_text(raw, entry_point)
    if isinstance(raw, Mapping):
        return _from_object(raw, entry_point) if raw else ()
    if isinstance(raw, Sequence) and not isinstance(raw, bytes | bytearray):
        return _from_list(raw, entry_point)
    if raw is None:
        return ()
    raise ValueError(f"tests must be text, a list or an object, not {type(raw).__name__}")


def _from_text(text: str, entry_point: str) -> tuple[Test, ...]:
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return parse_tests(json.loads(text), entry_point=entry_point)
        except json.JSONDecodeError:
            return (_snippet(text, entry_point),)
    return (_snippet(text, entry_point),) if text.strip() else ()


def _snippet(text: str, entry_point: str) -> str:
    """The statements; HumanEval's `check` is called with the function under test, or it would check nothing."""
    if _COMPRESSED_PICKLE.fullmatch(text.strip()):
        raise ValueError("tests are a compressed pickle, which is never unpickled: decode them to JSON first")
    if not _CHECK.search(text) or _CHECK_CALL.search(text):
        return text
    if not entry_point:
        raise ValueError("tests define check(candidate) and never call it: name the function in entry_point")
    return f"{text.rstrip()}\n\ncheck({entry_point})\n"


def _from_list(items: Sequence[Any], entry_point: str) -> tuple[Test, ...]:
    tests: list[Test] = []
    wrapped: list[dict[str, Any]] = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, str | Mapping) or not item:
            raise ValueError(f"test {number} must be text or an object, not {_short(item)}")
        try:
            found = [_snippet(item, entry_point)] if isinstance(item, str) else _from_object(item, entry_point)
        except ValueError as error:
            raise ValueError(f"test {number}: {error}") from None
        tests += found
        if isinstance(item, Mapping) and item.get("type") == "function_call":
            wrapped += [test for test in found if isinstance(test, dict)]
    for call, value in zip(wrapped, _values([call["expected"] for call in wrapped]), strict=True):
        call["expected"] = value
    return tuple(tests)


def _from_object(raw: Mapping[str, Any], entry_point: str) -> tuple[Test, ...]:
    if raw.keys() in _FORMS:
        return (_canonical(raw),)
    if renamed := _renamed(raw):
        return (_snippet(renamed, entry_point) if isinstance(renamed, str) else _canonical(renamed),)
    for key in ("test_cases", "tests"):
        if key in raw:
            return parse_tests(raw[key], entry_point=_function_name(raw, entry_point))
    for inputs, outputs in _COLUMNS:
        if inputs in raw and outputs in raw:
            function = _function(raw, entry_point)
            if inputs == "inputs" or (
                isinstance(raw[inputs], list) and isinstance(raw[outputs], list) and not function
            ):
                return _from_columns(raw[inputs], raw[outputs], function)
            return (_pair(raw[inputs], raw[outputs], function),)
    keys = ", ".join(sorted(map(str, raw))[:8])
    raise ValueError(f"a test with {keys}; known: stdin and stdout, function, args and expected, input and output")


def _renamed(raw: Mapping[str, Any]) -> Test | None:
    """A single test under other names, in the canonical ones; None if it is not one."""
    given = {key: value for key, value in raw.items() if key not in ("type", "kind", "id", "name")}
    if given.keys() == {"call", "expected"} and isinstance(given["call"], str):
        return _called(given["call"], given["expected"])
    for form in (("function", "args", "expected"), ("stdin", "stdout"), ("assertion",)):
        keys = [next((key for key in _SYNONYMS[name] if key in given), "") for name in form]
        if all(keys) and len(set(keys)) == len(given) == len(form) and set(keys) != {"input", "output"}:
            values = dict(zip(form, (given[key] for key in keys), strict=True))
            if form == ("assertion",):
                return values["assertion"] if isinstance(values["assertion"], str) else None
            if form[0] == "stdin" or isinstance(values["args"], list):
                return values
    return None


def _called(call: str, expected: Any) -> Test:
    """A call written as Python, with literal arguments."""
    try:
        node = ast.parse(call.strip(), mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return _call(node.func.id, [ast.literal_eval(argument) for argument in node.args], expected)
    except (ValueError, SyntaxError):
        pass
    raise ValueError(f"{_short(call)} is not a call of a function with literal arguments")


def _canonical(raw: Mapping[str, Any]) -> dict[str, Any]:
    texts = [name for name in ("stdin", "stdout", "function") if not isinstance(raw.get(name, ""), str)]
    if texts:
        raise ValueError(f"{texts[0]} must be text, not {_short(raw[texts[0]])}")
    if "function" in raw:
        return _call(raw["function"], raw["args"], raw["expected"])
    return dict(raw)


def _function(raw: Mapping[str, Any], entry_point: str) -> str:
    """The function under test; empty for a test of the whole program."""
    kind = raw.get("testtype") or raw.get("type")
    if kind is not None and kind not in _KINDS:
        raise ValueError(f"unknown kind of test {_short(kind)}; known: {', '.join(_KINDS)}")
    name = _function_name(raw, entry_point)
    if kind and _KINDS[kind] == "call" and not name:
        raise ValueError("a call without a name: give fn_name, metadata.func_name or an entry_point")
    return "" if kind and _KINDS[kind] == "stdin" else name


def _function_name(raw: Mapping[str, Any], entry_point: str) -> str:
    metadata = raw.get("metadata")
    if isinstance(metadata, str) and metadata.lstrip().startswith("{"):
        metadata = _decoded(metadata, "metadata")
    named = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    return raw.get("fn_name") or raw.get("func_name") or named or entry_point


def _from_columns(inputs: Any, outputs: Any, function: str) -> tuple[Test, ...]:
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise ValueError("inputs and outputs must be lists")
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs but {len(outputs)} outputs")
    if function:
        outputs = _values(outputs)
    return tuple(_pair(given, wanted, function) for given, wanted in zip(inputs, outputs, strict=True))


def _pair(given: Any, wanted: Any, function: str) -> dict[str, Any]:
    if not function:
        return {"stdin": _lines(given, "input"), "stdout": _lines(wanted, "output")}
    if isinstance(given, str):  # LiveCodeBench: each line is one argument
        given = [_decoded(line, "input") for line in given.splitlines() if line.strip()]
        wanted = _decoded(wanted, "output") if isinstance(wanted, str) else wanted
    return _call(function, given, wanted)


def _call(function: Any, args: Any, expected: Any) -> dict[str, Any]:
    name = function.removeprefix("Solution().") if isinstance(function, str) else ""
    if not name.isidentifier():
        raise ValueError(f"{_short(function)} is no function name")
    if not isinstance(args, list | tuple):
        raise ValueError(f"args of {name} must be a list, not {_short(args)}")
    return {"function": name, "args": list(args), "expected": expected}


def _values(outputs: list[Any]) -> list[Any]:
    """APPS wraps the value of a call in a list: where every output is a list of one, that one is the value."""
    wrapped = all(isinstance(output, list) and len(output) == 1 for output in outputs)
    return [output[0] for output in outputs] if wrapped else outputs


def _lines(value: Any, name: str) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text or a list of lines, not {_short(value)}; a call needs fn_name")
    return value


def _decoded(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"{name} of a test is not JSON: {_short(text)}") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
