"""The shipped scales: they pass validation, fit the GPU they are for, and have the layout that the table puts first."""

from dataclasses import replace
from pathlib import Path

import pytest

from launcher import cli, run
from nemo_vibethinker.config import Config, ParallelConfig
from nemo_vibethinker.costs.gpus import find_gpu
from nemo_vibethinker.costs.layouts import candidates, estimate, ranked
from nemo_vibethinker.costs.memory import fits, peak_memory, require_fit, training_rows
from nemo_vibethinker.costs.parameters import parameter_count

PAPER = ["recipe=ssp_full", "scale=vibethinker_1p5b"]
H800 = "cluster.gpu=H800-SXM"


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parse(*arguments: str) -> Config:
    return cli.parse(list(arguments)).config


@pytest.mark.parametrize("scale", ["vibethinker_1p5b", "single_gpu"])
def test_the_real_scales_are_the_base_model_with_a_longer_window(scale: str) -> None:
    config = parse("recipe=ssp_full", f"scale={scale}")
    model = config.scale.model
    assert parameter_count(model, config.data.vocab_size) == 1_543_714_304  # the size of the base model's checkpoint
    assert (model.path, model.max_position_embeddings, model.rope_theta) == ("Qwen/Qwen2.5-Math-1.5B", 131072, 500000)
    assert config.sft.optimizer.lr == 5e-5
    assert config.sft.min_lr == 8e-8


def test_paper_windows_and_batches() -> None:
    config = parse(*PAPER)
    signal = config.signal
    windows = [s.sampling.max_response_length for s in (signal.math_16k, signal.math_32k, signal.code)]
    assert (config.sft.seq_length, config.sft.global_batch_size, windows) == (32768, 128, [16384, 32768, 32768])
    for stage in (signal.math_16k, signal.math_32k, signal.code):
        assert (stage.prompts_per_step, stage.group_size, stage.updates_per_rollout) == (128, 16, 1)
        assert (stage.clip_low, stage.clip_high, stage.lambda_me) == (0.2, 0.2, 1.0)


@pytest.mark.parametrize("gpus", [8, 16, 32, 64])
def test_paper_layout_is_the_best_of_the_table(gpus: int) -> None:
    config = parse(*PAPER, H800, f"cluster.processes={gpus}")
    first = ranked(config)[0]
    assert first.fits
    assert (first.scale.parallel, first.scale.recompute) == (config.scale.parallel, config.scale.recompute)
    require_fit(config)


def test_single_gpu_fits_one_and_has_the_best_layout() -> None:
    config = parse("recipe=ssp_full", "scale=single_gpu", "cluster.gpu=H100-SXM", "cluster.processes=1")
    first = ranked(config)[0]
    assert first.fits
    assert (first.scale.parallel, first.scale.recompute) == (config.scale.parallel, config.scale.recompute)
    assert config.world_size == 1


def test_plan_shows_memory_and_flops_and_what_data_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*PAPER, H800, "cluster.processes=64", "plan=true"]) == 0
    shown = capsys.readouterr().out
    config = parse(*PAPER, H800, "cluster.processes=64")
    row = training_rows(config)["mgpo.math_32k"]
    total = peak_memory(config.scale, config.data.vocab_size, row).total
    assert f"{total / 1e9:.2f}" in shown
    assert "5.91 forward, 11.8 backward, 0.467 computed again" in shown
    assert "data.sft=DATASET" in shown
    assert "while vLLM samples: up to 48.0 GB" in shown
    assert run.main([*PAPER, H800, "cluster.processes=64", "rollout.engine=megatron", "plan=true"]) == 0
    assert "note: evaluate: the responses do not fit" in capsys.readouterr().out
    assert not list(Path().iterdir())


def test_a_layout_that_cannot_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for gpu in ("A100-SXM-40GB", "NVIDIA A100-SXM4-40GB"):
        assert run.main([*PAPER, f"cluster.gpu={gpu}", "plan=true"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith("error: sft needs ")
        assert "A100-SXM-40GB" in error
    assert run.main([*PAPER, "plan=true"]) == 0  # no GPU is named: no judgement
    assert run.main([*PAPER, "cluster.gpu=H100", "plan=true"]) == 0
    shown = capsys.readouterr().out
    assert "cluster.gpu=H100 is not known" in shown
    assert "MFU " not in shown.partition("is not known")[2].partition("\n")[2]


def test_whole_logits_of_long_rows_do_not_fit() -> None:
    whole = [
        "scale.logprob_chunk=0",
        "scale.recompute=full",
        "scale.parallel.tensor=1",
        "scale.parallel.sequence=false",
    ]
    config = parse(*PAPER, H800, *whole)
    with pytest.raises(ValueError, match=r"^mgpo\.math_16k needs .*logprob_chunk"):
        require_fit(config)


def test_a_real_model_is_not_trained_on_the_toy_world(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*PAPER]) == 2
    assert "set data.sft=DATASET" in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_layouts_are_printed_and_need_a_known_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*PAPER, "plan=layouts", H800, "cluster.processes=64"]) == 0
    shown = capsys.readouterr().out.splitlines()
    marked = [line for line in shown if line.startswith("* ") and " yes " in line]
    assert [line.split()[1:6] for line in marked] == [["2", "1", "1", "32", "none"]]
    assert shown.index(marked[0]) == 2
    assert run.main([*PAPER, "plan=layouts", "cluster.gpu=RTX"]) == 2
    assert "H800-SXM" in capsys.readouterr().err


def test_candidates_use_every_gpu_and_only_what_validation_allows() -> None:
    config = parse(*PAPER, H800, "cluster.processes=8")
    found = list(candidates(config))
    assert {scale.parallel.tensor for scale in found} == {1, 2}  # two query groups
    assert all(replace(config, scale=scale).world_size == 8 for scale in found)
    assert len({(str(s.parallel), s.recompute) for s in found}) == len(found) > 20


def test_estimates_move_the_right_way() -> None:
    config = parse(*PAPER, H800, "cluster.processes=8", "scale.recompute=full")
    gpu, wide = find_gpu("H800-SXM"), find_gpu("H100-SXM")
    assert gpu
    assert wide
    slow, fast = (estimate(config, config.scale, g).tokens_per_s for g in (gpu, wide))
    assert slow < fast  # the same compute behind a narrower NVLink
    one = replace(config.scale, parallel=ParallelConfig(data=8))
    assert estimate(config, one, gpu).tokens_per_s > slow  # and nothing to send at tensor=1
    better = replace(config, cluster=replace(config.cluster, efficiency=0.5))
    ratio = estimate(better, one, gpu).tokens_per_s / estimate(config, one, gpu).tokens_per_s
    assert 1.2 < ratio < 1.25  # all but the exchange of gradients


def test_reserve_counts() -> None:
    config = parse(*PAPER, H800, "cluster.processes=8")
    gpu = find_gpu("H800-SXM")
    assert gpu
    memory = peak_memory(config.scale, config.data.vocab_size, training_rows(config)["sft"])
    assert fits(memory, gpu)
    assert not fits(replace(memory, temporary=memory.temporary + gpu.memory_bytes - memory.total), gpu)
