import random

import pytest

from nemo_vibethinker.data.words import PassageHashes, normalise, passages, split_words, word_hashes

ALPHABET = "aab  \u00e9\u4f60\u200b.,\\$7\u00b2\n\x00\ud800\U0001f602"


def test_symbols_and_case_are_dropped() -> None:
    expected = ["find", "frac", "1", "2", "x", "1", "now", "it", "s", "3", "5"]
    assert normalise("Find $\\frac{1}{2}x_1$ -- NOW, it's 3.5%!") == expected
    assert normalise(" ?! ") == normalise("") == []


@pytest.mark.parametrize(
    ("written", "hidden"),
    [
        ("find the number", "fi\u200bnd\u00a0the num\u00adber\ufeff"),  # zero width, soft hyphen, no-break space
        ("find 9 fine", "\uff26\uff49\uff4e\uff44 \uff19 \ufb01ne"),  # full width, ligature
        ("cafe resume", "caf\u00e9 re\u0301sume\u0301"),  # accents, composed and combining
        ("x y z", "x\\,y\\!z"),
        ("x y z", "$x$~y\\quad\\left(z\\right)"),
        ("x^2 + y_1", "x\u00b2 + y\u2081"),
        ("9-kilometer walk", "9\u2013kilometer \u2014 walk"),
        ("it's", "it\u2019s"),
        ("\\frac{a}{b} cm", "\\dfrac{a}{b}\\text{ cm}"),
        ("x and n", "\U0001d465 and \U0001d45b"),  # mathematical italics
        ("stra\u00dfe", "STRASSE"),
        ("\uac00", "\u1100\u1161"),  # Hangul, composed and not
    ],
)
def test_a_leak_does_not_hide(written: str, hidden: str) -> None:
    assert normalise(hidden) == normalise(written)


def test_each_character_without_spaces_is_a_word() -> None:
    assert normalise("\u6c42x\u7684\u548c\uff0c\u304b\u306a") == ["\u6c42", "x", "\u7684", "\u548c", "\u304b", "\u306a"]


def test_commands_that_only_begin_like_layout_stay() -> None:
    assert normalise("\\leftarrow \\textwidth \\mathrm{d}x") == ["leftarrow", "textwidth", "d", "x"]


def test_splitting_many_texts_is_normalising_each() -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choice(ALPHABET) for _ in range(rng.randrange(40))) for _ in range(2000)]
    words = split_words(texts)
    bounds = zip(words.firsts, words.firsts[1:], strict=False)
    assert [words.join(first, last).split() for first, last in bounds] == [normalise(text) for text in texts]


def test_equal_passages_have_equal_hashes_and_others_differ() -> None:
    rng = random.Random(1)
    vocabulary = ["a", "b", "abcdefgh", "abcdefghi", "\u00e9" * 9, "x" * 63, "x" * 64, "x" * 63 + "y", "0"]
    words = split_words([" ".join(rng.choices(vocabulary, k=rng.randrange(8))) for _ in range(3000)])
    first, last = passages(words, 3)
    hashes = PassageHashes(word_hashes(words)).between(first, last).tolist()
    hash_of: dict[str, int] = {}
    for text, value in zip(map(words.join, first, last), hashes, strict=True):
        assert hash_of.setdefault(text, value) == value
    assert len(set(hash_of.values())) == len(hash_of)


def test_words_alike_in_their_first_64_bytes_have_one_hash() -> None:
    same = word_hashes(split_words(["y" * 64 + "a", "y" * 64 + "b"]))
    assert same[0] == same[1]  # so that whoever compares hashes has to compare words


def test_passages_stay_inside_a_text() -> None:
    words = split_words(["a b c d", "", "e", "f g h"])
    first, last = passages(words, 3)
    assert list(map(words.join, first, last)) == ["a b c", "b c d", "e", "f g h"]
