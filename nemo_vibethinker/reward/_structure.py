r"""The shape of an answer: what it lists, in which brackets, under which names."""

import re
from dataclasses import dataclass
from itertools import product

_OPENING, _CLOSING = "([{", ")]}"
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:[, ]\d{3})+(?:\.\d+)?%?")
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")
_LETTERS = r"(?:\\?[A-Za-z]+)(?:_\{?[\w,]+\}?|_\\text\{\w+\})?'*"
NAME = re.compile(
    rf"(?:\\(?:angle|triangle|overline|vec|text|Delta)\{{?)? ?\|?{_LETTERS}\}}?(?:\((?:{_LETTERS}|\d+)(?:,{_LETTERS})*\))?\|?"  # noqa: E501
)
_LABEL = re.compile(r"(?:[A-Z_|:{}]|\\frac|\\text|\\overline|\\angle|\\triangle|\\odot|\\vec|\^\{?2\}?|[a-z](?=\})| )+")
_QUALIFIER = re.compile(
    r"[,;]?\s*(?:\(\s*)?(?:\\text\{|(?<![A-Za-z\\]))(?:,\s*)?(?:where|for (?:all|any|some|every|each|integers?))(?![A-Za-z])"  # noqa: E501
    r"|[,;]?\s*\(?\s*\\forall(?![A-Za-z])|[,(]\s*[kmnlt]\s*\\in\s*\\mathbb\{?[ZN]\}?.*$"
)
_TUPLE_LIKE = re.compile(r"\\begin\{([pbBvV]?)(?:small)?matrix\}(.*)\\end\{\1(?:small)?matrix\}", re.DOTALL)
_ARRAY = re.compile(r"[\[(]?\\begin\{array\}\{[^{}]*\}(.*)\\end\{array\}[\])]?", re.DOTALL)
_DETERMINANT = re.compile(r"\\begin\{(vmatrix)\}((?:(?!\\begin).)*?)\\end\{vmatrix\}", re.DOTALL)
_COMMA = r",|\\and(?![a-z])|(?<![A-Za-z\\])and(?![A-Za-z])"
_MAX_SIGNS = 4


@dataclass(frozen=True)
class Item:
    """One of the answers that a text lists: a value, or a tuple with `brackets`; `names` where it gives them."""

    values: tuple[str, ...]
    names: tuple[str, ...] = ()
    brackets: str = ""


def depths(text: str) -> list[int]:
    """How many brackets are open at each character; a bracket itself counts as outside."""
    depth, found = 0, []
    for character in text:
        depth -= character in _CLOSING
        found.append(depth)
        depth += character in _OPENING
    return found


def split(text: str, separator: str) -> list[str]:
    """The stripped parts between matches of the pattern `separator` outside all brackets."""
    level = depths(text)
    cuts = [found for found in re.finditer(separator, text) if level[found.start()] == 0]
    edges = [0, *(edge for cut in cuts for edge in cut.span()), len(text)]
    return [text[edges[i] : edges[i + 1]].strip() for i in range(0, len(edges), 2)]


def sides(text: str) -> list[str]:
    """The sides of a chain of equations."""
    return split(text, _EQUALS.pattern)


def is_name(text: str) -> bool:
    r"""Whether `text` names a quantity (`x`, `f(x)`, `a_{n}`, `AB`, `\angle ABC`, `\frac{NO}{BO}`) and states none."""
    text = text.strip()
    if text in ("e", "i", "\\pi", "\\infty", ""):
        return False
    return bool(NAME.fullmatch(text) or _LABEL.fullmatch(text) or re.fullmatch(r"\\text\{[^{}\d]*\}", text))


def without_qualifier(text: str) -> str:
    """The text before a condition on its letters such as "where k is an integer" or "for all n"."""
    for found in _QUALIFIER.finditer(text):
        if found.start() > 0 and depths(text)[found.start()] == 0:
            return text[: found.start()].rstrip(" ,;(")
    return text


def inside(text: str, opening: str, closing: str) -> str | None:
    """What is between one pair of brackets around all of `text`, or None."""
    if not text.startswith(opening) or not text.endswith(closing) or len(text) < len(opening) + len(closing):
        return None
    inner = text[len(opening) : len(text) - len(closing)]
    level = depths(text)
    return inner if min(level[len(opening) : len(text) - len(closing)], default=1) >= 1 else None


def elements(text: str) -> Item | None:
    r"""The tuple, interval, vector or one-row or one-column matrix that `text` is, or None."""
    for opening, closing in (("(", ")"), ("[", "]"), ("(", "]"), ("[", ")")):
        inner = inside(text, opening, closing)
        parts = split(inner, ",") if inner is not None else []
        if len(parts) > 1:
            return Item(tuple(parts), brackets=opening + closing)
    if (rows := matrix(text)) and 1 in (len(rows), len(rows[0])):
        cells = [cell for row in rows for cell in row]
        return Item(tuple(cells), brackets="()") if len(cells) > 1 else None
    return None


def matrix(text: str) -> list[list[str]] | None:
    """The rows of cells of a matrix, or None; a determinant is none."""
    found = _TUPLE_LIKE.fullmatch(text) or _ARRAY.fullmatch(text)
    if not found or (found.re is _TUPLE_LIKE and found[1] in ("v", "V")):
        return None
    body = found[found.lastindex or 1]
    rows = [row.strip() for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr(?![a-z])", body)]
    return [[cell.strip() for cell in row.replace("\\hline", "").split("&")] for row in rows if row] or None


def signs(text: str) -> list[list[str]]:
    r"""Readings of `\pm`: signs that move together and, where there are several, signs that are free."""
    count = len(re.findall(r"\\[pm]{2}(?![a-z])", text))
    if not 0 < count <= _MAX_SIGNS:
        return [[text]]
    together = [_signed(text, [sign] * count) for sign in "+-"]
    free = [_signed(text, list(choice)) for choice in product("+-", repeat=count)]
    return [together, free] if count > 1 else [together]


def _signed(text: str, choice: list[str]) -> str:
    left = iter(choice)

    def sign(found: re.Match[str]) -> str:
        chosen = next(left)
        return chosen if found[1] == "pm" else {"+": "-", "-": "+"}[chosen]

    return re.sub(r"(?<=[(,=])\+|^\+", "", re.sub(r"\\(pm|mp)(?![a-z]) ?", sign, text))


def items(text: str) -> list[Item]:
    """The answers that `text` lists: parts between semicolons and "or", these between commas and "and".

    Assignments to different names in one part are one item. A set in braces lists its elements.
    """
    inner = inside(text, "\\{", "\\}")
    text = text if inner is None else inner
    if wording := re.fullmatch(r"\\text\{([^{}\d]*)\}", text):
        text = wording[1]
    found: list[Item] = []
    separator = r";|\\or(?![a-z])|(?<![A-Za-z\\])or(?![A-Za-z])" + ("" if "\\begin" in text else r"|\\\\")
    for group in split(text, separator):
        if group:
            found += _group_items(group)
    return found


def _group_items(group: str) -> list[Item]:
    if _GROUPED.fullmatch(group):
        return [Item((re.sub("[, ]", "", group),))]
    parts = [part for part in split(group, _COMMA) if part]
    assigned = [sides(part) for part in parts]
    names = [chain[0] for chain in assigned if len(chain) == 2 and is_name(chain[0])]
    if len(parts) > 1 and len(set(names)) == len(parts):
        return [Item(tuple(chain[1] for chain in assigned), tuple(names), "()")]
    return [_item(part) for part in parts]


def _item(part: str) -> Item:
    chain = sides(part)
    named = elements(chain[0]) if len(chain) == 2 else None
    value = elements(chain[-1])
    if named and value and len(named.values) == len(value.values):
        return Item(value.values, named.values, value.brackets)
    return value if value and len(chain) == 1 else Item((part,))


def without_determinants(text: str) -> str:
    """The text with small determinants written out as sums of products."""
    while found := _DETERMINANT.search(text):
        rows = [[cell.strip() for cell in row.split("&")] for row in re.split(r"\\\\", found[2]) if row.strip()]
        if len(rows) > _MAX_SIGNS or any(len(row) != len(rows) for row in rows):
            break
        text = f"{text[: found.start()]}({_expanded(rows)}){text[found.end() :]}"
    return text


def _expanded(rows: list[list[str]]) -> str:
    if len(rows) == 1:
        return rows[0][0]
    minors = [[row[:column] + row[column + 1 :] for row in rows[1:]] for column in range(len(rows))]
    terms = [f"({cell})({_expanded(minor)})" for cell, minor in zip(rows[0], minors, strict=True)]
    return "".join(("-" if index % 2 else "+" * (index > 0)) + term for index, term in enumerate(terms))
