r"""The normalised words of texts, the same wherever two texts are compared, and fast hashes of them.

A word is a run of letters and digits after: LaTeX commands of spacing and type removed (`\quad`, `\left`, `\text`;
`\dfrac` reads `\frac`), Unicode NFKD and case folding, and accents, zero-width and other format characters deleted. All
other characters separate words. A superscript, a subscript and a fraction sign start a word, so that "x\u00b2" equals
"x^2". Where no spaces are written between words (Chinese characters, kana), each character is a word.

Not unified: letters of different scripts that look alike, and a symbol with its LaTeX command.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_LAYOUT = re.compile(
    rb"\\(?:q?quad|left|right|[bB]igg?[lr]?|middle|displaystyle|textstyle|(?:no)?limits"
    rb"|text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf)|operatorname|[mh]box)(?![A-Za-z])"
)
_ASCII = bytes(ord(chr(c).lower()) if chr(c).isalnum() else 32 for c in range(128)) + bytes(range(128, 256))
_UNSPACED = (
    range(0x3005, 0x3008),
    range(0x3041, 0x3100),
    range(0x31F0, 0x4DC0),
    range(0x4E00, 0xA000),
    range(0x20000, 0x40000),
)
_HANGUL_FILLERS = "\u115f\u1160"  # letters that are not seen
_END = 0xFF  # of a text in a block: a byte that UTF-8 does not use
_HASHED_BYTES = 64  # of a word; longer words that begin alike have one hash
_MULTIPLIER, _STEP = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9  # odd, hence invertible modulo 2**64
_LOW_BYTES = np.array([(1 << (8 * size)) - 1 for size in range(9)], dtype=np.uint64)


class _Folds(dict[int, str]):
    """Code point -> its folded text, filled as characters occur (the table of `str.translate`)."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
        starts_word = unicodedata.decomposition(character).startswith(("<super>", "<sub>", "<fraction>"))
        self[code] = " " * starts_word + "".join(map(_fold_decomposed, text))
        return self[code]


def _fold_decomposed(character: str) -> str:
    category, code = unicodedata.category(character), ord(character)
    if character.isascii():
        return character
    if category[0] == "M" or category == "Cf" or character in _HANGUL_FILLERS:
        return ""
    if category[0] not in "LN":
        return " "
    return f" {character} " if any(code in block for block in _UNSPACED) else character


_FOLDS = _Folds()


def _utf8(text: str) -> bytes:
    data = text.encode() if text.isascii() else text.encode("utf-8", "surrogatepass")
    if b"\\" in data:
        data = _LAYOUT.sub(b" ", data).replace(b"\\dfrac", b"\\frac").replace(b"\\tfrac", b"\\frac")
    return data


def _fold(data: bytes) -> bytes:
    """UTF-8 text, folded: words between spaces. `_END` stays."""
    if not data.isascii():
        data = b" %b " % data
        codes = np.frombuffer(data, dtype=np.uint8)
        high = (codes >= 128) & (codes != _END)  # ten times faster than a regular expression
        edges = (np.flatnonzero(high[1:] != high[:-1]) + 1).tolist()
        parts, done = [], 0
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            parts += [data[done:start], _fold_run(data[start:end])]
            done = end
        data = b"".join([*parts, data[done:]])
    return data.translate(_ASCII)


@lru_cache(maxsize=1 << 14)
def _fold_run(run: bytes) -> bytes:
    return run.decode("utf-8", "surrogatepass").translate(_FOLDS).encode()


def normalised_bytes(text: str) -> bytes:
    """The normalised words of `text` in UTF-8 with one space between: equal for texts of equal words only."""
    return b" ".join(_fold(_utf8(text)).split())


def normalise(text: str) -> list[str]:
    """The normalised words of `text` in order (the rules are at the top of this module)."""
    return [word.decode() for word in _fold(_utf8(text)).split()]


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """The words of several texts: word i is `data[starts[i]:ends[i]]`, text t the words `firsts[t]:firsts[t + 1]`."""

    data: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    firsts: NDArray[np.int64]

    def join(self, first: int, last: int) -> str:
        """Words `first` to `last` (exclusive), with one space between."""
        bounds = zip(self.starts[first:last].tolist(), self.ends[first:last].tolist(), strict=True)
        return b" ".join([self.data[start:end] for start, end in bounds]).decode()

    def without(self, drop: NDArray[np.bool_]) -> "Words":
        """These texts without the words marked in `drop`."""
        dropped_before = np.concatenate([[0], np.cumsum(drop)])
        return Words(self.data, self.starts[~drop], self.ends[~drop], self.firsts - dropped_before[self.firsts])


def split_words(texts: Sequence[str]) -> Words:
    """The words of `texts`, found for all of them at once (hundreds of MB/s; memory about 6 times the texts)."""
    end = bytes([_END])
    data = _fold(end + b"".join([_utf8(text) + end for text in texts])) + b" " * 8  # `word_hashes` reads past a word
    codes = np.frombuffer(data, dtype=np.uint8)
    inside = (codes != 32) & (codes != _END)
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts = edges[::2].copy()
    return Words(data, starts, edges[1::2].copy(), np.searchsorted(starts, np.flatnonzero(codes == _END)))


def word_hashes(words: Words) -> NDArray[np.uint64]:
    """A 64-bit hash of each word: equal words have equal hashes, the converse must be checked."""
    windows = np.ndarray((len(words.data) - 7,), dtype=np.uint64, buffer=words.data, strides=(1,))
    lengths = words.ends - words.starts
    hashes = (windows[words.starts] & _LOW_BYTES[np.minimum(lengths, 8)]) * np.uint64(_MULTIPLIER)
    for done in range(8, _HASHED_BYTES, 8):
        longer = np.flatnonzero(lengths > done)
        if not len(longer):
            break
        chunk = windows[words.starts[longer] + done] & _LOW_BYTES[np.minimum(lengths[longer] - done, 8)]
        mixed = hashes[longer] ^ (hashes[longer] >> np.uint64(29)) ^ chunk
        hashes[longer] = mixed * np.uint64(_MULTIPLIER)
    return hashes ^ (hashes >> np.uint64(32))


class PassageHashes:
    """Hashes of passages (runs of consecutive words) in constant time each, by differences of a polynomial's prefixes.

    With word hashes w, an odd b and s(j) the sum of w_k b^k over k < j, modulo 2**64, passage [i, j) has the hash
    (s(j) - s(i)) b^-i, mixed.
    """

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        """Prepare for the passages of a sequence of word hashes."""
        self._inverses = _powers(pow(_STEP, -1, 2**64), len(hashes) + 1)
        self._prefix = np.zeros(len(hashes) + 1, dtype=np.uint64)
        np.cumsum(hashes * _powers(_STEP, len(hashes)), out=self._prefix[1:])

    def between(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Hash of the words `first[i]` to `last[i]` (exclusive), for each i."""
        hashes = (self._prefix[last] - self._prefix[first]) * self._inverses[first] * np.uint64(_MULTIPLIER)
        return hashes ^ (hashes >> np.uint64(32))


_power_tables: dict[int, NDArray[np.uint64]] = {}


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    table = _power_tables.get(base)
    if table is None or len(table) < count:
        table = np.full(max(count, 1 << 16), base, dtype=np.uint64)
        table[0] = 1
        _power_tables[base] = np.cumprod(table, dtype=np.uint64)
    return _power_tables[base][:count]


def passages(words: Words, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first, last) of every n-gram inside a text, in order; of a text of 1 to n - 1 words the whole text."""
    sizes = np.diff(words.firsts)
    counts = np.where(sizes >= n, sizes - n + 1, np.minimum(sizes, 1))
    total = int(counts.sum())
    before = np.cumsum(counts) - counts
    first = np.repeat(words.firsts[:-1] - before, counts) + np.arange(total)
    return first, first + np.repeat(np.minimum(sizes, n), counts)
