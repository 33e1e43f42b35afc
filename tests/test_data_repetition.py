import json
import os
import random
from pathlib import Path

import pytest

from nemo_vibethinker.data.repetition import repetition_reason

VOCABULARY = ["sum", "of", "the", "x", "=", "2", "(a+b)^2", "hence", "\\frac{1}{3}", "triangle", "we", "get", "17,"]
PARAGRAPH = " ".join(random.Random(3).choices(VOCABULARY, k=80)) + ".\n\n"


def prose(words: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join(f"{rng.choice(VOCABULARY)} {rng.randrange(1000)}" for _ in range(words)) + "\n"


@pytest.mark.parametrize(
    "loop",
    [
        "wait, " * 40,
        "Wait, let me check again. " * 20,
        PARAGRAPH * 3,
        PARAGRAPH[:200] * 30 + PARAGRAPH[:77],  # cut by the length limit inside a copy
        "".join(f"{PARAGRAPH} case {number}:" for number in range(8)),
        "!" * 200,
        "0." + "3" * 5000,
        "abc" * 2000,
        "\u8ba9\u6211\u4eec\u518d\u68c0\u67e5\u4e00\u904d" * 25,
        "\U0001f602" * 200,
        "a b a b c " * 60,  # a unit that repeats inside itself
    ],
)
@pytest.mark.parametrize("place", ["start", "middle", "end", "alone"])
def test_loops_are_found_anywhere(loop: str, place: str) -> None:
    before, after = {"start": ("", prose(80)), "middle": (prose(60), prose(60, 1)), "end": (prose(80), "")}.get(
        place, ("", "")
    )
    assert repetition_reason(before + loop + after)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "wait, wait, wait, that is wrong. " + prose(100),
        prose(20000),
        PARAGRAPH * 2 + prose(50),
        prose(50) + "-" * 100 + prose(50, 1) + "=" * 100,
        "1, 1, 2, 3, 5, 8, 13, 21, " + ", ".join(map(str, range(2000))),
        "0 & 0 & 0 \\\\ " * 9,
        prose(50) + "\n" * 5000 + " " * 5000,
        "\ud800",
    ],
)
def test_ordinary_text_passes(text: str) -> None:
    assert repetition_reason(text) == ""


def test_reason_names_the_unit_and_the_copies() -> None:
    assert repetition_reason(prose(30) + "Hmm, " * 50) == "50.0 copies of 2 tokens in a row: hmm ,"
    copies = "".join(f"{PARAGRAPH} {number}:" for number in range(8))
    assert "of the text are copies" in repetition_reason(copies)


@pytest.mark.parametrize(
    ("file", "column"),
    [
        ("gsm8k/test.jsonl", "answer"),
        ("math/pool_4500.jsonl", "solution"),
        ("competitions/aime_1983_2023.jsonl", "solution"),
        ("code/mbpp.jsonl", "code"),
        ("code/humaneval.jsonl", "canonical_solution"),
    ],
)
def test_no_real_solution_is_degenerate(file: str, column: str) -> None:
    folder = os.environ.get("NVT_DATA_DIR")
    if not folder:
        pytest.skip("NVT_DATA_DIR does not name a folder with the real data sets")
    lines = (Path(folder) / file).read_text().splitlines()
    reasons = [repetition_reason(json.loads(line)[column] or "") for line in lines]
    assert [reason for reason in reasons if reason] == []
