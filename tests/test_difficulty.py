"""Difficulty by rollouts, against a real server over a tiny model, and the filters by it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from openai_server import SampledModel, State, serve

from nemo_vibethinker.config import RewardConfig, SamplingConfig
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.reward.grader import Grader
from nemo_vibethinker.reward.verdict import Verdict
from nemo_vibethinker.spectrum.difficulty import (
    Difficulty,
    hard_sft_drop_reason,
    known_pass_rate,
    read_difficulties,
    rl_drop_reason,
    solve_class,
    task_hash,
)
from nemo_vibethinker.spectrum.difficulty_cli import main
from nemo_vibethinker.spectrum.difficulty_sampling import DifficultyMeter, GraderFailed, SamplingPlan
from nemo_vibethinker.spectrum.endpoint import Answer
from nemo_vibethinker.spectrum.spending import Usage

pytestmark = pytest.mark.e2e

INSTRUCTION = "Box it."


@pytest.fixture(scope="session")
def coin_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a model that boxes 5 where told to, and otherwise 1 or 2 by chance."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from nemo_vibethinker.data.tokenizer import encode_examples, train_tokenizer

    torch.manual_seed(0)
    records = [
        Record(id=f"{kind}{i}{a}", domain="math", prompt=f"{kind} {i}", response=f"\\boxed{{{a}}}", answer=a)
        for i in range(4)
        for kind, answers in (("Toss", "12"), ("Five", "55"))
        for a in answers
    ]
    tokenizer = train_tokenizer([r.prompt + r.response + INSTRUCTION for r in records] * 4, 320)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    examples = encode_examples(tokenizer, records, INSTRUCTION)
    longest = max(len(tokens) for tokens, _ in examples)
    inputs = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens, _ in examples])
    labels = torch.tensor([[-100] * start + t[start:] + [-100] * (longest - len(t)) for t, start in examples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = model(input_ids=inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("coin")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def coin_sampler(coin_model: Path) -> SampledModel:
    return SampledModel(coin_model)


@pytest.fixture
def server(coin_model: Path, coin_sampler: SampledModel) -> Iterator[tuple[str, State]]:
    """(base URL, state) of a server of the coin model."""
    state = State("coin", coin_sampler, root=str(coin_model))
    with serve(state) as url:
        yield url, state


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Prompts that are solved sometimes (twice, with two traces), always and never."""
    rows = [
        {"problem": "Toss 1", "answer": "1", "solution": "short \\boxed{1}", "note": "caf\u00e9"},
        {"problem": "Five 1", "answer": "5", "solution": "a longer one " * 20 + "\\boxed{5}"},
        {"problem": "Toss 1", "answer": "1", "solution": "a longer one " * 20 + "\\boxed{1}"},
        {"problem": "Toss 2", "answer": "7", "solution": "a longer one " * 20 + "\\boxed{7}"},
        {"problem": "No answer"},
    ]
    return write_rows(tmp_path / "data.jsonl", rows)


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--instruction", INSTRUCTION, "--max-tokens", "16", "--samples", "8"]
    return ["--data", str(data), "--out", str(out), *fixed, *more]


def by_prompt(data: Path, out: Path) -> dict[str, Difficulty]:
    """Difficulties by "problem/answer" of the data's rows."""
    rows = read_difficulties(out)
    known = {}
    for row in map(json.loads, data.read_text().splitlines()):
        if "answer" in row:
            record = Record(id="", domain="math", prompt=row["problem"], answer=row["answer"])
            if found := rows.get(task_hash(record)):
                known[f"{row['problem']}/{row['answer']}"] = found
    return known


def test_solve_class_is_never_always_or_sometimes() -> None:
    assert [solve_class(right, 8) for right in (0, 1, 7, 8)] == [
        "never_solved",
        "sometimes_solved",
        "sometimes_solved",
        "always_solved",
    ]
    assert solve_class(0, 0) == "never_solved"


def test_pass_rate_leaves_ungraded_samples_out_and_needs_half_of_them_graded() -> None:
    assert known_pass_rate(8, 3, 0) == 3 / 8
    assert known_pass_rate(8, 3, 4) == 3 / 4
    assert known_pass_rate(8, 3, 5) is None


def difficulty(right: int, ungraded: int = 0, n: int = 8) -> Difficulty:
    return Difficulty(
        id="x",
        task="t",
        prompt="p",
        n=n,
        right=right,
        ungraded=ungraded,
        pass_rate=known_pass_rate(n, right, ungraded),
        mean_response_tokens=1.0,
        truncated_share=0.0,
        prompt_tokens=1,
        model="m",
        model_hash="",
        sampling={},
    )


def test_rl_keeps_what_is_solved_sometimes() -> None:
    reasons = {right: rl_drop_reason(difficulty(right)) for right in (0, 1, 7, 8)}
    assert reasons == {0: "never solved", 1: "", 7: "", 8: "always solved"}
    assert rl_drop_reason(difficulty(7, ungraded=1)) == "always solved"  # of those that were graded
    assert rl_drop_reason(difficulty(0, ungraded=6)) == "unknown difficulty"  # not "never solved"
    assert rl_drop_reason(None) == "unknown difficulty"


def test_hard_sft_keeps_long_traces_of_prompts_failed_three_times_in_four() -> None:
    assert hard_sft_drop_reason(difficulty(2), 5000) == ""
    assert hard_sft_drop_reason(difficulty(3), 5000) == "low error rate"
    assert hard_sft_drop_reason(difficulty(2), 4999) == "short trace"
    assert hard_sft_drop_reason(difficulty(0, ungraded=6), 5000) == "unknown difficulty"


def test_measures_through_an_endpoint_and_filters_for_rl(
    data: Path, tmp_path: Path, server: tuple[str, State], capsys: pytest.CaptureFixture[str]
) -> None:
    url, state = server
    out, kept = tmp_path / "difficulty.jsonl", tmp_path / "kept.jsonl"
    command = ["--base-url", url, "--model", "coin", "--filter", "rl", "--out-data", str(kept)]
    assert main(arguments(data, out, *command)) == 0
    rows = by_prompt(data, out)
    assert [rows[name].right for name in ("Five 1/5", "Toss 2/7")] == [8, 0]
    toss = rows["Toss 1/1"]
    assert 0 < toss.right < 8
    assert (toss.n, toss.ungraded, toss.pass_rate) == (8, 0, toss.right / 8)
    assert toss.truncated_share == 0
    assert len(toss.model_hash) == 64  # the server says where its weights are
    tokens = sum(row.n * row.mean_response_tokens for row in rows.values())
    assert (tokens, sum(row.prompt_tokens for row in rows.values())) == (state.completion_tokens, state.prompt_tokens)
    assert len(state.answered) == 3  # two traces of one prompt are one question
    originals = data.read_text().splitlines()
    assert list(map(json.loads, kept.read_text().splitlines())) == [json.loads(originals[i]) for i in (0, 2)]
    printed = capsys.readouterr()
    assert "never solved 1, sometimes solved 1, always solved 1, unknown 0" in printed.out
    assert "1 rows cannot be graded: no answer" in printed.err
    assert main(arguments(data, out, *command)) == 0
    assert len(state.answered) == 3  # nothing is asked twice


def test_endpoint_and_local_sampling_are_the_same(
    data: Path, tmp_path: Path, coin_model: Path, server: tuple[str, State]
) -> None:
    url, state = server
    served, local = tmp_path / "served.jsonl", tmp_path / "local.jsonl"
    assert main(arguments(data, served, "--base-url", url, "--model", "coin")) == 0
    assert main(arguments(data, local, "--model", str(coin_model))) == 0
    rows = [[row | {"model": ""} for row in map(json.loads, path.read_text().splitlines())] for path in (served, local)]
    assert rows[0] == rows[1]
    texts = {entry.rpartition("/")[0] for entry in state.answered}
    assert f"<|im_start|>user\nFive 1\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n" in texts


def test_imports_neither_torch_nor_megatron() -> None:
    names = ["difficulty_cli", "difficulty_sampling", "probing_sets"]
    program = "import sys, " + ", ".join(f"nemo_vibethinker.spectrum.{name}" for name in names)
    program += "; print([name for name in ('torch', 'megatron', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip() == "[]"


def test_measures_locally_and_a_prompt_has_the_same_responses_in_any_run(
    data: Path, tmp_path: Path, coin_model: Path
) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    assert main(arguments(data, whole, "--model", str(coin_model))) == 0
    last = write_rows(tmp_path / "last.jsonl", [json.loads(data.read_text().splitlines()[2])])
    assert main(arguments(last, parts, "--model", str(coin_model))) == 0
    rows = by_prompt(data, whole)
    assert [rows[name].right for name in ("Five 1/5", "Toss 2/7")] == [8, 0]
    again = by_prompt(last, parts)["Toss 1/1"]
    assert (again.right, again.mean_response_tokens) == (
        rows["Toss 1/1"].right,
        rows["Toss 1/1"].mean_response_tokens,
    )


def test_hard_sft_needs_long_traces_and_prompts_that_are_failed(
    data: Path, tmp_path: Path, coin_model: Path, server: tuple[str, State]
) -> None:
    url, _ = server
    out, kept = tmp_path / "difficulty.jsonl", tmp_path / "kept.jsonl"
    assert main(arguments(data, out, "--base-url", url, "--model", "coin")) == 0
    hard = ["--filter", "hard-sft", "--out-data", str(kept), "--min-trace-tokens", "50"]
    assert main(["--data", str(data), "--out", str(out), *hard, "--tokenizer", str(coin_model)]) == 0
    toss = by_prompt(data, out)["Toss 1/1"]
    answers = [json.loads(line)["answer"] for line in kept.read_text().splitlines()]
    assert answers == (["1", "7"] if toss.right <= 2 else ["7"])


@pytest.mark.parametrize("faults", [["429", "500", "garbage", "other"], ["hang"]])
def test_faults_of_the_endpoint_change_nothing(
    faults: list[str], data: Path, tmp_path: Path, server: tuple[str, State]
) -> None:
    url, state = server
    command = ["--base-url", url, "--model", "coin", "--timeout", "3" if "hang" in faults else "60"]
    assert main(arguments(data, tmp_path / "calm.jsonl", *command)) == 0
    state.faults.extend(faults)
    assert main(arguments(data, tmp_path / "faulty.jsonl", *command)) == 0
    assert not state.faults
    assert (tmp_path / "calm.jsonl").read_text() == (tmp_path / "faulty.jsonl").read_text()


def test_server_that_gives_one_answer_at_a_time_is_asked_until_there_are_n(
    data: Path, tmp_path: Path, server: tuple[str, State]
) -> None:
    url, state = server
    state.faults.extend(["few"] * 1000)
    assert main(arguments(data, tmp_path / "d.jsonl", "--base-url", url, "--model", "coin")) == 0
    rows = by_prompt(data, tmp_path / "d.jsonl")
    assert [rows[name].right for name in ("Five 1/5", "Toss 2/7")] == [8, 0]
    assert 0 < rows["Toss 1/1"].right < 8  # each time with another seed
    assert len(state.answered) == 24


@pytest.mark.parametrize(("fault", "code"), [("401", 1), ("400", 0)])
def test_refusals(
    fault: str, code: int, data: Path, tmp_path: Path, server: tuple[str, State], capsys: pytest.CaptureFixture[str]
) -> None:
    url, state = server
    state.faults.append(fault)
    command = arguments(data, tmp_path / "d.jsonl", "--base-url", url, "--model", "coin", "--concurrency", "1")
    assert main(command) == code  # a wrong key ends the work, a request that does not fit is one prompt's matter
    assert f"scripted {fault}" in capsys.readouterr().err
    assert main(command) == 0
    assert len(read_difficulties(tmp_path / "d.jsonl")) == 3


def test_killed_run_goes_on_and_asks_nothing_twice(tmp_path: Path, server: tuple[str, State]) -> None:
    url, state = server
    state.delay_s = 0.1
    rows = [{"problem": f"Toss {i}", "answer": str(i)} for i in range(24)]
    data, out = write_rows(tmp_path / "many.jsonl", rows), tmp_path / "d.jsonl"
    command = [sys.executable, "-m", "nemo_vibethinker.spectrum.difficulty"]
    command += arguments(data, out, "--base-url", url, "--model", "coin", "--concurrency", "2")
    partial = Path(f"{out}.partial")
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 100
        while not (partial.exists() and partial.read_text().count("\n") >= 6):
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finished = {json.loads(line)["id"] for line in partial.read_text().splitlines()}
    assert 6 <= len(finished) < 24
    with partial.open("a") as file:
        file.write('{"id": "torn')
    assert main(arguments(data, out, "--base-url", url, "--model", "coin", "--concurrency", "2")) == 0
    asked = Counter(state.answered)
    assert len(asked) == 24
    assert sum(asked.values()) <= 24 + 2  # at most what was in flight is asked again
    assert [row.id for row in read_difficulties(out).values()] == [f"many:{i}" for i in range(1, 25)]
    assert not partial.exists()


class HalfBrokenGrader:
    """Grades only texts of digits, as a grader that times out on the others."""

    def grade(self, records: Sequence[Record], responses: Sequence[str]) -> list[Verdict]:
        return [
            Verdict("right" if text == record.answer else "wrong") if text.isdigit() else Verdict("ungraded", "slow")
            for record, text in zip(records, responses, strict=True)
        ]


def measure(meter: DifficultyMeter, *texts: str) -> Difficulty:
    record = Record(id="x", domain="math", prompt="p", answer="1")
    reasons = tuple("length" if text.endswith("~") else "stop" for text in texts)
    return meter.measure(record, Answer(texts=texts, finish_reasons=reasons, usage=Usage(1, 5, 40)))


@pytest.fixture
def meter() -> DifficultyMeter:
    plan = SamplingPlan(samples=4, sampling=SamplingConfig(), instruction="")
    return DifficultyMeter(HalfBrokenGrader(), plan, "m", "h")


def test_ungraded_samples_are_not_wrong_and_truncated_ones_are(meter: DifficultyMeter) -> None:
    row = measure(meter, "1", "2", "?", "1~")
    assert (row.right, row.ungraded, row.truncated_share, row.reason) == (1, 1, 0.25, "slow")
    assert row.pass_rate == 1 / 3
    assert row.mean_response_tokens == 10
    assert measure(meter, "1", "?", "?", "?").pass_rate is None


def test_grader_that_grades_nothing_stops_the_work() -> None:
    record = Record(id="c", domain="code", prompt="p", tests=("assert (",))
    texts = ("```python\nx = 1\n```",) * 31
    plan = SamplingPlan(samples=31, sampling=SamplingConfig(), instruction="")
    with Grader(RewardConfig(), 1) as grader:
        meter = DifficultyMeter(grader, plan, "m", "h")
        answer = Answer(texts=texts, finish_reasons=("stop",) * 31, usage=Usage(1, 5, 40))
        row = meter.measure(record, answer)
        assert (row.right, row.ungraded, row.pass_rate) == (0, 31, None)
        with pytest.raises(GraderFailed, match="none of 31 responses; reason: a test does not compile"):
            meter.check()
        with pytest.raises(GraderFailed, match="none of 62"):
            meter.measure(record, answer)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give --model to sample, or --filter"),
        (["--model", "nowhere"], "nowhere is not a folder; give --base-url"),
        (["--model", "coin", "--base-url", "localhost:80"], "must start with http"),
        (["--model", "coin", "--temperature", "0"], "use --samples 1"),
        (["--filter", "rl"], "needs --out-data"),
        (["--filter", "hard-sft", "--out-data", "x.jsonl"], "needs --tokenizer"),
        (["--filter", "rl", "--out-data", "x.jsonl"], "does not exist"),
    ],
)
def test_mistakes_are_one_line(
    more: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(data, tmp_path / "d.jsonl", *more)) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]


def test_difficulties_under_another_sampling_are_not_mixed(
    data: Path, tmp_path: Path, server: tuple[str, State], capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = server
    command = arguments(data, tmp_path / "d.jsonl", "--base-url", url, "--model", "coin")
    assert main(command) == 0
    assert main([*command, "--top-p", "0.9"]) == 2
    assert "another model or sampling" in capsys.readouterr().err
