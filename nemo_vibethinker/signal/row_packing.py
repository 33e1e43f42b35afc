"""Which samples share a micro-batch, and which rank computes it."""

from collections.abc import Sequence
from heapq import heapify, heapreplace


def rows_in_order(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices in rows of at most `capacity` tokens, in the order given; a longer sample has a row of its own."""
    rows: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if length > room:
            rows.append([])
            room = capacity
        rows[-1].append(index)
        room -= length
    return rows


def balanced_rows(lengths: Sequence[int], capacity: int, ranks: int) -> list[list[list[int]]]:
    """For each rank its rows: every rank has as many, and all hold about as many tokens.

    Longest-processing-time: samples go, the longest first, into the row with the fewest tokens; there are as few rows
    as keep them within `capacity` (a longer sample has a row of its own), in multiples of `ranks`. A row may be empty
    where there are fewer samples than ranks. Deterministic: ties go to the lower index.
    """
    count = ranks
    while True:
        rows, loads = _spread(lengths, count)
        if all(load <= capacity or len(row) <= 1 for row, load in zip(rows, loads, strict=True)):
            break
        count += ranks
    heaviest_first = sorted(range(count), key=lambda i: (-loads[i], i))
    shares: list[list[list[int]]] = [[] for _ in range(ranks)]
    for place, index in enumerate(heaviest_first):  # back and forth, so that no rank has the heavier of every round
        turn, rank = divmod(place, ranks)
        shares[ranks - 1 - rank if turn % 2 else rank].append(sorted(rows[index]))
    return shares


def _spread(lengths: Sequence[int], count: int) -> tuple[list[list[int]], list[int]]:
    rows: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, row) for row in range(count)]
    heapify(heap)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        load, row = heap[0]
        rows[row].append(index)
        heapreplace(heap, (load + lengths[index], row))
    loads = [0] * count
    for load, row in heap:
        loads[row] = load
    return rows, loads
