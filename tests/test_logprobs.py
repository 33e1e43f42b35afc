"""Log-probs computed chunk by chunk from hidden states: equal to those of whole logits, in memory that stays flat."""

# ruff: noqa: E402  (torch is patched before Megatron binds its names)
import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nemo_vibethinker.megatron.platform import install_cpu_platform

install_cpu_platform()

from nemo_vibethinker.config import Config, MgpoConfig, OptimizerConfig
from nemo_vibethinker.megatron.logprobs import DeferredLogits, chunked_logprobs, token_logprobs
from nemo_vibethinker.megatron.micro_batch import MicroBatch, pack_row
from nemo_vibethinker.megatron.optimizer import build_optimizer
from nemo_vibethinker.megatron.train_step import LossFunction, StepResult, forward_logits, train_step
from nemo_vibethinker.model.qwen2 import build_model, wrap_for_training
from nemo_vibethinker.signal.objective import make_loss
from nemo_vibethinker.stages.sft import sft_loss

VOCAB, HIDDEN, TOKENS = 320, 16, 21


def inputs(scale: float = 1.0, dtype: torch.dtype = torch.float32, tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    """Hidden states [T, H] and an output layer [V, H], with gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(tokens, HIDDEN, generator=generator) * scale
    weight_VH = torch.randn(VOCAB, HIDDEN, generator=generator)
    return hidden_TH.to(dtype).requires_grad_(), weight_VH.to(dtype).requires_grad_()


def targets(tokens: int = TOKENS) -> Tensor:
    return torch.randint(VOCAB, (tokens,), generator=torch.Generator().manual_seed(1))


def results(output: Callable[[], tuple[Tensor, Tensor | None]], of: tuple[Tensor, ...]) -> list[Tensor]:
    """Log-probs, entropy, and the gradients of a weighted sum of the log-probs."""
    logprobs, entropy = output()
    assert entropy is not None
    assert not entropy.requires_grad
    direction = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(2))
    return [logprobs.detach(), entropy, *torch.autograd.grad((logprobs * direction).sum(), of)]


@pytest.mark.usefixtures("megatron_config")
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [1, 4, 7, TOKENS, 1000])
def test_chunks_equal_whole_logits(chunk: int, temperature: float) -> None:
    hidden, weight = inputs()
    settings: dict[str, Any] = {"temperature": temperature, "entropy": True}
    ours = results(lambda: chunked_logprobs(hidden, weight, targets(), chunk, **settings), (hidden, weight))
    theirs = results(lambda: token_logprobs((hidden @ weight.T)[None], targets(), **settings), (hidden, weight))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=2e-6 * max(1.0, float(b.abs().max())))


@pytest.mark.usefixtures("megatron_config")
def test_large_logits_neither_overflow_nor_lose_the_certain_token() -> None:
    hidden, weight = inputs(scale=1e4)
    logits = (hidden @ weight.T).detach()
    found, entropy, *gradients = results(
        lambda: chunked_logprobs(hidden, weight, logits.argmax(-1), 5, entropy=True), (hidden, weight)
    )
    assert found.abs().max() == 0
    assert entropy.abs().max() < 1e-4
    assert all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.usefixtures("megatron_config")
def test_bf16_is_no_further_from_the_truth_than_whole_logits() -> None:
    hidden, weight = inputs(dtype=torch.bfloat16, tokens=200)
    exact = tuple(x.detach().double().requires_grad_() for x in (hidden, weight))
    chosen = targets(200)

    def truth() -> tuple[Tensor, Tensor]:
        logprobs = torch.log_softmax(exact[0] @ exact[1].T, -1)
        return logprobs.gather(-1, chosen[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1).detach()

    reference = results(truth, exact)
    ours = results(lambda: chunked_logprobs(hidden, weight, chosen, 16, entropy=True), (hidden, weight))
    whole = results(lambda: token_logprobs((hidden @ weight.T)[None], chosen, entropy=True), (hidden, weight))
    assert [x.dtype for x in ours] == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    for a, b, right in zip(ours, whole, reference, strict=True):
        assert (a - right).norm() <= 1.1 * (b - right).norm() + 1e-6
        assert (a - right).norm() < 0.02 * right.norm()


# The training step


def rows() -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(3)
    samples = [(torch.randint(VOCAB, (n,), generator=generator).tolist(), 1 + n // 3) for n in (9, 17, 12, 6)]
    ones = [1.0, 1.0]
    extra = {"advantages": [1.5, -0.7], "behaviour_logprobs": [-5.0, -6.0]}
    return [pack_row(samples[:2], ones, **extra), pack_row(samples[2:], ones, **extra)]


def step(config: Config, loss: LossFunction, chunk: int) -> tuple[StepResult, dict[str, Tensor]]:
    config = copy.deepcopy(config)
    config.scale.logprob_chunk = chunk
    chunks = wrap_for_training(config, [build_model(config, VOCAB)])
    result = train_step(chunks, build_optimizer(chunks, OptimizerConfig(lr=1e-2, eps=1.0)), rows(), loss)
    return result, {name: p.detach() for name, p in chunks[0].module.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("loss", [sft_loss, make_loss(MgpoConfig())], ids=["sft", "mgpo"])
def test_training_step_is_the_same(tiny_config: Config, loss: LossFunction, tied: bool) -> None:
    tiny_config.scale.model.tie_embeddings = tied
    whole, whole_weights = step(tiny_config, loss, 0)
    for chunk in (5, 1024):
        ours, weights = step(tiny_config, loss, chunk)
        assert ours.loss == pytest.approx(whole.loss, rel=1e-6, abs=1e-6)
        assert ours.grad_norm == pytest.approx(whole.grad_norm, rel=5e-6)
        assert ours.statistics == pytest.approx(whole.statistics, rel=1e-5, abs=1e-6)
        for name, value in whole_weights.items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6, msg=name)


def test_only_a_wrapped_model_in_training_defers_its_logits(tiny_config: Config) -> None:
    tiny_config.scale.logprob_chunk = 5
    model, (batch, _) = build_model(tiny_config, VOCAB), rows()
    tokens = len(batch.tokens)
    assert forward_logits(model, batch).shape == (1, tokens, VOCAB)  # generation and export have no wrapper
    (wrapped,) = wrap_for_training(tiny_config, [model])
    deferred = forward_logits(wrapped, batch)
    assert isinstance(deferred, DeferredLogits)
    assert deferred.hidden_TH.shape == (tokens, tiny_config.scale.model.hidden_size)
    with torch.no_grad():
        logits = forward_logits(wrapped, batch)
    torch.testing.assert_close((deferred.hidden_TH @ deferred.weight_VH.T)[None], logits)
    assert forward_logits(wrapped.eval(), batch).shape == (1, tokens, VOCAB)


# Memory


class LargestTensor(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() // 4 for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


def largest_tensor(tokens: int, chunk: int, vocab: int = 20_000) -> int:
    hidden, weight = torch.randn(tokens, 4, requires_grad=True), torch.randn(vocab, 4, requires_grad=True)
    chosen = torch.randint(vocab, (tokens,))
    with LargestTensor() as mode:
        output = DeferredLogits(hidden, weight, chunk) if chunk else (hidden @ weight.T)[None]
        logprobs, _ = token_logprobs(output, chosen, entropy=True)
        logprobs.sum().backward()
    return mode.elements


@pytest.mark.usefixtures("megatron_config")
def test_memory_does_not_grow_with_the_row() -> None:
    assert largest_tensor(256, 0) == 256 * 20_000
    assert largest_tensor(64, 32) == largest_tensor(256, 32) == 32 * 20_000


# Two processes


LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"parallel.tensor": 2},
    "tp2_sp": {"parallel.tensor": 2, "parallel.sequence": True, "recompute": "full"},
    "pp2": {"parallel.pipeline": 2},
    "cp2": {"parallel.context": 2},
    "dp2_overlap": {"parallel.data": 2, "overlap_grad_reduce": True},
    "dp2_overlap_plain": {
        "parallel.data": 2,
        "overlap_grad_reduce": True,
        "parallel.distributed_optimizer": False,
    },
}


def work(tasks: list[dict[str, Any]], processes: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What tests/layout_worker.py found."""
    given, out = folder / "tasks.json", folder / "found.json"
    given.write_text(json.dumps(tasks))
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *start, str(REPOSITORY / "tests" / "layout_worker.py"), str(given), str(out)]
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Three steps under each layout with chunks of 5 tokens, and the reference: one process, whole logits."""
    folder = tmp_path_factory.mktemp("logprobs")
    steps = {"first": 1, "last": 3}
    alone = work([{"name": "alone", "layout": {"logprob_chunk": 0}} | steps], 1, folder)
    tasks = [{"name": name, "layout": layout | {"logprob_chunk": 5}} | steps for name, layout in LAYOUTS.items()]
    return alone | work(tasks, 2, folder)


@pytest.mark.e2e
@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_under_every_layout(found: dict[str, dict[str, Any]], layout: str) -> None:
    ours, alone = found[layout], found["alone"]
    assert ours["loss"] == pytest.approx(alone["loss"], rel=2e-6)
    assert ours["grad_norm"] == pytest.approx(alone["grad_norm"], rel=5e-6)
    assert ours["count"] == alone["count"]
    for row, theirs in zip(ours["logits"], alone["logits"], strict=True):
        assert row == pytest.approx(theirs, abs=2e-5)
