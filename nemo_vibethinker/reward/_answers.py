"""Verdicts on canonical answers that need no algebra: numbers, words, choices, and what is no answer at all."""

import re
from fractions import Fraction

from nemo_vibethinker.reward._units import split_unit
from nemo_vibethinker.reward.verdict import Verdict

MAX_ANSWER = 2000  # characters; no reference answer is near it, and it bounds the work on a hostile one
_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_GROUPED = re.compile(r"\d{1,3}(?:[, ]\d{3})+(?:\.\d+)?", re.ASCII)
_NUMBER = re.compile(_DECIMAL, re.ASCII)
_SCIENTIFIC = re.compile(
    rf"({_DECIMAL})(?:(?:\*|\\times ?|\\cdot ?)10\^\{{?\(?([-+]?\d{{1,3}})\)?\}}?|[eE]([-+]\d{{1,3}}|\d{{1,3}}))",
    re.ASCII,
)
_QUOTIENT = re.compile(rf"(-?{_DECIMAL})/(-?{_DECIMAL})|\\frac\{{(-?{_DECIMAL})\}}\{{(-?{_DECIMAL})\}}", re.ASCII)
_MIXED = re.compile(r"(\d+)(?: (\d+)/(\d+)|\\frac\{(\d+)\}\{(\d+)\})", re.ASCII)
_CHOICE = re.compile(r"\(?([A-J])[).:]?(?:[.:)]? ?(?:\\text\{)?[A-Za-z$\\\d][^,;]{0,60})?")
_GIVEN_CHOICE = re.compile(
    r"(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)[ :]*(?:is )?)?\(?([A-Ja-j])\)?(?:(?:[.:)]|,(?= ?[a-z]{2}))(?P<rest>.*)|\.?)",
    re.DOTALL,
)
_OTHER_CHOICE = re.compile(r"(?<![A-Za-z\\])\(?[A-J](?:\)|[.:](?=\s*[a-z\d]))|^\W*[A-J](?:\W+[A-J])*\W*$")
_ARITHMETIC = re.compile(r"\(*-?\d+(?:\)*(?:[-+*]|\\times ?|\\cdot ?|\\div ?)\(*-?\d+\)*)+", re.ASCII)
_UNEVALUATED = re.compile(r"\\(?:sum|prod|int|lim|bmod|pmod|mod|gcd|lcm|det|binom)(?![a-z])")
_POWER_OF_TEN = re.compile(r"(?:\*|\\times ?|\\cdot ?)1?0+\b")
_SUSPECT = {
    re.compile(r"\d +\d"): "several numbers in a row",
    re.compile(r"\d_\{?\d"): "a number in another base",
    re.compile(r"\\(?:to|longleftrightarrow|leftrightarrow|iff)(?![a-z])", re.IGNORECASE): "alternatives",
    re.compile(r"\\(?:input|write|def|newcommand|csname|catcode)"): "a macro",
}
_OPENING, _CLOSING = "([{", ")]}"
_WORDING = re.compile(r"[A-Za-z][A-Za-z\s\"'`.,;:!?()-]*")
_EMPTY = re.compile(
    r"(?:thereis|thereare)?no(?:real)?(?:solutions?|answers?|roots?|values?)(?:exists?)?|none|doesnotexist|dne|undefined"
)


def plain_number(text: str) -> Fraction | None:
    """The exact value of an integer, decimal, fraction, mixed number, percentage or scientific notation, else None."""
    percent = text.endswith("%")
    sign = -1 if text.startswith("-") else 1
    value = _unsigned(text.removesuffix("%").lstrip(" ").removeprefix("-").removeprefix("+").strip())
    return None if value is None else sign * value / (100 if percent else 1)


def _unsigned(text: str) -> Fraction | None:
    if len(text) > MAX_ANSWER or text.startswith("-"):
        return None
    if text.startswith("(") and text.endswith(")") and "(" not in text[1:]:
        return plain_number(text[1:-1])
    if _GROUPED.fullmatch(text):
        text = re.sub("[, ]", "", text)
    if _NUMBER.fullmatch(text):
        return Fraction(text)
    if scientific := _SCIENTIFIC.fullmatch(text):
        return Fraction(scientific[1]) * Fraction(10) ** int(scientific[2] or scientific[3])
    if quotient := _QUOTIENT.fullmatch(text):
        above, below = (Fraction(part) for part in quotient.groups() if part is not None)
        return above / below if below else None
    if mixed := _MIXED.fullmatch(text):
        whole, above, below = (int(part) for part in mixed.groups() if part is not None)
        return whole + Fraction(above, below) if below else None
    return None


def decide(gold: str, answer: str) -> Verdict | None:
    """The verdict on canonical texts, or None if only algebra can tell."""
    if not gold:
        return Verdict("ungraded", "the reference answer is empty")
    if not answer:
        return Verdict("wrong", "the answer is empty")
    if gold == answer or _same_words(gold, answer):
        return Verdict("right")
    return _decide_numbers(gold, answer) or _decide_choice(gold, answer) or _decide_form(gold, answer)


def words(text: str) -> str:
    """A text of words without markup, case, spaces, quotes and a leading article, to compare; "" for mathematics."""
    marked = "\\text" in text
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()
    if not (_WORDING.fullmatch(text) and (marked or re.search("[A-Za-z]{4}", text) or len(text) == 3)):
        return ""
    return re.sub(r"^(?:the|a|an) |[\s\"'.`]", "", " ".join(text.casefold().split())).replace(" ", "")


def _same_words(gold: str, answer: str) -> bool:
    expected, given = words(gold), words(answer)
    if gold in ("\\emptyset", "\\{\\}") or _EMPTY.fullmatch(expected):
        return answer in ("\\emptyset", "\\{\\}") or bool(_EMPTY.fullmatch(given))
    return bool(expected) and expected == given


def _decide_numbers(gold: str, answer: str) -> Verdict | None:
    expected, given = plain_number(gold), plain_number(answer)
    if (expected is None or given is None) and (gold + answer).strip("0123456789"):
        (gold, unit), (answer, other) = split_unit(gold), split_unit(answer)
        if unit and other and unit != other:
            return None
        expected, given = plain_number(gold), plain_number(answer)
    if expected is None or given is None:
        return None
    if expected == given or _rounds_to(expected, answer) or _rounds_to(given, gold):
        return Verdict("right")
    if _nearly(gold, expected, given):
        return Verdict("right", "the reference is rounded")
    return Verdict("wrong", "another number")


def _rounds_to(exact: Fraction, decimal: str) -> bool:
    """Whether `decimal`, with ten digits and more, is `exact` cut or rounded where `exact` has no finite decimal."""
    _, point, digits = decimal.partition(".")
    if not point or len(digits) < 10 or not digits.isdigit() or _finite_decimal(exact):
        return False
    value = plain_number(decimal)
    return value is not None and abs(value - exact) < Fraction(1, 10 ** len(digits))


def _nearly(gold: str, expected: Fraction, given: Fraction) -> bool:
    """Whether the reference is a decimal of three digits and more that rounds or cuts the answer, an endless one."""
    _, point, digits = gold.partition(".")
    if not point or len(digits) < 2 or not digits.isdigit() or len(gold.strip("-0.").replace(".", "")) < 3:
        return False
    return not _finite_decimal(given) and abs(expected - given) < Fraction(1, 10 ** len(digits))


def _finite_decimal(value: Fraction) -> bool:
    odd = value.denominator
    for prime in (2, 5):
        while odd % prime == 0:
            odd //= prime
    return odd == 1


def _decide_choice(gold: str, answer: str) -> Verdict | None:
    """The reference is a letter, or a letter with its text; the answer is the letter, with or without text."""
    expected = _CHOICE.fullmatch(gold)
    if not expected or (len(gold) > 3 and not re.match(r"\(?[A-J][).:]|[A-J] [A-Z]", gold)):
        return None
    given = _GIVEN_CHOICE.fullmatch(answer)
    if given and not (given["rest"] and _OTHER_CHOICE.search(given["rest"])):
        same = given[1].upper() == expected[1]
        return Verdict("right") if same else Verdict("wrong", "another choice")
    own_text = words(re.sub(r"^\(?[A-J][).:]* ?", "", gold))
    if own_text and own_text == words(answer):
        return Verdict("right")
    return None if len(gold) > 3 or len(answer) > 1 else Verdict("wrong", "another choice")


def _decide_form(gold: str, answer: str) -> Verdict | None:
    """Answers that algebra need not see: no mathematics, several numbers, or the problem's own arithmetic."""
    if problem := _malformed(gold, answer):
        return Verdict("wrong", problem)
    if plain_number(gold) is not None and is_unevaluated(answer):
        return Verdict("wrong", "an expression that still has to be evaluated")
    if _prose(gold):
        return _decide_prose(gold, answer)
    return None


def is_unevaluated(answer: str) -> bool:
    """Whether it is nothing but arithmetic on integers, or a sum, integral or limit: a restated problem."""
    if _UNEVALUATED.search(answer) and "=" not in answer:
        return True
    return bool(_ARITHMETIC.fullmatch(answer) and not _POWER_OF_TEN.search(answer))


def _malformed(gold: str, answer: str) -> str:
    """What makes `answer` no single well-formed answer, unless `gold` has it too."""
    if not answer.isascii():
        return "characters that are no mathematics"
    for pattern, problem in _SUSPECT.items():
        if pattern.search(answer) and not pattern.search(gold):
            return problem
    opening, closing = (sum(answer.count(bracket) for bracket in brackets) for brackets in (_OPENING, _CLOSING))
    return "" if opening == closing else "unbalanced brackets"


def _prose(text: str) -> bool:
    outside = re.sub(r"\\text\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    return len(re.findall(r"(?<![A-Za-z])[A-Za-z]{2,}(?![A-Za-z])", outside)) >= 5


def _decide_prose(gold: str, answer: str) -> Verdict:
    """A reference in sentences is met by the quantities in it, two or more, in its order."""
    expected, given = (re.findall(r"-?\d+(?:\.\d+)?", text) for text in (gold, answer))
    same = len(expected) > 1 and list(map(Fraction, expected)) == list(map(Fraction, given))
    return Verdict("right") if same and not _prose(answer) else Verdict("wrong", "not the words of the reference")
