"""SwiGLU, RoPE and attention of packed rows over torch, in fewer passes over memory than autograd would take.

The numbers are those of Megatron's unfused operations and of `scaled_dot_product_attention`, to the last bit (but for
the sign of zeros): the same products and sums in the same order, written where they are needed instead of being split,
copied and joined.
"""

from typing import Any

import torch
from torch import Tensor


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up of [..., gate and up] joined in the last dimension."""
    return _Swiglu.apply(x)  # pyright: ignore[reportReturnType]


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = x.chunk(2, dim=-1)
        activated = torch.nn.functional.silu(gate)
        ctx.save_for_backward(x, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, activated = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        out = torch.empty_like(x)
        grad_gate, grad_up = out.chunk(2, dim=-1)
        torch.mul(grad, activated, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return out


def rotate(x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """RoPE (Su et al. 2021) with the halves of a head as the two components; the halves of the tables are equal."""
    return _Rotate.apply(x_THD, cos_T1D, sin_T1D)  # pyright: ignore[reportReturnType]


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(cos_T1D, sin_T1D)
        return _rotated(x_THD, cos_T1D, sin_T1D, 1)

    @staticmethod
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        cos_T1D, sin_T1D = ctx.saved_tensors
        return _rotated(grad_THD, cos_T1D, sin_T1D, -1), None, None


def _rotated(x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor, direction: int) -> Tensor:
    half = x_THD.size(-1) // 2
    out = x_THD * cos_T1D
    first, second = (x_THD[..., part] * sin_T1D[..., part] for part in (slice(half), slice(half, None)))
    out[..., :half].sub_(second, alpha=direction)
    out[..., half:].add_(first, alpha=direction)
    return out


def packed_attention(query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, lengths: list[int]) -> Tensor:
    """Causal attention inside each of the samples of a packed row, on a CPU.

    Args:
        key_TGD, value_TGD: with fewer heads, each is shared by consecutive query heads.
        lengths: of the samples; they sum to T.

    Returns:
        [T, H * D].
    """
    return _PackedAttention.apply(query_THD, key_TGD, value_TGD, lengths)  # pyright: ignore[reportReturnType]


class _PackedAttention(torch.autograd.Function):
    """The two kernels behind `scaled_dot_product_attention` on CPUs, sample by sample, into whole rows."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, lengths: list[int]
    ) -> Tensor:
        out_THD = torch.empty(query_THD.shape, dtype=query_THD.dtype)
        normalisers = []
        for part in _samples(lengths):
            q, k, v = (_heads_first(x[part]) for x in (query_THD, key_TGD, value_TGD))
            out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
            out_THD[part] = out[0].transpose(0, 1)
            normalisers.append(normaliser)
        ctx.save_for_backward(query_THD, key_TGD, value_TGD, out_THD, *normalisers)
        ctx.lengths = lengths
        return out_THD.flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore
        query_THD, key_TGD, value_TGD, out_THD, *normalisers = ctx.saved_tensors
        grad_THD = grad.view(out_THD.shape)
        grads = tuple(torch.empty(x.shape, dtype=x.dtype) for x in (query_THD, key_TGD, value_TGD))
        for part, normaliser in zip(_samples(ctx.lengths), normalisers, strict=True):
            g, q, k, v, out = (_heads_first(x[part]) for x in (grad_THD, query_THD, key_TGD, value_TGD, out_THD))
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                g, q, k, v, out, normaliser, 0.0, True
            )
            for whole, piece in zip(grads, found, strict=True):
                whole[part] = piece[0].transpose(0, 1)
        return grads[0], grads[1], grads[2], None


def _samples(lengths: list[int]) -> list[slice]:
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]


def _heads_first(x_THD: Tensor) -> Tensor:
    """[1, H, T, D], as the kernels take it."""
    return x_THD.transpose(0, 1)[None]
