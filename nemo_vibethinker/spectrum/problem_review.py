"""A model's labels and checks of problems, asked through an endpoint and kept as they arrive."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Protocol, TypeVar

from nemo_vibethinker.data.records import Record
from nemo_vibethinker.progress import Progress
from nemo_vibethinker.reward.math import MathVerifier
from nemo_vibethinker.reward.verdict import Verdict
from nemo_vibethinker.spectrum.endpoint import Answer, Endpoint, Failure, Request
from nemo_vibethinker.spectrum.labelling import (
    UnusableAnswer,
    check_request,
    final_text,
    label_request,
    read_check,
    read_label,
)
from nemo_vibethinker.spectrum.resume_file import ResumeFile
from nemo_vibethinker.spectrum.spending import Spending, Usage

ATTEMPTS = 2  # an unusable answer is asked for once more
T = TypeVar("T")
Reasons = dict[str, str]  # record id -> why there is no result


class RequestBuilder(Protocol):
    """`label_request` or `check_request`."""

    def __call__(self, problem: str, *, attempt: int, max_tokens: int) -> Request: ...


def kept_answers(resume: ResumeFile) -> dict[str, Answer]:
    """The answers that earlier attempts have left, by request key; ValueError for a file of something else."""
    try:
        return {
            row["key"]: Answer(
                texts=tuple(row["texts"]), finish_reasons=tuple(row["finish_reasons"]), usage=Usage(**row["usage"])
            )
            for row in resume.rows
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"{resume.path} holds no answers of an endpoint; move it or choose another --out") from error


class Reviewer:
    """Labels and checks problems; every answer goes to `resume` at once and is never asked for again.

    Args:
        label_tokens, check_tokens: most tokens of an answer, a reasoning model's thought included.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        resume: ResumeFile,
        spending: Spending,
        verifier: MathVerifier,
        *,
        label_tokens: int,
        check_tokens: int,
    ) -> None:
        self._endpoint, self._resume, self._spending, self._verifier = endpoint, resume, spending, verifier
        self._label_tokens, self._check_tokens = label_tokens, check_tokens
        self._answers = kept_answers(resume)

    def label_requests(self, records: Sequence[Record]) -> list[Request]:
        """What a first attempt at labels would still have to ask."""
        return self._missing([label_request(r.prompt, attempt=0, max_tokens=self._label_tokens) for r in records])

    def check_requests(self, records: Sequence[Record]) -> list[Request]:
        """What a first attempt at checks would still have to ask."""
        return self._missing([check_request(r.prompt, attempt=0, max_tokens=self._check_tokens) for r in records])

    def _missing(self, requests: Sequence[Request]) -> list[Request]:
        return [request for request in requests if request.key(self._endpoint.model) not in self._answers]

    def label(self, records: Sequence[Record]) -> tuple[dict[str, str], Reasons]:
        """The domain of each record by id, and why others have none."""
        return self._review("labels", records, label_request, self._label_tokens, read_label)

    def check(self, records: Sequence[Record]) -> Reasons:
        """Why records are not fit for a probing set, by id; those without a reason are.

        The model's own answer is graded against the record's by the maths verifier, which also leaves answers
        ungraded: they are not wrong, but nothing has confirmed them either. Raises RuntimeError if that befalls all
        of many.
        """
        found, reasons = self._review("checks", records, check_request, self._check_tokens, _read_solution)
        solved = [record for record in records if record.id in found and found[record.id][0]]
        verdicts = self._verifier.grade_many([(record.answer, found[record.id][1]) for record in solved])
        if len(verdicts) >= 8 and not any(verdict.is_graded for verdict in verdicts):
            raise RuntimeError(f"the maths verifier graded none of {len(verdicts)} answers: {verdicts[0].reason}")
        reasons |= {identity: "not well posed" for identity, (is_well_posed, _) in found.items() if not is_well_posed}
        complaints = zip(solved, map(_complaint, verdicts), strict=True)
        return reasons | {record.id: complaint for record, complaint in complaints if complaint}

    def _review(
        self,
        name: str,
        records: Sequence[Record],
        build: RequestBuilder,
        max_tokens: int,
        read: Callable[[str, str], T],
    ) -> tuple[dict[str, T], Reasons]:
        results: dict[str, T] = {}
        reasons: Reasons = {}
        left = list(records)
        for attempt in range(ATTEMPTS):
            asked = {record.id: build(record.prompt, attempt=attempt, max_tokens=max_tokens) for record in left}
            failures = self._answer(name, list(asked.values()))
            unusable: list[Record] = []
            for record in left:
                request = asked[record.id]
                if request in failures:
                    reasons[record.id] = f"no answer: {failures[request].reason}"
                    continue
                try:
                    answer = self._answers[request.key(self._endpoint.model)]
                    results[record.id] = _read(answer, record.prompt, read)
                except UnusableAnswer as error:
                    reasons[record.id] = str(error)
                    unusable.append(record)
            left = unusable
        return results, {identity: reason for identity, reason in reasons.items() if identity not in results}

    def _answer(self, name: str, requests: Sequence[Request]) -> dict[Request, Failure]:
        """Ask for the answers that are not there yet; returns those that could not be had."""
        model = self._endpoint.model
        missing = self._missing(requests)
        progress = Progress(name, len(missing), unit="problems")
        failures: dict[Request, Failure] = {}

        def handle(request: Request, result: Answer | Failure) -> None:
            if isinstance(result, Failure):
                failures[request] = result
            else:
                self._answers[request.key(model)] = result
                self._resume.append({"key": request.key(model), "version": request.version} | asdict(result))
            progress.advance(note=self._spending)

        self._endpoint.answer_all(missing, handle, self._spending)
        return failures


def _read(answer: Answer, problem: str, read: Callable[[str, str], T]) -> T:
    if answer.finish_reasons[0] == "length":
        raise UnusableAnswer("answer cut at the length limit")
    return read(answer.texts[0], problem)


def _read_solution(text: str, problem: str) -> tuple[bool, str]:
    return read_check(text, problem), final_text(text)


def _complaint(verdict: Verdict) -> str:
    if not verdict.is_graded:
        return f"answer left ungraded: {verdict.reason}"
    return "" if verdict.is_right else "the model's own answer differs"
