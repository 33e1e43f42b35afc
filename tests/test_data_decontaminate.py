import pytest

from nemo_vibethinker.data.decontaminate import NGramIndex, find_overlaps, ngrams, normalise, remove_overlaps
from nemo_vibethinker.data.records import Record


def record(identity: str, prompt: str) -> Record:
    return Record(id=identity, domain="math", prompt=prompt)


def words(first: int, last: int) -> str:
    return " ".join(f"w{i}" for i in range(first, last))


def test_normalise_drops_symbols_and_case() -> None:
    assert normalise("Find $\\frac{1}{2}x_1$ -- NOW, it's 3.5%!") == [
        "find",
        "frac",
        "1",
        "2",
        "x",
        "1",
        "now",
        "it",
        "s",
        "3",
        "5",
    ]
    assert normalise("\u00c9t\u00e9 \u4f60\u597d") == ["\u00e9t\u00e9", "\u4f60\u597d"]
    assert normalise(" ?! ") == []


def test_ngrams_counts_windows() -> None:
    assert len(ngrams(words(0, 12))) == 3
    assert ngrams(words(0, 10)) == [words(0, 10)]
    assert ngrams("Three short words.") == ["three short words"]
    assert ngrams("...") == []


def test_overlap_needs_ten_consecutive_words() -> None:
    held_out = [record("h", words(0, 20))]
    shared_ten = record("ten", f"x {words(5, 15)} y")
    shared_nine = record("nine", f"x {words(5, 14)} y z")
    (overlap,) = find_overlaps([shared_nine, shared_ten], held_out)
    assert (overlap.train_id, overlap.held_out_id, overlap.shared_text) == ("ten", "h", words(5, 15))


def test_short_texts_are_compared_whole() -> None:
    held_out = [record("h", "Solve 3x + 5 = 20.")]
    same, symbol, longer = (
        record("a", "solve 3x - 5 = 20"),
        record("b", "Solve 3x + 6 = 20."),
        record("c", "Please solve 3x + 5 = 20"),
    )
    assert [o.train_id for o in find_overlaps([same, symbol, longer], held_out)] == ["a"]


def test_remove_overlaps_keeps_the_rest_in_order() -> None:
    train = [record("a", "one"), record("b", "two"), record("c", "three")]
    kept, overlaps = remove_overlaps(train, [record("h", "TWO!")])
    assert [r.id for r in kept] == ["a", "c"]
    assert [o.train_id for o in overlaps] == ["b"]


def test_index_names_the_first_owner_and_rejects_bad_n() -> None:
    index = NGramIndex([("a b c", "first"), ("b c d", "second")], n=2)
    assert index.first_overlap("x b c") == ("first", "b c")
    assert index.first_overlap("c b") is None
    with pytest.raises(ValueError, match="at least 1"):
        NGramIndex([], n=0)
