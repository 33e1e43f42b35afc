"""Ten-gram decontamination of training prompts against held-out prompts.

VibeThinker-1.5B report, arXiv 2511.06221, section 3.5: normalise the text (drop punctuation and symbols, unify the
case), then exclude training samples that share a 10-gram with an evaluation set. The report leaves two things open;
here an n-gram is n whitespace-separated words, and only prompts are compared. A text shorter than n words is
compared whole.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nemo_vibethinker.data.records import Record

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """A training record whose prompt shares `shared_text` (normalised words) with a held-out record's prompt."""

    train_id: str
    held_out_id: str
    shared_text: str


def normalise(text: str) -> list[str]:
    """Lower-cased words of `text`; punctuation and symbols separate words and are dropped."""
    return _WORD.findall(text.lower())


def ngrams(text: str, n: int = 10) -> list[str]:
    """All n-grams of the normalised text in order; the whole normalised text when it has fewer than n words."""
    words = normalise(text)
    if len(words) <= n:
        return [" ".join(words)] if words else []
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]


class NGramIndex:
    """The n-grams of a set of texts, each remembering the first text that holds it."""

    def __init__(self, texts_with_ids: Iterable[tuple[str, str]], n: int = 10) -> None:
        """Index (text, id) pairs; `n` is the n-gram length in words."""
        if n < 1:
            raise ValueError(f"n-gram length must be at least 1, got {n}")
        self.n = n
        self._owner: dict[str, str] = {}
        for text, owner in texts_with_ids:
            for gram in ngrams(text, n):
                self._owner.setdefault(gram, owner)

    def first_overlap(self, text: str) -> tuple[str, str] | None:
        """(id of the indexed text, shared n-gram) for the first shared n-gram of `text`, or None."""
        for gram in ngrams(text, self.n):
            if gram in self._owner:
                return self._owner[gram], gram
        return None


def find_overlaps(train: Sequence[Record], held_out: Sequence[Record], n: int = 10) -> list[Overlap]:
    """One `Overlap` for every training record that shares an n-gram with a held-out prompt, in training order."""
    index = NGramIndex(((record.prompt, record.id) for record in held_out), n)
    overlaps = []
    for record in train:
        if found := index.first_overlap(record.prompt):
            overlaps.append(Overlap(train_id=record.id, held_out_id=found[0], shared_text=found[1]))
    return overlaps


def remove_overlaps(
    train: Sequence[Record], held_out: Sequence[Record], n: int = 10
) -> tuple[list[Record], list[Overlap]]:
    """Training records free of overlap, and the overlaps of the removed ones."""
    overlaps = find_overlaps(train, held_out, n)
    removed = {overlap.train_id for overlap in overlaps}
    return [record for record in train if record.id not in removed], overlaps
