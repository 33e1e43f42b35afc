"""What a run costs: closed forms, published figures, finished runs, the plan's text and JSON, and its refusal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import cli, run
from nemo_vibethinker.config import Config
from nemo_vibethinker.costs.calibration import read_records
from nemo_vibethinker.costs.flops import token_flops
from nemo_vibethinker.costs.forecast import StageForecast, forecast
from nemo_vibethinker.costs.plan_json import to_dict
from nemo_vibethinker.costs.rates import StageRecord
from nemo_vibethinker.costs.run_plan import format_hours, plan_run
from nemo_vibethinker.costs.work import evaluated_models, probed_checkpoints, stage_work, token_bound
from nemo_vibethinker.run_folder import append_json_line, open_run

PAPER = ("recipe=ssp_full", "scale=vibethinker_1p5b", "cluster.gpu=H800-SXM", "cluster.processes=64")


@pytest.fixture(autouse=True)
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no runs of the checkout's to measure from


def parse(*arguments: str) -> Config:
    return cli.parse(list(arguments)).config


def paper(*changes: str) -> dict[str, StageForecast]:
    return forecast(parse(*PAPER, *changes))


def test_work_of_each_stage() -> None:
    config = parse(*PAPER, "data.evaluation_problems_per_domain=10", "data.evaluation_code_problems=5")
    sft = stage_work(config, "sft", 0.5)
    assert (sft.trained_tokens, sft.segment) == (6000 * 128 * 32768, 0.3 * 32768)
    assert sft.moved_bytes == 2 * 1_543_714_304 + 20 * (2 + 2 + 12) * 1_543_714_304  # the base; each checkpoint
    probe = stage_work(config, "probe", 0.5)
    assert (probe.models, probe.responses, probe.sampled_tokens(0.5)) == (11, 11 * 400 * 16, 11 * 400 * 16 * 4096)
    rl = stage_work(config, "mgpo.math_16k", 0.5)
    assert (rl.responses, rl.filter_responses) == (300 * 128 * 16, 8000 * 8)
    assert (rl.trained_tokens, rl.segment) == (300 * 128 * 16 * 8192, 8192)
    assert rl.moved_bytes == (2 * 2 + 29 * 14) * 1_543_714_304
    assert evaluated_models(config) == 9
    assert stage_work(config, "evaluate", 0.5).responses == 9 * 45 * 8


def test_hours_of_sampling_by_hand() -> None:
    """10 checkpoints x 4 x 100 problems x 16 x 8,000 tokens are .51G tokens, 57 GPU-hours; a larger set 570."""
    small = ("sft.first_checkpoint=3300", "budget.response_share=1", "probe.sampling.max_response_length=8000")
    assert paper(*small)["probe"].phases["sample"] == pytest.approx(57, abs=0.5)
    large = ("sft.first_checkpoint=300", "data.probe_problems_per_domain=200", "probe.samples=32")
    longer = "probe.sampling.max_response_length=10000"
    found = paper(*small[1:2], *large, longer)["probe"]
    assert (found.sampled_tokens, found.phases["sample"]) == (pytest.approx(5.12e9), pytest.approx(569, abs=1))


def test_hours_of_every_phase_by_hand() -> None:
    settings = ("budget.startup_seconds=100", "budget.engine_startup_seconds=10", "budget.step_overhead=0.2")
    found = paper(*settings, "budget.checkpoint_gb_per_second=2")["probe"]
    sample = 11 * 400 * 16 * 8192 * 0.55 / 2500 / 3600
    expected = {
        "start": 64 * (100 + 11 * 10) / 3600,
        "sample": sample,
        "wait": sample * 0.2 / 0.8,
        "move": 64 * 11 * 2 * 1_543_714_304 / 2e9 / 3600,
    }
    assert found.phases == pytest.approx(expected)
    assert found.hours == pytest.approx(sum(expected.values()))
    assert found.seconds == pytest.approx(sum(expected.values()) * 3600 / 64)


def test_training_without_traffic_is_flops_over_the_peak() -> None:
    """One GPU: nothing to send, no bubble."""
    config = parse("recipe=ssp_full", "scale=single_gpu", "cluster.gpu=H100-SXM", "cluster.processes=1")
    flops = token_flops(config.scale.model, 151936, 0.3 * 16384, recompute="full", chunked_logits=True).hardware
    expected = 2000 * 32 * 16384 * flops / (0.4 * 989.4e12) / 3600
    assert forecast(config)["sft"].phases["train"] == pytest.approx(expected)


def test_supervised_training_is_within_the_published_estimate() -> None:
    """Published: an epoch of 10G tokens at 40% MFU takes 80 to 150 H800-hours; the shipped scale trains on 25G."""
    sft = paper()["sft"]
    assert sft.work.trained_tokens == pytest.approx(25.2e9, rel=0.01)
    assert 80 <= sft.phases["train"] / 2.5 <= 150


def test_reinforcement_learning_is_within_the_published_estimate() -> None:
    """Published: 3,000 hours, 2,500 tokens/s, 70% in rollouts: 1.3M responses of 14K tokens, 650 steps of 128 x 16."""
    length = "signal.math_32k.sampling.max_response_length=25455"  # 14,000 tokens on the mean
    found = paper("signal.math_32k.steps=650", length, "signal.math_32k.prefilter_samples=0")["mgpo.math_32k"]
    hours = sum(found.phases.values())
    assert hours == found.hours == pytest.approx(3000, rel=0.1)
    assert found.phases["sample"] / hours == pytest.approx(0.7, abs=0.04)


def test_the_paper_scale_fits_the_budget_of_the_paper() -> None:
    for processes in (8, 16, 32, 64):
        plan = plan_run(parse(*PAPER[:3], f"cluster.processes={processes}"), Path("runs/none"))
        assert not plan.unknown
        assert not plan.exceeds, processes
        assert 3300 < plan.total() < 3900
        assert plan.total("low") < plan.total() < plan.total("high")


def test_on_slurm_only_training_takes_all_nodes() -> None:
    found = forecast(parse("recipe=ssp_full", "scale=vibethinker_1p5b", "cluster=slurm_h800"))
    shapes = {stage: (one.processes, one.jobs, one.side_by_side) for stage, one in found.items()}
    assert shapes["sft"] == shapes["mgpo.code"] == (64, 1, 1)
    assert (shapes["probe"], shapes["evaluate"], shapes["fuse"]) == ((8, 11, 4), (8, 9, 4), (8, 1, 1))
    probe, everywhere = found["probe"], paper()["probe"]
    assert probe.phases["sample"] == pytest.approx(everywhere.phases["sample"])  # as many GPU-hours
    assert probe.phases["start"] == pytest.approx(8 * 11 * (180 + 60) / 3600)  # every job starts for itself
    assert probe.hours
    assert probe.seconds == pytest.approx(probe.hours * 3600 / 8 / 4)


def test_an_unknown_gpu_gives_no_hours_of_training() -> None:
    found = forecast(parse(*PAPER[:2], "cluster.gpu=H100", "cluster.processes=64"))
    assert found["sft"].hours is None
    assert "cluster.gpu is not known" in found["sft"].unknown
    assert found["probe"].hours  # its speed is assumed of any GPU


def test_without_a_gpu_nothing_is_assumed() -> None:
    assert all(stage.hours is None for stage in forecast(parse("recipe=ssp_full")).values())


def record(**fields: object) -> StageRecord:
    return StageRecord(**({"run": "r", "stage": "mgpo.math_16k"} | fields))  # pyright: ignore[reportArgumentType]


def test_a_measured_speed_replaces_the_assumed_one_and_narrows_the_interval() -> None:
    config = parse(*PAPER)
    speeds = record(generate_tokens_per_second=5000.0, train_flops_per_second=1e15, response_share=0.275)
    before, after = forecast(config)["mgpo.math_32k"], forecast(config, [speeds])["mgpo.math_32k"]
    assert after.phases["sample"] == pytest.approx(before.phases["sample"] / 4)
    assert after.figures["response_share"].source == "measured, r mgpo.math_16k"
    assert after.figures["step_overhead"].source == "assumed, budget.step_overhead"
    assert (before.spread, after.spread) == (1.4, 1.25)
    probe = forecast(config, [speeds])["probe"]  # speed carries over to another kind of stage, lengths do not
    assert probe.phases["sample"] == pytest.approx(forecast(config)["probe"].phases["sample"] / 2)


def test_a_finished_stage_is_scaled_by_its_tokens() -> None:
    config = parse(*PAPER)
    tokens = stage_work(config, "sft", 0.55).trained_tokens
    found = forecast(config, [record(stage="sft", hours=100.0, amount=tokens / 3)])["sft"]
    assert found.hours == pytest.approx(300)
    assert found.figures["hours"].source == "measured, r sft, times 3 by its tokens"
    assert found.low == pytest.approx(300 / 1.15)
    fuse = forecast(config, [record(stage="fuse", hours=2.0)])["fuse"]
    assert not fuse.figures.get("hours")  # nothing to scale by, and other data
    assert forecast(config, [record(stage="fuse", hours=2.0, same_data=True)])["fuse"].hours == 2.0


def write_run(config: Config, lines: list[dict], *attempts: tuple[str, float, float]) -> None:
    """A finished run: (stage, start, end) of its attempts, and lines of `run.jsonl`."""
    folder = open_run(config)
    for stage, start, end in attempts:
        folder.stage_folder(stage).mkdir(parents=True)
        (folder.stage_folder(stage) / "manifest.json").touch()
        head = {"stage": stage, "attempt": 1, "id": stage}
        started = head | {"event": "start", "time": start, "processes": config.world_size, "device": "cpu"}
        append_json_line(folder.path / "ledger.jsonl", started)
        append_json_line(folder.path / "ledger.jsonl", head | {"event": "end", "time": end, "status": "done"})
    for line in lines:
        append_json_line(folder.path / "run.jsonl", line)
    folder.unlock()


def step(stage: str, number: int, time: float, **fields: float) -> dict:
    return {"stage": stage, "attempt": 1, "step": number, "total": 3, "time": time} | fields


def test_speeds_are_read_from_the_lines_of_a_run() -> None:
    earlier = parse("recipe=ssp_full", "run.name=earlier", "stages=prepare,sft,mgpo.math_16k")
    update = {"seconds": 10.0, "tokens_trained": 1000.0, "update_seconds": 8.0}
    lines = [step("sft", number, 15.0 + 10 * number, **update) for number in (1, 2, 3)]
    sampled = {"tokens_generated": 960.0, "generate_seconds": 6.0, "response_length": 48.0, "seconds": 10.0}
    training = {"tokens_trained": 960.0, "update_seconds": 2.0}
    lines += [step("mgpo.math_16k", number, 100.0 + 10 * number, **sampled, **training) for number in (1, 2, 3)]
    write_run(earlier, lines, ("sft", 11.0, 61.0))
    later = parse("recipe=ssp_full", "run.name=later")
    records = {found.stage: found for found in read_records(later)}
    segment = earlier.sft.seq_length * 0.3
    flops = token_flops(earlier.scale.model, earlier.data.vocab_size, segment).hardware
    assert records["sft"].train_flops_per_second == pytest.approx(1000 / 8 * flops / earlier.world_size)
    assert records["sft"].startup_seconds == pytest.approx(25.0 - 10.0 - 11.0)
    assert records["sft"].hours == pytest.approx(50 * earlier.world_size / 3600)
    rl = records["mgpo.math_16k"]
    assert rl.generate_tokens_per_second == pytest.approx(160 / earlier.world_size)
    assert rl.response_share == pytest.approx(48 / 96)
    assert rl.step_overhead == pytest.approx(0.2)
    assert rl.hours is None  # not finished
    assert read_records(parse("recipe=ssp_full", "scale.model.num_layers=7")) == []
    assert read_records(parse("recipe=ssp_full", "cluster.gpu=H800-SXM")) == []


def test_the_plan_is_measured_from_an_earlier_ledger(capsys: pytest.CaptureFixture[str]) -> None:
    earlier = parse(
        "recipe=ssp_full", "run.name=earlier", "sft.steps=100", "sft.first_checkpoint=0", "stages=prepare,sft"
    )
    write_run(earlier, [], ("prepare", 0, 8), ("sft", 10, 110))
    arguments = ["recipe=ssp_full", "run.name=later", "sft.steps=300", "sft.first_checkpoint=0", "plan=true"]
    assert run.main(arguments) == 0
    text = capsys.readouterr().out
    assert "measured, earlier sft, times 3 by its tokens (sft)" in text
    assert "wall time 5m 16s (" in text  # 300 s, and prepare, whose one process had been charged for two
    assert "unmeasured, and not in the total: probe, fuse, " in text
    assert "$" not in text
    assert "process-hours" in text


def test_token_bound_leaves_open_what_the_users_file_decides(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    config = parse("recipe=ssp_full", "data.sft=a.jsonl", "signal.math_16k.prefilter_prompts=0")
    assert token_bound(config, "mgpo.math_16k") is None
    config.signal.math_16k.prefilter_samples = 0
    mgpo = config.signal.math_16k
    expected = mgpo.steps * mgpo.prompts_per_step * mgpo.group_size * mgpo.sampling.max_response_length
    assert token_bound(config, "mgpo.math_16k") == expected
    assert probed_checkpoints(parse("recipe=ssp_full")) == 5


def test_plan_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*PAPER, "plan=json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["schema"] == 1
    assert set(plan) == {
        "schema", "run", "recipe", "scale", "cluster", "device", "gpu", "nodes", "processes_per_node", "processes",
        "budget", "spent_hours", "total", "exceeds", "refused", "unknown", "stages",
    }  # fmt: skip
    assert set(plan["total"]) == {"hours", "low", "high", "dollars", "seconds"}
    assert (plan["device"], plan["nodes"], plan["processes_per_node"], plan["processes"]) == ("gpu", 8, 8, 64)
    for stage in plan["stages"]:
        assert set(stage) == {
            "stage", "state", "nodes", "processes_per_node", "jobs", "jobs_at_once", "hours", "low", "high",
            "paid_hours", "dollars", "seconds", "steps", "sampled_tokens", "trained_tokens", "memory_bytes",
            "phases", "figures", "note",
        }  # fmt: skip
        assert stage["hours"] == pytest.approx(sum(stage["phases"].values()))
        assert stage["dollars"] == pytest.approx(2 * stage["hours"])
        assert stage["hours"] * 3600 == pytest.approx(stage["seconds"] * stage["nodes"] * stage["processes_per_node"])
    assert plan["total"]["hours"] == pytest.approx(sum(stage["hours"] for stage in plan["stages"]))
    figures = plan["stages"][1]["figures"]
    assert figures["startup_seconds"] == {"value": 180, "source": "assumed, budget.startup_seconds", "measured": False}


def test_plan_says_the_same_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*PAPER, "plan=true", "budget.dollars_per_gpu_hour=3"]) == 0
    text = capsys.readouterr().out
    config = parse(*PAPER, "budget.dollars_per_gpu_hour=3")
    plan = to_dict(config, plan_run(config, config.run_folder))
    assert f"{format_hours(plan['total']['hours'])} GPU-hours, ${plan['total']['dollars']:,.0f}: fits" in text
    for stage in plan["stages"]:
        (row,) = [line for line in text.splitlines() if line[3:].startswith(stage["stage"]) and "=" in line]
        assert f"= {format_hours(stage['hours']):>13}" in row
    assert text.endswith("plan only: nothing was run or written\n")


def test_a_run_over_its_budget_is_refused_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").touch()
    over = [*PAPER, "data.sft=a.jsonl", "budget.gpu_hours=1000"]
    assert run.main([*over, "plan=true"]) == 0
    assert "REFUSED" in capsys.readouterr().out
    assert run.main(over) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: budget.gpu_hours=1000: the run would cost 3,")
    assert "budget.on_exceed=warn" in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()
    config = parse(*over, "budget.on_exceed=warn")
    plan = to_dict(config, plan_run(config, config.run_folder))
    assert (plan["exceeds"], plan["refused"]) == (True, False)


def test_what_was_spent_counts_towards_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("recipe=ssp_full", "run.name=mine", "scale.parallel.data=1")
    write_run(parse(*arguments), [], ("prepare", 0, 3600), ("sft", 3600, 10800))
    config = parse(*arguments, "budget.gpu_hours=3")
    plan = plan_run(config, config.run_folder)
    assert (plan.spent_hours, plan.total(), plan.exceeds) == (3.0, 3.0, True)
    assert plan.done == {"prepare", "sft"}
    assert not plan_run(parse(*arguments, "budget.gpu_hours=3.1"), config.run_folder).exceeds
    assert run.main([*arguments, "budget.gpu_hours=3"]) == 2
    assert "3.00 spent and 0.000 to come" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [("on_exceed", "ask"), ("gpu_hours", "0"), ("response_share", "1.2"), ("step_overhead", "1"), ("gpu_hour", "3")],
)
def test_bad_budgets_are_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"budget.{key}"):
        parse("recipe=ssp_full", f"budget.{key}={value}")


def test_a_price_needs_neither_torch_nor_a_second() -> None:
    code = (
        "import sys; from launcher.run import main; "
        f"code = main({[*PAPER, 'plan=json']!r}); "
        "heavy = {'torch', 'transformers', 'numpy', 'megatron'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else code)"
    )
    root = str(Path(__file__).resolve().parent.parent)
    environment = dict(os.environ) | {"PYTHONPATH": root}
    outcome = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (outcome.returncode, outcome.stderr) == (0, "")
