r"""Units and other words after a number: `12 \text{ cm}`, `15th day`, `3 million`.

A unit that only one side names is dropped; two units that are both known have to be the same, powers included.
"""

import re

_KNOWN = {
    "mm": "mm|millimet(?:er|re)s?", "cm": "cms?|centimet(?:er|re)s?", "dm": "decimet(?:er|re)s?", "m": "m|met(?:er|re)s?",  # noqa: E501
    "km": "km|kilomet(?:er|re)s?", "in": "in|inch|inches", "ft": "ft|foot|feet", "yd": "yds?|yards?", "mi": "miles?",
    "mg": "mg|milligrams?", "g": "g|gm|grams?", "kg": "kgs?|kilograms?", "lb": "lbs?|pounds?", "oz": "oz|ounces?",
    "t": "tons?|tonnes?", "ml": "ml|millilit(?:er|re)s?", "l": "l|lit(?:er|re)s?", "gal": "gallons?", "s": "s|secs?|seconds?",  # noqa: E501
    "min": "mins?|minutes?", "h": "h|hrs?|hours?", "d": "days?", "wk": "weeks?", "mo": "months?", "yr": "yrs?|years?",
    "dollar": "dollars?", "cent": "cents?", "N": "newtons?", "J": "joules?", "W": "watts?", "V": "volts?",
    "degree": "degrees?|degs?", "radian": "radians?|rads?",
}  # fmt: skip
_NAMES = {name: re.compile(pattern) for name, pattern in _KNOWN.items()}
_RATES = re.compile(r"(?:km|m|ft|mi|cm)/?(?:h|s|hr|sec|min)|mph|kph|kmph|km/h")
_NOT_UNITS = {
    "or", "and", "to", "not", "no", "least", "most", "more", "less", "than", "maybe", "about", "if", "else", "with", "e", "i",  # noqa: E501
    "hundred", "thousand", "million", "billion", "trillion", "dozen", "percent", "pct", "base", "mod", "where", "for",
    "plus", "minus", "times", "over", "when", "approximately", "is", "but", "only", "except", "perhaps", "either", "wrong",  # noqa: E501
    "incorrect", "false", "remainder", "half", "squared", "cubed", "factorial", "hours'", "pi", "sqrt", "sin", "cos", "infty",  # noqa: E501
}  # fmt: skip
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALED = re.compile(rf"(-?\d[\d.,]*)(?:\\text\{{| )({'|'.join(_SCALES)})\b\}}?")
_WORDS = re.compile(
    r"(?:(?P<value>.*[^\s{(\[,;=<>|])\\text\{(?P<text>[A-Za-z/.' -]+)\}"
    r"|(?P<number>.*[\d)}]) ?(?P<bare>(?:[A-Za-z]{2,}|[a-z](?=/))(?:/[A-Za-z]+)?(?:[.' ]+[A-Za-z]{2,}){0,3}\.?))(?:\^\{?(?P<power>[23])\}?)?",  # noqa: E501
    re.DOTALL,
)
_ORDINAL = re.compile(
    r"(?<=\d)\\text\{(?:st|nd|rd|th)(?= )|(?<=\d)(?:\\text\{|\^\{|\^\{\\text\{)?(?:st|nd|rd|th)\}{0,2}(?![A-Za-z])"
)
_CURRENCY = re.compile(r"(?:\\text\{)?(?:Rs\.?|USD|RMB|EUR)\}? ?(?=\d)")
_LETTER_AFTER_DECIMAL = re.compile(r"(-?[\d,]+\.\d+)([mgsLN])(?:\^\{?([23])\}?)?")
_MAX_TEXT = 300  # characters of a quantity with its unit
_EXTRA = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}


def split_unit(text: str) -> tuple[str, str]:
    """The value without its unit, and the unit: its known name with power, or "" if there is none known."""
    text = _CURRENCY.sub("", _ORDINAL.sub(_without_ordinal, text))
    if scaled := _SCALED.match(text):
        zeros = "0" * _SCALES[scaled[2]]
        text = f"{scaled[1]}\\cdot 1{zeros}{text[scaled.end() :]}"
    if letter := _LETTER_AFTER_DECIMAL.fullmatch(text):
        return letter[1], _known(letter[2], letter[3])
    found = (
        _WORDS.fullmatch(text)
        if len(text) < _MAX_TEXT and (text[-1:].isalpha() or text.endswith(("}", "2", "3", ".", ")")))
        else None
    )
    if found is None:
        return text, ""
    words = (found["text"] or found["bare"]).split()
    if not words or len(words) > 4 or any(word.casefold().strip(".") in _NOT_UNITS for word in words):
        return text, ""
    if found["bare"] and not _is_wordy(found["bare"]):
        return text, ""
    return found["value"] or found["number"], _known(" ".join(words), found["power"])


def _without_ordinal(found: re.Match[str]) -> str:
    return "\\text{" if found[0].startswith("\\text") and not found[0].endswith("}") else ""


def _is_wordy(words: str) -> bool:
    """Letters right after a number are variables unless they are a known unit or look like a word."""
    return bool(_known(words.strip(), None)) or (words[0].islower() and max(map(len, words.split())) > 3)


def _known(words: str, power: str | None) -> str:
    exponent = int(power or 1)
    parts = [word.casefold().strip(".") for word in words.split()]
    while parts and parts[0] in _EXTRA:
        exponent *= _EXTRA[parts.pop(0)]
    word = "".join(parts)
    if _RATES.fullmatch(word):
        return {"mph": "mi/h", "kph": "km/h", "kmph": "km/h"}.get(word, word)
    name = next((name for name, pattern in _NAMES.items() if pattern.fullmatch(word)), "")
    return f"{name}^{exponent}" if name else ""
