"""What a sync proves itself by, and which settings of engines are refused, without an engine."""

# ruff: noqa: E402  (torch is patched before Megatron binds its names)
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nemo_vibethinker.megatron.platform import install_cpu_platform

install_cpu_platform()

from nemo_vibethinker.config import Config, validate
from nemo_vibethinker.rollout.sync_check import TensorSums, differing_parameter
from nemo_vibethinker.rollout.weight_transfer import _buckets

LAYER = "model.layers.0."


def sums_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, int]]:
    sums = TensorSums()
    assert [name for name, _ in sums.watch(tensors.items())] == list(tensors)
    return sums.values()


def trainer_tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens.weight": (6, 4), f"{LAYER}input_layernorm.weight": (4,)}
    shapes |= {f"{LAYER}self_attn.{x}_proj.weight": (rows, 4) for x, rows in (("q", 8), ("k", 4), ("v", 4))}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def worker_parts(tensors: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """As vLLM shares them over two workers: the vocabulary padded, Q, K and V fused."""
    padded = torch.cat(
        [tensors["model.embed_tokens.weight"], torch.zeros(2, 4).to(tensors[f"{LAYER}input_layernorm.weight"])]
    )
    fused = torch.cat([tensors[f"{LAYER}self_attn.{x}_proj.weight"].chunk(2)[rank] for x in "qkv"])
    return {
        "model.embed_tokens.weight": padded.chunk(2)[rank],
        f"{LAYER}input_layernorm.weight": tensors[f"{LAYER}input_layernorm.weight"],
        f"{LAYER}self_attn.qkv_proj.weight": fused,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checksums_of_shares_add_up(dtype: torch.dtype) -> None:
    tensors = trainer_tensors(dtype)
    workers = [sums_of(worker_parts(tensors, rank)) for rank in range(2)]
    assert differing_parameter(sums_of(tensors), workers) is None


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", f"{LAYER}input_layernorm.weight", f"{LAYER}self_attn.qkv_proj.weight"]
)
def test_one_changed_element_in_one_worker_is_named(name: str) -> None:
    tensors = trainer_tensors(torch.float32)
    parts = [worker_parts(tensors, rank) for rank in range(2)]
    changed = parts[1][name].clone()
    changed.view(-1)[0] = changed.view(-1)[0].nextafter(torch.tensor(9.0))  # by one unit in the last place
    parts[1][name] = changed
    assert differing_parameter(sums_of(tensors), [sums_of(part) for part in parts]) == name


def test_heads_held_twice_are_left_to_the_canary() -> None:
    """More workers than key and value heads: each holds a copy, and the bits do not add up to the trainer's."""
    tensors = trainer_tensors(torch.float32)
    name = f"{LAYER}self_attn.qkv_proj.weight"
    q, k, v = (tensors[f"{LAYER}self_attn.{x}_proj.weight"] for x in "qkv")
    workers = [sums_of({name: torch.cat([q.chunk(2)[rank], k, v])}) for rank in range(2)]
    assert differing_parameter(sums_of(tensors), workers) is None


def test_buckets_hold_no_more_than_their_limit() -> None:
    tensors = [(str(i), torch.zeros(size)) for i, size in enumerate((10, 10, 30, 5, 5, 5))]  # of 4 bytes
    assert [list(bucket) for bucket in _buckets(tensors, 80)] == [["0", "1"], ["2"], ["3", "4", "5"]]


def cut(config: Config) -> None:
    config.rollout.oversampling = 0.5


def resume_nothing(config: Config) -> None:
    config.rollout.engine, config.rollout.partial_rollout = "vllm", True


def three_workers(config: Config) -> None:
    config.rollout.engine, config.rollout.tensor_parallel = "vllm", 3


def nucleus(config: Config) -> None:
    config.rollout.engine, config.signal.code.sampling.top_p = "vllm", 0.9


def unknown(config: Config) -> None:
    config.rollout.engine = "sglang"


def all_memory(config: Config) -> None:
    config.rollout.gpu_memory = 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, r"rollout\.oversampling .* rollout\.engine=vllm"),
        (resume_nothing, r"rollout\.partial_rollout .* set rollout\.oversampling"),
        (three_workers, r"rollout\.tensor_parallel=3"),
        (nucleus, r"signal\.code\.sampling\.top_p=0\.9.*top_p=1"),
        (unknown, r"rollout\.engine=sglang: choose one of megatron, vllm"),
        (all_memory, r"rollout\.gpu_memory=1\.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: Callable[[Config], None], message: str) -> None:
    config = Config()
    change(config)
    with pytest.raises(ValueError, match=message):
        validate(config)
