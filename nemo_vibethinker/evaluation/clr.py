"""Claim-level reliability (CLR), test-time scaling of the VibeThinker-3B report (section 3.1, equations 5 and 6).

K trajectories answer a problem; each names M claims that its answer rests on; the model itself judges each claim, v in
{0, 1}. A trajectory weighs r_k = (mean of its v)^M; answers are clustered by equivalence, and the cluster with the
largest sum of r wins. The whole flow is repeated, and the repeats are averaged. Majority vote is the same with all
weights 1.

The report discloses no prompts: these are ours. A claim that is not stated, and a judgement that cannot be read, count
as 0.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nemo_vibethinker.data.boxed import last_boxed
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.evaluation.majority import Vote, cluster_answers, majority_credit
from nemo_vibethinker.reward.math import MathVerifier

TRAJECTORIES, CLAIMS, REPEATS = 32, 5, 8  # K, M and the number of repeats of the report
SHOWN_CHARACTERS = 12_000  # of the end of a solution, which a prompt shows

_CLAIM = re.compile(r"^\W*claim\s*(\d+)\W*[:.]\s*(.+)$", re.IGNORECASE | re.MULTILINE)
_YES = frozenset({"1", "true", "yes", "correct"})


@dataclass(frozen=True)
class Completion:
    """A response with its length in tokens and that of its prompt."""

    text: str
    tokens: int
    prompt_tokens: int


@dataclass(frozen=True)
class Ask:
    """A prompt (a whole user turn) with what tells it apart from an equal one, and its seed."""

    prompt: str
    purpose: str
    seed_parts: tuple[object, ...]


Generate = Callable[[Sequence[Ask]], list[Completion]]  # in the order of the prompts


@dataclass
class Cost:
    """Tokens of a method's own: prompts, responses, and calls."""

    calls: int = 0
    prompt_tokens: int = 0
    tokens: int = 0

    def add(self, completions: Sequence[Completion]) -> None:
        """Count these."""
        self.calls += len(completions)
        self.prompt_tokens += sum(each.prompt_tokens for each in completions)
        self.tokens += sum(each.tokens for each in completions)


def reliability(verdicts: Sequence[int]) -> float:
    """r = (mean v)^M of a trajectory's M judged claims, each 0 or 1: four of five true are .8^5 = .32768."""
    assert verdicts
    assert set(verdicts) <= {0, 1}
    return (sum(verdicts) / len(verdicts)) ** len(verdicts)


def claims_prompt(problem: str, solution: str, claims: int) -> str:
    """Asks for the claims that a solution rests on."""
    return (
        f"Problem:\n{problem}\n\nA solution:\n{_end(solution)}\n\nWrite down the {claims} statements in this solution "
        "that its final answer depends on most. Each must be understandable without the solution and be either true or "
        f"false for this problem. Write nothing but {claims} lines of the form\nClaim 1: ..."
    )


def judge_prompt(problem: str, claim: str) -> str:
    """Asks whether one claim is true."""
    return (
        f"Problem:\n{problem}\n\nA statement about it:\n{claim}\n\nCheck step by step whether this statement is true. "
        "Then output \\boxed{1} if it is true and \\boxed{0} if it is not."
    )


def read_claims(response: str, claims: int) -> list[str | None]:
    """The claims by their numbers, after any reasoning; None where one is not stated."""
    found = {int(number): text.strip() for number, text in _CLAIM.findall(response.rpartition("</think>")[2])}
    return [found.get(number) for number in range(1, claims + 1)]


def read_judgement(response: str) -> int:
    """1 where the last box says that the claim is true, else 0."""
    boxed = last_boxed(response.rpartition("</think>")[2]) or ""
    return int(re.sub(r"\\text\{(.*)\}", r"\1", boxed).strip().lower() in _YES)


def _end(solution: str) -> str:
    return solution.rpartition("</think>")[2].strip()[-SHOWN_CHARACTERS:]


@dataclass(frozen=True)
class ClrResult:
    """One repeat over one problem: probabilities that the chosen answer is right, ties drawn at random."""

    problem: str
    clr: float
    majority: float
    mean: float  # pass@1 of the trajectories
    weights: tuple[float, ...]
    answers: tuple[str | None, ...]


@dataclass
class Clr:
    """The flow on one engine.

    Attributes:
        sampling_cost: of the trajectories, which majority vote needs too; `own_cost` is of claims and judgements.
    """

    generate: Generate
    verifier: MathVerifier
    trajectories: int = TRAJECTORIES
    claims: int = CLAIMS
    sampling_cost: Cost = field(default_factory=Cost)
    own_cost: Cost = field(default_factory=Cost)

    def solve(self, records: Sequence[Record], repeat: int) -> list[ClrResult]:
        """One repeat over all problems; a record's prompt is the whole user turn."""
        asks = [
            Ask(record.prompt, "trajectory", (repeat, record.id, number))
            for record in records
            for number in range(self.trajectories)
        ]
        solutions = self.generate(asks)
        self.sampling_cost.add(solutions)
        owners = [record for record in records for _ in range(self.trajectories)]
        weights = self._weights(owners, solutions, repeat)
        results = []
        for place, record in enumerate(records):
            own = slice(place * self.trajectories, (place + 1) * self.trajectories)
            results.append(self._result(record, solutions[own], weights[own]))
        return results

    def _weights(self, owners: Sequence[Record], solutions: Sequence[Completion], repeat: int) -> list[float]:
        """r of each trajectory."""
        asks = [
            Ask(claims_prompt(record.prompt, solution.text, self.claims), "claims", (repeat, record.id, number))
            for number, (record, solution) in enumerate(zip(owners, solutions, strict=True))
        ]
        stated = self.generate(asks)
        self.own_cost.add(stated)
        claims = [read_claims(each.text, self.claims) for each in stated]
        places = [(k, m) for k, own in enumerate(claims) for m, claim in enumerate(own) if claim is not None]
        judged = self.generate(
            [
                Ask(judge_prompt(owners[k].prompt, str(claims[k][m])), "judge", (repeat, owners[k].id, k, m))
                for k, m in places
            ]
        )
        self.own_cost.add(judged)
        verdicts = [[0] * self.claims for _ in solutions]
        for (k, m), completion in zip(places, judged, strict=True):
            verdicts[k][m] = read_judgement(completion.text)
        return [reliability(each) for each in verdicts]

    def _result(self, record: Record, solutions: Sequence[Completion], weights: Sequence[float]) -> ClrResult:
        answers = [self.verifier.answer(solution.text) for solution in solutions]
        graded = self.verifier.grade_many([(record.answer, solution.text) for solution in solutions])
        rights = [verdict.is_right for verdict in graded]
        clusters = cluster_answers(answers, self.verifier.same)
        votes = [Vote(cluster, right) for cluster, right in zip(clusters, rights, strict=True)]
        return ClrResult(
            problem=record.id,
            clr=majority_credit(votes, weights),
            majority=majority_credit(votes),
            mean=sum(rights) / len(rights),
            weights=tuple(weights),
            answers=tuple(answers),
        )
