r"""One spelling for what LaTeX, Unicode and plain text write in many ways; applied to references and answers alike.

Nothing that carries meaning is dropped: words stay as `\text{...}`, percent and degree signs and units stay.
"""

import re

_UNICODE = {
    "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ",
    "\u2217": "*", "\u00f7": "\\div ", "\u2044": "/", "\u2215": "/", "\u03c0": "\\pi ", "\u221e": "\\infty ",
    "\u2264": "\\le ", "\u2265": "\\ge ", "\u2a7d": "\\le ", "\u2a7e": "\\ge ", "\u2260": "\\ne ", "\u2248": "\\approx ",  # noqa: E501
    "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2208": "\\in ", "\u2205": "\\emptyset ", "\u00b1": "\\pm ",
    "\u211d": "\\mathbb{R}", "\u2124": "\\mathbb{Z}", "\u2115": "\\mathbb{N}", "\u211a": "\\mathbb{Q}",
    "\u03b1": "\\alpha ", "\u03b2": "\\beta ", "\u03b3": "\\gamma ", "\u03b8": "\\theta ", "\u03bb": "\\lambda ",
    "\u03bc": "\\mu ", "\u03c6": "\\phi ", "\u03c9": "\\omega ", "\u03b4": "\\delta ", "\u03c3": "\\sigma ",
    "\u00b0": "^\\circ ", "\u2220": "\\angle ", "\u25b3": "\\triangle ", "\u221a": "\\sqrt ", "\u2032": "'",
    "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u3000": " ", "\u2026": "\\ldots ", "\u2261": "\\equiv ",
    "\u00bd": "\\frac{1}{2}", "\u00bc": "\\frac{1}{4}", "\u00be": "\\frac{3}{4}", "\u2153": "\\frac{1}{3}",
    "\u2154": "\\frac{2}{3}", "\uff0c": ",", "\u3002": ".", "\uff1a": ":", "\uff1b": ";", "\uff08": "(", "\uff09": ")",
    "\u3001": ",", "\uff0b": "+", "\uff1d": "=", "\uff1c": "<", "\uff1e": ">", "\u2018": "'", "\u2019": "'",
    "\u2223": "|", "\u27e8": "\\langle ", "\u27e9": "\\rangle ", "\u00a3": "", "\u20ac": "", "\u00a5": "",
}  # fmt: skip
_FOREIGN = re.compile("[" + "".join(map(re.escape, _UNICODE)) + "]")
_SUPERSCRIPTS = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-")
_RAISED = re.compile(f"[{''.join(map(chr, _SUPERSCRIPTS))}]+")

# Control characters that a JSON or Python string literal left in place of a command's backslash and first letter.
_ESCAPED = {"\f": "\\f", "\b": "\\b", "\v": "\\v", "\a": "\\a", "\t": "\\t", "\r": "\\r"}
_BROKEN_ESCAPE = re.compile(
    r"[\f\b\v\a](?=[a-z])|\t(?=(?:ext|imes|heta|an|frac|au|o)(?![a-z]))|\r(?=(?:ight|ho|angle|ceil|floor)(?![a-z]))"
)
_DOUBLED = re.compile(r"\\{2,}(?=(?:[a-zA-Z]{2}|[{}%$]))")
_ENVIRONMENT = re.compile(r"\\begin\{[a-z]*(?:matrix|array|cases|aligned?)\*?\}")

_SIZES = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\.?|\\(?:display|text|script)style(?![a-zA-Z])")
_SILENT = re.compile(r"\\!|\\(?:limits|nolimits|hfill|rm|bf|it|mathrm|boldsymbol|phantom\{[^{}]*\})(?![a-zA-Z{])")
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|\\begin\{(?:equation|align|gather|math|displaymath)\*?\}|"
                         r"\\end\{(?:equation|align|gather|math|displaymath)\*?\}|\$")  # fmt: skip
_SPACES = re.compile(r"(?<!\\)\\[,;:> ]|\\(?:q?quad|[tm]hinspace|enspace|space|newline)(?![a-zA-Z])|~|\s+")
_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|math(?:rm|bf|sf|it|tt|normal)|mbox|hbox|operatorname\*?|emph|boldsymbol|bm|pmb)\s*\{([^{}]*)\}"
)
_OPERATORS = "arcsin|arccos|arctan|arccot|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|lg|exp|min|max|gcd|lcm"
_PLAIN_FUNCTION = re.compile(rf"(?<![\\A-Za-z{{])(?:{_OPERATORS}|sqrt|pi|infty|inf|oo)(?![A-Za-z])")
_STYLED_FUNCTION = re.compile(rf"(?:{_OPERATORS})")
_SYNONYMS = [
    (re.compile(rf"\\(?:{names})(?![a-zA-Z])"), value)
    for names, value in {
        "leq|leqslant|leqq": "\\\\le", "geq|geqslant|geqq": "\\\\ge", "neq": "\\\\ne", "[dtc]frac": "\\\\frac",
        "dbinom|tbinom|choose": "\\\\binom", "lvert|rvert|vert|mid": "|", "lbrace": "\\\\{", "rbrace": "\\\\}",
        "cdots|ldots|dotsc|dotsb|dotsm|dots": "\\\\dots", "to|rightarrow|longrightarrow|implies|Rightarrow": "\\\\to",
        "tg": "\\\\tan", "ctg": "\\\\cot", "arctg": "\\\\arctan", "cosec": "\\\\csc", "varnothing": "\\\\emptyset",
        "lbrack": "[", "rbrack": "]", "land|wedge": "\\\\and", "lor|vee": "\\\\or", "backslash": "\\\\setminus", "langle": "(", "rangle": ")",  # noqa: E501
        "simeq|thickapprox|cong": "\\\\approx", "cupdot|bigcup": "\\\\cup", "lt": "<", "gt": ">", "colon": ":",
        "notin": "\\\\notin", "degree": "^\\\\circ", "rm|bf": "", "ast": "*", "dollar|pounds|euro": "",
        "perp": "\\\\perp", "varphi": "\\\\phi", "varepsilon": "\\\\epsilon", "thinspace": "",
    }.items()
]  # fmt: skip
_UNIT_LETTERS = set("mgsLlNVWJAKhCFP")
_AFTER_NUMBER = re.compile(r"[\d}](?:\\?[ ,;:~]|\s)*\Z")
_ASCII = {"!=": "\\ne ", "<=": "\\le ", ">=": "\\ge ", "**": "^", "\\R": "\\mathbb{R}", "\\Z": "\\mathbb{Z}"}
_WRITTEN = re.compile(r"!=(?!=)|<=|>=|\*\*|\\[RZ](?![a-zA-Z])")
_DEGREES = re.compile(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])")
_SUBSCRIPT = re.compile(r"_\s*\{\s*([0-9A-Za-z])\s*\}")
_THOUSANDS = re.compile(r"(?<=\d) ?\{, ?\} ?(?=\d)|(?<=\d),\\!\s*(?=\d)|(?<=\d)\\[,!;:](?=\d{3}(?!\d))")
_ROOT_OF_BRACKET = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_LOOSE_SPACE = re.compile(r"(?<![0-9A-Za-z\\]) +| +(?![0-9A-Za-z\\])|(?<![0-9A-Za-z]) +(?=\\)|(?<=[0-9]) +(?=\\)")
_SPACED_LIST, _BRACKET = re.compile(r",\s"), re.compile(r"[(\[]")
_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)")
_STRAY_STOP = re.compile(r"(?<=[}\d])\.(?= *[)\]}])")
_PERCENT = re.compile(r"(?<=[\d}]) ?(?:\\text\{ ?)?(?:percent|per cent|pct)(?![A-Za-z])\}?")
_CONNECTIVE = re.compile(r"(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])", re.IGNORECASE)


def canonical(text: str) -> str:
    r"""The text in the one spelling that the rest of the verifier reads; idempotent on its own output."""
    text = _BROKEN_ESCAPE.sub(lambda found: _ESCAPED[found[0]], text)
    if not text.isascii():
        text = _RAISED.sub(lambda found: "^{" + found[0].translate(_SUPERSCRIPTS) + "}", text)
        text = _FOREIGN.sub(lambda found: _UNICODE[found[0]], text)
    if "\\\\" in text and not _ENVIRONMENT.search(text):
        text = _DOUBLED.sub(r"\\", text)
    if "\\" in text or "$" in text or "{" in text:
        text = _commands(text)
    if "sqrt" in text or _PLAIN_FUNCTION.search(text):
        text = _plain_functions(text)
    text = _STRAY_STOP.sub("", _PERCENT.sub("%", text))
    text = _WRITTEN.sub(lambda found: _ASCII[found[0]], text)
    if _SPACED_LIST.search(text) and not _BRACKET.search(text):
        text = _GROUPS.sub(lambda found: found[0].replace(",", ""), text)
    text = _LOOSE_SPACE.sub("", _SPACES.sub(" ", text)).strip()
    return _bare_end(text)


def _commands(text: str) -> str:
    text = _THOUSANDS.sub("", text.replace("\\$", "")).replace("\\%", "%")
    text = _SIZES.sub("", _SILENT.sub("", text))
    text = _DELIMITERS.sub("", text)
    text = _STYLE.sub(_styled, text)
    for pattern, value in _SYNONYMS:
        text = pattern.sub(value, text)
    text = _DEGREES.sub("^\\\\circ ", text)
    return _SUBSCRIPT.sub(r"_\1", text.replace("\\text{}", ""))


def _styled(found: re.Match[str]) -> str:
    """Style around a letter, a number or a function name means nothing; connectives get commands; words are kept."""
    inner = found[1].strip()
    if _STYLED_FUNCTION.fullmatch(inner):
        return f"\\{inner} "
    if inner in _UNIT_LETTERS and _AFTER_NUMBER.search(found.string, 0, found.start()):
        return f"\\text{{{inner}}}"
    if len(inner) < 2 or re.fullmatch(r"[-+]?[\d.,]+%?|\([A-Z]\)|[A-Z]\)?|[^A-Za-z]+", inner):
        return " " + inner + " "
    if _CONNECTIVE.fullmatch(inner):
        return f" \\{inner.lower()} "
    return "\\text{" + " ".join(inner.split()) + "}"


def _plain_functions(text: str) -> str:
    outside = re.split(r"(\\text\{[^{}]*\})", text)
    for index in range(0, len(outside), 2):
        part = _PLAIN_FUNCTION.sub(_named, outside[index])
        outside[index] = _ROOT_OF_BRACKET.sub(r"\\sqrt{\1}", part)
    return "".join(outside)


def _named(found: re.Match[str]) -> str:
    name = "infty" if found[0] in ("inf", "oo") else found[0]
    return f"\\{name} "


def _bare_end(text: str) -> str:
    """Without the full stop, comma or backslash at the end, and without braces or quotes around all of it."""
    text = re.sub(r"(?<![\\.,;:])\s*[.,;:]?\s*$|\\+$", "", text).strip()
    if text[:1] == "{" and text[-1:] == "}" and "{" not in text[1:] and "}" not in text[:-1]:
        return text[1:-1]
    return text
