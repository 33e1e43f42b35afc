"""Find the rows of a dataset that repeat an earlier row, exactly or nearly.

Exact: the same normalised words (`words.py`). Near: the sets of word 5-grams have a Jaccard similarity of 0.8 at least.
Candidates for near duplicates are found by MinHash with banding (Broder 1997; Leskovec, Rajaraman and Ullman, Mining
of Massive Datasets, chapter 3) and each is checked by the exact similarity, so nothing is reported wrongly; a pair
just at the threshold is missed with a probability under 1e-4, a closer pair with a smaller one.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_vibethinker.atomic_files import atomic_files
from nemo_vibethinker.command import run_command
from nemo_vibethinker.data.readers import SourceRow, json_line
from nemo_vibethinker.data.row_files import check_paths, read_rows, size_of
from nemo_vibethinker.data.words import PassageHashes, normalised_bytes, passages, split_words, word_hashes
from nemo_vibethinker.progress import Progress

SHINGLE = 5  # words
THRESHOLD = 0.8
_HASHES = 125
_MISSED = 1e-4  # chance, at most, that a pair just at the threshold is no candidate
_BLOCK = 1 << 18  # bytes whose shingles are hashed at once: small enough for the processor's caches
_ONE_WORD = 40  # characters: longer text is no identity, even if it is written without spaces
_RANDOM = np.random.default_rng(20260612)  # any fixed numbers serve: the hash functions of the signatures
_MASKS = _RANDOM.integers(0, 2**64, size=_HASHES, dtype=np.uint64)
_FACTORS = _RANDOM.integers(0, 2**64, size=_HASHES, dtype=np.uint64) | np.uint64(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """Text number `text` repeats the earlier text number `of`; `similarity` is 1 and `exact` true for equal words."""

    text: int
    of: int
    similarity: float
    exact: bool


def band_rows(threshold: float) -> int:
    """Signature values per band: the most with which a pair at `threshold` is missed with a chance under 1e-4."""
    fitting = [r for r in range(1, 26) if (1 - threshold**r) ** (_HASHES // r) < _MISSED]
    return max(fitting, default=1)


class DuplicateFinder:
    """Takes texts, block after block, then names the duplicates among them.

    A text is compared with the earlier ones that are no duplicates themselves, so each duplicate points to a text
    that stays. Memory: the normalised texts, and 200 bytes each.
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        """`threshold` is the least Jaccard similarity of near duplicates; ValueError outside (0, 1]."""
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
        self.threshold, self._rows = threshold, band_rows(threshold)
        self._texts: list[bytes] = []
        self._bands: list[NDArray[np.uint64]] = []

    def add(self, texts: Sequence[str]) -> None:
        """Take more texts (about 256 KB at once is fastest)."""
        self._texts += map(normalised_bytes, texts)
        self._bands.append(_band_hashes(texts, self._rows))

    def find(self) -> list[Duplicate]:
        """The duplicates among all texts, in order."""
        bands = np.concatenate(self._bands) if self._bands else np.zeros((0, 1), dtype=np.uint64)
        shared = _repeated(bands)
        first: dict[bytes, int] = {}
        buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
        found = []
        for text, words in enumerate(self._texts):
            keys = [(int(band), int(bands[text, band])) for band in np.flatnonzero(shared[text])]
            duplicate = self._exact(text, words, first) or self._near(text, [buckets[key] for key in keys])
            if duplicate:
                found.append(duplicate)
                continue
            first[words] = text
            for key in keys:
                buckets[key].append(text)
        return found

    def _exact(self, text: int, words: bytes, first: dict[bytes, int]) -> Duplicate | None:
        of = first.get(words)
        return None if of is None else Duplicate(text=text, of=of, similarity=1.0, exact=True)

    def _near(self, text: int, candidates: Iterable[list[int]]) -> Duplicate | None:
        """Try the candidates that share most bands first."""
        for of, _ in Counter(other for bucket in candidates for other in bucket).most_common():
            similarity = jaccard(self._texts[text], self._texts[of])
            if similarity >= self.threshold:
                return Duplicate(text=text, of=of, similarity=similarity, exact=False)
        return None


def find_duplicates(texts: Sequence[str], threshold: float = THRESHOLD) -> list[Duplicate]:
    """The texts that repeat an earlier one, in order; ValueError for a threshold outside (0, 1]."""
    finder = DuplicateFinder(threshold)
    for first in range(0, len(texts), 1000):
        finder.add(texts[first : first + 1000])
    return finder.find()


def jaccard(a: bytes, b: bytes) -> float:
    """|A and B| / |A or B| of the sets of word 5-grams of two normalised texts (a shorter text is one shingle)."""
    left, right = _shingles(a), _shingles(b)
    both = len(left & right)
    return both / (len(left) + len(right) - both)


@lru_cache(maxsize=4096)
def _shingles(text: bytes) -> frozenset[tuple[bytes, ...]]:
    words = text.split(b" ")
    return frozenset(zip(*(words[k:] for k in range(SHINGLE)), strict=False)) or frozenset([tuple(words)])


def _band_hashes(texts: Sequence[str], rows: int) -> NDArray[np.uint64]:
    """[texts, bands]: a hash of each band of `rows` values of each text's MinHash signature."""
    words = split_words(texts)
    first, last = passages(words, SHINGLE)
    hashes = PassageHashes(word_hashes(words)).between(first, last)
    owners = np.searchsorted(first, words.firsts[:-1])  # the first shingle of each text
    filled = np.diff(words.firsts) > 0
    bands = np.zeros((len(texts), _HASHES // rows), dtype=np.uint64)
    if not filled.any():
        return bands
    for number in range(bands.shape[1] * rows):
        least = np.minimum.reduceat((hashes ^ _MASKS[number]) * _FACTORS[number], owners[filled])
        band = bands[filled, number // rows]
        bands[filled, number // rows] = ((band ^ (band >> np.uint64(31))) + least) * np.uint64(0x9E3779B97F4A7C15)
    return bands


def _repeated(bands: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which entries occur more than once in their column."""
    shared = np.zeros(bands.shape, dtype=bool)
    for column in range(bands.shape[1]):
        _, inverse, counts = np.unique(bands[:, column], return_inverse=True, return_counts=True)
        shared[:, column] = counts[inverse] > 1
    return shared


def _text(row: SourceRow, field: str) -> str:
    """The prompt, or all texts of the row but those of one word, such as identities."""
    if field == "prompt":
        return row.prompt
    return "\n".join(text for text in row.texts() if " " in text or len(text) > _ONE_WORD)


def _find(
    paths: Sequence[Path], field: str, threshold: float, progress: Progress
) -> tuple[list[dict[str, Any]], set[int]]:
    """The report's rows, and the numbers (from 1, over all files) of the rows that are duplicates or unusable."""
    finder, places, block, unusable, size = DuplicateFinder(threshold), [], [], [], 0
    for number, row in enumerate(read_rows(paths, progress), start=1):
        if row.reason:
            unusable.append((number, row.place | {"reason": "unusable", "detail": row.reason}))
            continue
        places.append((number, row.file, row.line, row.id))
        block.append(_text(row, field))
        size += len(block[-1])
        if size >= _BLOCK:
            finder.add(block)
            block, size = [], 0
    finder.add(block)
    found = [(places[duplicate.text][0], _report(duplicate, places)) for duplicate in finder.find()]
    lines = sorted(found + unusable, key=lambda numbered: numbered[0])
    return [line for _, line in lines], {number for number, _ in lines}


def _report(duplicate: Duplicate, places: Sequence[tuple[int, str, int, str]]) -> dict[str, Any]:
    _, file, line, identity = places[duplicate.text]
    _, of_file, of_line, of_id = places[duplicate.of]
    reason = "exact duplicate" if duplicate.exact else "near duplicate"
    of = {"of_file": of_file, "of_line": of_line, "of_id": of_id, "similarity": round(duplicate.similarity, 4)}
    return {"file": file, "line": line, "id": identity, "reason": reason} | of


def _command(arguments: argparse.Namespace) -> int:
    paths = arguments.data
    check_paths({"--data": paths}, {"--out": arguments.out, "--report": arguments.report})
    progress = Progress("reading", total_bytes=size_of(paths))
    wanted = [arguments.report, *([arguments.out] if arguments.out else [])]
    with atomic_files(wanted) as files:
        lines, removed = _find(paths, arguments.field, arguments.threshold, progress)
        files[0].writelines(map(json_line, lines))
        read, rate = progress.done, progress.rate
        if arguments.out:
            rows = enumerate(read_rows(paths, Progress("writing", total_bytes=size_of(paths))), start=1)
            files[1].writelines(row.source for number, row in rows if number not in removed)
    reasons = Counter(line["reason"] for line in lines)
    print(
        f"{read:,} rows read, {reasons['exact duplicate']:,} exact and {reasons['near duplicate']:,} near duplicates "
        f"(Jaccard {arguments.threshold} or more), {reasons['unusable']:,} unusable; {rate:.1f} MB/s; "
        + (f"{read - len(removed):,} kept" if arguments.out else "nothing removed (no --out)")
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nemo_vibethinker.data.duplicates",
        description="Report, and on request remove, rows that repeat an earlier row of the same data.",
        epilog="Example: python -m nemo_vibethinker.data.duplicates --data rl.jsonl --field prompt --report dup.jsonl "
        "--out unique.jsonl. Exit codes: 0 done; 2 an error, in one line, and nothing is written.",
    )
    add = parser.add_argument
    add(
        "--data", type=Path, nargs="+", required=True, metavar="DATA", help="files, folders or hub datasets, as one set"
    )
    add("--report", type=Path, required=True, metavar="DUP", help="a JSON line for every duplicate or unusable row")
    add("--out", type=Path, metavar="KEPT", help="the other rows, their JSON lines as they are")
    add(
        "--field",
        choices=("all", "prompt"),
        default="all",
        help="what is compared: prompt and solutions (default; several solutions of a problem are no duplicates), or "
        "the prompt alone (for RL)",
    )
    add("--threshold", type=float, default=THRESHOLD, help="least Jaccard similarity of word 5-grams (default: 0.8)")
    return parser


if __name__ == "__main__":
    parser = _parser()
    arguments = parser.parse_args()
    sys.exit(run_command(parser.prog, lambda: _command(arguments)))
