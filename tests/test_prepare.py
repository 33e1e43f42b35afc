"""The prepare stage on users' data: what it writes, what it holds out, what it loses and says so; SFT reads it back."""

import json
import random
import types
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from nemo_vibethinker.config import Config, validate
from nemo_vibethinker.data.funnel import Funnel
from nemo_vibethinker.data.packing import PackedData, pack_examples
from nemo_vibethinker.data.record_files import RecordFile, Selection
from nemo_vibethinker.data.records import Record, read_jsonl, write_jsonl
from nemo_vibethinker.data.sets import HELD_OUT_SETS, TRAINING_SETS, hold_out, user_sets
from nemo_vibethinker.data.token_files import Example, TokenFile
from nemo_vibethinker.data.tokenizer import encode_examples, load_tokenizer, sample_positions
from nemo_vibethinker.pipeline import StageContext
from nemo_vibethinker.stages import prepare

WORDS = [f"{a}{b}" for a in "bcdfghjklmnp" for b in ("an", "el", "ir", "ob", "ud")]


def problem(identity: str, seed: int, **fields: Any) -> dict[str, Any]:
    """A record of fifteen words that no other seed shares ten of."""
    words = random.Random(seed).choices(WORDS, k=15)
    row = {"id": identity, "domain": "algebra", "prompt": f"{' '.join(words)}?", "response": "It is \\boxed{1}."}
    return row | {"answer": "1"} | fields


def write(path: Path, *rows: dict[str, Any] | str) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def config_for(**data: Any) -> Config:
    config = Config()
    config.scale.model.max_position_embeddings = 256
    config.sft.seq_length = 128
    config.data.vocab_size = 384
    for stage in (config.signal.math_16k, config.signal.math_32k, config.signal.code, config.probe, config.evaluate):
        stage.sampling.max_response_length = 64
    for key, value in data.items():
        setattr(config.data, key, value)
    validate(config)
    return config


def run(config: Config, folder: Path) -> tuple[dict[str, list[Record]], dict[str, Any], list[str]]:
    """(the sets written, funnel.json, the console's lines)."""
    said: list[str] = []
    context = cast(StageContext, types.SimpleNamespace(say=said.append))
    folder.mkdir(exist_ok=True)
    result = prepare.run(config, {}, folder, context)
    assert all(path.exists() for path in result.outputs.values())
    assert not (folder / "spool").exists()
    names = (*TRAINING_SETS, *HELD_OUT_SETS)
    sets = {name: read_jsonl(folder / f"{name}.jsonl") for name in names}
    return sets, json.loads((folder / "funnel.json").read_text()), said


@pytest.fixture
def own_data(tmp_path: Path) -> str:
    return write(tmp_path / "own.jsonl", *(problem(f"r{i}", i) for i in range(60)))


def test_tokens_are_those_of_the_records(own_data: str, tmp_path: Path) -> None:
    sets, funnel, said = run(config_for(sft=own_data), tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out" / "tokenizer")
    file = TokenFile(tmp_path / "out" / "sft_tokens")
    expected = encode_examples(tokenizer, sets["sft"], Config().data.instruction)
    assert file[:] == expected
    file.verify()
    tokens = funnel["sets"]["sft"]["tokens"]
    prompts = sorted(prompt for _, prompt in expected)
    assert tokens["prompt"]["max"] == prompts[-1]
    assert tokens["prompt"]["p50"] == int(np.percentile(prompts, 50, method="higher"))
    assert sum(count for _, count in tokens["prompt"]["histogram"]) == len(expected)
    assert tokens["response"]["max"] == max(len(ids) - prompt for ids, prompt in expected)
    assert (tokens["window"], tokens["over_window"]) == (128, 0)
    (line,) = [line for line in said if line.startswith("sft  ")]
    assert f"prompt tokens p50 {tokens['prompt']['p50']}" in line
    assert f"algebra {len(expected)}" in line


def test_what_a_killed_attempt_left_is_replaced(own_data: str, tmp_path: Path) -> None:
    sets, _, _ = run(config_for(sft=own_data), tmp_path / "out")
    left = tmp_path / "killed"
    (left / "spool").mkdir(parents=True)
    (left / "sft_tokens").mkdir()
    for name in ("spool/rl.jsonl", ".sft.jsonl.x7", ".dropped.jsonl", "sft_tokens/tokens.bin", "sft.jsonl"):
        (left / name).write_text("half a li")
    again, _, _ = run(config_for(sft=own_data), left)
    assert again == sets
    assert sorted(path.name for path in left.iterdir()) == sorted(path.name for path in (tmp_path / "out").iterdir())
    first, second = TokenFile(tmp_path / "out" / "sft_tokens"), TokenFile(left / "sft_tokens")
    assert first.content_sha256 == second.content_sha256


def test_held_out_of_the_rl_file_as_it_was_before(tmp_path: Path) -> None:
    rows = [problem(f"r{i}", i, domain=domain) for i, domain in enumerate(["algebra", "geometry", "math"] * 20)]
    file = RecordFile(tmp_path / "rl.jsonl", (Record(**row) for row in rows))
    config = config_for(sft=str(tmp_path / "rl.jsonl"), probe_problems_per_domain=3)
    probe, evaluation, rest = hold_out(config, file)
    expected: dict[str, list[str]] = {"probe": [], "evaluation": [], "rest": []}
    for domain in ("algebra", "geometry", "math"):  # the same by whole records, as a list is shuffled
        records = [row["id"] for row in rows if row["domain"] == domain]
        random.Random(f"{config.seed}/{domain}").shuffle(records)
        for name, part in (("probe", records[:3]), ("evaluation", records[3:7]), ("rest", records[7:])):
            expected[name] += part
    for name, numbers in (("probe", probe), ("evaluation", evaluation), ("rest", rest)):
        assert [record.id for record in Selection(file, numbers)] == expected[name]


def test_own_evaluation_and_probing_files(own_data: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = write(tmp_path / "a" / "test.jsonl", problem("x", 100), problem("r", 101))
    second = write(tmp_path / "b" / "test.jsonl", problem("x", 102), problem("again", 7))
    probing = write(tmp_path / "probing.jsonl", problem("p1", 200), problem("p2", 100), problem("p3", 8))
    sets, funnel, _ = run(config_for(sft=own_data, evaluation=[first, second], probe=[probing]), tmp_path / "out")
    assert [r.id for r in sets["evaluation"]] == [
        "a/test.jsonl:x",
        "a/test.jsonl:r",
        "b/test.jsonl:x",
        "b/test.jsonl:again",
    ]
    assert [r.id for r in sets["probe"]] == ["p1", "p3"]  # p2 is an evaluation problem
    training = {f"r{i}" for i in range(60)} - {"r7", "r8"}
    assert {r.id for r in sets["sft"]} == {r.id for r in sets["rl_math"]} == training
    removed = {(row["train_id"], row["held_out_id"]) for row in funnel["overlaps_removed"]}
    assert removed == {("p2", "a/test.jsonl:x"), ("r7", "b/test.jsonl:again"), ("r8", "p3")}
    assert funnel["overlaps_removed_count"] == len(funnel["overlaps_removed"]) == 5
    assert funnel["formats"] == {"sft": "records", "rl": "records", "probe": "records", "evaluation": "records"}


def test_one_own_file_leaves_the_other_set_held_out(own_data: str, tmp_path: Path) -> None:
    evaluation = write(tmp_path / "e.jsonl", problem("e", 300))
    sets, _, _ = run(config_for(sft=own_data, evaluation=[evaluation]), tmp_path / "out")
    assert [record.id for record in sets["evaluation"]] == ["e"]
    assert len(sets["probe"]) == 12  # a fifth of the RL file
    assert len(sets["rl_math"]) == 48


def test_every_lost_row_is_named_and_counted(tmp_path: Path) -> None:
    rows = [problem(f"r{i}", i) for i in range(40)]
    rows += [problem("long", 50, response="word " * 200), problem("wide", 51, prompt="word " * 200 + "?")]
    lost = ["{torn", json.dumps(problem("none", 52, response="", answer="")), json.dumps(problem("r3", 53))]
    path = write(tmp_path / "own.jsonl", *rows, *lost)
    sets, funnel, said = run(config_for(sft=path), tmp_path / "out")
    counts = funnel["sets"]["sft"]
    reasons = {row["id"]: (row["line"], row["reason"]) for row in counts["dropped"]}
    assert reasons["none"] == (44, "no solution")
    assert reasons["r3"] == (45, "an earlier row has the same id")
    assert reasons[""][0] == 43
    assert reasons["long"][1].endswith("tokens, more than 128 (sft.seq_length)")
    assert counts["dropped_by_reason"] == {
        "bad JSON": 1,
        "no solution": 1,
        "an earlier row has the same id": 1,
        "N tokens, more than N (sft.seq_length)": 2,
    }
    for name, set_counts in funnel["sets"].items():
        assert set_counts["kept"] == len(sets[name]) == sum(set_counts["domains"].values())
        assert set_counts["dropped_count"] == len(set_counts["dropped"])
    named = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    total = sum(c["dropped_count"] for c in funnel["sets"].values()) + funnel["overlaps_removed_count"]
    assert len(named) == total
    assert {row["id"] for row in named if row["set"] == "sft" and "10-gram" not in row["reason"]} == set(reasons)
    assert any("dropped 2 N tokens, more than N (sft.seq_length) (first: long:" in line for line in said)
    assert [row["id"] for row in funnel["sets"]["rl_math"]["dropped"] if row["line"] == 44] == ["none"]


def test_outputs_that_overlap_are_refused(tmp_path: Path) -> None:
    shared = Record(**problem("held", 1))
    paths = {name: tmp_path / f"{name}.jsonl" for name in (*TRAINING_SETS, *HELD_OUT_SETS)}
    contents = {name: [Record(**problem("other", 2))] for name in paths}
    contents["probe"] = [Record(**problem("p", 3))]
    contents["evaluation"] = [shared]
    for name in ("sft", "rl_math", "rl_code", "probe"):
        own = contents | {name: [Record(**problem("copy", 1))]}
        for file, records in own.items():
            write_jsonl(paths[file], records)
        words = " ".join(shared.prompt.rstrip("?").split()[:10])
        with pytest.raises(ValueError, match=rf"^{name}: copy still shares '{words}.*' with held$"):
            prepare.check_disjoint(paths)
    for file, records in contents.items():
        write_jsonl(paths[file], records)
    prepare.check_disjoint(paths)


def test_a_set_without_rows_says_why(own_data: str, tmp_path: Path) -> None:
    evaluation = write(tmp_path / "e.jsonl", problem("e", 300, prompt="word " * 300))
    with pytest.raises(ValueError, match=r"evaluation set is empty after filtering; first reason: .* more than 192"):
        run(config_for(sft=own_data, evaluation=[evaluation]), tmp_path / "out")
    empty = write(tmp_path / "answers.jsonl", problem("e", 300, answer=""))
    with pytest.raises(ValueError, match=r"answers\.jsonl has no usable row for rl; line 1: no answer"):
        run(config_for(sft=own_data, evaluation=[empty]), tmp_path / "out")
    config = config_for(sft=own_data, probe=[own_data, own_data.replace("/own", "/./own")])
    with pytest.raises(ValueError, match="the same dataset is named twice"):
        user_sets(config, tmp_path, Funnel(tmp_path))


def test_settings_without_own_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.evaluation goes with your own training data"):
        config_for(evaluation=["e.jsonl"])
    with pytest.raises(ValueError, match=r"data\.probe: name each dataset once"):
        config_for(sft="a.jsonl", probe=["e.jsonl", "e.jsonl"])


def test_tokenizer_sample_is_seeded_and_bounded() -> None:
    assert sample_positions(5, 100, 100, seed=0) == [0, 1, 2, 3, 4]
    sample = sample_positions(1000, 10_000, 1_000, seed=0)
    assert sample == sample_positions(1000, 10_000, 1_000, seed=0) == sorted(set(sample))
    assert len(sample) == 100
    assert sample != sample_positions(1000, 10_000, 1_000, seed=1)


def rows_before(examples: list[Example], seq_length: int, seed: int, count: int) -> list[list[Example]]:
    """The first rows of the packed data, by whole lists in memory."""
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    packs = pack_examples([len(tokens) for tokens, _ in shuffled], seq_length)
    order: list[int] = []
    for epoch in range(-(-count // len(packs))):
        numbers = list(range(len(packs)))
        random.Random(f"{seed}/{epoch}").shuffle(numbers)
        order += numbers
    return [[shuffled[i] for i in packs[row]] for row in order[:count]]


def test_packed_rows_from_files_are_those_from_memory(own_data: str, tmp_path: Path) -> None:
    sets, _, _ = run(config_for(sft=own_data), tmp_path / "out")
    examples = encode_examples(load_tokenizer(tmp_path / "out" / "tokenizer"), sets["sft"], Config().data.instruction)
    from_files = PackedData(TokenFile(tmp_path / "out" / "sft_tokens"), 256, seed=3)
    from_memory = PackedData(examples, 256, seed=3)
    count = 2 * len(from_files) + 1
    expected = rows_before(examples, 256, 3, count)
    assert [from_files.row(i) for i in range(count)] == expected
    assert [from_memory.row(i) for i in range(count)] == expected
    assert from_files.row(0) == expected[0]  # back to an earlier epoch
