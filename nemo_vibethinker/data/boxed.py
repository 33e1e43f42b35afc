r"""The last \boxed{...} of a text."""

import re

_OPENING = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...} or \fbox{...}, braces balanced; None if there is none.

    "\boxed 5" without braces gives "5". An unclosed brace counts as no box.
    """
    openings = list(_OPENING.finditer(text))
    if not openings:
        return None
    rest = text[openings[-1].end() :]
    if not rest.startswith("{"):
        bare = re.match(r"[^\s$.,{}]+", rest)
        return bare.group() if bare else None
    depth = 0
    for match in re.finditer(r"\\.|[{}]", rest):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return rest[1 : match.start()].strip()
    return None
