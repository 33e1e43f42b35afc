"""The order in which a stage takes its prompts."""

import random
from collections.abc import Sequence

from nemo_vibethinker.data.records import Record


class PromptQueue:
    """Hands out consecutive prompts of a seeded shuffle, round and round, so that every prompt comes equally often.

    Attributes:
        drawn: prompts handed out since the stage began; all there is to keep for a resume.
        by_id: the prompts.
    """

    def __init__(self, prompts: Sequence[Record], seed: int, drawn: int = 0) -> None:
        self._order = list(prompts)
        random.Random(seed).shuffle(self._order)
        self.drawn = drawn
        self.by_id = {record.id: record for record in prompts}

    def __len__(self) -> int:
        return len(self._order)

    def draw(self, count: int) -> list[Record]:
        """The next `count` prompts, or all where there are fewer: never one twice."""
        count = min(count, len(self._order))
        batch = [self._order[(self.drawn + i) % len(self._order)] for i in range(count)]
        self.drawn += count
        return batch
