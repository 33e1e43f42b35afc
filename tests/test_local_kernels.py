"""The local layers' operations against the plain ones of torch and Megatron: the same bits, values and gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from nemo_vibethinker.model.local_kernels import packed_attention, rotate, swiglu


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def assert_same_bits(ours: Tensor, plain: Tensor, inputs: list[Tensor]) -> None:
    """Of the values, and of the gradients of a random combination of them."""
    assert torch.equal(ours, plain)
    direction = numbers(*ours.shape, seed=9).detach()
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(plain, inputs, direction), strict=True
    ):
        assert torch.equal(mine, theirs)
        assert mine.abs().max() > 0


def test_swiglu() -> None:
    x = numbers(37, 1, 96, seed=0)
    gate, up = x.chunk(2, dim=-1)
    assert_same_bits(swiglu(x), silu(gate) * (up + 0.0), [x])  # Megatron adds glu_linear_offset


@pytest.mark.parametrize("heads", [1, 4])
def test_rotate(heads: int) -> None:
    x = numbers(37, heads, 32, seed=0)
    angles = numbers(37, 1, 16, seed=1).detach() * 30
    angles = torch.cat([angles, angles], -1)
    first, second = x.chunk(2, dim=-1)
    plain = x * angles.cos() + torch.cat((-second, first), -1) * angles.sin()
    assert_same_bits(rotate(x, angles.cos(), angles.sin()), plain, [x])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_packed_attention(groups: int) -> None:
    lengths = [100, 37, 1, 200, 62]
    query, key, value = (numbers(400, heads, 32, seed=n) for n, heads in enumerate((4, groups, groups)))
    samples = zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (query, key, value)), strict=True)
    outs = [
        scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=groups < 4)[0]
        for q, k, v in samples
    ]
    plain = torch.cat(outs, dim=1).transpose(0, 1).flatten(1)
    assert_same_bits(packed_attention(query, key, value, lengths), plain, [query, key, value])
