"""The verdict of a verifier."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["right", "wrong", "ungraded"]


@dataclass(frozen=True)
class Verdict:
    """What a verifier says about one response.

    `ungraded` means that the verifier itself failed (a time-out of the grader, a broken sandbox). It carries no
    information about the response, so callers count it apart and never take it for a zero reward.
    """

    kind: Kind
    reason: str = ""

    @property
    def is_right(self) -> bool:
        return self.kind == "right"

    @property
    def is_graded(self) -> bool:
        return self.kind != "ungraded"
