"""`recipe=evaluate model=...` from end to end on a tiny model, and the same through an endpoint."""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from benchmark_rows import HMMT25, gpqa_row, write_livecodebench, write_rows
from conftest import Launch, launcher_command, override
from openai_server import Reply, SampledModel, State, serve

from nemo_vibethinker.evaluation import clr_cli, endpoint, merge
from nemo_vibethinker.evaluation.model_source import model_artefacts
from nemo_vibethinker.evaluation.scores import Score, scores_from_json
from nemo_vibethinker.run_folder import RunFolder

pytestmark = pytest.mark.e2e

PROBLEMS = [{"problem": f"Find {n} + {n}.", "answer": str(2 * n)} for n in range(6)]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of an untrained model with a window of 2,048."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from nemo_vibethinker.data.tokenizer import train_tokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny-hf"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 2048}
    config = Qwen2Config(
        vocab_size=320, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, **sizes
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    train_tokenizer(["one two"], 320).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def benchmark_arguments(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Three kinds of benchmarks with a few problems each, and few tokens."""
    data = tmp_path_factory.mktemp("benchmarks")
    write_rows(data / "aime24.jsonl", PROBLEMS)
    write_rows(data / "gpqa.jsonl", [gpqa_row(number) for number in range(3)])
    write_livecodebench(data / "lcb")
    return (
        "recipe=evaluate",
        f"model={tiny_model}",
        "eval.benchmarks=[aime24,gpqa,lcb_v6]",
        f"eval.aime24.path={data / 'aime24.jsonl'}",
        f"eval.gpqa.path={data / 'gpqa.jsonl'}",
        f"eval.lcb_v6.path={data / 'lcb'}",
        "eval.samples=3",
        "eval.max_tokens=12",
        "eval.batch=4",
        "scale.parallel.data=1",
    )


def scores_of(run: Path) -> list[Score]:
    """The scores of a run's evaluate stage."""
    return scores_from_json((RunFolder.load(run).stage_folder("evaluate") / "scores.json").read_text())


def samples_of(run: Path) -> dict[str, str]:
    """Benchmark -> its responses."""
    folder = RunFolder.load(run).stage_folder("evaluate") / "benchmarks"
    return {file.parent.name: file.read_text() for file in folder.glob("*/*/samples.jsonl")}


@pytest.fixture(scope="session")
def whole_run(
    benchmark_arguments: tuple[str, ...], launch: Launch, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """An undisturbed evaluation: its run folder and what it printed."""
    root = tmp_path_factory.mktemp("runs")
    done = launch(*benchmark_arguments, f"run.root={root}", timeout=300)
    return root / "evaluate-tiny-hf-paper_1p5b-seed0", done.stdout


def test_a_folder_is_scored_without_describing_it(
    whole_run: tuple[Path, str], benchmark_arguments: tuple[str, ...], launch: Launch
) -> None:
    run, said = whole_run
    scores = {score.benchmark: score for score in scores_of(run)}
    assert list(scores) == ["aime24", "gpqa", "lcb_v6"]
    assert [score.num_problems for score in scores.values()] == [6, 3, 1]
    facts, choice, code = (score.provenance for score in scores.values())
    assert facts is not None
    assert choice is not None
    assert code is not None
    assert (facts.temperature, facts.top_p, facts.top_k, facts.max_tokens) == (1.0, 0.95, -1, 12)
    assert (facts.engine, facts.window, facts.system_prompt) == ("megatron", 2048, "")
    assert len(facts.model_hash) == len(facts.template_hash) == len(facts.benchmark_hash) == 64
    assert (code.temperature, code.date_window) == (0.6, "2025-02-01/")
    assert (facts.shuffle_seed, choice.shuffle_seed) == (None, 0)
    assert scores["lcb_v6"].maj_at == {}
    assert set(scores["aime24"].maj_at) == {2, 3}
    assert "AIME24 is published with 30 problems" in said
    assert "3 samples a problem, not 64" in said
    assert (run / "report.html").is_file()
    again = launch(*benchmark_arguments, f"run.root={run.parent}")
    assert "done earlier" in again.stdout


def test_killed_it_loses_one_batch_and_ends_alike(
    whole_run: tuple[Path, str], benchmark_arguments: tuple[str, ...], launch: Launch, tmp_path: Path
) -> None:
    arguments = [*benchmark_arguments, f"run.root={tmp_path}", "run.name=killed"]
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(launcher_command(*arguments), env=environment)
    samples = tmp_path / "killed" / "stages" / "00-evaluate" / "benchmarks" / "tiny-hf" / "aime24" / "samples.jsonl"
    deadline = time.monotonic() + 300
    while not samples.exists() or samples.read_text().count("\n") < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in everyone:
        each.kill()
    psutil.wait_procs(everyone, timeout=60)
    process.wait()
    kept = samples.read_text().splitlines()[:5]
    samples.write_text("".join(f"{line}\n" for line in kept) + kept[0][:20])  # and a torn line
    launch(*arguments, timeout=300)
    assert samples.read_text().startswith("\n".join(kept) + "\n")
    resumed = {name: text.replace(kept[0][:20] + "\n", "") for name, text in samples_of(tmp_path / "killed").items()}
    assert resumed == samples_of(whole_run[0])
    assert scores_of(tmp_path / "killed") == scores_of(whole_run[0])


def test_shards_merge_to_the_score_of_the_whole(
    whole_run: tuple[Path, str], benchmark_arguments: tuple[str, ...], launch: Launch, tmp_path: Path
) -> None:
    common = override(benchmark_arguments, f"run.root={tmp_path}", "eval.batch=7", "eval.benchmarks=[aime24,gpqa]")
    for index in range(2):
        launch(*common, f"eval.shard={index}/2", timeout=300)
    shards = [str(tmp_path / f"evaluate-tiny-hf-paper_1p5b-seed0-shard{index}of2") for index in range(2)]
    assert merge.main([*shards, "--out", str(tmp_path / "merged")]) == 0
    whole = [score for score in scores_of(whole_run[0]) if score.benchmark != "lcb_v6"]
    assert scores_from_json((tmp_path / "merged" / "scores.json").read_text()) == whole


def test_models_of_a_run_are_scored_by_name_and_by_checkpoint(
    coin_arguments: tuple[str, ...], benchmark_arguments: tuple[str, ...], launch: Launch, tmp_path: Path
) -> None:
    short = override(coin_arguments, "stages=[prepare,sft]", "sft.steps=2", "sft.checkpoint_interval=1")
    launch(*override(short, "sft.first_checkpoint=0"), f"run.root={tmp_path}", "run.name=short", timeout=300)
    run = tmp_path / "short"
    data = next(word for word in benchmark_arguments if word.startswith("eval.aime24.path="))
    common = ["recipe=evaluate", data, "eval.benchmarks=[aime24]", "eval.problems=2", "eval.samples=2"]
    common += ["eval.max_tokens=8", f"run.root={tmp_path}", "scale.parallel.data=1"]
    checkpoint = next(iter(sorted((run / "stages").glob("*-sft/checkpoints/step_*"))))
    assert model_artefacts(str(checkpoint), verify=True).keys() == {"tokenizer", f"model.{checkpoint.name}"}
    launch(*common, f"model={run}", "run.name=last", timeout=300)
    (score,) = scores_of(tmp_path / "last")
    assert (score.model, score.num_problems, score.samples_per_problem) == ("sft_last", 2, 2)
    refused = launch(*common, f"model={run}:nothing", code=2)
    assert "the run has sft" in refused.stderr
    refused = launch("recipe=evaluate", "model=/nowhere/at-all", f"run.root={tmp_path}", code=2)
    assert "no Hugging Face folder" in refused.stderr


def endpoint_arguments(url: str, benchmark: Path, out: Path) -> list[str]:
    """The command line of an evaluation through an endpoint."""
    arguments = ["--base-url", url, "--model", "tiny", "--served-by", "tests 1", "--benchmarks", "hmmt25"]
    return [*arguments, "--path", f"hmmt25={benchmark}", "--samples", "3", "--max-tokens", "8", "--out", str(out)]


def test_an_endpoint_is_scored_and_asked_for_nothing_twice(tiny_model: Path, tmp_path: Path) -> None:
    benchmark = write_rows(tmp_path / "hmmt25.jsonl", HMMT25)
    state = State("tiny", SampledModel(tiny_model), root=str(tiny_model))
    with serve(state) as url:
        arguments = endpoint_arguments(url, benchmark, tmp_path / "out")
        assert endpoint.main([*arguments, "--plan"]) == 0
        assert state.answered == []
        state.faults.extend(["400"])  # one request is refused: the others are kept
        assert endpoint.main(arguments) == 1
        assert len(state.answered) == 5
        assert endpoint.main(arguments) == 0
        assert len(state.answered) == 6
        (score,) = scores_from_json((tmp_path / "out" / "scores.json").read_text())
        assert endpoint.main([*arguments, "--seed", "1"]) == 2  # another seed: another folder
        assert endpoint.main(endpoint_arguments(url, benchmark, tmp_path / "other")) == 0
    assert len(set(state.answered)) == 6  # each response has a seed of its own, the same the second time
    (other,) = scores_from_json((tmp_path / "other" / "scores.json").read_text())
    assert other == score
    assert score.provenance is not None
    assert (score.provenance.engine_version, len(score.provenance.model_hash)) == ("tests 1", 64)


def scripted(text: str, is_chat: bool, body: dict[str, Any]) -> Reply:
    """Answers 15 or 9 by the seed; claims; and true only what mentions 15."""
    if "A statement about it" in text:
        claim = text.split("A statement about it:\n")[1].split("\n")[0]
        answer = rf"\boxed{{{int('15' in claim)}}}"
    elif "A solution:" in text:
        found = re.findall(r"boxed\{(\d+)\}", text)
        answer = "\n".join(f"Claim {n}: the value {found[0]} follows" for n in (1, 2))
    else:
        answer = rf"I think \boxed{{{15 if body['seed'] % 3 == 0 else 9}}}."
    return Reply([answer], ["stop"], len(text.split()), len(answer.split()))


def test_clr_weighs_votes_by_judged_claims_and_counts_its_cost(tmp_path: Path) -> None:
    benchmark = write_rows(tmp_path / "hmmt25.jsonl", HMMT25[:1])
    state = State("tiny", scripted)
    with serve(state) as url:
        arguments = [*endpoint_arguments(url, benchmark, tmp_path / "out"), "--trajectories", "8", "--claims", "2"]
        arguments = [word for word in arguments if word not in ("--served-by", "tests 1")] + ["--repeats", "2"]
        assert clr_cli.main(arguments) == 0
        asked = len(state.answered)
        assert clr_cli.main(arguments) == 0
        assert len(state.answered) == asked  # kept answers are not asked for again
    (report,) = json.loads((tmp_path / "out" / "clr.json").read_text())
    rights = [weight == 1.0 for weight in report["weights"]["hmmt25:1"]]
    assert set(report["weights"]["hmmt25:1"]) == {0.0, 1.0}
    assert report["clr"]["mean"] == 1.0  # a minority of right answers, all of whose claims hold
    assert report["majority"]["mean"] < 1.0
    assert 0 < sum(rights) < len(rights)
    assert report["cost_of_trajectories"]["calls"] == 16
    assert report["cost_of_claims_and_judgements"]["calls"] == 16 + 32
    assert report["cost_of_claims_and_judgements"]["tokens"] > 0
    assert asked == 64
