"""Samples packed into micro-batches and dealt out to ranks."""

import random

import pytest

from nemo_vibethinker.signal.row_packing import balanced_rows, rows_in_order


def test_rows_in_order() -> None:
    assert rows_in_order([4, 5, 2, 20, 1], 10) == [[0, 1], [2], [3], [4]]
    assert rows_in_order([], 10) == []


@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
@pytest.mark.parametrize("seed", range(5))
def test_every_sample_once_with_as_many_rows_on_every_rank(seed: int, ranks: int) -> None:
    rng = random.Random(seed)
    lengths = [min(30000, int(rng.lognormvariate(8, 1))) for _ in range(200)]
    shares = balanced_rows(lengths, 32768, ranks)
    assert sorted(index for share in shares for row in share for index in row) == list(range(200))
    assert len({len(share) for share in shares}) == 1
    assert all(sum(lengths[i] for i in row) <= 32768 for share in shares for row in share)
    loads = [sum(lengths[i] for row in share for i in row) for share in shares]
    assert max(loads) <= 1.05 * sum(loads) / ranks
    in_order = [sum(lengths[rank::ranks]) for rank in range(ranks)]
    assert max(loads) <= max(in_order)
    assert shares == balanced_rows(list(lengths), 32768, ranks)


def test_a_sample_longer_than_a_row_has_its_own() -> None:
    shares = balanced_rows([50, 3, 3, 4], 10, 2)
    assert sorted(sorted(row) for share in shares for row in share) == [[0], [1, 2, 3]]


def test_fewer_samples_than_ranks_leave_rows_empty() -> None:
    assert balanced_rows([5], 10, 3) == [[[0]], [[]], [[]]]
    assert balanced_rows([], 10, 2) == [[[]], [[]]]
