"""Pack variable-length SFT examples into rows of a fixed number of tokens, without letting samples touch."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack_examples(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute examples over rows of at most `capacity` tokens by best-fit decreasing.

    Returns the example indices of each row, ascending within a row; every index occurs once. Deterministic: equal
    lengths are taken in index order. ValueError names an example that is empty or longer than `capacity`.
    """
    for index, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"example {index} is empty; remove it before packing")
        if length > capacity:
            raise ValueError(f"example {index} has {length} tokens, more than the {capacity} of a row; drop or cut it")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), ascending, so that the tightest fit is a bisection away
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
