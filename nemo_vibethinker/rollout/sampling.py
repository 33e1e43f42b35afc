"""Drawing tokens from logits, reproducibly whatever the batch or the layout."""

import hashlib

import torch
from torch import Tensor


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts; the same in every process and Python version."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def uniform_numbers(seeds: list[int], count: int) -> Tensor:
    """[len(seeds), count] uniform numbers in [0, 1); each row depends on its seed alone."""
    rows = [torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


def sample_tokens(logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting the cumulative distribution at a given uniform number.

    Args:
        logits_BV: full-vocabulary logits.
        temperature: logits are divided by it; 0 takes the most probable token.
        top_p: keep the smallest set of most probable tokens whose probability reaches it; 1 keeps all.

    Returns:
        tokens [B] int64, and their log-probs [B] under softmax(logits / temperature) before the top-p cut (at
        temperature 0: under softmax(logits)), which is what the trainer computes for the same tokens.
    """
    logprobs = torch.log_softmax(logits_BV.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        tokens = logprobs.argmax(-1)
    else:
        probs = logprobs.exp()
        cumulative = (probs if top_p == 1 else _keep_top_p(probs, top_p)).cumsum(-1)
        threshold = uniforms_B.to(cumulative)[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=logits_BV.size(-1) - 1)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def _keep_top_p(probs: Tensor, top_p: float) -> Tensor:
    ordered, order = probs.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probs).scatter(-1, order, ordered)
