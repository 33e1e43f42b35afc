"""All that a reinforcement-learning stage has to know of its past, besides weights and optimizer: its resume state."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

HISTORY = 40  # values kept of each running statistic


@dataclass
class Progress:
    """How far a stage is. Every number survives JSON exactly, so a resumed stage goes on bit for bit.

    Attributes:
        step: finished steps.
        drawn: prompts drawn so far, also for steps that were undone.
        weights_version: optimizer updates that the weights have in them, those of undone steps left out.
        rollbacks: steps back to a resume point so far.
        entropy_coefficient: of the entropy bonus in the next step.
        recent: name -> latest values of a statistic that guards compare with, oldest first.
        first_entropy: entropy of each of the stage's first steps.
        truncated: truncated share of each step, for the stage switch.
        validation: [step, score] of each validation.
        actions: guard and action -> how often.
    """

    step: int = 0
    drawn: int = 0
    weights_version: int = 0
    rollbacks: int = 0
    entropy_coefficient: float = 0.0
    recent: dict[str, list[float]] = field(default_factory=dict)
    first_entropy: list[float] = field(default_factory=list)
    truncated: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    actions: dict[str, int] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        """Add to a running statistic."""
        self.recent[name] = [*self.recent.get(name, []), value][-HISTORY:]

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the best validation; of equals the first."""
        return max(self.validation, key=lambda item: item[1]) if self.validation else None

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Progress":
        """Parse `to_json`'s text."""
        fields: dict[str, Any] = json.loads(text)
        fields["validation"] = [(step, score) for step, score in fields["validation"]]
        return cls(**fields)
