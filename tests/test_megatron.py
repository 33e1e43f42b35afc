"""The adapter to Megatron-Core and the model, one process: against closed forms, torch and transformers."""

# ruff: noqa: E402  (torch is patched before Megatron binds its names)
import copy
import errno
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nemo_vibethinker.megatron.platform import install_cpu_platform

install_cpu_platform()

from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer

from nemo_vibethinker.config import Config, OptimizerConfig
from nemo_vibethinker.data.tokenizer import encode_prompts, train_tokenizer
from nemo_vibethinker.megatron import checkpoint
from nemo_vibethinker.megatron.fused_adam import FusedAdam
from nemo_vibethinker.megatron.logprobs import vocab_parallel_entropy, vocab_parallel_logprobs
from nemo_vibethinker.megatron.micro_batch import MicroBatch, pack_row
from nemo_vibethinker.megatron.optimizer import build_optimizer, cosine_lr
from nemo_vibethinker.megatron.train_step import StepResult, forward_logits, train_step
from nemo_vibethinker.model.hf_export import hf_logits, write_hf_folder
from nemo_vibethinker.model.hf_weights import fuse_qkv, random_hf_tensors, split_qkv, stream_hf_tensors
from nemo_vibethinker.model.qwen2 import build_model, first_stage_layers, wrap_for_training
from nemo_vibethinker.stages.sft import sft_loss

VOCAB = 320
# With this eps an update is close to linear in the gradient, so that rounding stays rounding.
LINEAR_ADAM = OptimizerConfig(lr=1e-2, eps=1.0)


def random_samples(count: int, seed: int = 0) -> list[tuple[list[int], int]]:
    """(tokens, prompt length) of samples of 6 to 20 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 21, (count,), generator=generator).tolist()
    return [(torch.randint(VOCAB, (n,), generator=generator).tolist(), 1 + n // 3) for n in lengths]


def row_of(samples: list[tuple[list[int], int]]) -> MicroBatch:
    return pack_row(samples, [1.0] * len(samples))


def trainer(
    config: Config, optimizer: OptimizerConfig = LINEAR_ADAM
) -> tuple[list[DistributedDataParallel], MegatronOptimizer]:
    chunks = wrap_for_training(config, [build_model(config, VOCAB)])
    return chunks, build_optimizer(chunks, optimizer)


def modules(chunks: list[DistributedDataParallel]) -> list[GPTModel]:
    return [chunk.module for chunk in chunks]


def weights(chunks: list[DistributedDataParallel]) -> dict[str, Tensor]:
    (chunk,) = chunks
    return {name: parameter.detach().clone() for name, parameter in chunk.module.named_parameters()}


def logits_of(config: Config, batch: MicroBatch) -> Tensor:
    with torch.no_grad():
        return forward_logits(build_model(config, VOCAB), batch)[0]


# Learning rate and optimizer


def test_cosine_schedule_closed_form() -> None:
    rates = [cosine_lr(step, steps=14, warmup=4, lr=8.0, min_lr=2.0) for step in range(1, 15)]
    assert rates[:4] == [2.0, 4.0, 6.0, 8.0]
    assert rates[4:] == pytest.approx([5 + 3 * math.cos(math.pi * i / 10) for i in range(1, 11)])
    assert rates[-1] == 2.0


@pytest.mark.parametrize(("steps", "warmup", "expected"), [(2, 0, [0.5, 0.0]), (2, 2, [0.5, 1.0]), (1, 0, [0.0])])
def test_cosine_schedule_without_a_part(steps: int, warmup: int, expected: list[float]) -> None:
    rates = [cosine_lr(step, steps=steps, warmup=warmup, lr=1.0, min_lr=0.0) for step in range(1, steps + 1)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_fused_adam_equals_torch_adamw(weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(7, 5, generator=generator), torch.randn(11, generator=generator)]
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
    ours, theirs = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    groups = [{"params": ours[:1], "weight_decay": weight_decay}, {"params": ours[1:], "weight_decay": 0.0}]
    fused = FusedAdam(groups, weight_decay=0.3, **settings)
    groups = [{"params": theirs[:1], "weight_decay": weight_decay}, {"params": theirs[1:], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, weight_decay=0.3, **settings)
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        fused.step()
        reference.step()
    for a, b, start in zip(ours, theirs, starts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        assert (a - start).abs().max() > 1e-2


def test_fused_adam_leaves_parameters_without_gradient_alone() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    fused = FusedAdam([{"params": [parameter]}], lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.5)
    fused.step()
    assert torch.equal(parameter, torch.ones(3))


# Log-probs and entropy


@pytest.mark.usefixtures("megatron_config")
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_logprobs_equal_log_softmax_with_gradient(scale: float) -> None:
    logits_BTV = (torch.randn(2, 5, VOCAB) * scale).requires_grad_()
    before = logits_BTV.detach().clone()
    targets_BT = torch.randint(VOCAB, (2, 5))
    direction_BT = torch.randn(2, 5)
    ours = vocab_parallel_logprobs(logits_BTV, targets_BT)
    (ours_grad,) = torch.autograd.grad((ours * direction_BT).sum(), logits_BTV)
    theirs = torch.log_softmax(logits_BTV, -1).gather(-1, targets_BT[..., None])[..., 0]
    (theirs_grad,) = torch.autograd.grad((theirs * direction_BT).sum(), logits_BTV)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(logits_BTV.detach(), before)


@pytest.mark.usefixtures("megatron_config")
def test_entropy_closed_form() -> None:
    random = torch.randn(VOCAB) * 3
    certain = torch.zeros(VOCAB).index_fill(0, torch.tensor([7]), 1e4)
    logits_1TV = torch.stack([torch.full((VOCAB,), 5e3), certain, random])[None]
    expected = [math.log(VOCAB), 0.0, float(torch.distributions.Categorical(logits=random).entropy())]
    torch.testing.assert_close(vocab_parallel_entropy(logits_1TV)[0], torch.tensor(expected), rtol=1e-5, atol=1e-5)


# Packing


def test_pack_row_places_values_at_the_position_that_predicts_the_token() -> None:
    batch = pack_row(
        [([10, 11, 12, 13], 2), ([20, 21, 22], 1)],
        [0.5, 2.0],
        advantages=[-1.0, 3.0],
        logprobs=[[0.1, 0.2], [0.3, 0.4]],
    )
    assert batch.tokens.tolist() == [10, 11, 12, 13, 20, 21, 22]
    assert batch.lengths == [4, 3]
    assert batch.loss_weights.tolist() == [0.0, 0.5, 0.5, 0.0, 2.0, 2.0, 0.0]
    assert batch.extra["advantages"].tolist() == [0.0, -1.0, -1.0, 0.0, 3.0, 3.0, 0.0]
    assert batch.extra["logprobs"].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.0, 0.3, 0.4, 0.0])
    weighted = batch.loss_weights > 0
    assert batch.targets[weighted].tolist() == [12, 13, 21, 22]
    assert batch.packed_seq_params().cu_seqlens_q.tolist() == [0, 4, 7]  # pyright: ignore[reportOptionalMemberAccess]


def test_packed_samples_do_not_see_each_other(tiny_config: Config) -> None:
    first, second, third = random_samples(3)
    before = logits_of(tiny_config, row_of([first, second, third]))
    changed = ([(first[0][0] + 1) % VOCAB, *first[0][1:]], first[1])
    after = logits_of(tiny_config, row_of([changed, second, third]))
    end = len(first[0])
    assert torch.equal(before[end:], after[end:])
    assert not torch.isclose(before[end - 1], after[end - 1], atol=1e-3).all()  # within the sample it does show


def test_later_tokens_do_not_show_in_earlier_logits(tiny_config: Config) -> None:
    ((tokens, prompt),) = random_samples(1)
    before = logits_of(tiny_config, row_of([(tokens, prompt)]))
    after = logits_of(tiny_config, row_of([([*tokens[:-1], (tokens[-1] + 1) % VOCAB], prompt)]))
    assert torch.equal(before[:-1], after[:-1])
    assert not torch.equal(before[-1], after[-1])


def test_packed_equals_unpacked(tiny_config: Config) -> None:
    samples = random_samples(4)
    model = build_model(tiny_config, VOCAB)

    def gradients(rows: list[MicroBatch]) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        logits = [forward_logits(model, row)[0] for row in rows]
        losses = [sft_loss(row, part[None])[0] for row, part in zip(rows, logits, strict=True)]
        torch.stack(losses).sum().backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return torch.cat(logits).detach(), found

    packed, packed_gradients = gradients([row_of(samples)])
    alone, alone_gradients = gradients([row_of([sample]) for sample in samples])
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-4)
    assert len(packed_gradients) == len(list(model.parameters()))
    for name, gradient in alone_gradients.items():
        tolerance = 1e-5 * float(gradient.abs().max().clamp(min=1))
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=0, atol=tolerance, msg=name)


# Training step


def test_step_does_not_depend_on_the_split_into_micro_batches(tiny_config: Config) -> None:
    samples = random_samples(6)
    splits = [[6], [1] * 6, [2, 4], [5, 1]]
    found: list[tuple[StepResult, dict[str, Tensor]]] = []
    for split in splits:
        chunks, optimizer = trainer(tiny_config)
        parts = iter(samples)
        rows = [row_of([next(parts) for _ in range(size)]) for size in split]
        found.append((train_step(chunks, optimizer, rows, sft_loss), weights(chunks)))
    initial = weights(trainer(tiny_config)[0])
    (first, first_weights), *others = found
    assert first.applied
    assert first.count == sum(len(tokens) - prompt for tokens, prompt in samples)
    assert first.statistics == {"tokens": sum(len(tokens) for tokens, _ in samples)}
    assert max(float((first_weights[name] - initial[name]).abs().max()) for name in initial) > 1e-5
    for result, after in others:
        assert result.loss == pytest.approx(first.loss, rel=1e-6)
        assert result.grad_norm == pytest.approx(first.grad_norm, rel=1e-5)
        assert (result.count, result.statistics) == (first.count, first.statistics)
        for name, value in after.items():
            torch.testing.assert_close(value, first_weights[name], rtol=0, atol=1e-6, msg=name)


def test_step_loss_is_the_mean_over_response_tokens(tiny_config: Config) -> None:
    samples = random_samples(3)
    expected = []
    for tokens, prompt in samples:
        logprobs = logits_of(tiny_config, row_of([(tokens, prompt)])).log_softmax(-1)
        expected += [-float(logprobs[i - 1, tokens[i]]) for i in range(prompt, len(tokens))]
    result = train_step(*trainer(tiny_config), [row_of(samples)], sft_loss)
    assert result.loss == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_gradient_is_clipped_to_the_norm_asked_for(tiny_config: Config) -> None:
    moved = []
    for clip in (1e-3, 2e-3):
        chunks, optimizer = trainer(tiny_config, OptimizerConfig(lr=1.0, eps=1e3, beta1=0.0, clip_grad=clip))
        before = weights(chunks)
        result = train_step(chunks, optimizer, [row_of(random_samples(3))], sft_loss)
        assert result.grad_norm > 2e-3
        # With this eps the update is lr * gradient / eps, so the distance is the clipped norm over 1000.
        moved.append(
            math.sqrt(sum(float((weights(chunks)[n] - before[n]).double().pow(2).sum()) for n in before)) * 1e3
        )
    assert moved == pytest.approx([1e-3, 2e-3], rel=0.05)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_does_not_pass_for_an_update(tiny_config: Config, factor: float) -> None:
    def broken(batch: MicroBatch, logits: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        loss, count, statistics = sft_loss(batch, logits)
        return loss * factor, count, statistics

    chunks, optimizer = trainer(tiny_config)
    assert not train_step(chunks, optimizer, [row_of(random_samples(2))], broken).applied


# Checkpoints


def test_model_checkpoint_is_read_back_bit_equal(tiny_config: Config, tmp_path: Path) -> None:
    saved = build_model(tiny_config, VOCAB)
    checkpoint.save_model([saved], tmp_path / "model")
    tiny_config.seed += 1
    other = build_model(tiny_config, VOCAB)
    assert not torch.equal(other.decoder.layers[0].mlp.linear_fc1.weight, saved.decoder.layers[0].mlp.linear_fc1.weight)
    checkpoint.load_model([other], tmp_path / "model")
    for (name, ours), theirs in zip(other.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_missing_checkpoint_is_named(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere/step_000010 is not a checkpoint"):
        checkpoint.load_model([build_model(tiny_config, VOCAB)], tmp_path / "nowhere" / "step_000010")


def steps(chunks: list[DistributedDataParallel], optimizer: MegatronOptimizer, first: int, last: int) -> list[float]:
    """Losses of the steps first to last; the data is a function of the step."""
    return [
        train_step(chunks, optimizer, [row_of(random_samples(3, s))], sft_loss).loss for s in range(first, last + 1)
    ]


def test_resumed_training_is_bit_equal_to_uninterrupted(tiny_config: Config, tmp_path: Path) -> None:
    adam = OptimizerConfig(lr=1e-2, weight_decay=0.1)
    whole = trainer(tiny_config, adam)
    expected = steps(*whole, 1, 6)
    interrupted = trainer(tiny_config, adam)
    losses = steps(*interrupted, 1, 3)
    checkpoint.save_resume_point(modules(interrupted[0]), interrupted[1], 3, tmp_path)
    tiny_config.seed += 1  # everything has to come from the checkpoint
    resumed = trainer(tiny_config, adam)
    assert checkpoint.load_resume_point(modules(resumed[0]), resumed[1], tmp_path) == 3
    assert losses + steps(*resumed, 4, 6) == expected
    for name, value in weights(whole[0]).items():
        assert torch.equal(weights(resumed[0])[name], value), name


def test_losing_the_optimizer_state_would_show(tiny_config: Config, tmp_path: Path) -> None:
    adam = OptimizerConfig(lr=1e-2)
    whole = trainer(tiny_config, adam)
    steps(*whole, 1, 3)
    checkpoint.save_model(modules(whole[0]), tmp_path / "weights_only")
    fresh = trainer(tiny_config, adam)
    checkpoint.load_model(modules(fresh[0]), tmp_path / "weights_only")
    assert steps(*fresh, 4, 6) != steps(*whole, 4, 6)


def test_no_resume_point_is_step_zero(tiny_config: Config, tmp_path: Path) -> None:
    chunks, optimizer = trainer(tiny_config)
    before = weights(chunks)
    assert checkpoint.load_resume_point(modules(chunks), optimizer, tmp_path / "resume") == 0
    assert all(torch.equal(value, before[name]) for name, value in weights(chunks).items())


def test_resume_point_before_the_first_update(tiny_config: Config, tmp_path: Path) -> None:
    # A reinforcement-learning stage whose groups have had no variance so far saves like any other.
    adam = OptimizerConfig(lr=1e-2, weight_decay=0.1)
    whole = trainer(tiny_config, adam)
    checkpoint.save_resume_point(modules(whole[0]), whole[1], 3, tmp_path)
    tiny_config.seed += 1
    resumed = trainer(tiny_config, adam)
    assert checkpoint.load_resume_point(modules(resumed[0]), resumed[1], tmp_path) == 3
    assert steps(*resumed, 4, 6) == steps(*whole, 4, 6)


def test_torn_resume_point_is_ignored_and_overwritten(tiny_config: Config, tmp_path: Path) -> None:
    chunks, optimizer = trainer(tiny_config)
    steps(chunks, optimizer, 1, 2)
    checkpoint.save_resume_point(modules(chunks), optimizer, 2, tmp_path)
    torn = tmp_path / "step_000004.tmp"
    torn.mkdir()
    (torn / "metadata.json").write_text("{")
    (torn / "left_over").write_text("x")
    assert checkpoint.load_resume_point(modules(chunks), optimizer, tmp_path) == 2
    checkpoint.save_resume_point(modules(chunks), optimizer, 4, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000004"]
    assert not (tmp_path / "step_000004" / "left_over").exists()
    assert checkpoint.load_resume_point(modules(chunks), optimizer, tmp_path) == 4


def test_a_resume_point_of_another_optimizer_is_refused_by_name(tiny_config: Config, tmp_path: Path) -> None:
    plain = copy.deepcopy(tiny_config)
    plain.scale.parallel.distributed_optimizer = False
    chunks, optimizer = trainer(plain)
    checkpoint.save_resume_point(modules(chunks), optimizer, 2, tmp_path)
    chunks, optimizer = trainer(tiny_config)
    before = weights(chunks)
    with pytest.raises(ValueError, match=r"step_000002 lacks optimizer.state.param.* and \d+ more: it was written by"):
        checkpoint.load_resume_point(modules(chunks), optimizer, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in weights(chunks).items())


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_damaged_resume_point_is_refused_by_file(tiny_config: Config, tmp_path: Path, damage: str) -> None:
    chunks, optimizer = trainer(tiny_config)
    checkpoint.save_resume_point(modules(chunks), optimizer, 2, tmp_path)
    file = max((tmp_path / "step_000002").glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink() if damage == "gone" else file.write_bytes(content)
    what = "is missing" if damage == "gone" else "is not what was written"
    with pytest.raises(ValueError, match=f"{file.name} {what}; delete .*step_000002 to start this stage again"):
        checkpoint.load_resume_point(modules(chunks), optimizer, tmp_path)


# Hugging Face form


def random_source(config: Config) -> Callable[[str], Tensor]:
    """Weights by Hugging Face name with norms and biases that are not one and zero."""
    initial = random_hf_tensors(config, VOCAB)

    def source(name: str) -> Tensor:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        tensor = initial(name)
        return tensor + 0.3 * torch.randn(tensor.shape, generator=generator)

    return source


def test_split_qkv_inverts_fuse_qkv() -> None:
    parts = {"q": torch.arange(24.0).reshape(8, 3), "k": torch.arange(12.0).reshape(4, 3) + 100}
    parts["v"] = parts["k"] + 100
    fused = fuse_qkv(list(parts.values()), 2)
    assert fused[:, 0].tolist() == [0, 3, 6, 9, 100, 103, 200, 203, 12, 15, 18, 21, 106, 109, 206, 209]
    for part, expected in zip(split_qkv(fused, heads=4, groups=2), parts.values(), strict=True):
        assert torch.equal(part, expected)


def test_hf_round_trip_is_bit_exact(tiny_config: Config, tmp_path: Path) -> None:
    source = random_source(tiny_config)
    checkpoint.save_model([build_model(tiny_config, VOCAB, source)], tmp_path / "model")
    other = build_model(tiny_config, VOCAB)
    checkpoint.load_model([other], tmp_path / "model")
    found = dict(stream_hf_tensors([other]))
    layers = tiny_config.scale.model.num_layers
    assert len(found) == 2 + layers * 12
    for name, tensor in found.items():
        assert torch.equal(tensor, source(name)), name


@pytest.fixture
def exported(tiny_config: Config, tmp_path: Path) -> tuple[Config, Path]:
    """A Hugging Face folder of `random_source`'s model."""
    tokenizer = train_tokenizer(["one two three four"], VOCAB)
    assert len(tokenizer) == VOCAB
    model = build_model(tiny_config, VOCAB, random_source(tiny_config))
    write_hf_folder(tiny_config, stream_hf_tensors([model]), tokenizer, tmp_path / "hf")
    return tiny_config, tmp_path / "hf"


def test_logits_equal_transformers(exported: tuple[Config, Path]) -> None:
    config, folder = exported
    samples = [(tokens, 1) for tokens, _ in random_samples(3)]
    model = build_model(config, VOCAB, random_source(config))
    with torch.no_grad():
        ours = forward_logits(model, row_of(samples))[0]
    theirs = torch.cat([hf_logits(folder, torch.tensor([tokens]))[0] for tokens, _ in samples])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max().clamp(min=1)))


def test_exported_folder_generates_under_transformers(exported: tuple[Config, Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, folder = exported
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    prompt = torch.tensor(encode_prompts(tokenizer, ["one two"], ""))
    out = model.generate(prompt)
    assert prompt.shape[1] < out.shape[1] <= prompt.shape[1] + 16
    assert torch.equal(out[:, : prompt.shape[1]], prompt)


def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_written(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(tiny_config, VOCAB)
    size = sum(parameter.nbytes for parameter in model.parameters())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size))
    with pytest.raises(OSError, match=f"a checkpoint of {size / 1e6:,.1f} MB does not fit into") as caught:
        checkpoint.save_model([model], tmp_path / "model")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * size))
    checkpoint.save_model([model], tmp_path / "model")
    assert (tmp_path / "model").is_dir()


@pytest.mark.parametrize(("layers", "stages", "first"), [(4, 2, None), (3, 2, 2), (7, 3, 3), (5, 1, None)])
def test_the_first_pipeline_stage_takes_the_remainder(layers: int, stages: int, first: int | None) -> None:
    assert first_stage_layers(layers, stages) == first
