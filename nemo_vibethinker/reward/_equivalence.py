r"""Whether two answers in canonical notation mean the same; runs in a child process.

The reference is trusted, the answer is not: whatever of it is not understood in full makes it wrong. Expressions are
compared by `_numeric`, sets of numbers by `_regions`; only notation beyond both is left to math-verify.
"""

import re
from fractions import Fraction

from nemo_vibethinker.reward import _symbolic
from nemo_vibethinker.reward._answers import plain_number, words
from nemo_vibethinker.reward._expression import NotAnExpression, Tree, parse
from nemo_vibethinker.reward._numeric import Undefined, equal, evaluate, exact_constant, symbols
from nemo_vibethinker.reward._regions import NotARegion, looks_like_region, same_region, same_relation
from nemo_vibethinker.reward._structure import (
    Item,
    inside,
    is_name,
    items,
    matrix,
    sides,
    signs,
    split,
    without_determinants,
    without_qualifier,
)  # fmt: skip
from nemo_vibethinker.reward._units import split_unit

_PARAMETERS = set("kntmlcsCN")
_PERIODIC = re.compile(r"\\in ?\\mathbb\{?[ZN]|integers?|\\pi")
_DECIMAL = re.compile(r"-?\d*\.\d{2,}")
_RATIO = re.compile(r"(?<!\\):(?!=)")
_ABOUT = r"\\approx(?![a-z])"
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}|\\text")
_NEAR = Fraction(1, 100)


def equivalent(gold: str, answer: str) -> bool:
    """Whether `answer` states what `gold` states. Raises TooLarge where a value is beyond what is worth computing."""
    family = bool(_PERIODIC.search(gold) or _PERIODIC.search(answer))
    gold, answer = without_qualifier(gold), without_qualifier(answer)
    if looks_like_region(gold) or looks_like_region(answer):
        verdict = _regions(gold, answer)
        if verdict is not None:
            return verdict
    expected, given = _listed(gold), _listed(answer)
    return any(_match(one, other, family) for one in expected for other in given)


def _regions(gold: str, answer: str) -> bool | None:
    try:
        return same_region(gold, answer)
    except NotARegion:
        pass
    try:
        return same_relation(gold, answer)
    except (NotARegion, NotAnExpression):
        return None


def _listed(text: str) -> list[list[Item]]:
    r"""The listed answers, in every reading of the signs `\pm` in them; alike ones once."""
    readings: list[list[Item]] = [[]]
    for part in items(text):
        options = [[_resigned(part, sign) for sign in reading] for reading in signs("\0".join(part.values))]
        readings = [reading + option for reading in readings for option in options][:8]
    return [list(dict.fromkeys(reading)) for reading in readings]


def _resigned(item: Item, values: str) -> Item:
    return Item(tuple(value.removeprefix("+") for value in values.split("\0")), item.names, item.brackets)


def _match(expected: list[Item], given: list[Item], family: bool) -> bool:
    if len(expected) != len(given):
        return _one_named(expected, given, family)
    rest = list(given)
    for item in expected:
        found = next((other for other in rest if _same_item(item, other, family)), None)
        if found is None:
            return False
        rest.remove(found)
    return True


def _one_named(expected: list[Item], given: list[Item], family: bool) -> bool:
    """`a=1, b=2` against `1, 2`: in order where the reference has the names, in any order where the answer has."""
    if len(expected) == 1 and expected[0].names and all(len(item.values) == 1 for item in given):
        values = [item.values[0] for item in given]
        return len(values) == len(expected[0].values) and all(
            _same_part(one, other, family) for one, other in zip(expected[0].values, values, strict=True)
        )
    if len(given) == 1 and given[0].names and all(len(item.values) == 1 for item in expected):
        return _match(expected, [Item((value,)) for value in given[0].values], family)
    return False


def _same_item(gold: Item, answer: Item, family: bool) -> bool:
    if len(gold.values) != len(answer.values):
        return False
    if len(gold.values) == 1:
        return _same_part(gold.values[0], answer.values[0], family)
    values = answer.values
    if gold.names and answer.names:
        if set(gold.names) != set(answer.names):
            return False
        values = tuple(values[answer.names.index(name)] for name in gold.names)
    elif not gold.names and not answer.names and gold.brackets != answer.brackets:
        return False
    return all(_same_part(one, other, family) for one, other in zip(gold.values, values, strict=True))


def _same_part(gold: str, answer: str, family: bool = False) -> bool:
    """One answer against one: an equation, a matrix, a ratio or an expression."""
    left, right = sides(gold), sides(answer)
    if len(left) == len(right) == 1:
        return _same_value(gold, answer, family)
    if len(left) == 1:
        return _value_against_chain(gold, right, family)
    if len(right) == 1:
        return _chain_against_value(left, answer, family)
    if left[0] == right[0] or (len(left) == len(right) == 2 and _renamed(left, right)):
        right = [*right[:-1], _exact_side(right[-1])]
        return _same_value(left[-1], right[-1], family) and _consistent(right)
    return len(left) == len(right) == 2 and _same_equation(left, right)


def _value_against_chain(gold: str, chain: list[str], family: bool) -> bool:
    """A value against `name = ... = value`, or against a chain whose sides all have to be the value."""
    if is_name(chain[0]):
        chain = [*chain[:-1], _exact_side(chain[-1])]
        return _same_value(gold, chain[-1], family) and _consistent(chain)
    return all(_same_value(gold, side, family) for side in chain)


def _exact_side(side: str) -> str:
    r"""What stands before the approximation in `name = exact \approx about`."""
    return split(side, _ABOUT)[0]


def _consistent(chain: list[str]) -> bool:
    """Whether a chain commits to its last side: it derives it by some computation, or no other number stands before it."""  # noqa: E501
    before = [side for side in chain[1:-1] if not is_name(side)]
    numbers = [side for side in before if plain_number(side) is not None]
    return len(numbers) < len(before) or all(_same_value(chain[-1], side, False) for side in numbers)


def _chain_against_value(chain: list[str], answer: str, family: bool) -> bool:
    """The reference names a quantity, or states that a constant has a value."""
    if any(is_name(side) for side in chain[:-1]):
        return _same_value(chain[-1], answer, family)
    tree = _tree(chain[0])
    constant = tree is not None and not symbols(tree) and _same_value(chain[0], chain[-1], False)
    return constant and _same_value(chain[-1], answer, family)


def _renamed(left: list[str], right: list[str]) -> bool:
    """`f(x) = ...` against `f(n) = ...`: rewrites the answer's variable in place."""
    names = [re.fullmatch(r"([A-Za-z]'*)\(([A-Za-z])\)", side[0]) for side in (left, right)]
    if not names[0] or not names[1] or names[0][1] != names[1][1]:
        return False
    right[1] = re.sub(rf"(?<![\\A-Za-z]){names[1][2]}(?![A-Za-z])", names[0][2], right[1])
    return True


def _same_equation(gold: list[str], answer: list[str]) -> bool:
    """Proportional differences of the sides. Where the reference is solved for a name, the answer has to be solved,
    or in a standard form with a constant side: else the problem's own equation would do."""
    trees = [_tree(side) for side in (*gold, *answer)]
    if any(tree is None for tree in trees):
        return False
    first, second, third, fourth = (tree for tree in trees if tree is not None)
    if is_name(gold[0]) and not symbols(second):
        return is_name(answer[1]) and answer[1] == gold[0] and equal(second, third)
    if is_name(gold[0]) and not is_name(answer[0]) and symbols(third) and symbols(fourth):
        return False
    left, right = ("add", first, ("neg", second)), ("add", third, ("neg", fourth))
    return _proportional(left, right)


def _proportional(first: Tree, second: Tree) -> bool:
    names = sorted(symbols(first) | symbols(second))
    point = {name: Fraction(59, 41) + Fraction(index * 17, 31) for index, name in enumerate(names)}
    try:
        values = evaluate(first, point), evaluate(second, point)
        if not names or not values[0] or not values[1] or abs(values[0]) < 1e-20 or abs(values[1]) < 1e-20:
            return False
    except Undefined:
        return False
    shifted = [_at(tree, point) for tree in (first, second)]
    return equal(("mul", first, shifted[1]), ("mul", second, shifted[0]))


def _at(tree: Tree, point: dict[str, Fraction]) -> Tree:
    """The tree with numbers for its symbols."""
    if tree[0] == "sym":
        return ("num", point[tree[1]])
    return (tree[0], *(_at(part, point) if isinstance(part, tuple) else part for part in tree[1:]))


def _same_value(gold: str, answer: str, family: bool) -> bool:
    gold, answer = gold.strip(), answer.strip()
    if gold == answer or (words(gold) and words(gold) == words(answer)):
        return bool(gold)
    if not gold or not answer:
        return False
    approximate = split(answer, _ABOUT)
    if len(approximate) == 2:
        return _same_approximate(gold, *approximate, family=family)
    gold = split(gold, _ABOUT)[0] if not is_name(split(gold, _ABOUT)[0]) else split(gold, _ABOUT)[-1]
    expected, given = matrix(gold), matrix(answer)
    if expected and given:
        return _same_matrix(expected, given)
    if _RATIO.search(gold) or _RATIO.search(answer):
        return _same_ratio(gold, answer)
    nested = _nested(gold, answer, family)
    return _same_expression(gold, answer, family) if nested is None else nested


def _nested(gold: str, answer: str, family: bool) -> bool | None:
    """Tuples and sets as elements of a list; None where neither is one."""
    left, right = items(gold), items(answer)
    if len(left) == len(right) == 1 and len(left[0].values) == len(right[0].values) == 1:
        bare = [inside(text, "\\{", "\\}") for text in (gold, answer)]
        return None if bare == [None, None] else _same_expression(bare[0] or gold, bare[1] or answer, family)
    braces = [inside(text, "\\{", "\\}") is None for text in (gold, answer)]
    return braces[0] == braces[1] and _match(left, right, family)


def _same_approximate(gold: str, exact: str, about: str, *, family: bool) -> bool:
    r"""`exact \approx about` states the exact value, if the other is within a hundredth; `name \approx about` that."""
    if is_name(exact):
        return _same_value(gold, about, family)
    trees = _tree(exact), _tree(about)
    if trees[0] is None or trees[1] is None or symbols(trees[0]) or symbols(trees[1]):
        return False
    values = evaluate(trees[0], {}), evaluate(trees[1], {})
    return abs(values[0] - values[1]) <= abs(values[0]) * float(_NEAR) and _same_value(gold, exact, family)


def _same_matrix(gold: list[list[str]], answer: list[list[str]]) -> bool:
    if [len(row) for row in gold] != [len(row) for row in answer]:
        return False
    cells = [zip(one, other, strict=True) for one, other in zip(gold, answer, strict=True)]
    return all(_same_part(one, other) for row in cells for one, other in row)


def _same_ratio(gold: str, answer: str) -> bool:
    left, right = ([part for part in _RATIO.split(_after_label(text))] for text in (gold, answer))
    if len(left) == len(right) == 1 or len(left) > 2 or len(right) > 2:
        left, right = left * (len(right) if len(left) == 1 else 1), right
        return len(left) == len(right) > 2 and _same_ratios(left, right)
    trees = [_tree(f"({parts[0]})/({parts[1]})" if len(parts) == 2 else parts[0]) for parts in (left, right)]
    return trees[0] is not None and trees[1] is not None and equal(trees[0], trees[1])


def _same_ratios(left: list[str], right: list[str]) -> bool:
    pairs = [
        (_tree(f"({left[0]})({other})"), _tree(f"({one})({right[0]})")) for one, other in zip(left, right, strict=True)
    ]
    return all(one is not None and other is not None and equal(one, other) for one, other in pairs)


def _after_label(text: str) -> str:
    """`A:B=1:2` and `Paolo: 18` without the label."""
    return re.sub(r"^[A-Za-z]{2,}: ?(?=[\d(\\-])", "", sides(text)[-1])


def _same_expression(gold: str, answer: str, family: bool) -> bool:
    (expected, unit), (given, other) = split_unit(gold), split_unit(answer)
    if unit and other and unit != other:
        return False
    degrees = _degrees(expected), _degrees(given)
    if bool(degrees[0]) != bool(degrees[1]):
        expected, given = degrees[0] or expected, degrees[1] or given
        if _compare(expected, given, family):
            return True
        expected, given = (
            f"({text})\\pi/180" if had else text for text, had in zip((expected, given), degrees, strict=True)
        )
        return "\\pi" in gold + answer and _compare(expected, given, family)
    return _compare(expected, given, family)


def _degrees(text: str) -> str:
    """The number of degrees that `text` is, or nothing."""
    found = re.fullmatch(r"(-?[\d./\\a-z{}]*)\^\\circ ?", text)
    return found[1] if found else ""


def _compare(gold: str, answer: str, family: bool) -> bool:
    expected, given = _tree(gold), _tree(answer)
    if expected is None or given is None:
        return _symbolic.equal(gold, answer)
    if symbols(expected) != symbols(given) and family:
        given = _with_parameter(expected, given)
    return equal(expected, given) or _rounded(gold, given)


def _with_parameter(expected: Tree, given: Tree) -> Tree:
    """Families of solutions: the one letter in which they differ is a counter and may have another name."""
    missing, extra = symbols(expected) - symbols(given), symbols(given) - symbols(expected)
    if len(missing) == len(extra) == 1 and extra <= _PARAMETERS:
        return _substitute(given, extra.pop(), missing.pop())
    return given


def _substitute(tree: Tree, old: str, new: str) -> Tree:
    if tree == ("sym", old):
        return ("sym", new)
    return (tree[0], *(_substitute(part, old, new) if isinstance(part, tuple) else part for part in tree[1:]))


def _rounded(gold: str, given: Tree) -> bool:
    """Whether the reference is a decimal of three digits and more that rounds or cuts the answer's exact value, which
    has no finite decimal."""
    if not _DECIMAL.fullmatch(gold) or len(gold.strip("-0.").replace(".", "")) < 3 or symbols(given):
        return False
    exact = exact_constant(given)
    if exact is not None and 10**60 % exact.denominator == 0:
        return False
    value = evaluate(given, {})
    return not value.imag and abs(value - evaluate(parse(gold), {})) < 10.0 ** -len(gold.partition(".")[2])


def _tree(text: str) -> Tree | None:
    text = without_determinants(text)
    if _WORD.search(text):
        return None
    try:
        return parse(text)
    except NotAnExpression:
        return None
