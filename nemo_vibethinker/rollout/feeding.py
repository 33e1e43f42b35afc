"""Continuous feeding of vLLM servers: groups go in as there is room, come out as they finish, and may be cut."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from typing import Any

from nemo_vibethinker.config import SamplingConfig
from nemo_vibethinker.rollout.engine import Sample
from nemo_vibethinker.rollout.sampling import stable_seed
from nemo_vibethinker.rollout.server_process import EngineFailure, ServerProcess

_WAKE_S = 0.1  # between two looks at the deadlines
_keys = itertools.count()


@dataclass(slots=True)
class GroupRequest:
    """The responses wanted to one prompt.

    Attributes:
        prompt: token ids.
        seeds: one for each response.
        samples: the responses so far, one for each seed: None, whole, or cut, to be gone on with.
    """

    prompt: list[int]
    seeds: list[int]
    samples: list[Sample | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.samples = self.samples or [None] * len(self.seeds)

    def is_finished(self) -> bool:
        """Whether all responses are whole."""
        return all(sample is not None and sample.finish_reason != "cut" for sample in self.samples)


@dataclass(frozen=True, slots=True)
class FeedingLimits:
    """When to stop. Groups that are not finished then stay as they are.

    Attributes:
        wanted: finished groups that are enough; None: all.
        group_deadline_s: of a group, from its start; 0: none.
        silence_deadline_s: without one finished response, after which an engine counts as hung.
        max_sequences: responses that one server gets at a time.
    """

    wanted: int | None
    group_deadline_s: float
    silence_deadline_s: float
    max_sequences: int


class Feeding:
    """One rollout over all servers of a replica. After an `EngineFailure`, `run` goes on with what is unfinished.

    Args:
        groups: filled in place.
        sampling: temperature, top-p and length limit of the responses.
        window: tokens of prompt and response together.
        stop_token: ends a response.
        version: weights that every token must come from.
        on_group: called with the index of each group that finishes, while others still decode.
    """

    def __init__(
        self,
        groups: Sequence[GroupRequest],
        sampling: SamplingConfig,
        limits: FeedingLimits,
        *,
        window: int,
        stop_token: int,
        version: str,
        on_group: Callable[[int], None],
    ) -> None:
        self.groups = groups
        self.sampling, self.limits, self.window, self.stop_token = sampling, limits, window, stop_token
        self.version, self.on_group = version, on_group
        self.busy_seconds = 0.0  # of the average server
        self._finished = 0

    def run(self, servers: Sequence[ServerProcess]) -> None:
        """Generate until all, or enough, groups are finished, or all others are cut.

        Raises:
            EngineFailure: a server failed, hung, or used other weights.
        """
        self._waiting = deque(index for index, group in enumerate(self.groups) if not group.is_finished())
        self._in_flight: list[dict[str, tuple[int, int]]] = [{} for _ in servers]  # key -> (group, response)
        self._started: dict[int, float] = {}
        self._cut: set[int] = set()
        self._heard = time.monotonic()
        self._feed(servers)
        while any(self._in_flight):
            began = time.monotonic()
            ready = wait([server.connection for server in servers], timeout=_WAKE_S)
            self.busy_seconds += sum(map(bool, self._in_flight)) * (time.monotonic() - began) / len(servers)
            for number, server in enumerate(servers):
                if server.connection in ready:
                    self._take(number, *server.receive())
            self._check_silence()
            self._cut_overdue(servers)
            self._feed(servers)

    def _enough(self) -> bool:
        return self.limits.wanted is not None and self._finished >= self.limits.wanted

    def _feed(self, servers: Sequence[ServerProcess]) -> None:
        """Whole groups, each to the server with the fewest responses: one that finds their prompt in its cache."""
        while self._waiting and not self._enough():
            number = min(range(len(servers)), key=lambda i: len(self._in_flight[i]))
            if len(self._in_flight[number]) >= self.limits.max_sequences:
                return
            index = self._waiting.popleft()
            self._started[index] = time.monotonic()
            for response, sample in enumerate(self.groups[index].samples):
                if sample is None or sample.finish_reason == "cut":
                    self._begin(servers[number], number, index, response)

    def _begin(self, server: ServerProcess, number: int, index: int, response: int) -> None:
        group, sample = self.groups[index], self.groups[index].samples[response]
        before = sample.tokens if sample else []
        room = min(self.sampling.max_response_length, self.window - len(group.prompt)) - len(before)
        seed = stable_seed(group.seeds[response], len(before)) if before else group.seeds[response]
        key = str(next(_keys))
        self._in_flight[number][key] = (index, response)
        parameters: dict[str, Any] = {
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_tokens": room,
            "seed": seed,
            "stop_token_ids": [self.stop_token],
        }
        server.generate(key, group.prompt + before, parameters)

    def _take(self, number: int, kind: str, *message: Any) -> None:
        assert kind == "sample", kind
        key, tokens, logprobs, reason, versions = message
        self._heard = time.monotonic()
        if any(version != self.version for version in versions):
            raise EngineFailure(f"a response came from weights '{versions[0]}', expected '{self.version}'")
        index, response = self._in_flight[number].pop(key)
        group, earlier = self.groups[index], self.groups[index].samples[response]
        new = Sample(list(tokens), list(logprobs), "cut" if reason == "abort" else reason)
        if earlier:
            new = replace(new, tokens=earlier.tokens + new.tokens, logprobs=earlier.logprobs + new.logprobs)
        group.samples[response] = new
        if group.is_finished():
            self._finished += 1
            self.on_group(index)

    def _cut_overdue(self, servers: Sequence[ServerProcess]) -> None:
        """End the responses of groups past their deadline, and of all where enough groups are finished."""
        now, deadline = time.monotonic(), self.limits.group_deadline_s or float("inf")
        overdue = {i for i, began in self._started.items() if self._enough() or now - began > deadline} - self._cut
        self._cut |= overdue
        for server, in_flight in zip(servers, self._in_flight, strict=True):
            if keys := [key for key, (index, _) in in_flight.items() if index in overdue]:
                server.abort(keys)

    def _check_silence(self) -> None:
        if time.monotonic() - self._heard > self.limits.silence_deadline_s:
            raise EngineFailure(
                f"no response finished in rollout.silence_deadline_s={self.limits.silence_deadline_s:g}"
            )
