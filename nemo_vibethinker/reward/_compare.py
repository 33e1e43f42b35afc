"""When a value or an output is the expected one, and words for where it is not.

Values of calls, whose expectations are JSON: integers, text, None and booleans by Python's `==` (so 3.0 is 3 and True
is 1); where the expected number is a float, within 1e-6 relative or 1e-9 absolute, NaN being NaN; lists and tuples
alike by their items; objects by their keys, of which JSON knows the text alone ({1: 2} is {"1": 2}); sets are no
lists.

Outputs: white space at the ends of lines and blank lines at the end do not count, all other text does; where the
expected word is a decimal fraction (it has a point or an exponent), a number within the same tolerance will do.
"""

import math
import re
from typing import Any

_RELATIVE, _ABSOLUTE = 1e-6, 1e-9
_SHORT = 60
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")
_WORD_BREAKS = re.compile(r"(\s+)")


def shortened(value: Any) -> str:
    """`repr` of a value, or of what of it can be shown in a line."""
    text = repr(value)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."


def difference(got: Any, expected: Any) -> str:
    """Empty where `got` is the expected value, else words for it."""
    return "" if same_value(got, expected) else f"expected {shortened(expected)}, got {shortened(got)}"


def same_value(got: Any, expected: Any) -> bool:
    """Whether plain value `got` is what JSON value `expected` says."""
    if isinstance(expected, list):
        return (
            isinstance(got, list | tuple)
            and len(got) == len(expected)
            and all(same_value(item, wanted) for item, wanted in zip(got, expected, strict=True))
        )
    if isinstance(expected, dict):
        return isinstance(got, dict) and _same_object(got, expected)
    if isinstance(expected, float):
        return isinstance(got, int | float) and _close(got, expected)
    return bool(got == expected)


def _same_object(got: dict[Any, Any], expected: dict[str, Any]) -> bool:
    named = {str(key) if isinstance(key, int) else key: value for key, value in got.items()}
    return named.keys() == expected.keys() and all(same_value(named[key], expected[key]) for key in expected)


def _close(got: float, expected: float) -> bool:
    try:
        return math.isclose(got, expected, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE) or (
            got != got and expected != expected
        )
    except OverflowError:  # an integer past the range of floats
        return False


def output_difference(got: str, expected: str) -> str:
    """Empty where `got` is the expected output, else the first line that differs."""
    lines, wanted = _lines(got), _lines(expected)
    for number, (line, want) in enumerate(zip(lines, wanted, strict=False), 1):
        if not _same_line(line, want):
            return f"line {number}: expected {shortened(want)}, got {shortened(line)}"
    if len(lines) < len(wanted):
        return f"line {len(lines) + 1}: expected {shortened(wanted[len(lines)])}, got the end"
    if len(lines) > len(wanted):
        return f"line {len(wanted) + 1}: expected the end, got {shortened(lines[len(wanted)])}"
    return ""


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _same_line(got: str, expected: str) -> bool:
    if got == expected:
        return True
    words, wanted = _WORD_BREAKS.split(got), _WORD_BREAKS.split(expected)
    return len(words) == len(wanted) and all(map(_same_word, words, wanted))


def _same_word(got: str, expected: str) -> bool:
    if got == expected or not _DECIMAL.fullmatch(expected):
        return got == expected
    try:
        return _close(float(got), float(expected))
    except ValueError:
        return False
