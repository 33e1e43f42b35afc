"""Expert model fusion: the weighted average of checkpoints (VibeThinker-1.5B, arXiv 2511.06221, section 3.3)."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

_WEIGHT_SUM_TOLERANCE = 1e-6


@torch.no_grad()
def fuse_state_dicts(
    state_dicts: Iterable[Mapping[str, Tensor]], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """sum_i w_i * M_i over checkpoints of one architecture, with w_i = 1/N unless `weights` are given.

    Computes in fp32 (float64 for float64 tensors) and returns each tensor in its own dtype, sharing no memory with
    the inputs. Fusing equal checkpoints returns them bit for bit. `state_dicts` is consumed one at a time and may be
    a generator: besides the accumulator only one state dict is alive. Tensors that are not floating point must be
    equal everywhere.

    Raises ValueError for no checkpoints, weights that are negative, do not sum to one or do not match the
    number of checkpoints, and for checkpoints that differ in keys, shapes, dtypes or non-float values.
    """
    if weights is not None:
        _check_weights(weights)
    accumulator: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    count, weight_sum = 0, 0.0
    # No enumerate or zip: they keep the previous item alive while the generator loads the next one.
    for state_dict in state_dicts:
        if count == 0:
            dtypes = {key: tensor.dtype for key, tensor in state_dict.items()}
            accumulator = {key: _first_mean(tensor) for key, tensor in state_dict.items()}
        _check_same_layout(accumulator, dtypes, state_dict, count)
        weight = _weight_at(weights, count)
        count, weight_sum = count + 1, weight_sum + weight
        if weight > 0:
            _accumulate(accumulator, state_dict, weight / weight_sum)
        del state_dict
    if count == 0 or (weights is not None and count != len(weights)):
        raise ValueError(f"fusion needs one weight per checkpoint and at least one checkpoint, got {count} checkpoints")
    return {key: accumulator.pop(key).to(dtype) for key, dtype in dtypes.items()}


def _accumulate(accumulator: dict[str, Tensor], state_dict: Mapping[str, Tensor], share: float) -> None:
    """One step of the running weighted mean: mean += (w_i / sum_{j<=i} w_j) * (x_i - mean).

    Unlike a sum of w_i * x_i, the step is exactly zero where x_i equals the mean, hence no rounding for equal inputs.
    """
    for key, mean in accumulator.items():
        if not mean.is_floating_point():
            continue
        tensor = state_dict[key].to(mean.dtype)
        # `where` keeps the sign of zeros, which -0.0 + 0.0 would lose.
        accumulator[key] = torch.where(tensor == mean, mean, torch.lerp(mean, tensor, share))


def _first_mean(tensor: Tensor) -> Tensor:
    """The first checkpoint's tensor as the running mean; it may share memory, as `_accumulate` writes new tensors."""
    if not tensor.is_floating_point():
        return tensor.clone()
    return tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)


def _check_same_layout(
    accumulator: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], state_dict: Mapping[str, Tensor], index: int
) -> None:
    def fail(key: str, problem: str) -> None:
        raise ValueError(f"checkpoints 0 and {index} cannot be fused: {key!r} {problem}")

    for key in sorted(accumulator.keys() ^ state_dict.keys()):
        fail(key, f"is missing from checkpoint {0 if key in state_dict else index}")
    for key, tensor in state_dict.items():
        first = accumulator[key]
        if tensor.shape != first.shape:
            fail(key, f"has shapes {tuple(first.shape)} and {tuple(tensor.shape)}")
        if tensor.dtype != dtypes[key]:
            fail(key, f"has dtypes {dtypes[key]} and {tensor.dtype}")
        if not tensor.is_floating_point() and not torch.equal(tensor, first):
            fail(key, f"is not floating point ({tensor.dtype}) and its values differ")


def _check_weights(weights: Sequence[float]) -> None:
    if any(not weight >= 0 for weight in weights):
        raise ValueError(f"fusion weights must be non-negative, got {list(weights)}")
    if not abs(sum(weights) - 1) <= _WEIGHT_SUM_TOLERANCE:
        raise ValueError(f"fusion weights must sum to 1, got {list(weights)} with sum {sum(weights)}")


def _weight_at(weights: Sequence[float] | None, index: int) -> float:
    if weights is None:
        return 1.0
    if index >= len(weights):
        raise ValueError(f"fusion got {len(weights)} weights but more checkpoints; give one weight per checkpoint")
    return weights[index]
