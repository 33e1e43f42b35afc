"""Remove training rows that share a 10-gram with an evaluation set.

VibeThinker-1.5B report, arXiv 2511.06221, section 3.5: normalise the text (drop punctuation and symbols, unify the
case), then exclude training samples that share a 10-gram with an evaluation set. What the report leaves open, here:

- an n-gram is n consecutive words (`words.py` says what a word is); a text of fewer words is compared whole, so that
  a short evaluation prompt is found only where it is the whole prompt or the whole solution;
- of an evaluation row its prompt is compared; of a training row its prompt and its solutions, since a problem quoted
  in a solution leaks too. The command, which keeps rows as they are, compares every text of a row but its tests.

The comparison is complete: hashes only say where to look (`ngram_index.py`).
"""

import argparse
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from nemo_vibethinker.atomic_files import atomic_files
from nemo_vibethinker.command import run_command
from nemo_vibethinker.data.ngram_index import Match, NGramIndex, NGramSearch, ngrams
from nemo_vibethinker.data.overlap_summary import Counts, EvaluationCounts, summary
from nemo_vibethinker.data.readers import SourceRow, json_line
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.data.repetition import repetition_reason
from nemo_vibethinker.data.row_files import check_paths, read_rows, size_of, source_rows
from nemo_vibethinker.data.words import normalise
from nemo_vibethinker.progress import Progress

__all__ = ["NGramIndex", "Overlap", "find_overlaps", "ngrams", "normalise", "remove_overlaps"]

_BLOCK = 1 << 20  # bytes compared at once: small enough for the processor's caches
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """A training record whose `field` shares `shared_text` (normalised words, n at least) with a held-out prompt."""

    train_id: str
    held_out_id: str
    shared_text: str
    field: str = "prompt"


def find_overlaps(train: Iterable[Record], held_out: Iterable[Record], n: int = 10) -> list[Overlap]:
    """One `Overlap` for every training record whose prompt or response shares an n-gram with a held-out prompt.

    In training order; the first such field, and the passage around its first shared n-gram. `train` is read once and
    not kept, so it may be a stream.
    """
    index = NGramIndex(((record.prompt, record.id) for record in held_out), n)
    search, overlaps = NGramSearch([index]), []
    for block in _blocks(train, lambda record: len(record.prompt) + len(record.response)):
        texts = [(record.prompt, record.response) for record in block]
        for row, (text, match) in _first_matches(texts, search)[0].items():
            ids = {"train_id": block[row].id, "held_out_id": index.ids[match.owner]}
            overlaps.append(Overlap(**ids, shared_text=match.passage, field=("prompt", "response")[text]))
    return overlaps


def remove_overlaps(
    train: Sequence[Record], held_out: Iterable[Record], n: int = 10
) -> tuple[list[Record], list[Overlap]]:
    """Training records free of overlap, and the overlaps of the removed ones."""
    overlaps = find_overlaps(train, held_out, n)
    removed = {overlap.train_id for overlap in overlaps}
    return [record for record in train if record.id not in removed], overlaps


def _blocks(items: Iterable[_T], size: Callable[[_T], int]) -> Iterator[list[_T]]:
    block, filled = [], 0
    for item in items:
        block.append(item)
        filled += size(item)
        if filled >= _BLOCK:
            yield block
            block, filled = [], 0
    if block:
        yield block


_RowMatches = dict[int, tuple[int, Match]]  # number of a row -> which of its texts has its first match, and the match


def _first_matches(rows: Iterable[Iterable[str]], search: NGramSearch) -> list[_RowMatches]:
    """For each index, the rows that share an n-gram with it, in order; a row is its texts."""
    texts: list[str] = []
    firsts: list[int] = []  # the number of each row's first text
    for row in rows:
        firsts.append(len(texts))
        texts += row
    found: list[_RowMatches] = []
    for matches in search.search(texts):
        first: _RowMatches = {}
        for match in matches:
            row = bisect_right(firsts, match.text) - 1
            first.setdefault(row, (match.text - firsts[row], match))
        found.append(first)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationSet:
    """An evaluation set: its usable rows, the n-grams of their prompts (same order), and its unusable rows."""

    name: str
    rows: list[SourceRow]
    index: NGramIndex
    unusable: list[SourceRow]

    def counts(self) -> EvaluationCounts:
        """What the summary says of it."""
        short = sum(size < self.index.n for size in self.index.text_sizes)
        return EvaluationCounts(name=self.name, prompts=len(self.rows), short=short, unusable=len(self.unusable))


def read_evaluation_set(path: Path, n: int, ignore: Sequence[str] = ()) -> EvaluationSet:
    """Read and index the prompts of an evaluation set.

    Raises:
        ValueError: as of `source_rows`, or no usable row: nothing would be protected.
    """
    usable, unusable = [], []
    for row in source_rows(path):
        (unusable if row.reason else usable).append(row)
    if not usable:
        raise ValueError(f"evaluation set {path} has no usable row; line {unusable[0].line}: {unusable[0].reason}")
    index = NGramIndex(((row.prompt, row.id) for row in usable), n, ignore)
    return EvaluationSet(str(path), usable, index, unusable)


def decontaminate(
    rows: Iterable[SourceRow],
    sets: Sequence[EvaluationSet],
    kept: IO[bytes] | None,
    report: IO[bytes],
    *,
    prompt_only: bool = False,
    drop_repetition: bool = False,
) -> Counts:
    """Write the original lines of clean rows to `kept` and one JSON line for every other row to `report`.

    Memory: the evaluation sets and one block of rows.
    """
    counts, search = Counts(), NGramSearch([s.index for s in sets])
    for block in _blocks(rows, lambda row: len(row.source)):
        texts = ((row.prompt,) if prompt_only else row.texts() for row in block)
        found = _first_matches(texts, search)
        overlapping = set().union(*found)
        clean = []
        for number, row in enumerate(block):
            if number not in overlapping and not row.reason and not drop_repetition:
                clean.append(row.source)  # nearly all rows come here
                continue
            overlaps = [(s, *f[number]) for s, f in zip(sets, found, strict=True) if number in f]
            if reason := _reason(row, overlaps, counts, row.texts() if drop_repetition else ()):
                report.write(json_line(row.place | reason))
            else:
                clean.append(row.source)
        counts.read += len(block)
        counts.kept += len(clean)
        if kept:
            kept.writelines(clean)
    return counts


def _reason(
    row: SourceRow, overlaps: list[tuple[EvaluationSet, int, Match]], counts: Counts, traces: Iterable[str]
) -> dict[str, Any]:
    """Why the row is removed, for the report; empty if it is kept. Repetition is looked for in `traces`."""
    if row.reason:
        counts.unusable += 1
        return {"reason": "unusable", "detail": row.reason}
    if overlaps:
        counts.add_shared({match.passage for _, _, match in overlaps}, overlaps[0][0].index.n)
        counts.half_shared += any(match.share >= 0.5 for _, _, match in overlaps)
        counts.of_set.update(evaluation.name for evaluation, _, _ in overlaps)
        return {"reason": "overlap", "overlaps": [_overlap(row, *overlap) for overlap in overlaps]}
    if detail := next(filter(None, map(repetition_reason, traces)), ""):
        counts.repetitive += 1
        return {"reason": "repetition", "detail": detail}
    return {}


def _overlap(row: SourceRow, evaluation: EvaluationSet, text: int, match: Match) -> dict[str, Any]:
    field = list(row.texts().values())[text]  # with the prompt alone too: it comes first
    place = {f"evaluation_{key}": value for key, value in evaluation.rows[match.owner].place.items()}
    return place | {"field": field, "shared_text": match.passage, "evaluation_share": round(match.share, 3)}


def _command(arguments: argparse.Namespace) -> int:
    train, evaluation = arguments.train, arguments.eval
    check_paths({"--train": train, "--eval": evaluation}, {"--out": arguments.out, "--report": arguments.report})
    sets = [read_evaluation_set(path, arguments.n, arguments.ignore) for path in evaluation]
    progress = Progress("training data", total_bytes=size_of(train))
    wanted = [arguments.report, *([arguments.out] if arguments.out else [])]
    with atomic_files(wanted) as files:
        for row in (row for s in sets for row in s.unusable):
            files[0].write(json_line(row.place | {"reason": "unusable evaluation row", "detail": row.reason}))
        counts = decontaminate(
            read_rows(train, progress),
            sets,
            files[1] if arguments.out else None,
            files[0],
            prompt_only=arguments.prompt_only,
            drop_repetition=arguments.drop_repetition,
        )
    print(summary(counts, [s.counts() for s in sets], arguments.n, progress.rate))
    return 1 if not arguments.out and counts.kept < counts.read else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nemo_vibethinker.data.decontaminate",
        description="Remove training rows that share a 10-gram of words with an evaluation set.",
        epilog="Example: python -m nemo_vibethinker.data.decontaminate --train sft.jsonl --eval aime24.jsonl "
        "math500.jsonl --out clean.jsonl --report removed.jsonl. Exit codes: 0 done; 1 without --out: a training row "
        "overlaps, repeats itself or cannot be used; 2 an error, in one line, and nothing is written.",
    )
    add = parser.add_argument
    add("--train", type=Path, nargs="+", required=True, metavar="DATA", help="training files, folders or hub datasets")
    add(
        "--eval",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="evaluation sets; their prompts are compared",
    )
    add("--out", type=Path, metavar="KEPT", help="kept rows, their JSON lines as they are; without it this is a check")
    add("--report", type=Path, required=True, metavar="REMOVED", help="a JSON line for every row that is not kept")
    add("--n", type=int, default=10, metavar="WORDS", help="length of a shared passage, in words (default: 10)")
    add("--ignore", action="append", default=[], metavar="TEXT", help="take TEXT out of both sides first; repeatable")
    add("--prompt-only", action="store_true", help="compare of training rows only the prompt (data for RL alone)")
    add("--drop-repetition", action="store_true", help="also remove rows with a text that repeats itself without end")
    return parser


if __name__ == "__main__":
    parser = _parser()
    arguments = parser.parse_args()
    sys.exit(run_command(parser.prog, lambda: _command(arguments)))
