"""From kept responses to a score: pass@k, maj@k, intervals, and what they rest on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nemo_vibethinker.config import CODE_DOMAIN
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.evaluation.majority import Vote, cluster_answers, majority_at
from nemo_vibethinker.evaluation.provenance import Provenance
from nemo_vibethinker.evaluation.samples import SampleFolder, SampleRow
from nemo_vibethinker.evaluation.scores import ProblemSamples, Score, estimate, score_domain
from nemo_vibethinker.reward.math import MathVerifier

_KS = (1, 2, 4, 8, 16, 32, 64)


def score_rows(
    name: str,
    records: Sequence[Record],
    rows: Iterable[SampleRow],
    provenance: Provenance,
    verifier: MathVerifier,
) -> Score:
    """The score of benchmark `name`.

    `records` are the problems that the score is over, each with `provenance.samples` responses among `rows`. The
    bootstrap is seeded by the run's seed.

    Raises:
        ValueError: a response is missing.
    """
    by_problem = responses_of(records, rows, provenance.samples)
    problems = [_problem(record, by_problem[record.id]) for record in records]
    ks = [*(k for k in _KS if k < provenance.samples), provenance.samples]
    score = score_domain(provenance.model, name, problems, ks, provenance.seed)
    votes = [] if any(record.domain == CODE_DOMAIN for record in records) else _votes(records, by_problem, verifier)
    majority = {k: estimate([majority_at(each, k) for each in votes], provenance.seed) for k in ks if votes and k > 1}
    return replace(score, benchmark=name, maj_at=majority, provenance=provenance)


def score_folder(folder: SampleFolder, verifier: MathVerifier) -> Score:
    """The score of a finished folder of responses; ValueError where one is missing."""
    try:
        return score_rows(folder.folder.name, folder.problems(), folder.rows(), folder.provenance(), verifier)
    except ValueError as error:
        raise ValueError(f"{folder.folder}: {error}") from None


def responses_of(records: Sequence[Record], rows: Iterable[SampleRow], samples: int) -> Mapping[str, list[SampleRow]]:
    """Problem -> its responses in their order.

    Raises:
        ValueError: one is missing or there twice, or belongs to no problem.
    """
    found: dict[str, dict[int, SampleRow]] = {record.id: {} for record in records}
    for row in rows:
        if row.id not in found or not 0 <= row.sample < samples:
            raise ValueError(f"response {row.sample} to {row.id} belongs to no problem of this score")
        if row.sample in found[row.id]:
            raise ValueError(f"response {row.sample} to {row.id} is there twice")
        found[row.id][row.sample] = row
    for identity, responses in found.items():
        if len(responses) < samples:
            raise ValueError(f"{samples - len(responses)} of {samples} responses to {identity} are missing")
    return {identity: [responses[sample] for sample in range(samples)] for identity, responses in found.items()}


def _problem(record: Record, rows: Sequence[SampleRow]) -> ProblemSamples:
    return ProblemSamples(
        domain=record.domain,
        verdicts=[row.verdict for row in rows],
        lengths=[row.tokens for row in rows],
        truncated=[row.finish_reason == "length" for row in rows],
    )


def _votes(
    records: Sequence[Record], by_problem: Mapping[str, Sequence[SampleRow]], verifier: MathVerifier
) -> list[list[Vote]]:
    return [votes_of(by_problem[record.id], verifier) for record in records]


def votes_of(rows: Sequence[SampleRow], verifier: MathVerifier) -> list[Vote]:
    """The responses to one problem as votes."""
    clusters = cluster_answers([verifier.answer(row.response) for row in rows], verifier.same)
    return [Vote(cluster, row.verdict == "right") for cluster, row in zip(clusters, rows, strict=True)]


def model_folder(evaluation: Path, model: str, benchmark: str) -> SampleFolder:
    """Where the responses of a model to a benchmark are kept."""
    return SampleFolder(evaluation / "benchmarks" / model.replace("/", "--") / benchmark)
