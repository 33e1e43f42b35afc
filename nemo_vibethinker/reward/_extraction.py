r"""Where a response states its final answer. The rules, in this order:

1. Reasoning does not count: only what follows the last `</think>` is read, and a response whose `<think>` is never
   closed has no answer (it was cut off).
2. The last closed `\boxed{...}`. Boxes joined by nothing but a comma, a semicolon, "and" or "or" are one list, so that
   boxing several candidates is an answer of several values.

The rest only where `boxed_only` is off:

3. A "final answer is ..." after the last box overrules it, if it gives a formula in dollars or a number.
4. `<answer>...</answer>`, or what follows `####`.
5. The last "answer is ...", "answer: ...", "result is ..." (also in eight other languages), up to the end of its sentence.
6. The last sentence, where it ends in a formula or number after "is", "=", "equals", in a bold one or in an equation or
   inequality in dollars, or where it draws a conclusion ("So ...", "Therefore ...") with a number in it; in non-Latin scripts, its last number.
7. Display mathematics that ends the text.

A sentence that offers several numbers as alternatives states none of them. Without any of these there is no answer.
"""  # noqa: E501

import re
from dataclasses import dataclass

from nemo_vibethinker.data.boxed import Span, boxes

_LAYOUT = re.compile(r"\\(?:q?quad|text|mathrm|newline)(?![a-z])|\\[,;: ()\[\]\\]|[\s$.{}~*]")
_JOIN = re.compile(r"[,;]?(?:and|or|&)?[,;]?(?:\\?[A-Za-z]+(?:_\d+)?=)?", re.IGNORECASE)
_LOOSE_JOIN = re.compile(r"[A-Za-z]{0,12}?[^A-Za-z\d]*(?:and|or)?[^A-Za-z\d]*", re.IGNORECASE)
_PERCENT = re.compile(r"[\s$)\\]*(?:%|percent|pct)")
_SPECIAL_TOKEN = re.compile(r"<\|[^<>|]{1,40}\|>.*", re.DOTALL)
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"####\s*([^\n]+)")
_MATHS = r"\$\$?[^$]+\$\$?|\\\(.+?\\\)|\\\[.+?\\\]"
_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?(?:\s?/\s?\d+)?\s?(?:\\?%|\$(?![\d$]))?"
_FINAL = re.compile(rf"final answer(?: is)?\s*:?\s*({_MATHS}|{_NUMBER}(?=[.\s]|$))", re.IGNORECASE | re.DOTALL)
_STATED = re.compile(
    r"(?:\banswer|\bresult|\bsolution|\bvalue)(?:\s+(?:to|of|for)\s[^.\n]{1,80}?)?\s*(?:\s(?:is|are|equals|will be|must be)\b|:|=)\s*:?"  # noqa: E501
    r"|\banswers?\s(?=\$|\\\()"
    r"|\u7b54\u6848\s*[\u662f\u4e3a\u70ba:\uff1a]+|\u7b54\u3048\u306f|\uc815\ub2f5\uc740"
    r"|r[e\u00e9]ponse(?:\s+finale)?\s*(?:est|:)|respuesta(?:\s+final)?\s*(?:es|:)|antwort\s*(?:ist|lautet|:)|risposta(?:\s+finale)?\s*(?:\u00e8|:)"
    r"|resposta(?:\s+final)?\s*(?:\u00e9|:)|\u043e\u0442\u0432\u0435\u0442\s*[:\u2014-]",
    re.IGNORECASE,
)
_COPULA = re.compile(
    rf"(?:\b(?:is|are|was|be|equals|equal to|it's|that's|gives|get|obtain|makes|about)|[=\u2248\u4e3a\u662f]|:(?=\s*(?:\$|\\[(\[])))\s*(?:about|approximately|exactly|only|just)?"  # noqa: E501
    rf"[\s*:]*({_MATHS}|\[[^\[\]]+\]|{_NUMBER})[*\s.]*(?P<rest>.*)$",
    re.IGNORECASE | re.DOTALL,
)
_OURS = re.compile(
    rf"({_MATHS}|{_NUMBER})\s+is\s+(?:our|the|my)\s+(?:final\s+)?(?:answer|solution|result)\b", re.IGNORECASE
)
_RELATION_AT_END = re.compile(r"\$([^$]*(?:=|<|>|\\(?:neq?|leq?|geq?|in)(?![a-z]))[^$]*)\$[\s.]*\Z")
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
_CONCLUSION = re.compile(
    r"^\W*(?:so|thus|therefore|hence|consequently|in total|altogether|finally|then|this means)\b", re.IGNORECASE
)
_ALTERNATIVES = re.compile(
    rf"(?:{_NUMBER}|\$)\s*(?:,|;|\bor\b|\bmaybe\b|\bperhaps\b|\bpossibly\b|\bnot\b|\s)+(?:maybe\b|perhaps\b|or\b|\$|\s)*{_NUMBER}"
    rf"|\b(?:either|maybe|perhaps|possibly)\b|\bor\s+(?:\w+\s+){{0,2}}{_NUMBER}",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<!\d)(?<!\b[A-Z])[.!?](?=\s+[^\s\d])|(?<=\d)[.!?](?=\s+\D)|[\u3002\uff01\uff1f]|\n+")
_LATIN = re.compile(r"[A-Za-z]")
_FOREIGN = re.compile(r"[\u0370-\u1fff\u3040-\ud7ff]")
_MAX_TAIL = 4000  # characters at the end of a response in which statements are looked for


@dataclass(frozen=True)
class Found:
    """A final answer, or None and the reason why there is none."""

    answer: str | None
    reason: str = ""


def final_answer(response: str, *, boxed_only: bool) -> Found:
    """The final answer of a response by the rules of this module."""
    _, closed, text = response.rpartition("</think>")
    if not closed and "<think>" in response:
        return Found(None, "the reasoning is never closed")
    found = boxes(text)
    if boxed_only:
        return Found(_chain(text, found)) if found else Found(None, "no \\boxed answer")
    text = _SPECIAL_TOKEN.sub("", text)
    if found:
        later = _FINAL.findall(text[found[-1][1] :][-_MAX_TAIL:])
        return Found(later[-1] if later and "\\boxed" not in later[-1] else _chain(text, found))
    tail = re.sub(r"[ \t]+", " ", text[-_MAX_TAIL:])
    return _marked(tail) or _stated(tail) or Found(None, "no final answer is stated")


def reference_answer(gold: str) -> str:
    """What a reference boxes (boxes with a word after each are one list), tags or states as the answer, or all of it."""  # noqa: E501
    found = boxes(gold)
    if found:
        return _chain(gold, found, _LOOSE_JOIN)
    if _ANSWER_TAG.search(gold) or _HASHES.search(gold) or (_STATED.search(gold) and len(gold.split()) > 3):
        return final_answer(gold, boxed_only=False).answer or gold
    return gold


def _chain(text: str, found: list[Span], join: re.Pattern[str] = _JOIN) -> str:
    parts = [found[-1][2]]
    for before, after in zip(found[-2::-1], found[:0:-1], strict=True):
        between = text[before[1] : after[0]]
        if len(between) > 60 or not join.fullmatch(_LAYOUT.sub("", between)):
            break
        parts.insert(0, before[2])
    percent = "%" if _PERCENT.match(text, found[-1][1]) and not parts[-1].endswith("%") else ""
    return ", ".join(dict.fromkeys(parts)) + percent


def _marked(text: str) -> Found | None:
    tags = _ANSWER_TAG.findall(text)
    marks = tags or _HASHES.findall(text)
    return Found(marks[-1].strip()) if marks else None


def _stated(text: str) -> Found | None:
    ours = _OURS.findall(text)
    if ours:
        return Found(ours[-1])
    statements = list(_STATED.finditer(text))
    if statements:
        content = text[statements[-1].end() :].lstrip(" \n\t*:")
        sentence = _sentences(content)[0] if content.strip() else ""
        return _from_statement(sentence) if sentence else None
    last = _sentences(text)[-1]
    return _from_sentence(last) or _display(text)


def _sentences(text: str) -> list[str]:
    protected = re.sub(_MATHS, lambda found: found[0].replace("\n", " "), text, flags=re.DOTALL)
    return [part.strip() for part in _SENTENCE_END.split(protected) if part and part.strip()] or [""]


def _from_statement(content: str) -> Found:
    """What a statement states: the formula it opens with, the end of a clause ("the largest n is 34"), or all of it."""
    content = content.strip("* ").rstrip(".")
    opening = re.match(rf"({_MATHS})(?!\s*(?:,|;|/|or\b|and\b|\$))", content, re.DOTALL)
    if opening:
        return Found(opening[1])
    nested = _COPULA.search(content) if re.match(r"[A-Za-z]{2,} ", content) else None
    if nested and not _ALTERNATIVES.search(content):
        return Found(nested[1])
    return Found(content)


def _from_sentence(sentence: str) -> Found | None:
    if _ALTERNATIVES.search(re.sub(r"\d[\d,]*\d", "0", sentence)):
        return None
    bold = _BOLD.findall(sentence)
    if bold and re.search(r"\d|\$", bold[-1]):
        return Found(bold[-1])
    if stated := _last_copula(sentence):
        return Found(stated)
    if relation := _RELATION_AT_END.search(sentence):
        return Found(relation[1])
    numbers = re.findall(_NUMBER, sentence)
    if numbers and (_CONCLUSION.match(sentence) or _is_foreign(sentence)):
        return Found(numbers[-1].strip())
    return None


def _is_foreign(sentence: str) -> bool:
    return bool(_FOREIGN.search(sentence)) and not _LATIN.search(re.sub(r"[A-Z]", "", sentence))


def _last_copula(sentence: str) -> str:
    """The formula or number after the last copula, if nothing but a few words follows."""
    start, found = 0, ""
    while clause := _COPULA.search(sentence, start):
        rest = clause["rest"]
        found = clause[1].strip() if not re.search(r"\d|[$=]|\\", rest) and len(rest.split()) <= 4 else ""
        start = clause.start() + 1
    return found


def _display(text: str) -> Found | None:
    found = re.search(r"(?:\$\$([^$]+)\$\$|\\\[((?:(?!\\\[).)+?)\\\])[\s.]*\Z", text, re.DOTALL)
    return Found(found[1] or found[2]) if found else None
