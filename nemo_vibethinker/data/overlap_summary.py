"""What the decontamination command prints: counts, and texts that explain many removals at once."""

from collections import Counter
from dataclasses import dataclass, field

FREQUENT_ROWS, FREQUENT_SHARE = 5, 0.05  # a text behind so many removals, and this share of them, is pointed at
_SHOWN = 5


@dataclass(kw_only=True)
class Counts:
    """What became of the training rows. `ngrams` counts the removed rows by each shared n-gram, `half_shared` those
    that share half of an evaluation prompt or more.

    Memory: n-grams of the evaluation sets only.
    """

    read: int = 0
    kept: int = 0
    overlapping: int = 0
    half_shared: int = 0
    repetitive: int = 0
    unusable: int = 0
    of_set: Counter[str] = field(default_factory=Counter)
    ngrams: Counter[str] = field(default_factory=Counter)

    def add_shared(self, passages: set[str], n: int) -> None:
        """Count one removed row and the passages it shares."""
        self.overlapping += 1
        self.ngrams.update({gram for passage in passages for gram in _ngrams(passage.split(" "), n)})


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationCounts:
    """An evaluation set: its prompts, how many of them have under n words, and its unusable rows."""

    name: str
    prompts: int
    short: int
    unusable: int


def summary(counts: Counts, sets: list[EvaluationCounts], n: int, megabytes_per_second: float) -> str:
    """The text that the command prints."""
    width = max(len("evaluation set"), *(len(s.name) for s in sets))
    lines = [f"{'evaluation set':{width}}  prompts  under {n} words  unusable  training rows sharing a text"]
    short_width = len(f"under {n} words")
    for s in sets:
        numbers = f"{s.prompts:7,}  {s.short:{short_width},}  {s.unusable:8,}  {counts.of_set[s.name]:28,}"
        lines.append(f"{s.name:{width}}  {numbers}")
    lines.append(
        f"training rows: {counts.read:,} read, {counts.kept:,} kept, {counts.overlapping:,} removed for an overlap, "
        f"{counts.repetitive:,} for repetition, {counts.unusable:,} unusable; {megabytes_per_second:.1f} MB/s"
    )
    if counts.overlapping:
        lines.append(f"{counts.half_shared:,} of the removed rows share half of an evaluation prompt or more")
    if short := sum(s.short for s in sets):
        lines.append(f"{short:,} evaluation prompts have under {n} words: they are found only as a whole text")
    if not counts.kept:
        lines.append("warning: no training row was kept")
    least = max(FREQUENT_ROWS, FREQUENT_SHARE * counts.overlapping)
    lines += [
        f'{rows:,} removals share one text; if it is a phrase and no leak, rerun with --ignore "{text}"'
        for text, rows in frequent_texts(counts.ngrams, least)
    ]
    return "\n".join(lines)


def frequent_texts(ngrams: Counter[str], least: float) -> list[tuple[str, int]]:
    """At most five (text, removed rows), the most frequent first: n-grams of `least` rows at least.

    Each is made longer by its neighbours while these are nearly as frequent; texts that overlap an earlier one by
    half an n-gram are left out.
    """
    left = {tuple(gram.split(" ")): rows for gram, rows in ngrams.items() if rows >= least}
    found: list[tuple[str, int]] = []
    while left and len(found) < _SHOWN:
        gram = max(left, key=left.__getitem__)
        text = _extended(gram, left)
        found.append((" ".join(text), left[gram]))
        half = max(1, len(gram) // 2)
        known = set(_runs(text, half))
        left = {other: rows for other, rows in left.items() if known.isdisjoint(_runs(other, half))}
    return found


def _extended(gram: tuple[str, ...], ngrams: dict[tuple[str, ...], int]) -> tuple[str, ...]:
    size, text, seen = len(gram), gram, {gram}
    frequent = [other for other, rows in ngrams.items() if len(other) == size and rows >= 0.8 * ngrams[gram]]
    grown = size > 1
    while grown:
        grown = False
        for other in frequent:
            if other not in seen and (other[:-1] == text[-size + 1 :] or other[1:] == text[: size - 1]):
                text = (*text, other[-1]) if other[:-1] == text[-size + 1 :] else (other[0], *text)
                seen.add(other)
                grown = True
    return text


def _ngrams(words: list[str], n: int) -> list[str]:
    return [" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]


def _runs(words: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    return [words[i : i + size] for i in range(len(words) - size + 1)]
