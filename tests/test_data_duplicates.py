import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_vibethinker.data import duplicates
from nemo_vibethinker.data.duplicates import DuplicateFinder, band_rows, find_duplicates, jaccard
from nemo_vibethinker.data.words import normalise, normalised_bytes


def text(rng: random.Random, words: int = 40) -> str:
    return " ".join(f"w{rng.randrange(10**6)}" for _ in range(words))


def changed(rng: random.Random, original: str, changes: int) -> str:
    words = original.split()
    for place in rng.sample(range(len(words)), changes):
        words[place] = f"other{rng.randrange(10**6)}"
    return " ".join(words)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = normalise(text)
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)} or {tuple(words)}


def test_exact_duplicates_ignore_symbols_and_case() -> None:
    found = find_duplicates(["Find $x$.", "other", "find X", "FIND x!", "", "?"])
    assert [(d.text, d.of, d.exact, d.similarity) for d in found] == [
        (2, 0, True, 1.0),
        (3, 0, True, 1.0),
        (5, 4, True, 1.0),
    ]


def test_jaccard_is_of_word_five_grams() -> None:
    a, b = normalised_bytes("a b c d e f g"), normalised_bytes("a b c d e f h")
    assert jaccard(a, b) == pytest.approx(2 / 4)  # abcde, bcdef of abcde, bcdef, cdefg, cdefh
    assert jaccard(a, a) == 1
    assert jaccard(normalised_bytes("a b"), normalised_bytes("a c")) == 0


@pytest.mark.parametrize("seed", range(4))
def test_near_duplicates_are_those_of_all_pairs(seed: int) -> None:
    """Texts in families of edited copies: found are exactly the texts close to an earlier one that stays."""
    rng = random.Random(seed)
    texts = []
    for _ in range(40):
        original = text(rng, rng.choice([3, 12, 40, 120]))
        texts += [original, *(changed(rng, original, rng.choice([1, 2, 3])) for _ in range(3))]
    rng.shuffle(texts)
    sets, stay, expected = [shingles(t) for t in texts], [], []
    for number, own in enumerate(sets):
        if any(len(own & sets[i]) / len(own | sets[i]) >= 0.8 for i in stay):
            expected.append(number)
        else:
            stay.append(number)
    found = find_duplicates(texts)
    assert [d.text for d in found] == expected
    for d in found:
        assert d.of in stay
        assert d.similarity == pytest.approx(len(sets[d.text] & sets[d.of]) / len(sets[d.text] | sets[d.of]))


def test_threshold_is_kept_and_checked() -> None:
    rng = random.Random(0)
    original = text(rng, 100)
    texts = [original, changed(rng, original, 4)]  # about 80 of 116 shingles
    assert find_duplicates(texts) == []
    assert [d.text for d in find_duplicates(texts, 0.6)] == [1]
    for threshold in (0.5, 0.7, 0.8, 0.9):
        rows = band_rows(threshold)
        assert (1 - threshold**rows) ** (duplicates._HASHES // rows) < 1e-4
    for wrong in (0, 1.1):
        with pytest.raises(ValueError, match="threshold"):
            DuplicateFinder(wrong)


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nemo_vibethinker.data.duplicates", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done


def test_command_reports_and_keeps_the_first(tmp_path: Path) -> None:
    original = text(random.Random(0), 60)
    near = original.rsplit(" ", 1)[0] + " end"
    rows = [
        {"problem": original, "answer": "1", "solution": "one way to see it"},
        {"problem": original.upper(), "answer": "1", "solution": "an entirely different way"},
        {"problem": near, "answer": "1", "solution": "one way to see it"},
        {"problem": "", "answer": "1"},
        {"problem": original, "answer": "1", "solution": "one way, to see it"},
    ]
    data, kept, report = tmp_path / "data.jsonl", tmp_path / "kept.jsonl", tmp_path / "dup.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("--data", data, "--report", report, "--out", kept, "--field", "prompt")
    assert "5 rows read, 2 exact and 1 near duplicates" in done.stdout
    reported = [json.loads(line) for line in report.read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in reported] == [
        (2, "exact duplicate"),
        (3, "near duplicate"),
        (4, "unusable"),
        (5, "exact duplicate"),
    ]
    assert reported[1]["of_line"] == 1
    assert reported[1]["similarity"] == pytest.approx(55 / 57, abs=1e-4)
    assert kept.read_text() == data.read_text().splitlines(keepends=True)[0]
    done = run("--data", data, "--report", report)
    assert "1 exact and" in done.stdout  # the two solutions of the problem are no duplicates of each other
    assert "nothing removed" in done.stdout


def test_command_mistakes_are_one_line(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"problem": "p", "answer": "1"}\n')
    for arguments, message in [
        (("--data", data, "--report", data), "same file"),
        (("--data", data, "--report", tmp_path / "r", "--threshold", "2"), "threshold"),
        (("--data", tmp_path / "no.jsonl", "--report", tmp_path / "r"), "does not exist"),
    ]:
        done = run(*arguments, code=2)
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [data]
