"""Child processes that compare answers by algebra, each killed and replaced when it misses the deadline."""

import atexit
import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from nemo_vibethinker.reward.verdict import Verdict

_START_S = 60.0  # the import of sympy on a busy machine
_BATCH = 16  # comparisons in one message; the next child takes the next batch
_OWN_WORK = 0.5  # share of the deadline that a child has to compute for a miss to be the comparison's own
_STARVED = 5  # deadlines that a child may wait for the processor
_LOADER = "import sys; sys.path.append(sys.argv[1]); from nemo_vibethinker.reward._algebra import main; main()"

CHEAP_ANSWER = "7919"  # compared with the reference to see whether the reference alone makes the trouble

Pair = tuple[str, str]


class GraderProcess:
    """One child, started on first use. Not thread-safe: the pool hands it to one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def grade(self, pairs: Sequence[Pair], deadline_s: float) -> list[Verdict]:
        """Verdicts in order. A pair that kills or outlasts the child fails alone; the others go to the next child."""
        verdicts: list[Verdict] = []
        while len(verdicts) < len(pairs):
            verdicts += self._grade_until_failure(pairs[len(verdicts) :], deadline_s)
        return verdicts

    def _grade_until_failure(self, pairs: Sequence[Pair], deadline_s: float) -> list[Verdict]:
        verdicts: list[Verdict] = []
        cpu_s = 0.0
        try:
            self._start()
            self._send(json.dumps(pairs))
            for _ in pairs:
                cpu_s = self._cpu_s()
                verdicts.append(Verdict(*json.loads(self._reply(deadline_s, cpu_s))))
        except TimeoutError:
            busy = self._cpu_s() - cpu_s > _OWN_WORK * deadline_s
            self.close()
            verdicts.append(self._overdue(pairs[len(verdicts)], deadline_s, busy))
        except (EOFError, BrokenPipeError):
            self.close()
            verdicts.append(Verdict("ungraded", "the grader process died"))
        return verdicts

    def _overdue(self, pair: Pair, deadline_s: float, busy: bool) -> Verdict:
        """Wrong where the answer made the work: the child computed, and the reference alone takes no time."""
        if not busy or pair[1] == CHEAP_ANSWER:
            return Verdict("ungraded", f"no verdict within {deadline_s:g} s")
        if self._grade_until_failure([(pair[0], CHEAP_ANSWER)], deadline_s)[0].kind == "ungraded":
            return Verdict("ungraded", f"the reference has no verdict within {deadline_s:g} s")
        return Verdict("wrong", f"the answer takes more than {deadline_s:g} s to evaluate")

    def close(self) -> None:
        """End the child at once."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self.forget()

    def forget(self) -> None:
        """Let go of the child without ending it: after a fork it belongs to the parent."""
        if self._process:
            assert self._process.stdin
            assert self._process.stdout
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.stdout.close()
            self._process.returncode = self._process.returncode or 0  # no wait for a process that is not ours
            self._process = None

    def _start(self) -> None:
        if self._process:
            return
        root = str(Path(__file__).parents[2])
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _LOADER, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self._line(_START_S)

    def _cpu_s(self) -> float:
        assert self._process
        with open(f"/proc/{self._process.pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _send(self, line: str) -> None:
        assert self._process
        assert self._process.stdin
        rest = memoryview(line.encode() + b"\n")
        while rest:
            rest = rest[self._process.stdin.write(rest) :]

    def _reply(self, deadline_s: float, cpu_s: float) -> bytes:
        """The next line, within the deadline; a child that a busy machine kept from computing gets it again."""
        for _ in range(_STARVED):
            try:
                return self._line(deadline_s)
            except TimeoutError:
                if self._cpu_s() - cpu_s > _OWN_WORK * deadline_s:
                    raise
        raise TimeoutError

    def _line(self, deadline_s: float) -> bytes:
        assert self._process
        assert self._process.stdout
        end = time.monotonic() + deadline_s
        poll = select.poll()  # select.select would fail where a process holds more than 1024 files
        poll.register(self._process.stdout, select.POLLIN)
        while b"\n" not in self._buffer:
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                raise TimeoutError
            chunk = os.read(self._process.stdout.fileno(), 65536)
            if not chunk:
                raise EOFError
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line


class GraderPool:
    """A fixed number of grader processes; usable from any thread, and from a process forked off this one.

    `deadline_s` bounds each comparison. The children end with `close`, and at the latest with the interpreter.
    """

    def __init__(self, processes: int, deadline_s: float) -> None:
        self._processes = processes
        self._deadline_s = deadline_s
        self._make()
        _POOLS.add(self)

    def _make(self) -> None:
        self._graders = [GraderProcess() for _ in range(self._processes)]
        self._free: queue.SimpleQueue[GraderProcess] = queue.SimpleQueue()
        for grader in self._graders:
            self._free.put(grader)

    def grade(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Verdicts on (gold, answer) pairs in canonical notation, in order."""
        size = max(1, min(_BATCH, -(-len(pairs) // self._processes)))
        batches = [(start, pairs[start : start + size]) for start in range(0, len(pairs), size)]
        waiting = iter(batches)
        lock = threading.Lock()
        verdicts: dict[int, list[Verdict]] = {}

        def work() -> None:
            while True:
                with lock:
                    start, batch = next(waiting, (-1, []))
                if not batch:
                    return
                verdicts[start] = self._grade_batch(batch)

        helpers = [threading.Thread(target=work) for _ in range(min(self._processes, len(batches)) - 1)]
        for helper in helpers:
            helper.start()
        work()
        for helper in helpers:
            helper.join()
        return [verdict for start, _ in batches for verdict in verdicts[start]]

    def _grade_batch(self, batch: Sequence[Pair]) -> list[Verdict]:
        grader = self._free.get()
        try:
            return grader.grade(batch, self._deadline_s)
        finally:
            self._free.put(grader)

    def close(self) -> None:
        """End the processes; call it when no grade is under way."""
        for grader in self._graders:
            grader.close()

    def after_fork(self) -> None:
        """In a forked child: the grader processes are the parent's; this process starts its own."""
        for grader in self._graders:
            grader.forget()
        self._make()


_POOLS: "weakref.WeakSet[GraderPool]" = weakref.WeakSet()


def _close_all() -> None:
    for pool in list(_POOLS):
        pool.close()


def _forget_all() -> None:
    for pool in list(_POOLS):
        pool.after_fork()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
