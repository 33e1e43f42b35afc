"""The sample explorer's data: some problems with responses of some models, cut to what a page can carry."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_vibethinker.data.records import Record, iterate_jsonl

MAX_BYTES = 1_200_000  # of all prompts and responses in the page
MAX_PROBLEMS = 400
MAX_CHARACTERS = 1_600  # of one text: of a longer one its beginning and its end are shown
MAX_RESPONSES = 4  # of a model to a problem
_PER_VERDICT = 2


@dataclass
class Problem:
    """A problem of the explorer; `responses` are [model's index, verdict, reason, text]."""

    id: str
    domain: str
    prompt: str
    answer: str
    responses: list[list[Any]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of it in the page."""
        return len(json.dumps([self.prompt, self.responses], ensure_ascii=False).encode())


@dataclass
class Explorer:
    """What the page shows of how much there is."""

    models: list[str]
    problems: list[Problem]
    all_problems: int
    all_responses: int

    @property
    def responses(self) -> int:
        """Responses that the page holds."""
        return sum(len(problem.responses) for problem in self.problems)


@dataclass(frozen=True)
class Source:
    """The samples of one model to one set of problems.

    Attributes:
        model: its label.
        benchmark: name of the set; empty for the held-out one, whose problems have domains of their own.
        problems: JSON lines of records.
        samples: JSON lines of `id`, `response`, `verdict`, `reason`.
    """

    model: str
    benchmark: str
    problems: Path
    samples: Path


def sources(evaluation: Path, held_out: Path | None) -> list[Source]:
    """What an evaluation folder holds: `samples_<model>.jsonl`, and `benchmarks/<model>/<benchmark>/samples.jsonl`.

    In the order of the models, which is that of the files' times; `held_out` holds the problems of the former.
    """
    plain = sorted(evaluation.glob("samples_*.jsonl"), key=lambda file: file.stat().st_mtime) if held_out else []
    found = [Source(file.stem.removeprefix("samples_"), "", held_out, file) for file in plain if held_out]
    return found + [
        Source(file.parent.parent.name, file.parent.name, file.with_name("problems.jsonl"), file)
        for file in sorted(evaluation.glob("benchmarks/*/*/samples.jsonl"))
    ]


def gather_samples(found: Sequence[Source], max_bytes: int = MAX_BYTES) -> Explorer | None:
    """Problems evenly over the sets, with up to four responses of each model, right and wrong ones.

    Files are read line by line: they may be of gigabytes. None if there are no samples.
    """
    models = list(dict.fromkeys(source.model for source in found))
    chosen: dict[tuple[Path, str], Problem] = {}
    for problems in dict.fromkeys(source.problems for source in found):
        chosen |= {(problems, record.id): _problem(record) for record in _spread(problems, MAX_PROBLEMS)}
    seen: set[tuple[Path, str]] = set()
    count = 0
    for source in found:
        taken: dict[tuple[str, str], int] = {}
        for line in read_samples(source.samples):
            count += 1
            seen.add((source.problems, line["id"]))
            problem = chosen.get((source.problems, line["id"]))
            if problem is not None:
                problem.domain = source.benchmark or problem.domain
                _take(problem, models.index(source.model), line, taken)
    if not count:
        return None
    problems = [problem for problem in chosen.values() if problem.responses]
    return Explorer(models, _within(problems, max_bytes), len(seen), count)


def _problem(record: Record) -> Problem:
    return Problem(record.id, record.domain, shortened(record.prompt), record.answer)


def _spread(path: Path, limit: int) -> list[Record]:
    """At most `limit` records: as many of each domain as its share, evenly spaced."""
    domains: dict[str, list[Record]] = {}
    for record in iterate_jsonl(path):
        domains.setdefault(record.domain, []).append(record)
    total = sum(map(len, domains.values()))
    step = max(1.0, total / limit)
    return [
        records[int(place * step)]
        for records in domains.values()
        for place in range(int((len(records) - 1) // step) + 1 if records else 0)
    ]


def read_samples(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a samples file; one that is still being written may end torn."""
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)


def _take(problem: Problem, model: int, line: Mapping[str, Any], taken: dict[tuple[str, str], int]) -> None:
    """Add a response while there is room for its verdict: two right, two wrong, two ungraded."""
    if sum(response[0] == model for response in problem.responses) >= MAX_RESPONSES:
        return
    key = (problem.id, line["verdict"])
    if taken.get(key, 0) < _PER_VERDICT:
        taken[key] = taken.get(key, 0) + 1
        problem.responses.append([model, line["verdict"], line.get("reason", ""), shortened(line["response"])])


def shortened(text: str) -> str:
    """A long text without its middle: the end holds the answer."""
    if len(text) <= MAX_CHARACTERS:
        return text
    half = MAX_CHARACTERS // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[... {left_out:,} characters left out ...]\n{text[-half:]}"


def _within(problems: Sequence[Problem], max_bytes: int) -> list[Problem]:
    """As many of the problems, evenly spaced, as `max_bytes` hold."""
    kept: list[Problem] = []
    room = max_bytes
    for problem in _interleaved(problems):
        room -= problem.size
        if room < 0:
            break
        kept.append(problem)
    order = {problem.id: place for place, problem in enumerate(problems)}
    return sorted(kept, key=lambda problem: order[problem.id])


def _interleaved(problems: Sequence[Problem]) -> Iterable[Problem]:
    """Such an order that any beginning of it is spread over the whole: every 16th, then those between."""
    for offset in range(16):
        yield from problems[offset::16]


def explorer_data(explorer: Explorer) -> dict[str, Any]:
    """The explorer as the page's script takes it."""
    return {
        "models": explorer.models,
        "problems": [
            {"id": p.id, "domain": p.domain, "prompt": p.prompt, "answer": p.answer, "responses": p.responses}
            for p in explorer.problems
        ],
    }


def explorer_note(explorer: Explorer) -> str:
    """How much of what there is the page holds."""
    return (
        f"{len(explorer.problems):,} of {explorer.all_problems:,} problems and {explorer.responses:,} of "
        f"{explorer.all_responses:,} responses of {', '.join(explorer.models)} are in this page, up to "
        f"{MAX_RESPONSES} a problem and model, right and wrong ones; the samples files of the run hold all."
    )
