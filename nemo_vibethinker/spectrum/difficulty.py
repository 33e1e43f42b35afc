"""How hard each prompt is for a given checkpoint, and the rules that filter training data by it.

Rules and file format; `python -m nemo_vibethinker.spectrum.difficulty --help` samples, grades and filters.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nemo_vibethinker.data.records import Record
from nemo_vibethinker.run_folder import read_json_lines

SolveClass = Literal["never_solved", "sometimes_solved", "always_solved"]
MIN_TRACE_TOKENS = 5000  # VibeThinker-3B report (arXiv 2606.16140), section 2.1.2, as the error rate
MIN_ERROR_RATE = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Difficulty:
    """The outcome of `n` sampled responses to one prompt.

    `right` and `ungraded` are counts; a response cut at the length limit is wrong, as in training. `pass_rate` is
    right / (n - ungraded), or None where less than half of the samples could be graded: then nothing is known.
    `task` and `prompt` are `task_hash` and `prompt_hash` of the record; `model_hash` is the SHA-256 of the model's
    folder, or "" where the endpoint hides it; tokens are the model's own.
    """

    id: str
    task: str
    prompt: str
    n: int
    right: int
    ungraded: int
    pass_rate: float | None
    mean_response_tokens: float
    truncated_share: float
    prompt_tokens: int
    model: str
    model_hash: str
    sampling: dict[str, Any]
    reason: str = ""  # why the first ungraded sample has no verdict


def task_hash(record: Record) -> str:
    """SHA-256 (hex) of what is asked and how it is graded: prompt, answer, tests. Records may share it."""
    task = [record.prompt, record.answer, list(record.tests)]
    return hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()


def prompt_hash(record: Record) -> str:
    """SHA-256 (hex) of the prompt alone."""
    return hashlib.sha256(record.prompt.encode()).hexdigest()


def known_pass_rate(n: int, right: int, ungraded: int) -> float | None:
    """right / graded, or None if less than half of the `n` samples are graded."""
    assert 0 <= right <= n - ungraded <= n
    return right / (n - ungraded) if n and 2 * ungraded <= n else None


def solve_class(right: float, graded: int) -> SolveClass:
    """Whether a prompt is solved never, sometimes or always.

    Only prompts that the starting checkpoint of a phase solves sometimes train it: the accuracy must be neither 0.0
    nor 1.0 exactly (VibeThinker-3B report, section 2.2). Without a graded response a prompt counts as never solved.
    """
    if right == 0:
        return "never_solved"
    return "always_solved" if right == graded else "sometimes_solved"


def rl_drop_reason(difficulty: Difficulty | None) -> str:
    """Why the prompt is of no use for reinforcement learning from this checkpoint; "" to keep it."""
    if difficulty is None or difficulty.pass_rate is None:
        return "unknown difficulty"
    solved = solve_class(difficulty.right, difficulty.n - difficulty.ungraded)
    return "" if solved == "sometimes_solved" else solved.replace("_", " ")


def hard_sft_drop_reason(
    difficulty: Difficulty | None,
    trace_tokens: int,
    *,
    min_trace_tokens: int = MIN_TRACE_TOKENS,
    min_error_rate: float = MIN_ERROR_RATE,
) -> str:
    """Why a trace is not in the hard and long subset of the second SFT stage; "" to keep it."""
    if trace_tokens < min_trace_tokens:
        return "short trace"
    if difficulty is None or difficulty.pass_rate is None:
        return "unknown difficulty"
    return "" if 1 - difficulty.pass_rate >= min_error_rate else "low error rate"


def difficulty_lines(rows: Sequence[Difficulty]) -> str:
    """The rows as JSON lines."""
    return "".join(json.dumps(asdict(row)) + "\n" for row in rows)


def read_difficulties(path: Path) -> dict[str, Difficulty]:
    """The rows of a difficulty file by task; ValueError for a missing file or a row of another kind."""
    if not path.is_file():
        raise ValueError(f"difficulty file {path} does not exist; --data FILE --model MODEL makes it")
    return difficulties_from(read_json_lines(path), path)


def difficulties_from(rows: Sequence[Mapping[str, Any]], path: Path) -> dict[str, Difficulty]:
    """Decoded rows of the file at `path` by task, the last of each; ValueError for rows of another kind."""
    try:
        return {row["task"]: Difficulty(**row) for row in rows}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no difficulty file: {error}") from error


if __name__ == "__main__":
    from nemo_vibethinker.spectrum.difficulty_cli import main

    sys.exit(main())
