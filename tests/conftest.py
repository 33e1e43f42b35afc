"""What several test files share: a tiny model on Megatron, and the launcher in a process of its own."""

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from nemo_vibethinker.config import Config, ModelConfig, SamplingConfig, ScaleConfig

REPOSITORY = Path(__file__).resolve().parent.parent
Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def megatron_config() -> Iterator[Config]:
    """Megatron's process groups with this process alone, and the configuration they were made for."""
    import torch

    from nemo_vibethinker.megatron.distributed import initialize

    model = ModelConfig(
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=64,
        num_attention_heads=4,
        num_query_groups=2,
        max_position_embeddings=64,
        init_std=0.3,  # far from uniform, so that what a token sees shows in its logits
    )
    config = Config(scale=ScaleConfig(model=model))
    config.evaluate.sampling = SamplingConfig(max_response_length=16)
    initialize(config)
    yield config
    torch.distributed.destroy_process_group()


@pytest.fixture
def tiny_config(megatron_config: Config) -> Config:
    """A configuration of two layers of 32 that a test may change."""
    return copy.deepcopy(megatron_config)


def launcher_command(*arguments: str) -> list[str]:
    """The command line a user types."""
    return [sys.executable, str(REPOSITORY / "launcher" / "run.py"), *arguments]


@pytest.fixture(scope="session")
def launch() -> Launch:
    """Run the launcher to its end: `launch("recipe=ssp_full", ...)`; a non-zero exit fails unless `code` names it."""

    def run(*arguments: str, code: int = 0, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            launcher_command(*arguments), env=environment, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    return run


# A run of the whole recipe in seconds: two layers of 32, a handful of steps.
MINIMAL = (
    "scale.model.num_layers=2",
    "scale.model.hidden_size=32",
    "scale.model.ffn_hidden_size=64",
    "scale.model.max_position_embeddings=128",
    "scale.parallel.data=1",
    "data.vocab_size=320",
    "data.probe_problems_per_domain=4",
    "data.evaluation_problems_per_domain=4",
    "data.evaluation_code_problems=2",
    "sft.steps=100",
    "sft.seq_length=96",
    "sft.micro_batch_size=2",
    "sft.global_batch_size=4",
    "sft.checkpoint_interval=25",
    "sft.first_checkpoint=50",
    "sft.optimizer.lr=1e-2",
    "probe.samples=4",
    "probe.ks=[1,4]",
    "probe.select_k=4",
    "probe.sampling.max_response_length=32",
    "evaluate.samples=2",
    "evaluate.ks=[1,2]",
    "evaluate.sampling.max_response_length=32",
    *(
        f"signal.{stage}.{setting}"
        for stage in ("math_16k", "math_32k", "code")
        for setting in (
            "steps=6",
            "prompts_per_step=4",
            "group_size=4",
            "prefilter_samples=4",
            "prefilter_prompts=12",
            "save_interval=2",
            "sampling.max_response_length=32",
            "optimizer.lr=1e-3",
        )
    ),
)


def write_coin_data(path: Path, rows: int = 60) -> None:
    """Tasks of three domains whose answer is 1 or 2 by chance.

    A tiny model learns the form of the answers in a hundred steps and then guesses, so that groups have variance.
    """
    rng = random.Random(0)
    records = []
    for number in range(rows):
        for domain in ("algebra", "geometry"):
            coin = rng.choice("12")
            said = "It is " if coin == "1" else ""  # of different lengths, so that loss normalisations differ
            answer = {"response": f"{said}\\boxed{{{coin}}}", "answer": coin}
            records.append({"id": f"{domain}-{number}", "domain": domain, "prompt": f"{domain} {number}?"} | answer)
        coin = rng.choice("12")
        program = {"response": f"```python\ndef f(x):\n    return {coin}\n```", "tests": [f"assert f(0) == {coin}"]}
        records.append({"id": f"code-{number}", "domain": "code", "prompt": f"Write f {number}."} | program)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="session")
def coin_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file in the records format, as `write_coin_data` makes it."""
    path = tmp_path_factory.mktemp("data") / "coin.jsonl"
    write_coin_data(path)
    return path


@pytest.fixture(scope="session")
def coin_arguments(coin_data: Path) -> tuple[str, ...]:
    """The command line of a minimal run on the coin tasks, less `run.root` and `run.name`."""
    return ("recipe=ssp_full", f"data.sft={coin_data}", *MINIMAL)


@pytest.fixture(scope="session")
def finished_run(
    coin_arguments: tuple[str, ...], launch: Launch, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder and the output of an undisturbed run of the whole recipe on the coin tasks."""
    root = tmp_path_factory.mktemp("runs")
    done = launch(*coin_arguments, f"run.root={root}", "run.name=undisturbed")
    return root / "undisturbed", done


def override(arguments: Iterable[str], *changes: str) -> list[str]:
    """Command-line words with some keys set otherwise, or added."""
    return [f"{key}={value}" for key, value in dict(word.split("=", 1) for word in (*arguments, *changes)).items()]
