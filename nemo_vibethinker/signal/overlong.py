"""The soft overlong penalty (DAPO, arXiv 2503.14476, section 3.4)."""

from torch import Tensor


def overlong_penalty(lengths: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """0 up to `max_length - buffer` tokens, then falling linearly to -1 at `max_length` and beyond.

    To be added to the reward of a response of that length; fp32, shape of `lengths`. Raises ValueError for a buffer
    that is not in 1 to `max_length`.
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"the overlong buffer must be 1 to {max_length} tokens, got {buffer}")
    excess = lengths.float() - (max_length - buffer)
    return -(excess / buffer).clamp(0.0, 1.0)
