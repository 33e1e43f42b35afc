"""The known formats, each told by its columns; the first that matches is taken."""

from typing import Any

from nemo_vibethinker.data.readers import chat_formats, code_formats, math_formats
from nemo_vibethinker.data.readers.fields import Format

_OPENR1, *_MATH = math_formats.FORMATS  # OpenR1-Math has messages beside its generations
_VERL, *_CHAT = chat_formats.FORMATS
FORMATS = (_OPENR1, _VERL, *code_formats.FORMATS, *_CHAT, *_MATH)


def sniff(row: dict[str, Any]) -> Format:
    """The format of a row, whose columns are in lower case; ValueError lists those seen and the known formats."""
    for known in FORMATS:
        if known.matches(row):
            return known
    rules = "; ".join(f"{known.rule} ({known.name})" for known in FORMATS)
    raise ValueError(f"has columns {', '.join(sorted(row))}; known formats: {rules}")
