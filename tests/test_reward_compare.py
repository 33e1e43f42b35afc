from typing import Any

import pytest

from nemo_vibethinker.reward._compare import difference, output_difference, same_value

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (3, 3), (3.0, 3), (True, 1), (None, None), ("a", "a"), ((1, (2,)), [1, [2]]), ([], []), (0.1 + 0.2, 0.3),
        (1e6 + 0.5, 1e6), (3, 3.0), (NAN, NAN), (INF, INF), ({1: (2,), "b": 0.1}, {"1": [2], "b": 0.1}), (2**80, 2**80),
    ],
)  # fmt: skip
def test_same_values(got: Any, expected: Any) -> None:
    assert same_value(got, expected)
    assert difference(got, expected) == ""


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (3.0000001, 3), (2**80 + 1, 2**80), ("3", 3), (3, "3"), (None, 0), ([1, 2], [1]), ([1], [1, 2]), ({1}, [1]),
        ({}, []),
        ("ab", ["a", "b"]), (0.30001, 0.3), ("0.3", 0.3), (NAN, 0.3), (0.3, NAN), (1e-8, 0.0), (10**400, 1.5),
        ({"a": 1}, {"a": 2}), ({"a": 1, "b": 1}, {"a": 1}), (object(), 1.0), (INF, 1e308),
    ],
)  # fmt: skip
def test_other_values(got: Any, expected: Any) -> None:
    assert not same_value(got, expected)
    assert difference(got, expected).startswith("expected ")


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ("", ""), ("\n\n", ""), ("8", "8\n"), ("8 \r\n9\t\n\n", "8\n9"), ("  a  b", "  a  b"),
        ("0.30000001 x", "0.3 x"),
        ("1e-3", "0.001"), (".5", "0.50"), ("2", "2.0"), ("a\n\nb", "a\n\nb"),
    ],
)  # fmt: skip
def test_same_outputs(got: str, expected: str) -> None:
    assert output_difference(got, expected) == ""


@pytest.mark.parametrize(
    ("got", "expected", "reason"),
    [
        ("9", "8", "line 1: expected '8', got '9'"),
        ("8.0", "8", "line 1: expected '8', got '8.0'"),
        ("a b", "a  b", "line 1: expected 'a  b', got 'a b'"),
        (" a", "a", "line 1: expected 'a', got ' a'"),
        ("8\n9", "8", "line 2: expected the end, got '9'"),
        ("8", "8\n9", "line 2: expected '9', got the end"),
        ("\n8", "8", "line 1: expected '8', got ''"),
        ("nan", "0.5", "line 1: expected '0.5', got 'nan'"),
        ("x" * 90, "y", f"line 1: expected 'y', got '{'x' * 59}..."),
    ],
)
def test_other_outputs(got: str, expected: str, reason: str) -> None:
    assert output_difference(got, expected) == reason
