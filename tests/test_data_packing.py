import random
from bisect import bisect_left, insort

import numpy as np
import pytest

from nemo_vibethinker.data.packing import PackedRows, pack_examples


def rows_of(packed: PackedRows) -> list[list[int]]:
    return [packed[row] for row in range(len(packed))]


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """The textbook's algorithm, over one sorted list of (free tokens, row)."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        position = bisect_left(room, (lengths[index], 0))
        if position == len(room):
            free, row = capacity, len(rows)
            rows.append([])
        else:
            free, row = room.pop(position)
        rows[row].append(index)
        insort(room, (free - lengths[index], row))
    return [sorted(row) for row in rows]


def test_packing_in_closed_form() -> None:
    # 6 and 4 fill a row of ten; 5, 3 and 2 the other: decreasing order, tightest row first.
    assert rows_of(pack_examples([3, 6, 5, 2, 4], 10)) == [[1, 4], [0, 2, 3]]
    assert rows_of(pack_examples([5, 5, 5], 5)) == [[0], [1], [2]]
    assert rows_of(pack_examples([], 8)) == []


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_those_of_the_textbook(seed: int) -> None:
    rng = random.Random(seed)
    capacity = rng.choice([7, 64, 65, 1000])
    lengths = [rng.randint(1, rng.choice([capacity, max(1, capacity // 5)])) for _ in range(rng.randint(1, 400))]
    assert rows_of(pack_examples(np.array(lengths), capacity)) == best_fit_decreasing(lengths, capacity)


def test_every_example_once_and_rows_nearly_full() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(1, 100) for _ in range(5_000)]
    rows = rows_of(pack_examples(lengths, 256))
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 256
    assert len(rows) <= sum(lengths) / 256 * 1.01 + 1


@pytest.mark.parametrize(("lengths", "message"), [([3, 9, 20], "example 2 has 20"), ([3, 0], "example 1 is empty")])
def test_unpackable_examples_are_named(lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_examples(lengths, 10)
