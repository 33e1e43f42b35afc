r"""Grading the answers of mathematics.

The answer is the content of the last `\boxed{...}`. Equal normal forms and plain numbers, alone, in lists or in
tuples, are decided exactly in this process within microseconds; algebra is left to math-verify, in child processes
with a hard deadline. Guarded against false accepts: several answers listed where one is expected, other brackets,
a percentage against its number, values that agree only within a rounding, and equations that are not proportional.

Command line: `python -m nemo_vibethinker.reward.math --cases FILE.jsonl --out VERDICTS.jsonl` with rows of
`{id, gold, prediction}` (an answer, boxed or bare) or `{id, gold, response}` (has to contain a boxed answer).
"""

import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from nemo_vibethinker.reward._answers import decide, normalise
from nemo_vibethinker.reward._cases import Case, grade_file
from nemo_vibethinker.reward._grader_pool import GraderPool
from nemo_vibethinker.reward.verdict import Verdict

_BOX = "\\boxed"
_TOKEN = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def extract_answer(response: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces balance, or None. Escaped braces do not count.

    Of nested boxes it gives the innermost content, if the outer holds nothing else. Takes linear time.
    """
    first = response.find(_BOX)
    opened: list[int] = []
    content: tuple[int, int] | None = None
    for token in _TOKEN.finditer(response, first) if first >= 0 else ():
        text = token[0]
        if text == "}" and opened:
            start = opened.pop()
            if start >= 0:
                content = start, token.start()
        elif text == "{":
            opened.append(-1)
        elif text.startswith(_BOX):
            opened.append(token.end())
    return _unwrap(response[content[0] : content[1]]) if content else None


def _unwrap(answer: str) -> str:
    while found := re.fullmatch(r"\s*\\boxed\s*\{([^{}]*)\}\s*", answer):
        answer = found[1]
    return answer.strip()


class MathVerifier:
    """Grades answers; thread-safe, and a context manager that ends its child processes.

    `deadline_s` bounds one comparison by algebra in seconds, `processes` is how many of these run at a time.
    Raises ValueError if either is not positive.
    """

    def __init__(self, deadline_s: float = 2.0, processes: int = 1) -> None:
        if deadline_s <= 0 or processes < 1:
            raise ValueError(f"deadline_s and processes must be positive, not {deadline_s} and {processes}")
        self._pool = GraderPool(processes, deadline_s)
        self._threads = ThreadPoolExecutor(processes)

    def grade(self, gold: str, response: str) -> Verdict:
        r"""The verdict on the last boxed answer of `response`; without one it is wrong."""
        return self.grade_answer(gold, extract_answer(response))

    def grade_answer(self, gold: str, answer: str | None) -> Verdict:
        """The verdict on a bare answer; None is wrong."""
        quick = _without_algebra(gold, answer)
        return quick if isinstance(quick, Verdict) else self._pool.grade(*quick)

    def grade_many(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts on (gold, response) pairs in their order; equal comparisons by algebra run once."""
        quick = [_without_algebra(gold, extract_answer(response)) for gold, response in pairs]
        hard = list(dict.fromkeys(texts for texts in quick if not isinstance(texts, Verdict)))
        graded = dict(zip(hard, self._threads.map(lambda texts: self._pool.grade(*texts), hard), strict=True))
        return [verdict if isinstance(verdict, Verdict) else graded[verdict] for verdict in quick]

    def close(self) -> None:
        self._threads.shutdown()
        self._pool.close()

    def __enter__(self) -> "MathVerifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _without_algebra(gold: str, answer: str | None) -> Verdict | tuple[str, str]:
    """The verdict, or the normal forms that algebra has to compare."""
    if answer is None:
        return Verdict("wrong", "no \\boxed answer")
    expected, given = normalise(_reference(gold)), normalise(answer)
    return decide(expected, given) or (expected, given)


def _reference(gold: str) -> str:
    """A reference answer may come boxed."""
    return extract_answer(gold) or gold


def _check(case: Case) -> str:
    if not isinstance(case.get("gold"), str):
        return "'gold' must be a string"
    text = case.get("prediction", case.get("response"))
    return "" if isinstance(text, str) else "needs 'prediction' or 'response', a string"


def _grade_cases(cases: list[Case]) -> list[Verdict]:
    with MathVerifier() as verifier:
        return [_grade_case(verifier, case) for case in cases]


def _grade_case(verifier: MathVerifier, case: Case) -> Verdict:
    if "prediction" not in case:
        return verifier.grade(case["gold"], case["response"])
    return verifier.grade_answer(case["gold"], _reference(case["prediction"]))


if __name__ == "__main__":
    sys.exit(grade_file("Grade answers of mathematics.", _grade_cases, _check))
