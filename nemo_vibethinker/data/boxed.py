r"""Boxed answers in a text: the one place that reads `\boxed{...}`, for readers and verifiers alike."""

import re

_OPENING = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_TOKEN = re.compile(
    r"(?<!\\)\\+(?:boxed|fbox)(?![A-Za-z])(?:\s*(?P<brace>\{)|\s*(?P<bare>[^\s$.,{}\\]+))?|\\.|[{}]", re.DOTALL
)
_NESTED = re.compile(r"\s*\\(?:boxed|fbox)\s*\{([^{}]*)\}\s*")

Span = tuple[int, int, str]


def boxes(text: str) -> list[Span]:
    r"""Every outermost closed box of `text` as (start, end, content), in order; linear time.

    Braces balance and escaped ones do not count; a box that is never closed is none, and does not hide those before
    it or inside it. `\fbox` counts as `\boxed`, and `\boxed 5` is a box of what follows up to a space or punctuation.
    """
    first = _OPENING.search(text)
    begin = len(text[: first.start()].rstrip("\\")) if first else 0
    opened: list[tuple[int, int]] = []  # start of the box or -1 for a plain brace, and start of the content
    closed: list[Span] = []
    for token in _TOKEN.finditer(text, begin) if first else ():
        if token[0] == "{":
            opened.append((-1, -1))
        elif token["brace"]:
            opened.append((token.start(), token.end()))
        elif token["bare"]:
            closed.append((token.start(), token.end(), token["bare"]))
        elif token[0] == "}" and opened:
            start, inside = opened.pop()
            if start >= 0:
                _close(closed, (start, token.end(), text[inside : token.start()]))
    return closed


def _close(closed: list[Span], box: Span) -> None:
    while closed and closed[-1][0] > box[0]:
        closed.pop()
    closed.append((*box[:2], _unwrap(box[2])))


def _unwrap(content: str) -> str:
    r"""The innermost content where a box holds nothing but a box."""
    while nested := _NESTED.fullmatch(content):
        content = nested[1]
    return content.strip()


def last_boxed(text: str) -> str | None:
    r"""Content of the last closed `\boxed{...}` of `text` by the rules of `boxes`, or None if there is none."""
    found = boxes(text)
    return found[-1][2] if found else None
