"""Generation by vLLM servers that the trainer starts, feeds with its weights, checks, and restarts when they fail."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from megatron.core.models.gpt import GPTModel

from nemo_vibethinker.config import Config, SamplingConfig
from nemo_vibethinker.megatron.distributed import leads_replica, once_per_replica
from nemo_vibethinker.model.hf_weights import stream_hf_tensors
from nemo_vibethinker.rollout.engine import Sample
from nemo_vibethinker.rollout.feeding import Feeding, FeedingLimits, GroupRequest
from nemo_vibethinker.rollout.server_process import EngineFailure, ServerProcess
from nemo_vibethinker.rollout.sync_check import (
    TensorSums,
    canary_prompts,
    canary_sampling,
    differing_parameter,
    logprob_difference,
)
from nemo_vibethinker.rollout.vllm_launch import VllmLauncher, make_transfer
from nemo_vibethinker.rollout.weight_transfer import Weights

T = TypeVar("T")
GIB = 1 << 30


def _ignore(_: int) -> None:
    pass


class VllmEngine:
    """The servers of one replica. Its leading rank starts and drives them; all its ranks call each method together.

    An engine that fails in any way is killed: all servers of the replica start again, get the weights, and go on with
    the responses that are not whole. `rollout.max_restarts` bounds that between two finished rollouts.

    Args:
        weights: of the trainer, a fresh pass a call; by default those of `chunks`, gathered tensor by tensor.

    Raises:
        ValueError: there are no GPUs for the servers.
    """

    def __init__(
        self, config: Config, chunks: Sequence[GPTModel], eos_token_id: int, weights: Weights | None = None
    ) -> None:
        self.config, self.settings = config, config.rollout
        self.chunks = list(chunks)
        self.eos_token_id = eos_token_id
        self.weights: Weights = weights or (lambda: stream_hf_tensors(self.chunks))
        self.version: str | None = None
        self.restarts = 0  # of this engine, for the metrics
        self.freed_gb = 0.0  # by the last `release`
        self.busy_seconds = 0.0  # of the average server
        self._failures = 0  # since the last finished rollout
        self._asleep = False
        self._launcher = VllmLauncher(config, chunks[0].vocab_size, eos_token_id)
        self._transfer = make_transfer(config, self._launcher, chunks[0])
        self.servers: list[ServerProcess] = []
        self._start()

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, seeds: Sequence[Sequence[int]]
    ) -> list[list[Sample]]:
        """See `RolloutEngine`."""
        groups = [GroupRequest(list(p), list(s)) for p, s in zip(prompts, seeds, strict=True)]
        done = self.generate_groups(groups, sampling)
        return [[sample for sample in group if sample] for group in done]

    def generate_groups(
        self,
        groups: Sequence[GroupRequest],
        sampling: SamplingConfig,
        *,
        wanted: int | None = None,
        on_group: Callable[[int], None] = _ignore,
    ) -> list[list[Sample | None]]:
        """Fill the groups with samples, and return these.

        Args:
            groups: on the leading rank filled in place; their own samples, where they have some, are gone on with.
            wanted: finished groups that are enough; the others stay as they are then, as do those past
                `rollout.group_deadline_s`. None: all.
            on_group: called on the leading rank with the index of a group that is finished, while others still decode.

        Raises:
            RuntimeError: the engines fail again and again.
            ValueError: a prompt leaves no room in the model's window.
        """
        assert self.version is not None, "sync comes first"
        window = self.config.scale.model.max_position_embeddings
        for index, group in enumerate(groups):
            if not 0 < len(group.prompt) < window:
                raise ValueError(f"prompt {index} has {len(group.prompt)} tokens; the model's window is {window}")
        feeding = Feeding(
            groups,
            sampling,
            self._limits(wanted),
            window=window,
            stop_token=self.eos_token_id,
            version=self.version,
            on_group=on_group,
        )
        while reason := self._on_leader(lambda: feeding.run(self.servers)):
            self._restart(reason)
            self._sync_until_proven()
        self._failures = 0
        self.busy_seconds += feeding.busy_seconds
        return once_per_replica(lambda: [group.samples for group in groups])

    def _limits(self, wanted: int | None) -> FeedingLimits:
        settings = self.settings
        deadline_s = 0.0 if wanted is None else settings.group_deadline_s
        return FeedingLimits(wanted, deadline_s, settings.silence_deadline_s, settings.max_sequences)

    def sync(self, version: str) -> None:
        """Send the trainer's weights and prove that they have arrived.

        Raises:
            RuntimeError: they have not, or the engines fail, also after a restart.
        """
        if version == self.version:
            return
        self.version = version
        self._sync_until_proven()

    def release(self) -> None:
        """Colocated on GPUs: weights and key-value cache leave the GPU until the next `sync`."""
        if not self._launcher.sleeps or self._asleep:
            return
        reason = self._on_leader(self._sleep)
        self.version, self._asleep = None, True
        if reason:
            self._restart(reason)

    def close(self) -> None:
        """End all servers."""
        for server in self.servers:
            server.kill()
        self.servers = []

    def _sync_until_proven(self) -> None:
        while reason := self._try_sync():
            self._restart(reason)

    def _try_sync(self) -> str | None:
        """One sync; the reason why it failed, the same on all ranks."""
        assert self.version is not None
        version, sums = self.version, TensorSums()
        if self._asleep:
            torch.cuda.empty_cache()  # what training leaves cached on a shared GPU is the engine's room now
        if reason := self._on_leader(self._wake):
            return reason
        reason = self._guarded(lambda: self._transfer.send(self.servers, lambda: sums.watch(self.weights()), version))
        if reason := once_per_replica(lambda: reason):
            return reason
        canary: list[list[Sample | None]] = []
        if reason := self._on_leader(lambda: canary.extend(self._verify(version, sums))):
            return reason
        self._asleep = False
        return self._check_canary(once_per_replica(lambda: canary))

    def _verify(self, version: str, sums: TensorSums) -> list[list[Sample | None]]:
        """Caches emptied, version and checksums compared; returns the canary's responses of every server."""
        for server in self.servers:
            if self._asleep:
                server.call("wake_up", self.settings.call_deadline_s, tags=["kv_cache"])
            server.call("reset_prefix_cache", self.settings.call_deadline_s)
            held = server.call("get_weight_version", self.settings.call_deadline_s)
            if held != version:
                raise EngineFailure(f"the engine says its weights are '{held}', sent were '{version}'")
            workers = server.call("parameter_checksums", self.settings.call_deadline_s)
            if name := differing_parameter(sums.values(), workers):
                raise EngineFailure(f"checksum of {name} is not that of the trainer's weights")
        return [samples for server in self.servers for samples in self._canary(server, version)]

    def _canary(self, server: ServerProcess, version: str) -> list[list[Sample | None]]:
        window = self.config.scale.model.max_position_embeddings
        groups = [GroupRequest(p, [i]) for i, p in enumerate(canary_prompts(self._launcher.vocab_size, window))]
        limits = FeedingLimits(None, 0.0, self.settings.call_deadline_s, self.settings.max_sequences)
        stop, sampling = self.eos_token_id, canary_sampling(window)
        Feeding(groups, sampling, limits, window=window, stop_token=stop, version=version, on_group=_ignore).run(
            [server]
        )
        return [group.samples for group in groups]

    def _check_canary(self, responses: list[list[Sample | None]]) -> str | None:
        samples = [sample for group in responses for sample in group if sample]
        prompts = canary_prompts(self._launcher.vocab_size, self.config.scale.model.max_position_embeddings)
        repeated = prompts * (len(samples) // len(prompts))
        difference = logprob_difference(self.chunks, repeated, samples)
        if difference > self.settings.canary_tolerance:
            return (
                f"the canary's log-probs differ from the trainer's by {difference:.2g} nats, more than "
                f"rollout.canary_tolerance={self.settings.canary_tolerance:g}"
            )
        return None

    def _sleep(self) -> None:
        deadline = self.settings.call_deadline_s
        before = [sum(server.call("free_gpu_bytes", deadline)) for server in self.servers]
        for server in self.servers:
            server.call("sleep", deadline, level=2)  # the next sync brings all weights
        after = [sum(server.call("free_gpu_bytes", deadline)) for server in self.servers]
        self.freed_gb = (sum(after) - sum(before)) / GIB

    def _wake(self) -> None:
        for server in self.servers:
            if not server.is_ready:
                server.await_ready(self.settings.start_deadline_s)
            elif self._asleep:
                server.call("wake_up", self.settings.call_deadline_s, tags=["weights"])

    def _start(self) -> None:
        self.servers = self._launcher.start() if leads_replica() else []

    def _restart(self, reason: str) -> None:
        self._failures += 1
        if self._failures > self.settings.max_restarts:
            self.close()
            raise RuntimeError(f"vLLM engine, after {self._failures - 1} restarts: {reason}")
        self.restarts += 1
        if leads_replica():
            print(f"vLLM engine starts again: {reason}", flush=True)
        self.close()
        self._asleep = False
        self._start()

    def _on_leader(self, work: Callable[[], None]) -> str | None:
        """Do `work` on the leading rank; on all ranks the reason why it failed, if it did."""
        return once_per_replica(lambda: self._guarded(work))

    @staticmethod
    def _guarded(work: Callable[[], None]) -> str | None:
        try:
            work()
        except EngineFailure as failure:
            return str(failure) or "unknown"
        return None
