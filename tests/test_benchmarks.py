"""The published benchmarks: read, turned into prompts, and graded with right and wrong answers."""

import base64
import csv
import io
import os
import pickle
import re
import zlib
from collections import Counter
from pathlib import Path

import pytest
from benchmark_rows import (
    AIME24,
    CALL_PROGRAM,
    HMMT25,
    STDIN_PROGRAM,
    code_row,
    gpqa_row,
    packed,
    write_livecodebench,
    write_rows,
)

from nemo_vibethinker.config import Config, EvalConfig, RewardConfig, validate
from nemo_vibethinker.data.pickled_text import pickled_text
from nemo_vibethinker.data.tokenizer import prompt_text
from nemo_vibethinker.evaluation.benchmarks import BENCHMARKS, INSTRUCTION, load_benchmark
from nemo_vibethinker.evaluation.cost import benchmark_bounds
from nemo_vibethinker.evaluation.protocols import PROTOCOLS, chosen_benchmarks, protocol_of
from nemo_vibethinker.reward.grader import Grader

REAL = {"aime24": ("competitions/aime24.jsonl", 30), "aime25": ("competitions/aime25.jsonl", 30)} | {
    "math500": ("math/math500.jsonl", 500)
}


def data_file(name: str) -> Path:
    """A real file, or a skip with the reason."""
    folder = os.environ.get("NVT_DATA_DIR", "")
    path = Path(folder) / name
    if not folder or not path.exists():
        pytest.skip(f"needs {name} in the folder NVT_DATA_DIR")
    return path


def test_protocols_are_the_published_ones() -> None:
    protocol = PROTOCOLS["paper_1p5b"]
    assert {kind: (each.samples, each.temperature) for kind, each in protocol.kinds.items()} == {
        "math": (64, 1.0),
        "choice": (16, 1.0),
        "code": (8, 0.6),
    }
    assert (protocol.top_p, protocol.max_tokens) == (0.95, 40960)
    assert PROTOCOLS["paper_3b"].kinds["code"].temperature == 1.0
    assert PROTOCOLS["paper_3b"].sampling("math", 65536).max_response_length == 65536  # no cap but the window
    assert protocol.sampling("code", 131072).max_response_length == 40960
    assert {name: each.problems for name, each in BENCHMARKS.items() if name.startswith("lcb")} == {
        "lcb_v5": 279,
        "lcb_v6": 131,
        "lcb_v6_454": 454,
    }


def test_settings_override_the_protocol_and_choose_benchmarks() -> None:
    settings = EvalConfig(protocol="paper_1p5b", samples=2, max_tokens=100, benchmarks=["math500", "aime24"])
    assert protocol_of(settings).kinds["math"].samples == 2
    assert protocol_of(settings).sampling("math", 4096).max_response_length == 100
    assert chosen_benchmarks(settings) == ("aime24", "math500")
    assert chosen_benchmarks(EvalConfig()) == ()  # a run that asks for none
    assert chosen_benchmarks(EvalConfig(model="m"))[0] == "aime24"


def test_the_most_tokens_are_counted_before_anything_is_read() -> None:
    config = Config(eval=EvalConfig(model="m", benchmarks=["aime24", "gpqa", "lcb_v6"]))
    config.scale.model.max_position_embeddings = 131072
    tokens = {bound.name: bound.tokens for bound in benchmark_bounds(config)}
    assert tokens == {"aime24": 30 * 64 * 40960, "gpqa": 198 * 16 * 40960, "lcb_v6": 131 * 8 * 40960}
    config.eval.shard, config.eval.problems, config.eval.max_tokens = "1/4", 10, 100
    assert [(bound.problems, bound.max_tokens) for bound in benchmark_bounds(config)] == [(3, 100)] * 3
    config.scale.model.max_position_embeddings = 64  # the model's window ends responses too
    assert benchmark_bounds(config)[0].tokens == 3 * 64 * 64


def test_the_prompt_is_one_user_turn_without_a_system_prompt(tmp_path: Path) -> None:
    loaded = load_benchmark("aime24", str(write_rows(tmp_path / "aime.jsonl", AIME24)))
    turn = f"Find $1+1$.\n{INSTRUCTION}"
    assert loaded.records[0].prompt == turn
    assert prompt_text(turn, "") == f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n"
    assert loaded.notes == (f"AIME24 is published with 30 problems, {tmp_path / 'aime.jsonl'} has 2",)


def test_the_hash_tells_another_set_and_shards_deal_out_all_problems(tmp_path: Path) -> None:
    one = load_benchmark("hmmt25", str(write_rows(tmp_path / "one.jsonl", HMMT25)))
    other = load_benchmark(
        "hmmt25", str(write_rows(tmp_path / "other.jsonl", [HMMT25[0], {**HMMT25[1], "answer": "3"}]))
    )
    assert one.sha256 != other.sha256
    assert one.template_sha256 == other.template_sha256
    parts = [one.part(None, (index, 2)).records for index in range(2)]
    assert {record.id for part in parts for record in part} == {record.id for record in one.records}
    assert one.part(1, (0, 1)).total == 1


def test_a_row_without_an_answer_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "aime.jsonl", [AIME24[0], {**AIME24[1], "answer": "", "solution": "none"}])
    with pytest.raises(ValueError, match=r"aime24: .*row 2: no answer"):
        load_benchmark("aime24", str(path))


@pytest.mark.parametrize("name", list(REAL))
def test_real_files_grade_gold_answers_right_and_other_answers_wrong(name: str) -> None:
    file, count = REAL[name]
    loaded = load_benchmark(name, str(data_file(file)))
    assert (len(loaded.records), loaded.notes) == (count, ())
    with Grader(RewardConfig(), workers=1) as grader:
        right = grader.grade(loaded.records, [f"So it is \\boxed{{{r.answer}}}." for r in loaded.records])
        wrong = grader.grade(loaded.records, ["It is \\boxed{-98765}."] * count)
        unboxed = grader.grade(loaded.records, [f"It is {record.answer}." for record in loaded.records])
    assert Counter(verdict.kind for verdict in right) == {"right": count}
    assert Counter(verdict.kind for verdict in wrong) == {"wrong": count}
    assert Counter(verdict.kind for verdict in unboxed) == {"wrong": count}


def test_gpqa_options_are_shuffled_by_a_recorded_seed_and_graded_as_choices(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "gpqa.jsonl", [gpqa_row(number) for number in range(200)])
    loaded = load_benchmark("gpqa", str(path), shuffle_seed=1)
    assert loaded.shuffle_seed == 1
    letters = Counter(record.answer for record in loaded.records)
    assert set(letters) == set("ABCD")
    assert min(letters.values()) > 30  # not all at one place
    for number, record in enumerate(loaded.records):
        assert f"\n{record.answer}. right {number}\n" in record.prompt
    assert load_benchmark("gpqa", str(path), shuffle_seed=1).sha256 == loaded.sha256
    assert load_benchmark("gpqa", str(path), shuffle_seed=2).sha256 != loaded.sha256
    others = ["ABCD".replace(record.answer, "")[0] for record in loaded.records]
    with Grader(RewardConfig(), workers=1) as grader:
        right = grader.grade(loaded.records, [rf"\boxed{{\text{{{r.answer}}}}}" for r in loaded.records])
        wrong = grader.grade(loaded.records, [rf"\boxed{{{letter}}}" for letter in others])
    assert {verdict.kind for verdict in right} == {"right"}
    assert {verdict.kind for verdict in wrong} == {"wrong"}


def test_gpqa_is_read_from_the_csv_of_its_archive(tmp_path: Path) -> None:
    rows = [gpqa_row(number) for number in range(3)]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "gpqa_diamond.csv").write_text(text.getvalue())
    as_lines = load_benchmark("gpqa", str(write_rows(tmp_path / "gpqa.jsonl", rows)))
    assert load_benchmark("gpqa", str(tmp_path / "gpqa_diamond.csv")).sha256 == as_lines.sha256
    (tmp_path / "broken.csv").write_text("Question,Answer\nWhy?,42\n")
    with pytest.raises(ValueError, match="row 1: no Correct Answer"):
        load_benchmark("gpqa", str(tmp_path / "broken.csv"))


def test_livecodebench_is_chosen_by_release_and_date(tmp_path: Path) -> None:
    folder = str(write_livecodebench(tmp_path / "code_generation_lite"))
    chosen = {
        name: [record.id for record in load_benchmark(name, folder).records] for name in BENCHMARKS if "lcb" in name
    }
    assert chosen == {"lcb_v5": ["aug", "jan5"], "lcb_v6": ["feb"], "lcb_v6_454": ["aug", "jan5", "jan6", "feb"]}


def test_livecodebench_has_its_own_prompt_and_no_boxed_instruction(tmp_path: Path) -> None:
    records = load_benchmark("lcb_v6_454", str(write_livecodebench(tmp_path))).records
    stdin, call = records[0].prompt, records[1].prompt
    assert stdin.startswith("You are an expert Python programmer.")
    assert "### Question:\nDouble a number (aug)." in stdin
    assert "# YOUR CODE HERE" in stdin
    assert "def double(self, x: int) -> int:" in call
    assert "boxed" not in stdin + call


@pytest.mark.e2e
def test_livecodebench_programs_pass_public_and_hidden_tests_in_the_sandbox(tmp_path: Path) -> None:
    records = load_benchmark("lcb_v6_454", str(write_livecodebench(tmp_path))).records
    assert [len(record.tests) for record in records] == [3, 3, 3, 3]
    programs = [CALL_PROGRAM if "class Solution" in record.prompt else STDIN_PROGRAM for record in records]
    only_public = [program.replace("2 * ", "2 + 0 * ") for program in programs]  # right for the public test alone
    with Grader(RewardConfig(), workers=1) as grader:
        assert {verdict.kind for verdict in grader.grade(records, programs)} == {"right"}
        assert {verdict.kind for verdict in grader.grade(records, only_public)} == {"wrong"}


def test_hidden_tests_are_read_without_unpickling(tmp_path: Path) -> None:
    for protocol in range(1, pickle.HIGHEST_PROTOCOL + 1):
        for text in ("", "[{}]", "ü" * 300, "x" * 70_000):
            encoded = base64.b64encode(zlib.compress(pickle.dumps(text, protocol))).decode()
            assert pickled_text(encoded) == text


class Trap:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("content", ["trap", {"a": 1}, ["one", "two"], 7, ("a", "b")])
def test_any_other_pickle_is_refused_and_runs_nothing(content: object, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    pickled = pickle.dumps(Trap(mark) if content == "trap" else content)
    with pytest.raises(ValueError, match="a pickle"):
        pickled_text(base64.b64encode(zlib.compress(pickled)).decode())
    assert not mark.exists()


def test_torn_and_swollen_pickles_are_refused() -> None:
    whole = packed([{"input": "1", "output": "2", "testtype": "stdin"}] * 100)
    swollen = base64.b64encode(zlib.compress(pickle.dumps("x" * 5000))).decode()
    cut = base64.b64encode(base64.b64decode(whole)[:-20]).decode()
    for encoded, largest in ((cut, 1 << 20), (swollen, 1000), ("not base64!", 1000), ("AAAA", 1000)):
        with pytest.raises(ValueError, match="pickle"):
            pickled_text(encoded, largest)
    truncated = base64.b64encode(zlib.compress(pickle.dumps("some text")[:-3])).decode()
    with pytest.raises(ValueError, match=r"pickle"):
        pickled_text(truncated)


def test_a_broken_row_of_livecodebench_is_named(tmp_path: Path) -> None:
    rows = [code_row("feb", "2025-02-01"), {**code_row("mar", "2025-03-01"), "private_test_cases": "eJx1"}]
    path = write_rows(tmp_path / "test6.jsonl", rows)
    with pytest.raises(ValueError, match=re.escape(f"{path}, row 2: ")):
        load_benchmark("lcb_v6", str(tmp_path))


def test_an_evaluation_is_not_held_to_settings_of_stages_it_has_not() -> None:
    config = Config(stages=["evaluate"], eval=EvalConfig(model="m"))
    config.scale.parallel.data = 64  # no multiple of the training stages' batches
    config.scale.model.max_position_embeddings = 64  # shorter than the rows and responses of training
    validate(config)
    config.eval.model, config.stages = None, ["prepare", "sft", "evaluate"]
    with pytest.raises(ValueError, match=r"sft.global_batch_size"):
        validate(config)
