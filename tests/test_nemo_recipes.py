"""The NeMo recipes against the project's own driver. Run in NeMo's environment (docker/requirements-nemo.txt):

python -m pytest -p no:xdist -o addopts="" tests/test_nemo_recipes.py
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MINIMAL, REPOSITORY, override, write_coin_data

from launcher.cli import parse
from nemo_vibethinker.config import Config
from nemo_vibethinker.run_folder import open_run

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("nemo") is None,
        reason="NeMo is not installed: it needs an environment of its own, docker/requirements-nemo.txt",
    ),
]
STAGE = "mgpo.math_16k"


def worker(*arguments: str) -> None:
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "tests" / "nemo_worker.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def open_test_run(root: Path, *changes: str) -> Path:
    write_coin_data(root / "coin.jsonl")
    changes = ("recipe=ssp_full", "run.name=nemo", f"stages=[prepare,sft,{STAGE}]", *changes)
    words = override(MINIMAL, f"data.sft={root}/coin.jsonl", f"run.root={root}", *changes)
    return open_run(parse(words).config).path


@pytest.fixture(scope="module")
def driven_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stages the project's driver has run: 60 SFT steps, 3 of MGPO."""
    changes = ("sft.steps=60", "sft.checkpoint_interval=30", "sft.first_checkpoint=30", "signal.math_16k.steps=3")
    run = open_test_run(tmp_path_factory.mktemp("nemo"), *changes)
    for stage in ("prepare", "sft", STAGE):
        worker("driver", str(run), stage)
    return run


def trained_by(run: Path, stage: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(the driver's metrics line, what NeMo logged) of each step, once NeMo has trained the stage."""
    logged = run / f"{stage}.json"
    worker("nemo", str(run), stage, str(logged))
    lines = [json.loads(line) for line in (run / "run.jsonl").read_text().splitlines()]
    return zip([line for line in lines if line["stage"] == stage], json.loads(logged.read_text()), strict=True)


def test_sft_under_nemo_is_the_drivers(driven_run: Path) -> None:
    pairs = list(trained_by(driven_run, "sft"))
    assert len(pairs) == 60
    assert pairs[-1][0]["loss"] < 0.5 * pairs[0][0]["loss"]
    for driver, nemo in pairs:
        assert nemo["reduced_train_loss"] == pytest.approx(driver["loss"], rel=1e-4)
        assert nemo["grad_norm"] == pytest.approx(driver["grad_norm"], rel=1e-3)
        assert nemo["learning_rate"] == pytest.approx(driver["lr"], rel=1e-6)
    checkpoints = driven_run / "nemo" / "sft" / "checkpoints"
    assert sorted(folder.name for folder in checkpoints.iterdir()) == ["step_000030", "step_000060"]


def test_mgpo_under_nemo_is_the_drivers(driven_run: Path) -> None:
    pairs = list(trained_by(driven_run, STAGE))
    assert len(pairs) == 3
    for driver, nemo in pairs:
        assert nemo["reduced_train_loss"] == pytest.approx(driver["loss"], abs=1e-6)
        assert nemo["grad_norm"] == pytest.approx(driver["grad_norm"], rel=1e-3)
        assert driver["grad_norm"] > 1e-3  # on-policy the loss is near zero whatever the weights; its gradient is not
        for name in ("reward", "w_me", "response_length", "zero_variance_share"):
            assert nemo[name] == pytest.approx(driver[name])
    assert (driven_run / "nemo" / STAGE / "model" / "metadata.json").is_file()


# Recipes without running them


LARGE = (
    "scale.model.num_layers=28",
    "scale.model.hidden_size=1536",
    "scale.model.ffn_hidden_size=8960",
    "scale.model.num_attention_heads=12",
    "scale.precision=bf16",
    "scale.parallel.tensor=2",
    "scale.parallel.sequence=true",
    "scale.parallel.pipeline=2",
    "scale.parallel.context=2",
    "scale.parallel.data=2",
    "sft.optimizer.lr=5e-5",
    "sft.optimizer.weight_decay=0.1",
    "signal.math_16k.optimizer.lr=1e-6",
    "signal.math_16k.updates_per_rollout=2",
)


@pytest.fixture(scope="module")
def large_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on sixteen processes, of which nothing has run."""
    return open_test_run(tmp_path_factory.mktemp("large"), *LARGE)


def settings_of(config: Config) -> dict[str, Any]:
    parallel = config.scale.parallel
    return {
        "tensor_model_parallel_size": parallel.tensor,
        "pipeline_model_parallel_size": parallel.pipeline,
        "context_parallel_size": parallel.context,
        "sequence_parallel": parallel.sequence,
    }


@pytest.mark.parametrize("stage", ["sft", STAGE])
def test_settings_come_from_the_configuration(large_run: Path, stage: str) -> None:
    import torch

    from nemo_vibethinker.config import load_config
    from nemo_vibethinker.nemo_recipes import recipes

    config = load_config(large_run / "config.yaml")
    build = recipes.vibethinker_1p5b_sft if stage == "sft" else recipes.vibethinker_1p5b_mgpo
    recipe = build(str(large_run))
    strategy = recipe.trainer.strategy
    assert {name: getattr(strategy, name) for name in settings_of(config)} == settings_of(config)
    assert strategy.pipeline_dtype is torch.bfloat16
    assert recipe.trainer.plugins.precision == "bf16-mixed"
    assert (recipe.trainer.num_nodes, recipe.trainer.devices) == (2, 8)
    mgpo = config.signal.math_16k
    optimizer, steps = (config.sft.optimizer, config.sft.steps) if stage == "sft" else (mgpo.optimizer, 2 * mgpo.steps)
    assert recipe.trainer.max_steps == steps
    found = recipe.optim.config
    assert (found.lr, found.weight_decay) == (optimizer.lr, optimizer.weight_decay)
    assert found.clip_grad == optimizer.clip_grad
    assert (found.adam_beta1, found.adam_beta2, found.adam_eps) == (optimizer.beta1, optimizer.beta2, optimizer.eps)
    assert found.use_distributed_optimizer
    assert found.bf16


@pytest.mark.parametrize("stage", ["sft", STAGE])
def test_a_recipe_survives_serialisation_and_builds(large_run: Path, stage: str) -> None:
    import fiddle as fdl
    from nemo.lightning import MegatronStrategy
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    from nemo_vibethinker.nemo_recipes import recipes
    from nemo_vibethinker.nemo_recipes.policy import PolicyModule

    build = recipes.vibethinker_1p5b_sft if stage == "sft" else recipes.vibethinker_1p5b_mgpo
    recipe = build(str(large_run), accelerator="cpu")
    serialiser = ZlibJSONSerializer()
    again = serialiser.deserialize(serialiser.serialize(recipe))
    assert again == recipe
    model, strategy = fdl.build(again.model), fdl.build(again.trainer.strategy)
    assert isinstance(model, PolicyModule)
    assert isinstance(strategy, MegatronStrategy)
    assert model.config.num_layers == 28
    assert strategy.parallelism.tensor_model_parallel_size == model.config.tensor_model_parallel_size == 2


def test_mistakes_are_named(large_run: Path, tmp_path: Path) -> None:
    from nemo_vibethinker.nemo_recipes import recipes

    with pytest.raises(ValueError, match=r"config\.yaml"):
        recipes.vibethinker_1p5b_sft(str(tmp_path))
    with pytest.raises(ValueError, match=r"no stage 'mgpo\.code'"):
        recipes.vibethinker_1p5b_mgpo(str(large_run), "mgpo.code")
    with pytest.raises(ValueError, match="not one of reinforcement learning"):
        recipes.vibethinker_1p5b_mgpo(str(large_run), "sft")
    with pytest.raises(ValueError, match="not a multiple of 5"):
        recipes.vibethinker_1p5b_sft(str(large_run), gpus_per_node=5)
