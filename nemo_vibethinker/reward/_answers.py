"""Answers as text: normal form, exact plain numbers, and the verdicts that need no algebra."""

import re
from fractions import Fraction
from itertools import pairwise

from nemo_vibethinker.reward.verdict import Verdict

_MAX_ANSWER = 2000  # characters; no reference answer is near it, and it bounds the work on a hostile one
_DROPPED = re.compile(r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![a-zA-Z])|\\!|\$|\^\{?\\circ\}?|\\degree|\u00b0")
_SPACES = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![a-zA-Z])|~|\s+")
_STYLED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_UNIT = re.compile(r"([\d.,)}%]) ?\\(?:text|textbf|textit|textrm|mathrm|mbox)\s*\{([^{}]*)\}(?:\^\{?\d\}?)?$")
_NOT_UNITS = re.compile(r"\b(?:or|and|to|e|i|hundred|thousand|million|billion|trillion|dozen|percent|pct)\b|[%\d=]")
_LOOSE_SPACE = re.compile(r"(?<![0-9A-Za-z]) +| +(?![0-9A-Za-z])")
_SHORT_FRACTION = re.compile(r"\\frac ?(\{[^{}]*\}|\w) ?(\{[^{}]*\}|\w)")
_SHORT_ROOT = re.compile(r"\\sqrt ?(\w)")
_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_GROUPED = re.compile(r"\d{1,3}(?:[, ]\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(_DECIMAL)
_QUOTIENT = re.compile(rf"(-?{_DECIMAL})/(-?{_DECIMAL})|\\frac\{{(-?{_DECIMAL})\}}\{{(-?{_DECIMAL})\}}")
_MIXED = re.compile(r"(\d+)(?: (\d+)/(\d+)|\\frac\{(\d+)\}\{(\d+)\})")
_SEPARATOR = re.compile(r",|;|\bor\b|\band\b")
_SUSPECT = {
    re.compile(r"\d +\d"): "several numbers in a row",
    re.compile(r"\d_\{?\d"): "a number in another base",
    re.compile(r"(?<![\\A-Za-z])(?<!\\begin\{)(?<!\\end\{)[A-Za-z]{4,}(?![A-Za-z]|$)"): "words beside the answer",
    re.compile(r"\\(?:lor|vee|mid|to|(?:long)?(?:left)?rightarrow|implies)(?![a-z])", re.IGNORECASE): "alternatives",
}
_OPENING, _CLOSING = "([{", ")]}"


def normalise(text: str) -> str:
    """The text without what carries no meaning: spacing, delimiters, text style, units after a number, degree signs."""
    text = text.replace("\u2212", "-").replace("\\$", "").replace("{,}", ",").replace("\\%", "%")
    text = re.sub(r"(?<!\\)\\[()\[\]]", "", text)
    text = _SPACES.sub(" ", _DROPPED.sub("", text)).strip()
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    unit = _UNIT.search(text)
    if unit and not _NOT_UNITS.search(unit[2]):
        text = text[: unit.end(1)]
    text = re.sub(r" ?\b(?:percent|pct)\b", "%", _STYLED.sub(r"\1", text))
    text = _SHORT_FRACTION.sub(lambda found: f"\\frac{_braced(found[1])}{_braced(found[2])}", text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = _LOOSE_SPACE.sub("", text).rstrip("\\. ")
    return text[1] if re.fullmatch(r"\([A-Z]\)", text) else text


def _braced(text: str) -> str:
    return text if text.startswith("{") else f"{{{text}}}"


def plain_number(text: str) -> Fraction | None:
    """The exact value of a normalised integer, decimal, fraction, mixed number or percentage; None for the rest."""
    percent = text.endswith("%")
    sign = -1 if text.startswith("-") else 1
    value = _unsigned(text.removesuffix("%").lstrip(" ").removeprefix("-").removeprefix("+").strip())
    return None if value is None else sign * value / (100 if percent else 1)


def _unsigned(text: str) -> Fraction | None:
    if len(text) > _MAX_ANSWER:
        return None
    if text.startswith("(") and text.endswith(")") and "(" not in text[1:]:
        return plain_number(text[1:-1])
    if _GROUPED.fullmatch(text):
        text = re.sub("[, ]", "", text)
    if _NUMBER.fullmatch(text):
        return Fraction(text)
    if quotient := _QUOTIENT.fullmatch(text):
        above, below = (Fraction(part) for part in quotient.groups() if part is not None)
        return above / below if below else None
    if mixed := _MIXED.fullmatch(text):
        whole, above, below = (int(part) for part in mixed.groups() if part is not None)
        return whole + Fraction(above, below) if below else None
    return None


def split_answers(text: str) -> list[str]:
    """The distinct answers that a normalised text lists at its top level; a set in braces lists its elements."""
    if text.startswith("\\{") and text.endswith("\\}") and text.count("\\{") == 1:
        text = text[2:-2]
    if _GROUPED.fullmatch(text.lstrip("-")):
        return [text]
    parts, start = [], 0
    depths = _depths(text)
    for found in _SEPARATOR.finditer(text):
        if depths[found.start()] == 0:
            parts.append(text[start : found.start()])
            start = found.end()
    parts.append(text[start:])
    signs = [sign for part in parts if part.strip() for sign in _both_signs(part.strip())]
    return list(dict.fromkeys(signs))


def _both_signs(part: str) -> list[str]:
    if "\\pm" not in part and "\\mp" not in part:
        return [part]
    return [re.sub(r"\\pm ?", plus, re.sub(r"\\mp ?", minus, part)).removeprefix("+") for plus, minus in ("+-", "-+")]


def _depths(text: str) -> list[int]:
    depth, depths = 0, []
    for character in text:
        depth -= character in _CLOSING
        depths.append(depth)
        depth += character in _OPENING
    return depths


def _elements(text: str) -> tuple[str, str, list[str]] | None:
    """Opening and closing bracket and the elements of one tuple or interval, or None."""
    if len(text) < 3 or text[0] not in "([" or text[-1] not in ")]" or min(_depths(text)[1:-1]) < 1:
        return None
    depths = _depths(text)
    commas = [index for index, character in enumerate(text) if character == "," and depths[index] == 1]
    edges = [0, *commas, len(text) - 1]
    parts = [text[left + 1 : right].strip() for left, right in pairwise(edges)]
    return (text[0], text[-1], parts) if commas else None


def decide(gold: str, answer: str) -> Verdict | None:
    """The verdict on normalised texts, or None if only algebra can tell."""
    if not gold:
        return Verdict("ungraded", "the reference answer is empty")
    if len(answer) > max(_MAX_ANSWER, 4 * len(gold)):
        return Verdict("wrong", "the answer is too long")
    if gold == answer or _same_word(gold, answer):
        return Verdict("right")
    if not answer:
        return Verdict("wrong", "the answer is empty")
    return _decide_numbers(gold, answer) or _decide_shape(gold, answer)


def _same_word(gold: str, answer: str) -> bool:
    choice = len(gold) > 1 or gold in "ABCDEFGHIJ"
    return gold.isalpha() and choice and gold.casefold() == answer.casefold()


def _decide_numbers(gold: str, answer: str) -> Verdict | None:
    expected, given = plain_number(gold), plain_number(answer)
    if expected is None or given is None:
        return None
    if expected == given or _rounds_to(expected, answer) or _rounds_to(given, gold):
        return Verdict("right")
    return Verdict("wrong", "another number")


def _rounds_to(exact: Fraction, decimal: str) -> bool:
    """Whether `decimal`, with ten digits and more, is `exact` cut or rounded where `exact` has no finite decimal."""
    _, point, digits = decimal.partition(".")
    odd = exact.denominator
    for prime in (2, 5):
        while odd % prime == 0:
            odd //= prime
    if not point or len(digits) < 10 or not digits.isdigit() or odd == 1:
        return False
    value = plain_number(decimal)
    return value is not None and abs(value - exact) < Fraction(1, 10 ** len(digits))


def _decide_shape(gold: str, answer: str) -> Verdict | None:
    """Verdicts from how many answers are listed, in which brackets; number lists and number tuples are decided."""
    if ("%" in gold) != ("%" in answer):
        return Verdict("wrong", "one is a percentage, the other not")
    if gold.isalpha() and answer.isalpha() and min(len(gold), len(answer)) > 3:
        return Verdict("wrong", "another word")
    expected, given = split_answers(gold), split_answers(answer)
    if len(expected) != len(given):
        return Verdict("wrong", f"{len(given)} answers where {len(expected)} are expected")
    if problem := _malformed(gold, answer):
        return Verdict("wrong", problem)
    if len(expected) > 1:
        return _decide_lists(expected, given, ordered=False)
    return _decide_brackets(_elements(gold), _elements(answer))


def _malformed(gold: str, answer: str) -> str:
    """What makes `answer` no single well-formed answer, unless `gold` has it too: a lenient parser would pick the
    right number out of it."""
    for pattern, problem in _SUSPECT.items():
        if pattern.search(answer) and not pattern.search(gold):
            return problem
    opening, closing = (sum(answer.count(bracket) for bracket in brackets) for brackets in (_OPENING, _CLOSING))
    return "" if opening == closing else "unbalanced brackets"


def _decide_brackets(
    gold: tuple[str, str, list[str]] | None, answer: tuple[str, str, list[str]] | None
) -> Verdict | None:
    if gold is None or answer is None:
        return None
    if gold[:2] != answer[:2] or len(gold[2]) != len(answer[2]):
        return Verdict("wrong", "other brackets or another number of elements")
    return _decide_lists(gold[2], answer[2], ordered=True)


def _decide_lists(expected: list[str], given: list[str], *, ordered: bool) -> Verdict | None:
    numbers = [plain_number(part) for part in expected], [plain_number(part) for part in given]
    if None in numbers[0] or None in numbers[1]:
        return None
    same = numbers[0] == numbers[1] if ordered else set(numbers[0]) == set(numbers[1])
    return Verdict("right") if same else Verdict("wrong", "other numbers")
