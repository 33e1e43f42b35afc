"""The pool that probing sets are chosen from: its problems, and those that training or evaluation hold too."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nemo_vibethinker.config import CODE_DOMAIN
from nemo_vibethinker.data.decontaminate import NGramIndex, normalise
from nemo_vibethinker.data.readers import iterate_dataset
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.spectrum.difficulty import Difficulty, task_hash
from nemo_vibethinker.spectrum.subjects import subject_domain

PASS_RATE_BINS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A problem of the pool, what its dataset calls it (None if unknown), and its stratum of difficulty.

    `stratum` is the dataset's level, or the bin of the pass rate (0 the hardest); None if neither is known.
    """

    record: Record
    subject: str | None
    stratum: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A row of the pool that is not used, at which step, and why."""

    id: str
    step: str
    reason: str


def read_pool(
    paths: Sequence[Path], difficulties: Mapping[str, Difficulty] | None
) -> tuple[list[Candidate], list[Dropped]]:
    """The problems with an answer, each text once, and the rows left out.

    With `difficulties` (by `task_hash`) the pass rate alone tells the difficulty. ids are made distinct over files.
    """
    candidates: list[Candidate] = []
    dropped: list[Dropped] = []
    texts: set[str] = set()
    ids: set[str] = set()
    for path in paths:
        for row in iterate_dataset(path, kind="rl"):
            identity = row.id or f"{path.stem}:{row.line}"
            text = " ".join(normalise(row.record.prompt)) if row.record else ""
            if row.record is None or row.record.domain == CODE_DOMAIN:
                dropped.append(Dropped(id=identity, step="unusable", reason=row.reason or "code"))
            elif text in texts:
                dropped.append(Dropped(id=identity, step="duplicate", reason="the text of an earlier row"))
            else:
                texts.add(text)
                record = _entry(row.record, ids)
                stratum = _stratum(record, difficulties)
                candidates.append(Candidate(record=record, subject=subject_domain(row.raw), stratum=stratum))
    return candidates, dropped


def _entry(record: Record, ids: set[str]) -> Record:
    """The question and its answer, under an id of its own; a probe needs no solution."""
    identity = f"{record.id}#{task_hash(record)[:12]}" if record.id in ids else record.id
    ids.add(identity)
    return replace(record, id=identity, response="", strategy="")


def _stratum(record: Record, difficulties: Mapping[str, Difficulty] | None) -> int | None:
    if difficulties is None:
        return record.difficulty or None
    known = difficulties.get(task_hash(record))
    if known is None or known.pass_rate is None:
        return None
    return min(int(known.pass_rate * PASS_RATE_BINS), PASS_RATE_BINS - 1)


def drop_overlapping(
    candidates: Sequence[Candidate], sets: Mapping[str, Sequence[Path]]
) -> tuple[list[Candidate], list[Dropped]]:
    """Candidates that share no 10-gram with a prompt of the named sets ("training", "evaluation"), and the others."""
    kept, dropped = list(candidates), []
    for name, paths in sets.items():
        index = NGramIndex(_prompts(paths))
        found = [(candidate, index.first_overlap(candidate.record.prompt)) for candidate in kept]
        kept = [candidate for candidate, overlap in found if overlap is None]
        dropped += [
            Dropped(id=candidate.record.id, step=f"overlaps {name}", reason=f"'{overlap[1]}' of {overlap[0]}")
            for candidate, overlap in found
            if overlap
        ]
    return kept, dropped


def _prompts(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Distinct prompts: training sets hold many solutions of one."""
    seen: set[int] = set()
    for path in paths:
        for row in iterate_dataset(path):
            if row.record and hash(row.record.prompt) not in seen:
                seen.add(hash(row.record.prompt))
                yield row.record.prompt, row.record.id
