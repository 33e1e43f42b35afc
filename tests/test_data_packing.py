import random

import pytest

from nemo_vibethinker.data.packing import pack_examples


def test_packing_in_closed_form() -> None:
    # 6 and 4 fill a row of ten; 5, 3 and 2 the other: decreasing order, tightest row first.
    assert pack_examples([3, 6, 5, 2, 4], 10) == [[1, 4], [0, 2, 3]]
    assert pack_examples([5, 5, 5], 5) == [[0], [1], [2]]
    assert pack_examples([], 8) == []


def test_every_example_once_and_rows_nearly_full() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(1, 100) for _ in range(5_000)]
    rows = pack_examples(lengths, 256)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 256
    assert len(rows) <= sum(lengths) / 256 * 1.01 + 1
    assert rows == pack_examples(lengths, 256)


@pytest.mark.parametrize(("lengths", "message"), [([3, 9, 20], "example 2 has 20"), ([3, 0], "example 1 is empty")])
def test_unpackable_examples_are_named(lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_examples(lengths, 10)
