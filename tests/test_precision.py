"""BF16 with fp32 gradients and master weights; FP8 and kernels as the machine allows; Megatron's own checks of it.

Nothing here runs on a GPU: what is selected for one is checked as configuration, with the machine described by hand.
"""

# ruff: noqa: E402  (torch is patched before Megatron binds its names)
import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Launch

from nemo_vibethinker.megatron.platform import install_cpu_platform

install_cpu_platform()

from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.models.common.embeddings import rope_utils

from launcher.cli import axis_names, parse
from nemo_vibethinker.config import Config, OptimizerConfig, SamplingConfig, validate
from nemo_vibethinker.megatron.capabilities import Kernels, Machine, detect_machine, select_kernels
from nemo_vibethinker.megatron.logprobs import token_logprobs
from nemo_vibethinker.megatron.micro_batch import pack_row, padded_lengths
from nemo_vibethinker.megatron.optimizer import build_optimizer
from nemo_vibethinker.megatron.train_step import forward_logits, train_step
from nemo_vibethinker.model.hf_weights import random_hf_tensors, stream_hf_tensors
from nemo_vibethinker.model.qwen2 import (
    build_model,
    ddp_settings,
    run_kernels,
    transformer_config,
    wrap_for_training,
)
from nemo_vibethinker.rollout.megatron_engine import MegatronEngine
from nemo_vibethinker.stages.sft import sft_loss

pytestmark = pytest.mark.e2e

VOCAB = 320
CPU = Machine(cuda=False, transformer_engine="", wgrad_kernel=False)
HOPPER = Machine(cuda=True, transformer_engine="2.11.0+abc", wgrad_kernel=True, chip=(9, 0))


def fp8_config(config: Config, recipe: str = "tensorwise", fp8: str = "hybrid") -> Config:
    """The tiny model at sizes FP8 can take, for another machine than this."""
    config = copy.deepcopy(config)
    config.scale.precision, config.scale.fp8, config.scale.fp8_recipe = "bf16", fp8, recipe
    config.scale.fp8_bf16_layers = 0 if recipe == "delayed" else 1
    model = config.scale.model
    model.hidden_size, model.ffn_hidden_size, model.head_dim = 256, 512, 64
    model.max_position_embeddings = 1024
    config.cluster.name = "elsewhere"
    return config


# BF16


def rows(seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    samples = [(torch.randint(VOCAB, (n,), generator=generator).tolist(), 1 + n // 3) for n in (9, 17, 12, 6)]
    return [pack_row(samples[:2], [1.0] * 2), pack_row(samples[2:], [1.0] * 2)]


@pytest.mark.parametrize("distributed_optimizer", [True, False])
@pytest.mark.parametrize("overlap", [True, False])
def test_bf16_keeps_gradients_and_master_weights_in_fp32(
    tiny_config: Config, distributed_optimizer: bool, overlap: bool
) -> None:
    losses: dict[str, list[float]] = {}
    for precision in ("fp32", "bf16"):
        config = copy.deepcopy(tiny_config)
        config.scale.precision = precision
        config.scale.parallel.distributed_optimizer = distributed_optimizer
        config.scale.overlap_grad_reduce = overlap
        chunks = wrap_for_training(config, [build_model(config, VOCAB)])
        optimizer = build_optimizer(chunks, OptimizerConfig(lr=1e-3))
        losses[precision] = [train_step(chunks, optimizer, rows(step), sft_loss).loss for step in (1, 1, 1, 1)]
        parameters = list(chunks[0].module.parameters())
        wanted = torch.bfloat16 if precision == "bf16" else torch.float32
        assert {p.dtype for p in parameters} == {wanted}
        assert {p.main_grad.dtype for p in parameters} == {torch.float32}
        masters = [p for group in optimizer.param_groups for p in group["params"]]
        assert {p.dtype for p in masters} == {torch.float32}
        assert sum(p.numel() for p in masters) == sum(p.numel() for p in parameters)
        states = [state for part in optimizer.chained_optimizers for state in part.optimizer.state.values()]
        assert {value.dtype for state in states for value in state.values() if isinstance(value, torch.Tensor)} == {
            torch.float32
        }
    # Eight bits of mantissa, 2**-8 of a logit of size 10; the mean over tokens is closer, later steps add up.
    assert losses["bf16"][0] == pytest.approx(losses["fp32"][0], rel=2e-3)
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2)
    assert losses["fp32"][0] - losses["fp32"][-1] > 0.1


def test_master_weights_hold_updates_too_small_for_bf16(tiny_config: Config) -> None:
    tiny_config.scale.precision = "bf16"
    chunks = wrap_for_training(tiny_config, [build_model(tiny_config, VOCAB)])
    optimizer = build_optimizer(chunks, OptimizerConfig(lr=1e-4))
    (norm,) = (p for name, p in chunks[0].module.named_parameters() if name == "decoder.final_layernorm.weight")
    for _ in range(40):  # 4e-3 in all, a step of bf16 below one; a single update is 40 times smaller and would be lost
        train_step(chunks, optimizer, rows(1)[:1], sft_loss)
    assert float((norm.detach().float() - 1).abs().max()) >= 2**-9


def test_bf16_model_generates_and_leaves_as_it_came(tiny_config: Config) -> None:
    tiny_config.scale.precision = "bf16"
    model = build_model(tiny_config, VOCAB)
    source = random_hf_tensors(tiny_config, VOCAB)
    for name, tensor in stream_hf_tensors([model]):
        assert torch.equal(tensor, source(name).bfloat16()), name
    prompt = list(range(5, 12))
    (sample,) = MegatronEngine([model], -1, 0).generate([prompt], SamplingConfig(max_response_length=20), [[1]])[0]
    batch = pack_row([(prompt + sample.tokens, len(prompt))], [1.0])
    with torch.no_grad():
        trained, _ = token_logprobs(forward_logits(model, batch), batch.targets)
    assert sample.logprobs == pytest.approx(trained[len(prompt) - 1 : -1].tolist(), abs=0.1)


# What the machine has, and what a run uses


def make_package(folder: Path, *, extension: bool) -> None:
    """Transformer Engine as pip lays it out, raising on import as it does on a CPU."""
    package = folder / "transformer_engine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('no torch extension')")
    info = folder / "transformer_engine-2.11.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformer_engine\nVersion: 2.11.0\n")
    (info / "top_level.txt").write_text("transformer_engine\n")
    (info / "RECORD").write_text("transformer_engine/__init__.py,,\n")
    if extension:
        (folder / "transformer_engine_torch.cpython-311-x86_64-linux-gnu.so").touch()


def test_transformer_engine_counts_with_its_torch_extension_and_is_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert detect_machine(cuda=True).transformer_engine == ""
    for name, extension, version in (("bare", False, ""), ("whole", True, "2.11.0")):
        make_package(tmp_path / name, extension=extension)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(tmp_path / name))
            assert detect_machine(cuda=True).transformer_engine == version
    assert "transformer_engine" not in sys.modules


def test_apex_counts_by_its_kernel_not_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "apex.py").touch()  # the registry's package of that name is another project
    assert not detect_machine(cuda=True).wgrad_kernel
    (tmp_path / "fused_weight_gradient_mlp_cuda.py").touch()
    assert detect_machine(cuda=True).wgrad_kernel


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys; from nemo_vibethinker.config import Config\n"
        "from nemo_vibethinker.megatron.capabilities import detect_machine, select_kernels\n"
        "select_kernels(Config(), detect_machine()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("machine", "precision", "expected"),
    [
        (CPU, "bf16", (False, False, False)),
        (replace(HOPPER, cuda=False), "bf16", (False, False, False)),
        (replace(HOPPER, transformer_engine=""), "bf16", (True, False, True)),
        (HOPPER, "fp32", (True, False, True)),
        (replace(HOPPER, wgrad_kernel=False), "bf16", (True, True, False)),
        (HOPPER, "bf16", (True, True, True)),
    ],
)
def test_kernels_of_a_machine(machine: Machine, precision: str, expected: tuple[bool, ...]) -> None:
    config = Config()
    config.scale.precision = precision
    kernels = select_kernels(config, machine)
    assert (kernels.cuda, kernels.transformer_engine, kernels.gradient_accumulation_fusion) == expected
    assert kernels.fp8 is None


@pytest.mark.parametrize(
    ("machine", "recipe", "message"),
    [
        (CPU, "tensorwise", r"needs Transformer Engine on a GPU \(no CUDA\); set scale.fp8=none"),
        (replace(HOPPER, transformer_engine=""), "tensorwise", r"\(Transformer Engine is not installed\)"),
        (replace(HOPPER, transformer_engine="2.2.0"), "tensorwise", "2.3 or newer; 2.2.0 is installed"),
        (replace(HOPPER, chip=(8, 0)), "tensorwise", "of compute capability 8.9; this one has 8.0"),
        (replace(HOPPER, chip=(8, 9)), "blockwise", "of compute capability 9.0; this one has 8.9"),
    ],
)
def test_fp8_is_refused_where_the_machine_cannot(
    tiny_config: Config, machine: Machine, recipe: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        select_kernels(fp8_config(tiny_config, recipe), machine)


def test_fp8_without_transformer_engine_never_trains_in_bf16(tiny_config: Config) -> None:
    with pytest.raises(ValueError, match=r"scale\.fp8 needs Transformer Engine"):
        build_model(fp8_config(tiny_config), VOCAB)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp32"}, "set scale.precision=bf16"),
        ({"fp8": "e5m2"}, "choose one of none, hybrid, e4m3"),
        ({"fp8_recipe": "mxfp8"}, "choose one of tensorwise, delayed, blockwise"),
        ({"fp8_recipe": "delayed"}, "set scale.fp8_bf16_layers=0"),
        ({"fp8_bf16_layers": 3}, "more than a pipeline stage has layers"),
        ({"model.hidden_size": 264}, "hidden_size gives 264 a tensor-parallel rank"),
        ({"model.ffn_hidden_size": 520}, "ffn_hidden_size gives 520"),
        ({"model.head_dim": 6}, r"num_attention_heads\*head_dim gives 24"),
        ({"fp8_recipe": "blockwise", "model.num_query_groups": 1, "model.head_dim": 32}, "multiples of 128.*gives 192"),
    ],
)
def test_fp8_settings_that_cannot_be(tiny_config: Config, changes: dict[str, Any], message: str) -> None:
    config = fp8_config(tiny_config)
    validate(config)
    for key, value in changes.items():
        *sections, name = key.split(".")
        setattr(config.scale.model if sections else config.scale, name, value)
    with pytest.raises(ValueError, match=message):
        validate(config)


@pytest.mark.parametrize("plan", ["plan=true", "plan=false"])
def test_the_launcher_refuses_fp8_here_in_one_line(launch: Launch, tmp_path: Path, plan: str) -> None:
    done = launch(
        "recipe=ssp_full", "scale.precision=bf16", "scale.fp8=hybrid", f"run.root={tmp_path}", plan, code=2, timeout=30
    )
    assert done.stderr.strip().splitlines() == [
        "error: scale.fp8 needs Transformer Engine on a GPU (no CUDA); set scale.fp8=none"
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_plan_says_which_kernels_a_run_uses(launch: Launch, tmp_path: Path) -> None:
    text = launch("recipe=ssp_full", "plan=true", f"run.root={tmp_path}", "scale.logprob_chunk=0").stdout
    block = text.partition("\nkernels")[2].partition("\nrun folder")[0].splitlines()
    found = dict(line.strip().split(": ", 1) for line in block)
    assert found["layers"] == "local (torch): no CUDA"
    assert found["log-probs"] == "all logits at once (scale.logprob_chunk=0)"
    assert found["fp8"] == "none"


# Megatron's own checks


@pytest.fixture
def rope_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron allows fused RoPE only where it could import the kernel."""
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", lambda *arguments: None)


def gpu_kernels(config: Config) -> Kernels:
    return select_kernels(config, HOPPER)


@pytest.mark.usefixtures("rope_kernel", "megatron_config")
@pytest.mark.parametrize("name", axis_names("scale"))
@pytest.mark.parametrize("machine", [CPU, HOPPER], ids=["cpu", "hopper"])
def test_every_scale_passes_megatrons_checks(name: str, machine: Machine, tiny_config: Config) -> None:
    config = parse(["recipe=ssp_full", f"scale={name}"]).config
    if machine is CPU and config.scale.fp8 != "none":
        pytest.skip("FP8 is refused on a CPU")
    made = transformer_config(config, select_kernels(config, machine))
    assert made.bf16 == (config.scale.precision == "bf16")
    settings = DistributedDataParallelConfig(**ddp_settings(config))
    # The optimizer's configuration is checked as it is built: for a small model of this scale's precision.
    small = copy.deepcopy(tiny_config)
    small.scale.precision = config.scale.precision
    small.scale.parallel.distributed_optimizer = settings.use_distributed_optimizer
    small.scale.overlap_grad_reduce = settings.overlap_grad_reduce
    small.scale.overlap_param_gather = settings.overlap_param_gather
    for adam in (config.sft.optimizer, config.signal.math_16k.optimizer):
        chunks = wrap_for_training(small, [build_model(small, VOCAB)])
        optimizer = build_optimizer(chunks, adam)
        assert optimizer.config.lr == adam.lr
        assert optimizer.config.use_distributed_optimizer == settings.use_distributed_optimizer


@pytest.mark.usefixtures("rope_kernel")
@pytest.mark.parametrize("fp8", ["hybrid", "e4m3"])
@pytest.mark.parametrize("recipe", ["tensorwise", "delayed", "blockwise"])
def test_fp8_configuration_of_megatron(tiny_config: Config, recipe: str, fp8: str) -> None:
    config = fp8_config(tiny_config, recipe, fp8)
    validate(config)
    made = transformer_config(config, gpu_kernels(config))
    assert (made.fp8, made.fp8_recipe, made.fp8_margin, made.fp8_param) == (fp8, recipe, 0, False)
    assert (made.fp8_amax_history_len, made.fp8_amax_compute_algo) == (1024, "max")
    kept = 0 if recipe == "delayed" else 1
    assert (made.first_last_layers_bf16, made.num_layers_at_start_in_bf16) == (kept > 0, kept)
    assert made.bf16
    assert made.params_dtype is torch.bfloat16
    assert made.apply_rope_fusion
    assert made.gradient_accumulation_fusion
    assert not made.use_cpu_initialization


def test_megatron_itself_refuses_bf16_layers_under_delayed_scaling(tiny_config: Config) -> None:
    config = fp8_config(tiny_config)
    kernels = replace(gpu_kernels(config), transformer_engine=False)
    config.scale.fp8_recipe = "delayed"
    with pytest.raises(ValueError, match="Delayed scaling does not support first / last layer in BF16"):
        transformer_config(config, kernels)


@pytest.mark.parametrize(("recipe", "multiple"), [("tensorwise", 16), ("delayed", 16), ("blockwise", 128)])
@pytest.mark.parametrize(("tensor", "sequence", "context"), [(1, False, 1), (2, True, 1), (2, False, 2), (2, True, 2)])
def test_fp8_rows_are_padded_to_what_the_products_take(
    recipe: str, multiple: int, tensor: int, sequence: bool, context: int
) -> None:
    layout: Any = SimpleNamespace(
        tensor_model_parallel_size=tensor,
        context_parallel_size=context,
        sequence_parallel=sequence,
        fp8="hybrid",
        fp8_recipe=recipe,
    )
    for lengths in ([5, 9], [16], [130, 1], [128, 128]):
        padded = padded_lengths(lengths, layout)
        share = sum(padded) // context // (tensor if sequence else 1)
        assert share % multiple == 0
        assert all(p >= n and (context == 1 or p % (2 * context) == 0) for p, n in zip(padded, lengths, strict=True))
        assert sum(padded) - sum(lengths) < 2 * multiple * context * tensor + 4 * context * len(lengths)
        layout.fp8 = None
        assert sum(padded_lengths(lengths, layout)) <= sum(padded)
        layout.fp8 = "hybrid"


def test_transformer_engine_layers_keep_our_attention_module(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.core.extensions import transformer_engine as extension
    from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider
    from megatron.core.models.gpt import gpt_layer_specs
    from packaging.version import Version

    monkeypatch.setattr("megatron.core.utils.get_te_version", lambda: Version("2.11.0"))
    monkeypatch.setattr(gpt_layer_specs, "TESpecProvider", TESpecProvider, raising=False)  # absent without the engine

    from nemo_vibethinker.model import te_spec
    from nemo_vibethinker.model.attention import CachingSelfAttention

    tiny_config.scale.model.qk_norm = True
    layer, norm = te_spec.transformer_engine_layer(transformer_config(tiny_config, run_kernels(tiny_config)))
    parts: Any = layer.submodules
    assert parts.self_attention.module is CachingSelfAttention
    attention = parts.self_attention.submodules
    assert attention.core_attention is te_spec.PackedOrCachedAttention
    assert attention.linear_qkv is extension.TELayerNormColumnParallelLinear
    assert attention.q_layernorm is attention.k_layernorm is extension.TENorm
    assert parts.mlp.submodules.linear_fc1 is extension.TELayerNormColumnParallelLinear
    assert norm is extension.TENorm


def test_only_training_runs_in_fp8(tiny_config: Config) -> None:
    model = build_model(tiny_config, VOCAB)
    seen: list[str | None] = []
    model.decoder.register_forward_pre_hook(lambda module, arguments: seen.append(module.config.fp8))
    model.config.fp8 = "hybrid"  # without Transformer Engine Megatron's blocks take no notice
    for training in (True, False, True):
        forward_logits(model.train(training), rows(1)[0])
    assert seen == ["hybrid", None, "hybrid"]
    assert model.config.fp8 == "hybrid"


def test_weights_load_without_scaling_factors(tiny_config: Config) -> None:
    model = build_model(tiny_config, VOCAB)
    weights = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    model.load_state_dict(weights)
    del weights["decoder.final_layernorm.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*final_layernorm"):
        model.load_state_dict(weights)
