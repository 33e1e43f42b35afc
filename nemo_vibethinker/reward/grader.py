"""One grader for records of every domain."""

from collections.abc import Sequence
from typing import cast

from nemo_vibethinker.config import CODE_DOMAIN, RewardConfig
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.reward.code import CodeVerifier
from nemo_vibethinker.reward.math import MathVerifier
from nemo_vibethinker.reward.sandbox import Limits, SandboxChoice, find_sandbox
from nemo_vibethinker.reward.verdict import Verdict


class Grader:
    """Sends maths records to the maths verifier and code records to the sandbox; a context manager.

    Args:
        workers: sandboxes and algebra processes at a time in this process.
    """

    def __init__(self, config: RewardConfig, workers: int) -> None:
        self._config = config
        self._workers = workers
        self._math = MathVerifier(deadline_s=config.math_deadline_s, processes=workers, boxed_only=True)
        self._code: CodeVerifier | None = None

    def grade(self, records: Sequence[Record], responses: Sequence[str]) -> list[Verdict]:
        """A verdict for each (record, response text). Raises SandboxError where no sandbox works for programs."""
        verdicts: list[Verdict | None] = [None] * len(records)
        is_code = [record.domain == CODE_DOMAIN for record in records]
        math_rows = [i for i, code in enumerate(is_code) if not code]
        code_rows = [i for i, code in enumerate(is_code) if code]
        pairs = [(records[i].answer, responses[i]) for i in math_rows]
        for i, verdict in zip(math_rows, self._math.grade_many(pairs), strict=True):
            verdicts[i] = verdict
        if code_rows:
            items = [(records[i].tests, responses[i]) for i in code_rows]
            for i, verdict in zip(code_rows, self._code_verifier().grade_many(items), strict=True):
                verdicts[i] = verdict
        return [verdict for verdict in verdicts if verdict is not None]

    def _code_verifier(self) -> CodeVerifier:
        if self._code is None:
            limits = Limits(wall_s=self._config.code_wall_s, memory_mb=self._config.code_memory_mb)
            sandbox = find_sandbox(cast(SandboxChoice, self._config.sandbox))
            self._code = CodeVerifier(sandbox, limits, self._workers)
        return self._code

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self._math.close()
