"""Does this verifier agree with verdicts that are known? Scores stored model outputs and reports the agreement.

    python -m nemo_vibethinker.evaluation.selfcheck --outputs outputs.jsonl

A line of the file is one response:

    {"id": "aime24-3/17", "gold": "204", "response": "... \\\\boxed{204}", "correct": true}
    {"id": "lcb-abc/2", "tests": [{"stdin": "2", "stdout": "4"}], "response": "```python ...```", "correct": false}

`gold` is the reference answer of mathematics (a letter for a choice), `tests` are those of a program in a layout of
`data.code_tests`; `correct` is the known verdict, true or false; `id` is optional, other fields are ignored.
`evaluation.exchange` makes such files from the results of other harnesses.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.command import run_command
from nemo_vibethinker.config import RewardConfig
from nemo_vibethinker.data.code_tests import parse_tests
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.evaluation.provenance import verifier_version
from nemo_vibethinker.progress import Progress
from nemo_vibethinker.reward.grader import Grader
from nemo_vibethinker.reward.verdict import Verdict

NAME = "nemo_vibethinker.evaluation.selfcheck"
_SLICE = 256
_SHOWN = 10  # disagreements that are printed


@dataclass(frozen=True)
class StoredOutput:
    """A response whose verdict is known; `record` has the answer or the tests."""

    record: Record
    response: str
    correct: bool


@dataclass(frozen=True)
class Agreement:
    """How verdicts compare with the known ones. Ungraded responses agree with nothing."""

    total: int
    agreed: int
    accepted_wrong: tuple[str, ...]  # ids: known wrong, graded right
    rejected_right: tuple[str, ...]  # ids: known right, graded wrong
    ungraded: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of all responses."""
        return self.agreed / self.total


def read_outputs(path: Path) -> list[StoredOutput]:
    """The outputs of a file in the layout of this module; ValueError names the line."""
    outputs = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    outputs.append(_output(json.loads(line), f"line {number}"))
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{path}:{number}: {error}") from None
    if not outputs:
        raise ValueError(f"{path} has no outputs")
    return outputs


def _output(row: Any, place: str) -> StoredOutput:
    if not isinstance(row, dict) or not isinstance(row.get("response"), str):
        raise ValueError("needs an object with the text 'response'")
    if not isinstance(row.get("correct"), bool):
        raise ValueError("needs the known verdict, 'correct': true or false")
    tests = parse_tests(row.get("tests"))
    if not tests and not isinstance(row.get("gold"), str):
        raise ValueError("needs the reference answer 'gold' (a text), or 'tests'")
    domain = "code" if tests else "math"
    record = Record(id=str(row.get("id", place)), domain=domain, prompt="", answer=row.get("gold") or "", tests=tests)
    return StoredOutput(record, row["response"], row["correct"])


def compare(outputs: Sequence[StoredOutput], verdicts: Sequence[Verdict]) -> Agreement:
    """Known and given verdicts, response by response."""
    pairs = list(zip(outputs, verdicts, strict=True))
    graded = [(output, verdict) for output, verdict in pairs if verdict.is_graded]
    differ = [(output, verdict) for output, verdict in graded if verdict.is_right != output.correct]
    return Agreement(
        total=len(pairs),
        agreed=len(graded) - len(differ),
        accepted_wrong=tuple(output.record.id for output, verdict in differ if verdict.is_right),
        rejected_right=tuple(output.record.id for output, verdict in differ if not verdict.is_right),
        ungraded=tuple(output.record.id for output, verdict in pairs if not verdict.is_graded),
    )


def grade_outputs(outputs: Sequence[StoredOutput], grader: Grader) -> list[Verdict]:
    """The verdicts of this version."""
    progress = Progress("grading", len(outputs), unit="responses")
    verdicts: list[Verdict] = []
    for start in range(0, len(outputs), _SLICE):
        some = outputs[start : start + _SLICE]
        verdicts += grader.grade([output.record for output in some], [output.response for output in some])
        progress.advance(len(some))
    return verdicts


def format_agreement(agreement: Agreement) -> str:
    """A few lines, the first disagreements by id among them."""
    lines = [
        f"{agreement.agreed:,} of {agreement.total:,} verdicts agree ({agreement.share:.2%}); {verifier_version()}",
        _listed("graded right, known wrong", agreement.accepted_wrong),
        _listed("graded wrong, known right", agreement.rejected_right),
        _listed("ungraded", agreement.ungraded),
    ]
    return "\n".join(lines)


def _listed(what: str, ids: Sequence[str]) -> str:
    more = ", ..." if len(ids) > _SHOWN else ""
    return f"  {what}: {len(ids):,}" + (f" ({', '.join(ids[:_SHOWN])}{more})" if ids else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 below `--min-agreement`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--outputs", type=Path, required=True, metavar="FILE.jsonl", help="responses with verdicts")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="our verdict and its reason for each, in order")
    parser.add_argument("--min-agreement", type=float, default=0.0, metavar="SHARE", help="exit 1 below it, as 0.99")
    parser.add_argument("--workers", type=int, default=2, help="grading processes (default: %(default)s)")
    options = parser.parse_args(arguments)
    return run_command(NAME, lambda: _check(options))


def _check(options: argparse.Namespace) -> int:
    outputs = read_outputs(options.outputs)
    with Grader(RewardConfig(workers=options.workers), options.workers) as grader:
        verdicts = grade_outputs(outputs, grader)
    if options.out:
        rows = zip(outputs, verdicts, strict=True)
        lines = [{"id": o.record.id, "correct": o.correct, "verdict": v.kind, "reason": v.reason} for o, v in rows]
        atomic_write_text(options.out, "".join(json.dumps(line) + "\n" for line in lines))
    agreement = compare(outputs, verdicts)
    print(format_agreement(agreement))
    print("  by known verdict: " + ", ".join(f"{k} {n:,}" for k, n in _table(outputs, verdicts).items()))
    return int(agreement.share < options.min_agreement)


def _table(outputs: Sequence[StoredOutput], verdicts: Sequence[Verdict]) -> Counter[str]:
    known = ("correct" if output.correct else "incorrect" for output in outputs)
    return Counter(f"{name}/{verdict.kind}" for name, verdict in zip(known, verdicts, strict=True))


if __name__ == "__main__":
    sys.exit(main())
