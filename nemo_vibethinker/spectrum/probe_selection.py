"""Choosing the problems of the probing sets: spread over difficulty, without overlap, as few checked as needed."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nemo_vibethinker.data.decontaminate import ngrams
from nemo_vibethinker.spectrum.probe_pool import Candidate, Dropped

MOST_TRIES = 4.0  # problems that a wave checks for each one missing
Reasons = dict[str, str]  # id of a candidate -> why it is dropped
Check = Callable[[Sequence[Candidate]], Reasons]


@dataclass
class ProbingSets:
    """Chosen candidates by domain, what was dropped, and how many problems each domain had to choose from."""

    chosen: dict[str, list[Candidate]]
    available: dict[str, int]
    dropped: list[Dropped] = field(default_factory=list)


def preference_order(candidates: Iterable[Candidate], seed: int) -> list[Candidate]:
    """Candidates such that any first part is spread over difficulty, most of it in the middle.

    The strata have weights 1, 2, ..., 2, 1 from the easiest to the hardest: the j-th candidate of a stratum of weight
    w comes at time (j + 1/2) / w, so an exhausted stratum leaves its place to the others. Within a stratum the
    order is that of a hash of seed and text, independent of the order of the pool. Unknown difficulty comes last.
    """
    shuffled = sorted(candidates, key=lambda candidate: _hash_order(seed, candidate.record.prompt))
    strata = sorted({candidate.stratum for candidate in shuffled if candidate.stratum is not None})
    weights = {stratum: min(i + 1, len(strata) - i) for i, stratum in enumerate(strata)}
    places: Counter[int | None] = Counter()
    timed: list[tuple[float, int, Candidate]] = []
    for candidate in shuffled:
        weight = weights.get(candidate.stratum, 0) if candidate.stratum is not None else 0
        time = (places[candidate.stratum] + 0.5) / weight if weight else math.inf
        places[candidate.stratum] += 1
        timed.append((time, -weight, candidate))
    return [candidate for _, _, candidate in sorted(timed, key=lambda item: item[:2])]


def _hash_order(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}\0{text}".encode()).hexdigest()


class ChosenTexts:
    """The 10-grams of the problems chosen so far, so that no two of them share one."""

    def __init__(self) -> None:
        self._grams: set[str] = set()

    def overlaps(self, text: str) -> bool:
        return not self._grams.isdisjoint(ngrams(text))

    def add(self, text: str) -> None:
        self._grams.update(ngrams(text))


def choose(labelled: Mapping[str, Sequence[Candidate]], per_domain: int, seed: int, check: Check) -> ProbingSets:
    """Up to `per_domain` problems of each domain, in `preference_order`, that `check` has no complaint about.

    No two of them share a 10-gram. They are checked in waves until all domains are full or the pool is spent: first as
    many as are missing, then as many as it takes at the domain's rate of acceptance so far.
    """
    sets = ProbingSets({domain: [] for domain in labelled}, {domain: len(pool) for domain, pool in labelled.items()})
    waiting = {domain: preference_order(pool, seed)[::-1] for domain, pool in labelled.items()}
    texts = ChosenTexts()
    checked: Counter[str] = Counter()
    while wave := _next_wave(sets, waiting, texts, per_domain, checked):
        reasons = check([candidate for _, candidate in wave])
        for domain, candidate in wave:
            checked[domain] += 1
            reason = reasons.get(candidate.record.id)
            if reason is not None:
                sets.dropped.append(Dropped(id=candidate.record.id, step="rejected", reason=reason))
            elif texts.overlaps(candidate.record.prompt):  # with one chosen earlier in the same wave
                sets.dropped.append(_duplicate(candidate))
            elif len(sets.chosen[domain]) < per_domain:
                texts.add(candidate.record.prompt)
                sets.chosen[domain].append(candidate)
    return sets


def _next_wave(
    sets: ProbingSets,
    waiting: dict[str, list[Candidate]],
    texts: ChosenTexts,
    per_domain: int,
    checked: Counter[str],
) -> list[tuple[str, Candidate]]:
    wave: list[tuple[str, Candidate]] = []
    for domain, queue in waiting.items():
        accepted = len(sets.chosen[domain])
        tries = checked[domain] / max(1, accepted) if checked[domain] else 1.0
        wanted = math.ceil((per_domain - accepted) * min(max(1.0, tries), MOST_TRIES))
        while queue and wanted:
            candidate = queue.pop()
            if texts.overlaps(candidate.record.prompt):
                sets.dropped.append(_duplicate(candidate))
            else:
                wave.append((domain, candidate))
                wanted -= 1
    return wave


def _duplicate(candidate: Candidate) -> Dropped:
    return Dropped(id=candidate.record.id, step="duplicate", reason="shares a 10-gram with a chosen problem")
