"""Where the processes of a preflight meet: a key-value store kept by rank 0, which notices who stays silent.

Collectives cannot say who is missing; here each rank leaves its answer under its own key, and rank 0 waits for all.
"""

import datetime
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

POLL_S = 0.02
ANSWER_MARGIN_S = 5.0  # others wait this much longer than rank 0, which has to name the silent first


class PreflightError(Exception):
    """Why the run must not start, in one line: rank 0's ruling, raised on all ranks."""


class UnreachableError(PreflightError):
    """What one rank alone knows: it cannot reach the others."""


@dataclass(frozen=True)
class Place:
    """This process among all of them."""

    rank: int
    size: int
    local_rank: int
    local_size: int  # processes on this node
    address: str  # of rank 0
    port: int


def find_place() -> Place:
    """This process's place, from torchrun's variables or from those of a Slurm step; alone without either.

    Raises:
        ValueError: a Slurm step without MASTER_ADDR and MASTER_PORT.
    """
    env = os.environ
    if "RANK" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif "SLURM_STEP_NUM_TASKS" in env:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "")
    else:
        return Place(0, 1, 0, 1, "", 0)
    rank, size, local_rank = (int(env.get(name, "0")) for name in names[:3])
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE", "1").partition("(")[0].partition(",")[0]
    local_size = int(env.get(names[3], tasks))
    if size > 1 and not ("MASTER_ADDR" in env and "MASTER_PORT" in env):
        raise ValueError(
            "MASTER_ADDR and MASTER_PORT are not set: export MASTER_ADDR=$(scontrol show hostnames "
            "$SLURM_JOB_NODELIST | head -n1) and MASTER_PORT=29500 before srun"
        )
    return Place(rank, size, local_rank, local_size, env.get("MASTER_ADDR", ""), int(env.get("MASTER_PORT", "0")))


class Meeting:
    """One preflight of `place.size` processes; every one of them takes part in every round."""

    def __init__(self, place: Place, seconds: float) -> None:
        """Join within `seconds`.

        Raises:
            UnreachableError: the port of rank 0 is taken, or it does not answer.
        """
        self.place = place
        self.host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        self.hosts: dict[int, str] = {}  # rank -> host of those that came; on rank 0
        self.clock_offset_s: float | None = None  # this host's clock less rank 0's, by the quickest answer
        self._store = _open_store(place, self.host, seconds)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.place.rank == 0

    def store(self) -> Any:
        """The store, for a process group of the same processes."""
        from torch.distributed import PrefixStore

        return PrefixStore("ring", self._store)

    def meet(self, seconds: float) -> None:
        """The first round: who is there.

        Raises:
            PreflightError: somebody did not come.
        """
        self.round("arrival", self.host, self._learn_hosts, seconds, "did not come")

    def round(self, topic: str, value: Any, judge: Callable[[list[Any]], Any], seconds: float, silence: str) -> Any:
        """Hand `value` to rank 0, which judges all of them. Returns what its judge returned, on every rank.

        Args:
            topic: name of the round, once a meeting.
            value: this rank's answer, of JSON types.
            judge: called on rank 0 with the answers in rank order; raises ValueError where the run must not start.
            seconds: how long rank 0 waits for answers.
            silence: what it means that a rank does not answer, for the message.

        Raises:
            PreflightError: the judge's ValueError, or who stayed silent.
        """
        self._store.set(f"{topic}/{self.place.rank}", json.dumps(value))
        if self.is_first:
            self._rule(topic, judge, seconds, silence)
        try:
            self._store.wait([f"{topic}/ruling"], datetime.timedelta(seconds=seconds + ANSWER_MARGIN_S))
            ruling = json.loads(self._store.get(f"{topic}/ruling"))
        except RuntimeError:  # of torch.distributed: time-out, or the connection is gone
            raise UnreachableError(
                f"rank {self.place.rank} on {self.host}: rank 0 at {self.place.address} is gone; see its own message"
            ) from None
        self._compare_clock(ruling["time"])
        if ruling["fault"]:
            raise PreflightError(ruling["fault"])
        return ruling["payload"]

    def leave(self, seconds: float = 3.0) -> None:
        """End the meeting; rank 0 keeps the store until the others have heard it."""
        try:
            self._store.add("left", 1)
            deadline = time.monotonic() + seconds
            while self.is_first and time.monotonic() < deadline and self._store.add("left", 0) < self.place.size:
                time.sleep(POLL_S)
        except RuntimeError:
            return  # the store went first

    def _rule(self, topic: str, judge: Callable[[list[Any]], Any], seconds: float, silence: str) -> None:
        fault, payload = "", None
        try:
            payload = judge(self._collect(topic, seconds, silence))
        except ValueError as error:
            fault = str(error)
        self._store.set(f"{topic}/ruling", json.dumps({"fault": fault, "payload": payload, "time": time.time()}))

    def _collect(self, topic: str, seconds: float, silence: str) -> list[Any]:
        deadline = time.monotonic() + seconds
        missing = list(range(self.place.size))
        while missing := [rank for rank in missing if not self._store.check([f"{topic}/{rank}"])]:
            if time.monotonic() > deadline:
                self._learn_hosts()
                raise ValueError(f"{self.name_ranks(missing)}: {silence} within {seconds:.0f} s")
            time.sleep(POLL_S)
        return [json.loads(self._store.get(f"{topic}/{rank}")) for rank in range(self.place.size)]

    def _learn_hosts(self, hosts: Sequence[str] = ()) -> None:
        came = [rank for rank in range(self.place.size) if self._store.check([f"arrival/{rank}"])]
        self.hosts = {rank: json.loads(self._store.get(f"arrival/{rank}")) for rank in came}

    def _compare_clock(self, first: float) -> None:
        offset = time.time() - first
        if self.clock_offset_s is None or abs(offset) < abs(self.clock_offset_s):
            self.clock_offset_s = offset

    def name_ranks(self, ranks: Sequence[int]) -> str:
        """Ranks with their hosts, by host: `all 8 ranks of node2`, `rank 3 on node1`."""
        by_host: dict[str, list[int]] = {}
        for rank in ranks:
            by_host.setdefault(self._host_of(rank), []).append(rank)
        return ", ".join(self._name_host(host, members) for host, members in by_host.items())

    def _name_host(self, host: str, ranks: list[int]) -> str:
        if len(ranks) > 1 and len(ranks) == self.place.local_size:
            return f"all {len(ranks)} ranks of {host} ({ranks[0]}-{ranks[-1]})"
        return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} on {host}"

    def _host_of(self, rank: int) -> str:
        """Host of a rank that may never have come: the one of its neighbours on the node, else what Slurm listed."""
        if rank in self.hosts:
            return self.hosts[rank]
        node = rank // self.place.local_size
        same = [host for other, host in self.hosts.items() if other // self.place.local_size == node]
        listed = os.environ.get("SLURM_JOB_NODELIST")
        return same[0] if same else f"node {node} of {listed}" if listed else f"node {node} (it never said its name)"


def _open_store(place: Place, host: str, seconds: float) -> Any:
    from torch.distributed import HashStore, TCPStore

    if place.size == 1:
        return HashStore()
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun keeps one at this port already
    serve = place.rank == 0 and not served
    wait = datetime.timedelta(seconds=seconds)
    try:
        return TCPStore(place.address, place.port, None, serve, wait, wait_for_workers=False, multi_tenant=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if serve:
            raise UnreachableError(
                f"rank 0 on {host} cannot open port {place.port} ({reason}); set MASTER_PORT to a free one"
            ) from None
        raise UnreachableError(
            f"rank {place.rank} on {host}: rank 0 at {place.address}:{place.port} does not answer within "
            f"{seconds:.0f} s; did it start, does {place.address} resolve here, is the port open between the nodes?"
        ) from None
