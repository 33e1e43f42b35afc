"""Which of many texts share an n-gram of words with a fixed set of texts: hashes to look, words to decide.

Equal n-grams have equal hashes, so none is missed; every hash hit is checked word by word, so none is invented.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_vibethinker.data.words import PassageHashes, Words, normalise, passages, split_words, word_hashes

_FILTER_CELLS_PER_NGRAM = 64  # one n-gram in 64 passes the filter by chance


def ngrams(text: str, n: int = 10) -> list[str]:
    """All n-grams of the normalised text in order; the whole normalised text when it has fewer than n words."""
    words = normalise(text)
    if len(words) <= n:
        return [" ".join(words)] if words else []
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]


@dataclass(frozen=True, slots=True, eq=False)
class NGrams:
    """The n-grams of several texts: gram i is the words `first[i]` to `last[i]` (exclusive), `hashes[i]` its hash."""

    words: Words
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    hashes: NDArray[np.uint64]

    def text_of(self, grams: NDArray[np.intp]) -> NDArray[np.intp]:
        """The number of the text that holds each gram."""
        return np.searchsorted(self.words.firsts, self.first[grams], side="right") - 1


def hash_ngrams(texts: Sequence[str], n: int, ignore: Sequence[str] = ()) -> NGrams:
    """N-grams of `texts` (whole texts where shorter), after every passage of `ignore` is taken out of them."""
    words = split_words(texts)
    for text in ignore:
        words = _without_passage(words, normalise(text))
    first, last = passages(words, n)
    return NGrams(words, first, last, PassageHashes(word_hashes(words)).between(first, last))


def _without_passage(words: Words, passage: list[str]) -> Words:
    if not passage:
        raise ValueError("a text to ignore has no letter or digit")
    text, size = " ".join(passage), len(passage)
    first, last = passages(words, size)
    wanted = hash_ngrams([text], size).hashes[0]
    drop = np.zeros(len(words.starts), dtype=bool)
    for gram in np.flatnonzero(PassageHashes(word_hashes(words)).between(first, last) == wanted).tolist():
        if not drop[first[gram]] and words.join(first[gram], last[gram]) == text:
            drop[first[gram] : last[gram]] = True
    return words.without(drop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Searched text number `text` shares `ngram`, and around it `passage`, with indexed text number `owner`.

    `share` is the passage's part of the words of the indexed text.
    """

    text: int
    owner: int
    ngram: str
    passage: str
    share: float


class NGramIndex:
    """The n-grams of a set of texts, each remembering the first text that holds it.

    Memory: about 60 bytes a word.
    """

    def __init__(self, texts_with_ids: Iterable[tuple[str, str]], n: int = 10, ignore: Sequence[str] = ()) -> None:
        """Index (text, id) pairs; `n` is the n-gram length in words; passages of `ignore` are not compared.

        Raises:
            ValueError: `n` below 1, or a text of `ignore` without a word.
        """
        if n < 1:
            raise ValueError(f"n-gram length must be at least 1, got {n}")
        pairs = list(texts_with_ids)
        self.n, self.ignore, self.ids = n, tuple(ignore), [owner for _, owner in pairs]
        self._grams = hash_ngrams([text for text, _ in pairs], n, self.ignore)
        self._order = np.argsort(self._grams.hashes, kind="stable")
        self.hashes = self._grams.hashes[self._order]  # ascending

    @property
    def text_sizes(self) -> list[int]:
        """The number of words compared of each indexed text."""
        return np.diff(self._grams.words.firsts).tolist()

    def first_overlap(self, text: str) -> tuple[str, str] | None:
        """(id of the indexed text, shared n-gram) for the first shared n-gram of `text`, or None."""
        grams = hash_ngrams([text], self.n, self.ignore)
        found = self.search(grams, np.arange(len(grams.hashes)))
        return (self.ids[found[0].owner], found[0].ngram) if found else None

    def search(self, grams: NGrams, candidates: NDArray[np.intp]) -> list[Match]:
        """The first shared n-gram of every text of `grams` that has one, in order of the texts.

        `grams` is `hash_ngrams(texts, index.n, index.ignore)`; only the n-grams of the numbers `candidates` (ascending)
        are looked at.
        """
        places = np.searchsorted(self.hashes, grams.hashes[candidates])
        inside = places < len(self.hashes)
        hits, places = candidates[inside], places[inside]
        real = self.hashes[places] == grams.hashes[hits]
        hits, places = hits[real], places[real]
        found: dict[int, Match] = {}
        for text, gram, place in zip(grams.text_of(hits).tolist(), hits.tolist(), places.tolist(), strict=True):
            if text not in found and (match := self._match(grams, text, gram, place)):
                found[text] = match
        return list(found.values())

    def _match(self, grams: NGrams, text: int, gram: int, place: int) -> Match | None:
        """Compare with each indexed n-gram of the same hash, word by word."""
        ngram, own = grams.words.join(grams.first[gram], grams.last[gram]), self._grams
        while place < len(self.hashes) and self.hashes[place] == grams.hashes[gram]:
            other = int(self._order[place])
            if own.words.join(own.first[other], own.last[other]) == ngram:
                owner = int(own.text_of(np.array([other]))[0])
                passage = _shared_passage(grams, gram, own, other)
                share = (passage.count(" ") + 1) / int(own.words.firsts[owner + 1] - own.words.firsts[owner])
                return Match(text=text, owner=owner, ngram=ngram, passage=passage, share=share)
            place += 1
        return None


class NGramSearch:
    """Searches texts for the n-grams of several indexes (at least one, all of one n and ignored texts) in one pass.

    Memory: a filter of 64 to 128 bytes for each indexed word.
    """

    def __init__(self, indexes: Sequence[NGramIndex]) -> None:
        """Make the filter: which hashes, by their first bits, none of the indexes holds."""
        assert len({(index.n, index.ignore) for index in indexes}) == 1, "indexes of different n-grams"
        self._indexes = indexes
        hashes = np.concatenate([index.hashes for index in indexes])
        bits = max(10, int(len(hashes) * _FILTER_CELLS_PER_NGRAM - 1).bit_length())
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits, dtype=bool)
        self._filter[hashes >> self._shift] = True

    def search(self, texts: Sequence[str]) -> list[list[Match]]:
        """For each index, the first shared n-gram of every text that has one, in order of the texts."""
        grams = hash_ngrams(texts, self._indexes[0].n, self._indexes[0].ignore)
        candidates = np.flatnonzero(self._filter.take((grams.hashes >> self._shift).view(np.int64)))
        return [index.search(grams, candidates) for index in self._indexes]


def _shared_passage(a: NGrams, gram_a: int, b: NGrams, gram_b: int) -> str:
    """The two equal n-grams, made longer at both ends as long as the words around them are equal too."""
    (words_a, at_a), (words_b, at_b) = _text_around(a, gram_a), _text_around(b, gram_b)
    size = int(a.last[gram_a] - a.first[gram_a])
    before = _common_length(words_a[:at_a][::-1], words_b[:at_b][::-1])
    after = _common_length(words_a[at_a + size :], words_b[at_b + size :])
    return " ".join(words_a[at_a - before : at_a + size + after])


def _text_around(grams: NGrams, gram: int) -> tuple[list[str], int]:
    """The words of the text that holds `gram`, and where in it the gram begins."""
    text = int(grams.text_of(np.array([gram]))[0])
    first, last = grams.words.firsts[text], grams.words.firsts[text + 1]
    return grams.words.join(first, last).split(" "), int(grams.first[gram] - first)


def _common_length(a: Sequence[str], b: Sequence[str]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
