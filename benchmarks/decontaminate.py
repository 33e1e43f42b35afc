"""Throughput of decontamination, beside a plain-Python reference, on generated text of two shapes.

Short rows are like GSM8K's (about 0.5 KB), long rows like reasoning traces (about 60 KB, some mathematics, one
character in a hundred outside ASCII). The evaluation sets have the sizes of AIME (30 prompts), MATH-500 and GSM8K's
test set (1,319). Both ways read the same file and must remove the same rows. One process, one core:

    OMP_NUM_THREADS=1 python benchmarks/decontaminate.py --megabytes 20
"""

import argparse
import io
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nemo_vibethinker.data.decontaminate import decontaminate, find_overlaps, read_evaluation_set
from nemo_vibethinker.data.ngram_index import ngrams
from nemo_vibethinker.data.readers import iterate_dataset
from nemo_vibethinker.data.repetition import repetition_reason
from nemo_vibethinker.data.row_files import read_rows, size_of
from nemo_vibethinker.progress import Progress

EVALUATION_SIZES = {"aime": 30, "math500": 500, "gsm8k-test": 1319}
SHAPES = {"short rows": (45, 50), "long rows": (60, 11000)}  # words of a prompt and of a solution
LEAKS = 0.01  # share of rows that quote an evaluation prompt


class Writer:
    """Generated prose: words of Zipf's frequencies, numbers and formulas."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        letters = "etaoinshrdlucmfwyp"
        words = ["".join(self.rng.choices(letters, k=self.rng.randint(2, 9))) for _ in range(5000)]
        self.words = [*words, "$x^2$", "\\frac{1}{2}", "\\left(a+b\\right)", "\u2264", "\u03c0", "caf\u00e9", "12,"]
        self.weights = [1 / (rank + 10) for rank in range(5000)] + [0.01] * 7

    def text(self, words: int) -> str:
        """About `words` words in sentences of a dozen."""
        chosen = self.rng.choices(self.words, self.weights, k=words)
        return "".join(word + (".\n" if i % 12 == 11 else " ") for i, word in enumerate(chosen))


def write_files(folder: Path, writer: Writer, shape: tuple[int, int], megabytes: float) -> tuple[Path, list[Path]]:
    """The training file and the evaluation sets."""
    prompts = {name: [writer.text(45) for _ in range(size)] for name, size in EVALUATION_SIZES.items()}
    paths = []
    for name, texts in prompts.items():
        paths.append(folder / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps({"problem": t, "answer": "1"}) + "\n" for t in texts))
    train, everything = folder / "train.jsonl", [text for texts in prompts.values() for text in texts]
    with open(train, "w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            prompt, solution = writer.text(shape[0]), writer.text(shape[1])
            if writer.rng.random() < LEAKS:
                solution += writer.rng.choice(everything)
            file.write(json.dumps({"problem": prompt, "solution": solution, "answer": "1"}, ensure_ascii=False) + "\n")
    return train, paths


def plain_python(train: Path, evaluation: list[Path]) -> int:
    """Rows that share an n-gram, by a set of strings and a loop."""
    held_out = {gram for path in evaluation for row in _rows(path) for gram in ngrams(row["problem"])}
    return sum(
        any(gram in held_out for text in (row["problem"], row["solution"]) for gram in ngrams(text))
        for row in _rows(train)
    )


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def command_path(train: Path, evaluation: list[Path]) -> int:
    """What the command does, from file to kept lines."""
    sets = [read_evaluation_set(path, 10) for path in evaluation]
    return decontaminate(read_rows([train], Progress("reading")), sets, io.BytesIO(), io.BytesIO()).overlapping


def timed(name: str, megabytes: float, work: Callable[[], int], repeats: int) -> int:
    """Best of `repeats`, by wall clock and by the processor's."""
    walls, processors, result = [], [], 0
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        result = work()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    rates = f"{megabytes / min(walls):7.1f} MB/s wall, {megabytes / min(processors):7.1f} MB/s of one core's time"
    print(f"  {name:34} {rates}  ({result:,} rows)", flush=True)
    return result


def compare(name: str, folder: Path, megabytes: float, repeats: int) -> None:
    """Write the files of one shape and time each way on them."""
    train, evaluation = write_files(folder, Writer(0), SHAPES[name], megabytes)
    size = size_of([train]) / 1e6
    print(f"{name}: {size:.1f} MB")
    expected = timed("plain Python", size, lambda: plain_python(train, evaluation), 1)
    found = timed("the command", size, lambda: command_path(train, evaluation), repeats)
    assert found == expected, f"plain Python removes {expected} rows, the command {found}"
    timed("  of this, reading rows", size, lambda: sum(1 for _ in read_rows([train], Progress("reading"))), repeats)
    records = [row.record for row in iterate_dataset(train) if row.record]
    held_out = [row.record for path in evaluation for row in iterate_dataset(path) if row.record]
    timed("find_overlaps of records", size, lambda: len(find_overlaps(records, held_out)), repeats)
    timed("repetition_reason", size, lambda: sum(bool(repetition_reason(r.response)) for r in records), 1)


def main() -> None:
    """Parse the command line and compare on both shapes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=20, help="size of a training file, MB (default: 20)")
    parser.add_argument("--repeats", type=int, default=3, help="take the best of so many runs (default: 3)")
    arguments = parser.parse_args()
    for name in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            compare(name, Path(folder), arguments.megabytes, arguments.repeats)


if __name__ == "__main__":
    main()
