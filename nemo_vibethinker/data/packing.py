"""Pack variable-length SFT examples into rows of a fixed number of tokens, without letting samples touch."""

import random
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from nemo_vibethinker.data.token_files import Example, TokenFile


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Which examples each row holds: row r has `members[bounds[r]:bounds[r + 1]]`, ascending.

    Attributes:
        members: [N] int32, every example once.
        bounds: [R + 1] int64.
    """

    members: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> list[int]:
        """The example indices of a row, from 0."""
        return self.members[self.bounds[row] : self.bounds[row + 1]].tolist()


def pack_examples(lengths: Sequence[int] | np.ndarray, capacity: int) -> PackedRows:
    """Distribute examples over rows of at most `capacity` tokens by best-fit decreasing.

    Deterministic: equal lengths are taken in index order, equally full rows in the order they were begun. ValueError
    names an example that is empty or longer than `capacity`.
    """
    lengths_N = np.asarray(lengths, dtype=np.int64)
    _check_lengths(lengths_N, capacity)
    row_of = np.empty(len(lengths_N), dtype=np.int32)
    waiting: defaultdict[int, list[int]] = defaultdict(list)  # free tokens -> heap of the rows with so many
    occupied = 0  # bit f is set where rows with f free tokens wait: the tightest fit is the lowest bit above
    rows = 0
    for index in np.argsort(-lengths_N, kind="stable"):
        length = int(lengths_N[index])
        if fits := occupied >> length:
            free = length + (fits & -fits).bit_length() - 1
            row = heappop(waiting[free])
            if not waiting[free]:
                occupied ^= 1 << free
        else:
            free, row, rows = capacity, rows, rows + 1
        row_of[index] = row
        if left := free - length:
            heappush(waiting[left], row)
            occupied |= 1 << left
    bounds = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows))]).astype(np.int64)
    return PackedRows(np.argsort(row_of, kind="stable").astype(np.int32), bounds)


def _check_lengths(lengths_N: np.ndarray, capacity: int) -> None:
    for index in np.flatnonzero((lengths_N < 1) | (lengths_N > capacity))[:1]:
        if lengths_N[index] < 1:
            raise ValueError(f"example {index} is empty; remove it before packing")
        raise ValueError(
            f"example {index} has {lengths_N[index]} tokens, more than the {capacity} of a row; drop or cut it"
        )


class PackedData:
    """Examples packed into rows of at most `seq_length` tokens; the rows of an epoch come in a seeded order.

    `row(i)` is row i of the endless sequence of epochs, so the data order is a function of the seed and the position
    alone. Packing needs the lengths only; tokens are read for the rows that are asked for.
    """

    def __init__(self, examples: Sequence[Example], seq_length: int, seed: int) -> None:
        known = examples.lengths if isinstance(examples, TokenFile) else [len(tokens) for tokens, _ in examples]
        self._examples = examples
        self._shuffled = array("i", range(len(examples)))
        random.Random(seed).shuffle(self._shuffled)  # rows of examples of like length come from all over the data
        self._rows = pack_examples(np.asarray(known)[np.asarray(self._shuffled)], seq_length)
        self._seed = seed
        self._order: tuple[int, array] = (-1, array("i"))

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, position: int) -> list[Example]:
        """The examples of one packed row."""
        epoch, index = divmod(position, len(self._rows))
        if self._order[0] != epoch:
            order = array("i", range(len(self._rows)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._order = (epoch, order)
        return [self._examples[self._shuffled[i]] for i in self._rows[self._order[1][index]]]
