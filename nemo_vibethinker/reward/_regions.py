r"""Sets of real numbers: intervals, inequalities, unions, differences and set-builder notation, in one form.

A region is a sorted list of disjoint intervals. Their ends may hold letters: they are ordered by their values at a
sample point, and compared as expressions.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from nemo_vibethinker.reward._expression import NotAnExpression, Tree, parse, tokens
from nemo_vibethinker.reward._numeric import Undefined, equal, evaluate, symbols
from nemo_vibethinker.reward._structure import inside, is_name, split

_RELATION = r"\\(?:le|ge|ne|in|notin)(?![a-z])|[<>]"
_MARKS = re.compile(rf"^\]|\[$|{_RELATION}|\\cup|\\cap|\\setminus|\\mathbb\{{?R|\\infty|\\mid|\\?\{{[^{{}}]*[|:]")
_REALS = re.compile(r"(?:\\text\{)?(?:all ?)?(?:the ?)?real(?: ?numbers)?\}?|\\mathbb\{?R\}?|\(-\\infty,\+?\\infty\)")
_BUILDER = re.compile(
    r"\\\{ ?(?P<name>[^|:]*?)(?P<kind>\\in ?\\mathbb\{?R\}?)? ?[|:] ?(?P<condition>.*)\\\}", re.DOTALL
)
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}
_UNION = r"\\cup(?![a-z])|\\or(?![a-z])|(?<![A-Za-z\\])or(?![A-Za-z])|(?<=[)\]}]) ?U ?(?=[(\[\\])"
_ALSO = r"\\and(?![a-z])|(?<![A-Za-z\\])and(?![A-Za-z])|\\cap(?![a-z])|,"
_INFINITY: Tree = ("sym", "\\infty")


class NotARegion(ValueError):
    """The text is no set of real numbers that this module knows."""


@dataclass(frozen=True)
class End:
    """An end of an interval: where it lies for ordering, its expression, whether it belongs to the interval."""

    place: float
    tree: Tree
    closed: bool


@dataclass(frozen=True)
class Interval:
    """All numbers from `low` to `high`."""

    low: End
    high: End


_LEFT = End(float("-inf"), ("neg", _INFINITY), False)
_RIGHT = End(float("inf"), _INFINITY, False)
_EVERYTHING = [Interval(_LEFT, _RIGHT)]
Region = list[Interval]


def looks_like_region(text: str) -> bool:
    """Whether a relation, a set operation or infinity occurs in `text`; brackets alone do not tell."""
    return bool(_MARKS.search(text))


def same_region(gold: str, answer: str) -> bool:
    """Whether both describe the same set, in the same letter where both name one. Raises NotARegion and TooLarge."""
    (name, expected), (other, given) = read(gold), read(answer)
    if (name and other and name != other) or len(expected) != len(given):
        return False
    pairs = [pair for left, right in zip(expected, given, strict=True) for pair in _ends(left, right)]
    return all(_same_end(first, second) for first, second in pairs)


def _ends(left: Interval, right: Interval) -> list[tuple[End, End]]:
    return [(left.low, right.low), (left.high, right.high)]


def _same_end(first: End, second: End) -> bool:
    if _infinite(first) or _infinite(second):
        return first.place == second.place
    return first.closed == second.closed and equal(first.tree, second.tree)


def _infinite(end: End) -> bool:
    return abs(end.place) == float("inf")


def read(text: str) -> tuple[str, Region]:
    """The letter that `text` describes, or "", and the region. Raises NotARegion."""
    text = text.strip()
    if inside(text, "\\{", "\\}") is not None and (builder := _BUILDER.fullmatch(text)):
        return "", read(builder["condition"])[1]
    parts = [part for part in split(text, _UNION) if part]
    if len(parts) > 1:
        names, regions = zip(*(read(part) for part in parts), strict=True)
        return _one_name(names), _union([interval for region in regions for interval in region])
    parts = [part for part in split(text, _ALSO) if part]
    if len(parts) > 1:
        names, regions = zip(*(read(part) for part in parts), strict=True)
        return _one_name(names), _intersection(list(regions))
    return _single(text)


def _one_name(names: tuple[str, ...]) -> str:
    distinct = {name for name in names if name}
    if len(distinct) > 1:
        raise NotARegion("several letters")
    return distinct.pop() if distinct else ""


def _single(text: str) -> tuple[str, Region]:
    if membership := re.fullmatch(r"(.+?)\\in(?![a-z])(.+)", text, re.DOTALL):
        name = membership[1].strip()
        if not is_name(name):
            raise NotARegion("no letter before the set")
        return name, read(membership[2])[1]
    pieces = split(text, _RELATION)
    if len(pieces) > 1:
        return _inequality(pieces, re.findall(_RELATION, text))
    pieces = split(text, r"\\setminus(?![a-z])|(?<=[)\]}R])-(?=[({\[\\])")
    if len(pieces) == 2:
        return "", _intersection([_set(pieces[0]), _complement(read(pieces[1])[1])])
    return "", _set(text)


def _set(text: str) -> Region:
    text = text.strip()
    if _REALS.fullmatch(text):
        return _EVERYTHING
    members = inside(text, "\\{", "\\}")
    if members is not None:
        if _BUILDER.fullmatch(text):
            return read(text)[1]
        return _union([Interval(_end(part, True), _end(part, True)) for part in split(members, ",")])
    return [_interval(text)]


def _interval(text: str) -> Interval:
    closing = {("(", ")"), ("[", "]"), ("(", "]"), ("[", ")")}
    reverse = {"]": "(", "[": ")"}  # ]a, b[ as in French
    if text[:1] == "]" or (text[:1] in "([" and text[-1:] == "["):
        text = reverse.get(text[0], text[0]) * (text[0] == "]") + text[0] * (text[0] != "]") + text[1:]
        text = text[:-1] + (")" if text[-1] == "[" else text[-1])
    parts = split(text[1:-1], ",|;")
    if (text[:1], text[-1:]) not in closing or len(parts) != 2:
        raise NotARegion("no interval")
    low, high = _end(parts[0], text[0] == "["), _end(parts[1], text[-1] == "]")
    if low.place > high.place:
        raise NotARegion("an interval from right to left")
    return Interval(low, high)


def _end(text: str, closed: bool) -> End:
    if re.fullmatch(r"\+? ?\\infty", text):
        return _RIGHT
    if re.fullmatch(r"- ?\\infty", text):
        return _LEFT
    tree = _tree(text)
    point = {name: Fraction(37, 53) + index for index, name in enumerate(sorted(symbols(tree)))}
    try:
        value: Any = evaluate(tree, point)
    except Undefined as error:
        raise NotARegion(str(error)) from None
    if value.imag != 0:
        raise NotARegion("an end that is not real")
    return End(float(value.real), tree, closed)


def _tree(text: str) -> Tree:
    try:
        return parse(text)
    except NotAnExpression as error:
        raise NotARegion(str(error)) from None


def _inequality(pieces: list[str], relations: list[str]) -> tuple[str, Region]:
    if len(pieces) == 2 and not is_name(pieces[0]):
        pieces, relations = pieces[::-1], [_FLIPPED.get(relations[0], "")]
    if len(pieces) == 2 and is_name(pieces[0]):
        return _modulus(pieces[0], _half_line(relations[0], pieces[1]))
    if len(pieces) == 3 and is_name(pieces[1]) and relations[0] in _FLIPPED and relations[0] != "\\ne":
        sides = _half_line(_FLIPPED[relations[0]], pieces[0]), _half_line(relations[1], pieces[2])
        return _modulus(pieces[1], _intersection(list(sides)))
    raise NotARegion("no inequality of one letter")


def _modulus(name: str, region: Region) -> tuple[str, Region]:
    """The region of z where `region` is that of |z|."""
    if not (name.startswith("|") and name.endswith("|")):
        return name, region
    zero = End(0.0, ("num", Fraction(0)), True)
    right = _intersection([region, [Interval(zero, _RIGHT)]])
    return name.strip("|"), _union(right + [Interval(_mirrored(one.high), _mirrored(one.low)) for one in right])


def _mirrored(end: End) -> End:
    return replace(end, place=-end.place, tree=("neg", end.tree))


def _half_line(relation: str, bound: str) -> Region:
    if relation not in _FLIPPED:
        raise NotARegion("no inequality")
    end = _end(bound, relation in ("\\le", "\\ge"))
    if relation == "\\ne":
        return _complement([Interval(replace(end, closed=True), replace(end, closed=True))])
    return [Interval(_LEFT, end)] if relation in ("<", "\\le") else [Interval(end, _RIGHT)]


def _union(intervals: Region) -> Region:
    merged: Region = []
    for interval in sorted(intervals, key=lambda one: (one.low.place, not one.low.closed)):
        if not merged or _gap(merged[-1].high, interval.low):
            merged.append(interval)
        elif (interval.high.place, interval.high.closed) > (merged[-1].high.place, merged[-1].high.closed):
            merged[-1] = Interval(merged[-1].low, interval.high)
    return merged


def _gap(high: End, low: End) -> bool:
    return high.place < low.place or (high.place == low.place and not (high.closed or low.closed))


def _intersection(regions: list[Region]) -> Region:
    result = regions[0]
    for region in regions[1:]:
        result = [both for one in result for other in region if (both := _overlap(one, other))]
    return result


def _overlap(one: Interval, other: Interval) -> Interval | None:
    low = max(one.low, other.low, key=lambda end: (end.place, not end.closed))
    high = min(one.high, other.high, key=lambda end: (end.place, end.closed))
    empty = low.place > high.place or (low.place == high.place and not (low.closed and high.closed))
    return None if empty else Interval(low, high)


def _complement(region: Region) -> Region:
    edges = [_LEFT, *(edge for one in _union(region) for edge in (one.low, one.high)), _RIGHT]
    gaps = [Interval(_opposite(edges[index]), _opposite(edges[index + 1])) for index in range(0, len(edges), 2)]
    return [gap for gap in gaps if gap.low.place < gap.high.place or (gap.low.closed and gap.high.closed)]


def _opposite(end: End) -> End:
    return end if _infinite(end) else replace(end, closed=not end.closed)


def same_relation(gold: str, answer: str) -> bool:
    """Whether two inequalities between expressions are the same up to a factor, or two chains up to their direction.

    Raises NotARegion and TooLarge.
    """
    left, right = _chain(gold), _chain(answer)
    if left == right:
        return True
    if len(left[1]) != len(right[1]):
        return False
    if len(left[1]) > 1:
        return left[1] == right[1] and all(map(equal, map(_tree, left[0]), map(_tree, right[0])))
    (first, second), (third, fourth) = (tuple(map(_tree, pieces)) for pieces in (left[0], right[0]))
    if left[1] == right[1] == ["\\ne"]:
        return _ratio_sign(("add", first, ("neg", second)), ("add", third, ("neg", fourth))) != 0
    return left[1] == right[1] and _ratio_sign(("add", first, ("neg", second)), ("add", third, ("neg", fourth))) > 0


def _chain(text: str) -> tuple[list[str], list[str]]:
    """The sides and the relations, turned so that the first relation is not one of "greater"."""
    pieces, relations = split(text, _RELATION), re.findall(_RELATION, text)
    if not relations or any(relation not in _FLIPPED for relation in relations):
        raise NotARegion("no chain of inequalities")
    if relations[0] in (">", "\\ge"):
        pieces, relations = pieces[::-1], [_FLIPPED[relation] for relation in reversed(relations)]
    for piece in pieces:
        tokens(piece)
    return pieces, relations


def _ratio_sign(first: Tree, second: Tree) -> int:
    """The sign of the constant ratio of two expressions, 0 if it is not constant."""
    names = sorted(symbols(first) | symbols(second))
    point = {name: Fraction(37, 53) + Fraction(index * 11, 97) for index, name in enumerate(names)}
    try:
        above, below = evaluate(first, point), evaluate(second, point)
    except Undefined:
        return 0
    if not above or not below or above.imag or below.imag or not names:
        return 0
    other = {name: Fraction(171, 41) + Fraction(index * 13, 89) for index, name in enumerate(names)}
    cross = (
        evaluate(first, other, 40) * evaluate(second, point, 40),
        evaluate(second, other, 40) * evaluate(first, point, 40),
    )
    if abs(cross[0] - cross[1]) > abs(cross[0]) * 1e-25:
        return 0
    return 1 if above / below > 0 else -1
