r"""Grading the answers of mathematics: right, wrong with a reason, or ungraded where the grader itself failed.

    with MathVerifier() as verifier:
        verifier.grade("1/2", r"... so the answer is \boxed{0.5}.")      # Verdict(kind="right")

`_extraction` finds the final answer in a response and documents its rules. The answer is brought into one notation;
numbers, words and choices are decided at once, exactly; the rest goes to child processes that evaluate both sides, and
are killed when a comparison misses its deadline. What is not understood in full is wrong.

What counts as equal (the conventions in play; reasons in brackets):

- Several answers match one to one in any order; a tuple or interval matches in order and in its brackets. Answers
  listed where one is expected are wrong [else listing candidates would pay].
- A percentage is a hundredth: `50%` is `1/2`, never `50`.
- A decimal equals another only exactly; a reference of three digits and more may be the rounding of an exact answer
  without a finite decimal. `0.333` for `1/3` is wrong.
- A unit that only one side names is dropped; two known units have to agree. `90^\circ` is `90`, and `\pi/2` where the
  other side is in terms of pi.
- `name = value` is its value; `(p,q)=(3,2)` is `(3,2)`, and `p=3, q=2` too. A chain `x = 1 + 7 = 8` is its
  last side; one of different numbers, `x = 7 = 8`, is none.
- `x < 3` is `(-\infty, 3)`, `x \ne 1` the union of two intervals, and so on; `\pm` stands for both signs.
- A reference letter (multiple choice) is met by the letter, bracketed or followed by its text.
- Where the reference is a number, bare integer arithmetic, sums, integrals and limits are wrong [a restated problem].
- A decimal comma is a list: `1,22` is no `1.22`. A bare symbol such as `N` after a decimal is its unit.
- A response without a box may state its answer in words (`boxed_only` refuses that, as training does).
- Where the answer makes the work (towers of powers, factorials of large numbers) it is wrong with that reason
  [`ungraded` would let a policy stop the run]; `ungraded` stays for failures of the grader or of the reference.

Command line: `python -m nemo_vibethinker.reward.math --cases FILE.jsonl --out VERDICTS.jsonl` with rows of
`{id, gold, prediction}` (an answer, bare or boxed, or a text that states one) or `{id, gold, response}`; other columns
are ignored. It writes `{id, verdict, reason}` for each row, in order.
"""

import re
import sys
from collections.abc import Sequence

from nemo_vibethinker.progress import Progress
from nemo_vibethinker.reward._answers import MAX_ANSWER, decide
from nemo_vibethinker.reward._cases import Case, grade_file
from nemo_vibethinker.reward._extraction import Found, final_answer, reference_answer
from nemo_vibethinker.reward._grader_pool import GraderPool
from nemo_vibethinker.reward._notation import canonical
from nemo_vibethinker.reward.verdict import Verdict

_MARKER = re.compile(r"</?think>|<answer>|####|\\(?:boxed|fbox)(?![A-Za-z])")
_WORD = re.compile(
    r"(?<![A-Za-z])(?!or\b|and\b)[A-Za-z]?[a-z]+(?<=[A-Za-z]{2})[A-Za-z]*(?![A-Za-z])|[\u0370-\u1fff\u3040-\ud7ff]"
)

_CHUNK = 256  # cases graded between two progress lines

Prepared = Verdict | tuple[str, str]


class MathVerifier:
    r"""Grades answers; thread-safe, usable after a fork, and a context manager that ends its child processes.

    Args:
        deadline_s: bound on one comparison by algebra, in seconds.
        processes: how many of these run at a time; each is a child process, started when first needed.
        boxed_only: read answers only from `\boxed{...}`, as in training; else also from other final statements.

    Raises ValueError if `deadline_s` or `processes` is not positive.
    """

    def __init__(self, deadline_s: float = 2.0, processes: int = 1, *, boxed_only: bool = False) -> None:
        if deadline_s <= 0 or processes < 1:
            raise ValueError(f"deadline_s and processes must be positive, not {deadline_s} and {processes}")
        self._boxed_only = boxed_only
        self._pool = GraderPool(processes, deadline_s)

    def grade(self, gold: str, response: str) -> Verdict:
        """The verdict on the final answer of `response`; without one it is wrong."""
        return self.grade_many([(gold, response)])[0]

    def grade_many(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts on (gold, response) pairs in their order; equal comparisons by algebra run once."""
        return self._finish(
            [_prepare(gold, final_answer(response, boxed_only=self._boxed_only)) for gold, response in pairs]
        )

    def grade_predictions(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts on (gold, prediction) pairs, where a prediction is an answer or a text that states one."""
        verdicts = self._finish([_prepare(gold, _bare(prediction)) for gold, prediction in pairs])
        again = [i for i, verdict in enumerate(verdicts) if verdict.kind == "wrong" and _states(pairs[i][1])]
        for i, verdict in zip(again, self.grade_many([pairs[i] for i in again]), strict=True):
            verdicts[i] = verdict
        return verdicts

    def answer(self, response: str) -> str | None:
        """The final answer that `response` gives, None without one."""
        return final_answer(response, boxed_only=self._boxed_only).answer

    def same(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """For each pair of answers whether the second would be right if the first were the reference."""
        verdicts = self._finish([_prepare(first, Found(second)) for first, second in pairs])
        return [verdict.is_right for verdict in verdicts]

    def _finish(self, prepared: list[Prepared]) -> list[Verdict]:
        hard = list(dict.fromkeys(texts for texts in prepared if not isinstance(texts, Verdict)))
        graded = dict(zip(hard, self._pool.grade(hard), strict=True)) if hard else {}
        return [verdict if isinstance(verdict, Verdict) else graded[verdict] for verdict in prepared]

    def close(self) -> None:
        """End the child processes; the verifier stays usable and would start new ones."""
        self._pool.close()

    def __enter__(self) -> "MathVerifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _states(prediction: str) -> bool:
    """Whether words in the prediction may state an answer; mathematics alone is taken as it stands."""
    outside = re.sub(r"\\text\{[^{}]*\}|\\[A-Za-z]+", " ", prediction)
    return bool(_MARKER.search(prediction) or _WORD.search(outside))


def _bare(prediction: str) -> Found:
    if "\\boxed" in prediction or "think>" in prediction:
        return Found(None, "not a bare answer")
    return Found(prediction)


def _prepare(gold: str, found: Found) -> Prepared:
    """The verdict, or the canonical texts that algebra has to compare."""
    if found.answer is None:
        return Verdict("wrong", found.reason) if gold.strip() else decide("", "") or Verdict("ungraded")
    reference = reference_answer(gold)
    if len(found.answer) > max(MAX_ANSWER, 4 * len(reference)):
        return Verdict("wrong", "the answer is too long")
    expected, given = canonical(reference), canonical(found.answer)
    return decide(expected, given) or (expected, given)


def _check(case: Case) -> str:
    for key in ("gold", "prediction", "response"):
        if case.get(key) is not None and not isinstance(case[key], str):
            return f"'{key}' must be a string"
    return ""


def _grade_cases(cases: list[Case]) -> list[Verdict]:
    """A row without a gold is ungraded, one without a prediction wrong; a file that has none of a column is refused."""
    if cases and not any("gold" in case for case in cases):
        raise ValueError("no row has 'gold', the reference answer")
    if cases and not any("prediction" in case or "response" in case for case in cases):
        raise ValueError("no row has 'prediction' or 'response'")
    progress = Progress("grading", len(cases), unit="cases")
    verdicts: list[Verdict] = []
    with MathVerifier(processes=2) as verifier:
        for start in range(0, len(cases), _CHUNK):
            chunk = cases[start : start + _CHUNK]
            verdicts += _grade_chunk(verifier, chunk)
            progress.advance(len(chunk))
    return verdicts


def _grade_chunk(verifier: MathVerifier, cases: list[Case]) -> list[Verdict]:
    from_response = ["response" in case and "prediction" not in case for case in cases]
    pairs = [
        (case.get("gold") or "", case.get("response" if whole else "prediction") or "")
        for case, whole in zip(cases, from_response, strict=True)
    ]
    responses = iter(verifier.grade_many([pair for pair, whole in zip(pairs, from_response, strict=True) if whole]))
    predictions = [pair for pair, whole in zip(pairs, from_response, strict=True) if not whole]
    others = iter(verifier.grade_predictions(predictions))
    return [next(responses if whole else others) for whole in from_response]


_HELP = r"""Grade answers of mathematics: right, wrong with the reason, or ungraded where the grader itself failed.

A case is {"id": ..., "gold": REFERENCE, "prediction": ANSWER}, the answer bare, boxed or stated in a text, or
{"id": ..., "gold": REFERENCE, "response": TEXT}. One comparison may compute for 2 seconds.

example: python -m nemo_vibethinker.reward.math --cases cases.jsonl --out verdicts.jsonl
"""

if __name__ == "__main__":
    sys.exit(grade_file(_HELP, _grade_cases, _check))
