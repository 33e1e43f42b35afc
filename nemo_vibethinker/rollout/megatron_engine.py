"""Generation by the trainer's own Megatron model, in process, with a key-value cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from nemo_vibethinker.config import SamplingConfig
from nemo_vibethinker.megatron.distributed import pipeline_parallel_group
from nemo_vibethinker.rollout.engine import Sample
from nemo_vibethinker.rollout.sampling import sample_tokens, uniform_numbers

ROWS = 256  # responses decoded side by side
_SEQUENCE_PARALLEL_FLAGS = ("sequence_parallel", "scatter_to_sequence_parallel", "reduce_scatter_embeddings")
COMPACT_BELOW = 0.75  # share of running rows under which finished rows are dropped from the batch


class MegatronEngine:
    """Samples responses from a Megatron model; shares its weights, so there is nothing to synchronise.

    All ranks of one replica call `generate` together with the same arguments and get the same samples; each replica
    generates its own prompts. Context- and sequence-parallel ranks share no work here: they all hold whole sequences.

    Args:
        chunks: this rank's part of the model, one chunk but for the interleaved schedule.
    """

    def __init__(self, chunks: Sequence[GPTModel], eos_token_id: int, pad_token_id: int) -> None:
        self.chunks = list(chunks)
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[Sequence[int]]
    ) -> list[list[Sample]]:
        """Sample responses.

        Args:
            prompts: token ids of each prompt.
            seeds: for each prompt, the seed of each response wanted; a response depends on its own seed alone.

        Returns:
            For each prompt its responses, in the order of `seeds`.

        Raises:
            ValueError: a prompt leaves no room in the model's window.
        """
        self._check_lengths(prompts)
        results: list[list[Sample]] = [[] for _ in prompts]
        with whole_sequences(self.chunks):
            for batch in _batches(prompts, seeds):
                for index, samples in zip(batch, self._generate_batch(batch, prompts, sampling, seeds), strict=True):
                    results[index] = samples
        return results

    def sync(self, version: str) -> None:
        """Nothing to do: the weights are the trainer's own."""

    def release(self) -> None:
        """Nothing to do: the key-value cache lives for one `generate` only."""

    def close(self) -> None:
        """Nothing was started."""

    def _check_lengths(self, prompts: Sequence[Sequence[int]]) -> None:
        window = self.chunks[0].max_sequence_length
        for index, prompt in enumerate(prompts):
            if not 0 < len(prompt) < window:
                raise ValueError(f"prompt {index} has {len(prompt)} tokens; the model's window is {window}")

    def _generate_batch(
        self,
        batch: list[int],
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        seeds: Sequence[Sequence[int]],
    ) -> list[list[Sample]]:
        counts = torch.tensor([len(seeds[i]) for i in batch])
        decoding = _Decoding(self, [prompts[i] for i in batch], sampling)
        logits = decoding.prefill(counts)
        flat = decoding.run(logits, uniform_numbers([s for i in batch for s in seeds[i]], decoding.max_new))
        rows = iter(flat)
        return [[next(rows) for _ in range(int(count))] for count in counts]


class _Decoding:
    """One batch on its way: prompts padded on the left, so that all rows write to the same cache position."""

    def __init__(self, engine: MegatronEngine, prompts: list[Sequence[int]], sampling: SamplingConfig) -> None:
        self.engine, self.chunks, self.sampling = engine, engine.chunks, sampling
        self.width = max(len(prompt) for prompt in prompts)
        window = self.chunks[0].max_sequence_length
        self.limits = torch.tensor([min(sampling.max_response_length, window - len(p)) for p in prompts])
        self.max_new = int(self.limits.max())
        self.context = StaticInferenceContext(len(prompts), self.width + self.max_new)
        padded = [[engine.pad_token_id] * (self.width - len(p)) + list(p) for p in prompts]
        self.tokens_BP = torch.tensor(padded, device=next(self.chunks[0].parameters()).device)
        starts = torch.tensor([self.width - len(p) for p in prompts], device=self.tokens_BP.device)
        positions = torch.arange(self.width + self.max_new, device=self.tokens_BP.device)
        self.visible_BS = positions >= starts[:, None]  # keys that are not padding

    def prefill(self, counts: Tensor) -> Tensor:
        """Run the prompts once, then repeat each row for its number of responses. Returns logits [B, V]."""
        causal = torch.ones(self.width, self.width, dtype=torch.bool, device=self.tokens_BP.device).tril()
        # A padding query sees itself, so that its softmax is not empty; nobody sees it.
        own = torch.eye(self.width, dtype=torch.bool, device=self.tokens_BP.device)
        mask = (causal & self.visible_BS[:, None, : self.width]) | own
        logits = self._forward(self.tokens_BP, mask[:, None])
        self._select(torch.arange(len(counts)).repeat_interleave(counts))
        self.limits = self.limits.repeat_interleave(counts)
        return logits.repeat_interleave(counts.to(logits.device), dim=0)

    def run(self, logits_BV: Tensor, uniforms_BN: Tensor) -> list[Sample]:
        """Decode until every row has ended or is at its limit."""
        total = len(uniforms_BN)
        out_tokens = torch.full((total, self.max_new), self.engine.pad_token_id)
        out_logprobs = torch.zeros(total, self.max_new)
        lengths = self.limits.clone()
        rows = torch.arange(total)  # original row of each row still in the batch
        for position in range(self.max_new):
            tokens, logprobs = self._draw(logits_BV, uniforms_BN[rows, position])
            out_tokens[rows, position], out_logprobs[rows, position] = tokens.cpu(), logprobs.cpu()
            running = position < lengths[rows]
            ended = running & (tokens.cpu() == self.engine.eos_token_id)
            lengths[rows[ended]] = position + 1
            running = position + 1 < lengths[rows]
            if not running.any():
                break
            if running.float().mean() < COMPACT_BELOW:
                keep = running.nonzero()[:, 0]
                self._select(keep)
                rows, tokens = rows[keep], tokens[keep.to(tokens.device)]
            visible = self.visible_BS[:, None, None, : self.context.sequence_len_offset + 1]
            logits_BV = self._forward(tokens[:, None], visible)
        return self._samples(out_tokens, out_logprobs, lengths)

    def _draw(self, logits_BV: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
        """Sample on the last pipeline stage and tell the others."""
        box = torch.zeros(2, len(uniforms_B), dtype=torch.float64, device=self.tokens_BP.device)
        if parallel_state.is_pipeline_last_stage():
            tokens, logprobs = sample_tokens(logits_BV, uniforms_B, self.sampling.temperature, self.sampling.top_p)
            box[0], box[1] = tokens, logprobs
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            last = parallel_state.get_pipeline_model_parallel_last_rank()
            torch.distributed.broadcast(box, src=last, group=pipeline_parallel_group())
        return box[0].long(), box[1].float()

    def _forward(self, tokens_BS: Tensor, mask: Tensor) -> Tensor:
        """Run one step through all pipeline stages. Returns logits [B, V] on the last stage, [B, 0] elsewhere."""
        config = self.chunks[0].config
        logits = torch.empty(len(tokens_BS), 0, device=tokens_BS.device)
        for chunk in self.chunks:
            if not chunk.pre_process:
                shape = (tokens_BS.size(1), tokens_BS.size(0), config.hidden_size)
                hidden = torch.empty(shape, dtype=config.params_dtype, device=tokens_BS.device)
                torch.distributed.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank())
                chunk.set_input_tensor(hidden)
            output = chunk(tokens_BS, None, mask, inference_context=self.context, runtime_gather_output=True)
            if chunk.post_process:
                logits = output[:, -1]
            else:
                torch.distributed.send(output.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
        self.context.sequence_len_offset += tokens_BS.size(1)
        return logits

    def _select(self, rows: Tensor) -> None:
        """Keep (or repeat) these rows of the batch."""
        rows = rows.to(self.visible_BS.device)
        self.visible_BS = self.visible_BS[rows]
        memory = self.context.key_value_memory_dict
        for layer, (keys, values) in memory.items():
            memory[layer] = (keys[rows], values[rows])
        self.context.max_batch_size = len(rows)

    def _samples(self, tokens: Tensor, logprobs: Tensor, lengths: Tensor) -> list[Sample]:
        samples = []
        for row_tokens, row_logprobs, length in zip(tokens.tolist(), logprobs.tolist(), lengths.tolist(), strict=True):
            reason = "stop" if row_tokens[length - 1] == self.engine.eos_token_id else "length"
            samples.append(Sample(row_tokens[:length], row_logprobs[:length], reason))
        return samples


@contextmanager
def whole_sequences(chunks: Sequence[GPTModel]) -> Iterator[None]:
    """Evaluation mode, and each rank works on whole sequences: decoding steps of one token cannot be shared out."""
    training = chunks[0].training
    modules = [module for chunk in chunks for module in (*chunk.modules(), chunk.config)]
    settings: list[tuple[Any, str, Any]] = [(m, "cp_group", None) for m in modules if isinstance(m, RotaryEmbedding)]
    settings += [(m, flag, False) for m in modules for flag in _SEQUENCE_PARALLEL_FLAGS if hasattr(m, flag)]
    before = [(module, name, getattr(module, name)) for module, name, _ in settings]
    _apply(settings)
    for chunk in chunks:
        chunk.eval()
    try:
        yield
    finally:
        _apply(before)
        for chunk in chunks:
            chunk.train(training)


def _apply(settings: list[tuple[Any, str, Any]]) -> None:
    for module, name, value in settings:
        setattr(module, name, value)


def _batches(prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[list[int]]:
    """Prompt indices in batches of about ROWS responses, prompts of like length together."""
    batches: list[list[int]] = []
    rows = ROWS
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        if rows + len(seeds[index]) > ROWS:
            batches.append([])
            rows = 0
        batches[-1].append(index)
        rows += len(seeds[index])
    return batches
