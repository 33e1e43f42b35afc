import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from nemo_vibethinker.data import decontaminate, ngram_index
from nemo_vibethinker.data.decontaminate import NGramIndex, find_overlaps, ngrams, normalise, remove_overlaps
from nemo_vibethinker.data.ngram_index import NGramSearch
from nemo_vibethinker.data.records import Record


def record(identity: str, prompt: str, response: str = "") -> Record:
    return Record(id=identity, domain="math", prompt=prompt, response=response)


def words(first: int, last: int) -> str:
    return " ".join(f"w{i}" for i in range(first, last))


def test_ngrams_counts_windows() -> None:
    assert len(ngrams(words(0, 12))) == 3
    assert ngrams(words(0, 10)) == [words(0, 10)]
    assert ngrams("Three short words.") == ["three short words"]
    assert ngrams("...") == []


def test_overlap_needs_ten_consecutive_words() -> None:
    held_out = [record("h", words(0, 20))]
    shared_ten = record("ten", f"x {words(5, 15)} y")
    shared_nine = record("nine", f"x {words(5, 14)} y z")
    shared_eleven = record("eleven", f"{words(9, 20)}")
    ten, eleven = find_overlaps([shared_nine, shared_ten, shared_eleven], held_out)
    assert (ten.train_id, ten.held_out_id, ten.shared_text, ten.field) == ("ten", "h", words(5, 15), "prompt")
    assert (eleven.train_id, eleven.shared_text) == ("eleven", words(9, 20))


def test_a_problem_quoted_in_a_solution_is_found() -> None:
    train = [record("t", "short", f"as in {words(0, 10)}")]
    (overlap,) = find_overlaps(train, [record("h", words(0, 10))])
    assert overlap.field == "response"
    assert find_overlaps([record("t", "short")], [record("h", "other", "short")]) == []


def test_an_overlap_across_two_texts_is_none() -> None:
    held_out = [record("h", words(0, 10))]
    assert find_overlaps([record("a", words(0, 5), words(5, 10)), record("b", words(5, 10))], held_out) == []
    held_out = [record("h", words(0, 5)), record("i", words(5, 10))]
    assert find_overlaps([record("a", words(0, 10))], held_out) == []


def test_short_texts_are_compared_whole() -> None:
    held_out = [record("h", "Solve 3x + 5 = 20.")]
    same, symbol, longer = (
        record("a", "solve 3x - 5 = 20"),
        record("b", "Solve 3x + 6 = 20."),
        record("c", "Please solve 3x + 5 = 20"),
    )
    assert [o.train_id for o in find_overlaps([same, symbol, longer], held_out)] == ["a"]
    assert find_overlaps([record("a", "?")], [record("h", "!")]) == []


def test_remove_overlaps_keeps_the_rest_in_order() -> None:
    train = [record("a", "one"), record("b", "two"), record("c", "three")]
    kept, overlaps = remove_overlaps(train, [record("h", "TWO!")])
    assert [r.id for r in kept] == ["a", "c"]
    assert [o.train_id for o in overlaps] == ["b"]
    assert remove_overlaps(train, []) == (train, [])
    assert remove_overlaps([], train) == ([], [])


def test_index_names_the_first_owner_and_rejects_bad_n() -> None:
    index = NGramIndex([("a b c", "first"), ("b c d", "second")], n=2)
    assert index.first_overlap("x b c") == ("first", "b c")
    assert index.first_overlap("c b") is None
    with pytest.raises(ValueError, match="at least 1"):
        NGramIndex([], n=0)


def test_ignored_text_is_taken_out_of_both_sides() -> None:
    instruction = "Put your final answer in a box, and reason step by step."
    train, held_out = f"{words(0, 9)}. {instruction}", f"{words(20, 29)}. {instruction}"
    assert NGramIndex([(held_out, "h")]).first_overlap(train)
    index = NGramIndex([(held_out, "h")], ignore=[instruction])
    assert index.first_overlap(train) is None
    assert index.first_overlap(f"{instruction} W20 {instruction} {words(21, 29)}") == ("h", words(20, 29))
    with pytest.raises(ValueError, match="no letter"):
        NGramIndex([("a", "h")], ignore=["?!"])


def brute_force(train: Sequence[str], held_out: Sequence[str], n: int) -> dict[int, tuple[int, str]]:
    """Number of a training text -> (first held-out text with its first shared n-gram, that n-gram)."""
    owner: dict[str, int] = {}
    for number, text in enumerate(held_out):
        for gram in ngrams(text, n):
            owner.setdefault(gram, number)
    shared = ((number, gram) for number, text in enumerate(train) for gram in ngrams(text, n) if gram in owner)
    found: dict[int, tuple[int, str]] = {}
    for number, gram in shared:
        found.setdefault(number, (owner[gram], gram))
    return found


def random_texts(rng: random.Random, count: int) -> list[str]:
    vocabulary = ["A", "b", "C!", "\u00e9", "d\u2014d", "\u4f60\u597d", "(e)", "longerword", "."]
    return [" ".join(rng.choices(vocabulary, k=rng.choice([0, 1, 2, 9, 10, 11, 30]))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("colliding", [False, True])
def test_finds_what_brute_force_finds(seed: int, colliding: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nearly all hashes collide, and with blocks that end after each row or two."""

    class Colliding(ngram_index.PassageHashes):
        def between(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
            return super().between(first, last) & np.uint64(3)

    if colliding:
        monkeypatch.setattr(ngram_index, "PassageHashes", Colliding)
    monkeypatch.setattr(decontaminate, "_BLOCK", 50)
    rng = random.Random(seed)
    n = rng.choice([1, 2, 3, 4, 10])
    train, held_out = random_texts(rng, 150), random_texts(rng, 12)
    expected = brute_force(train, held_out, n)
    records = [record(str(number), text) for number, text in enumerate(train)]
    found = find_overlaps(records, [record(str(number), text) for number, text in enumerate(held_out)], n)
    assert {int(o.train_id): int(o.held_out_id) for o in found} == {i: owner for i, (owner, _) in expected.items()}
    for overlap in found:
        gram = expected[int(overlap.train_id)][1]
        for text in (train[int(overlap.train_id)], held_out[int(overlap.held_out_id)]):
            assert f" {overlap.shared_text} " in f" {' '.join(normalise(text))} "
        assert f" {gram} " in f" {overlap.shared_text} "


@pytest.mark.parametrize("seed", range(4))
def test_several_indexes_at_once_find_what_each_finds(seed: int) -> None:
    rng = random.Random(seed)
    n = rng.choice([1, 2, 3, 10])
    train, sets = random_texts(rng, 150), [random_texts(rng, size) for size in (12, 0, 3)]
    indexes = [NGramIndex(((text, str(i)) for i, text in enumerate(held_out)), n) for held_out in sets]
    for matches, held_out in zip(NGramSearch(indexes).search(train), sets, strict=True):
        expected = brute_force(train, held_out, n)
        assert {match.text: (match.owner, match.ngram) for match in matches} == expected


COMMAND = [sys.executable, "-m", "nemo_vibethinker.data.decontaminate"]


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A training file whose lines are not as `json.dumps` would write them, and an evaluation file."""
    rows = [
        '{"problem":"WORDS" ,  "answer": "1", "mine": {"b":1,"a":[ ]}}'.replace("WORDS", words(100, 120)),
        "",
        json.dumps({"problem": "see " + words(0, 12).upper(), "answer": "2"}),
        '{"problem": "fine \\u00e9", "answer": "3", "solution": "it is \\\\boxed{3}"}\r',
        "{broken",
        '{"problem": "", "answer": "3"}',
        json.dumps({"problem": "quoting", "answer": "4", "solution": "from " + words(1, 11)}),
    ]
    train, evaluation = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_bytes(("\ufeff" + "\n".join([*rows, '{"problem": "last", "answer": "5"}'])).encode())
    lines = [{"problem": "other", "answer": "0"}, {"problem": words(0, 11), "answer": "0", "id": "e"}]
    evaluation.write_text("".join(json.dumps(line) + "\n" for line in lines) + "[]\n")
    return train, evaluation


def test_command_keeps_lines_as_they_are_and_names_every_other(files: tuple[Path, Path], tmp_path: Path) -> None:
    train, evaluation = files
    kept, report = tmp_path / "kept.jsonl", tmp_path / "removed.jsonl"
    done = run("--train", train, train, "--eval", evaluation, "--out", kept, "--report", report)
    lines = train.read_bytes().removeprefix("\ufeff".encode()).split(b"\n")
    assert kept.read_bytes() == b"\n".join([lines[0], lines[3], lines[7], b""]) * 2
    of_evaluation, *removed = read(report)
    assert (of_evaluation["line"], of_evaluation["reason"]) == (3, "unusable evaluation row")
    assert [(row["line"], row["reason"]) for row in removed[:4]] == [
        (3, "overlap"),
        (5, "unusable"),
        (6, "unusable"),
        (7, "overlap"),
    ]
    assert len(removed) == 8
    assert removed[0]["file"] == str(train)
    assert removed[0]["id"] == "train:3"
    assert removed[0]["overlaps"] == [
        {
            "evaluation_file": str(evaluation),
            "evaluation_line": 2,
            "evaluation_id": "e",
            "field": "prompt",
            "shared_text": words(0, 11),
            "evaluation_share": 1.0,
        }
    ]
    assert "bad JSON" in removed[1]["detail"]
    assert removed[3]["overlaps"][0]["field"] == "solution"
    assert removed[3]["overlaps"][0]["evaluation_share"] == pytest.approx(10 / 11, abs=1e-3)
    assert "4 of the removed rows share half" in done.stdout
    assert "14 read, 6 kept, 4 removed for an overlap, 0 for repetition, 4 unusable" in done.stdout


def test_without_out_it_is_a_check(files: tuple[Path, Path], tmp_path: Path) -> None:
    train, evaluation = files
    done = run("--train", train, "--eval", evaluation, "--report", tmp_path / "r.jsonl", code=1)
    assert "7 read, 3 kept" in done.stdout
    clean = tmp_path / "clean.jsonl"
    clean.write_text('{"problem": "free of it", "answer": "1"}\n')
    run("--train", clean, "--eval", evaluation, "--report", tmp_path / "r.jsonl", code=0)


def test_every_evaluation_set_is_counted_and_a_common_phrase_is_pointed_at(tmp_path: Path) -> None:
    phrase = "please put the final answer of this problem into one box"
    train, first, second = (tmp_path / name for name in ("t.jsonl", "a.jsonl", "b.jsonl"))
    for path, rows, number in ((train, 8, 100), (first, 2, 200), (second, 2, 300)):
        problems = [f"{words(number + 10 * i, number + 10 * i + 9)}. {phrase}." for i in range(rows)]
        path.write_text("".join(json.dumps({"problem": problem, "answer": "1"}) + "\n" for problem in problems))
    arguments = ("--train", train, "--eval", first, second, "--out", tmp_path / "k", "--report", tmp_path / "r")
    done = run(*arguments)
    assert f'8 removals share one text; if it is a phrase and no leak, rerun with --ignore "{phrase}"' in done.stdout
    assert {len(row["overlaps"]) for row in read(tmp_path / "r")} == {2}
    assert [line.split()[-1] for line in done.stdout.splitlines()[1:3]] == ["8", "8"]
    done = run(*arguments, "--ignore", phrase)
    assert "8 kept, 0 removed" in done.stdout
    assert "4 evaluation prompts have under 10 words" in done.stdout


def test_every_text_of_a_row_is_compared_but_its_tests(tmp_path: Path) -> None:
    train, evaluation = tmp_path / "t.jsonl", tmp_path / "e.jsonl"
    leak = words(0, 10)
    rows = [
        {"problem": "p", "answer": "1", "generations": ["clean", f"as {leak}"]},
        {"problem": "p", "answer": "1", "more": {"original": leak.upper()}},
        {"problem": "p", "answer": "1", "tests": [leak], "number": 7, "nothing": None},
        {"problem": "p", "answer": "1", "generations": [words(0, 5), words(5, 10)]},
    ]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation.write_text(json.dumps({"problem": leak, "answer": "1"}) + "\n")
    arguments = ("--train", train, "--eval", evaluation, "--out", tmp_path / "k", "--report", tmp_path / "r")
    assert "4 read, 2 kept, 2 removed" in run(*arguments).stdout
    assert read(tmp_path / "k") == rows[2:]
    fields = [row["overlaps"][0]["field"] for row in read(tmp_path / "r")]
    assert fields == ["generations.1", "more.original"]
    assert "4 kept" in run(*arguments, "--prompt-only").stdout


def test_parquet_and_folders_come_out_as_json_lines(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    for name, problems in (("a", ["one", words(0, 10)]), ("b", ["three"])):
        table = pyarrow.table({"problem": problems, "answer": ["1"] * len(problems), "extra": [7] * len(problems)})
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
    evaluation = tmp_path / "e.jsonl"
    evaluation.write_text(json.dumps({"problem": words(0, 10), "answer": "1"}) + "\n")
    run("--train", folder, "--eval", evaluation, "--out", tmp_path / "k", "--report", tmp_path / "r")
    assert [(row["problem"], row["extra"]) for row in read(tmp_path / "k")] == [("one", 7), ("three", 7)]
    assert [(row["file"], row["line"]) for row in read(tmp_path / "r")] == [(str(folder / "a.parquet"), 2)]


def test_rows_that_share_an_id_are_all_compared(tmp_path: Path) -> None:
    train, evaluation = tmp_path / "t.jsonl", tmp_path / "e.jsonl"
    leaks = [words(0, 10), words(20, 30)]
    evaluation.write_text("".join(json.dumps({"id": 1, "problem": leak, "answer": "1"}) + "\n" for leak in leaks))
    rows = [{"id": "p", "problem": "p", "answer": "1", "solution": text} for text in ("fine", leaks[1], "fine too")]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("--train", train, "--eval", evaluation, "--out", tmp_path / "k", "--report", tmp_path / "r")
    assert "3 read, 2 kept, 1 removed for an overlap, 0 for repetition, 0 unusable" in done.stdout


def test_files_of_a_folder_may_differ_in_their_columns(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps({"problem": "other", "answer": "1"}) + "\n")
    (folder / "b.jsonl").write_text(json.dumps({"question": words(0, 10), "answer": "#### 1"}) + "\n")
    train = tmp_path / "t.jsonl"
    train.write_text(json.dumps({"problem": words(0, 10), "answer": "1"}) + "\n")
    run("--train", train, "--eval", folder, "--report", tmp_path / "r", code=1)
    assert [row["reason"] for row in read(tmp_path / "r")] == ["overlap"]


def test_repetition_is_dropped_on_request(tmp_path: Path) -> None:
    train = tmp_path / "t.jsonl"
    rows = [{"problem": f"p{i}", "answer": "1", "solution": text} for i, text in enumerate(["fine", "wait, " * 500])]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = tmp_path / "e.jsonl"
    evaluation.write_text(json.dumps({"problem": "other", "answer": "1"}) + "\n")
    arguments = ("--train", train, "--eval", evaluation, "--out", tmp_path / "k", "--report", tmp_path / "r")
    assert "2 kept" in run(*arguments).stdout
    done = run(*arguments, "--drop-repetition", "--prompt-only")  # solutions are looked at all the same
    assert "1 kept, 0 removed for an overlap, 1 for repetition" in done.stdout
    assert [row["reason"] for row in read(tmp_path / "r")] == ["repetition"]


@pytest.mark.parametrize("wrong", ["empty", "missing", "out", "report", "link", "folder", "directory", "eval", "n"])
def test_a_mistake_is_one_line_and_writes_nothing(wrong: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    train, evaluation = files
    link, empty, unusable = tmp_path / "link.jsonl", tmp_path / "empty.jsonl", tmp_path / "unusable.jsonl"
    link.symlink_to(train)
    empty.write_text("\n")
    unusable.write_text('{"problem": "", "answer": "1"}\n')
    out, report = tmp_path / "k", tmp_path / "r"
    change = {
        "empty": (empty, evaluation, out, report, 10, "is empty"),
        "missing": (tmp_path / "no.jsonl", evaluation, out, report, 10, "does not exist"),
        "out": (train, evaluation, evaluation, report, 10, "same file as one of --eval"),
        "report": (train, evaluation, out, out, 10, "same file as one of --out"),
        "link": (train, evaluation, link, report, 10, "same file as one of --train"),
        "folder": (train, evaluation, tmp_path / "no" / "k", report, 10, "does not exist"),
        "directory": (train, evaluation, tmp_path, report, 10, "not a regular file"),
        "eval": (train, unusable, out, report, 10, "no usable row"),
        "n": (train, evaluation, out, report, 0, "at least 1"),
    }
    data, sets, out, report, n, message = change[wrong]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = run("--train", data, "--eval", sets, "--out", out, "--report", report, "--n", n, code=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


PEAK = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module("nemo_vibethinker.data.decontaminate", run_name="__main__")
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def test_memory_does_not_grow_with_the_training_set(tmp_path: Path) -> None:
    evaluation = tmp_path / "e.jsonl"
    evaluation.write_text(json.dumps({"problem": words(0, 10), "answer": "1"}) + "\n")
    text = " ".join(str(random.Random(0).random()) for _ in range(2000))
    peaks = []
    for megabytes in (4, 32):
        train = tmp_path / "t.jsonl"
        with open(train, "w") as file:
            while file.tell() < megabytes * 1e6:
                file.write(json.dumps({"problem": f"number {file.tell()}", "solution": text, "answer": "1"}) + "\n")
        arguments = ["--train", train, "--eval", evaluation, "--out", tmp_path / "k", "--report", tmp_path / "r"]
        command = [sys.executable, "-c", PEAK, "decontaminate", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert (tmp_path / "k").stat().st_size == train.stat().st_size
        peaks.append(int(done.stderr.split("peak")[-1]) / 1024)
    assert peaks[1] < peaks[0] + 10, f"{peaks} MiB"


@pytest.mark.parametrize(
    ("train", "held_out", "count"),
    [
        ("gsm8k/train.jsonl", ["gsm8k/test.jsonl"], 11),
        ("competitions/aime24.jsonl", ["competitions/aime24.jsonl"], 30),
    ],
)
def test_real_sets(train: str, held_out: list[str], count: int, tmp_path: Path) -> None:
    folder = os.environ.get("NVT_DATA_DIR")
    if not folder:
        pytest.skip("NVT_DATA_DIR does not name a folder with the real data sets")
    data = Path(folder)
    copy = tmp_path / "train.jsonl"  # data equal to an evaluation set is no mistake: it may be another file
    copy.write_bytes((data / train).read_bytes())
    run("--train", copy, "--eval", *(data / name for name in held_out), "--report", tmp_path / "r.jsonl", code=1)
    assert sum(row["reason"] == "overlap" for row in read(tmp_path / "r.jsonl")) == count
