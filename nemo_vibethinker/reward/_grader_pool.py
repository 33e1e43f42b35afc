"""Child processes that compare answers by algebra, each killed and replaced when it misses the deadline."""

import json
import os
import queue
import select
import subprocess
import sys
import time
from pathlib import Path

from nemo_vibethinker.reward.verdict import Verdict

_START_S = 60.0  # the import of sympy on a busy machine
_LOADER = "import sys; sys.path.append(sys.argv[1]); from nemo_vibethinker.reward._algebra import main; main()"


class GraderProcess:
    """One child, started on first use. Not thread-safe: the pool hands it to one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def grade(self, gold: str, answer: str, deadline_s: float) -> Verdict:
        try:
            self._start()
            self._send(json.dumps([gold, answer]))
            equal, error = json.loads(self._line(deadline_s))
        except TimeoutError as timeout:
            self.close()
            return Verdict("ungraded", str(timeout))
        except (EOFError, BrokenPipeError):
            self.close()
            return Verdict("ungraded", "the grader process died")
        if error:
            return Verdict("ungraded", f"the grader failed: {error}")
        return Verdict("right") if equal else Verdict("wrong", "not equal")

    def close(self) -> None:
        if self._process:
            assert self._process.stdin
            assert self._process.stdout
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
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

    def _send(self, line: str) -> None:
        assert self._process
        assert self._process.stdin
        self._process.stdin.write(line.encode() + b"\n")

    def _line(self, deadline_s: float) -> bytes:
        assert self._process
        assert self._process.stdout
        end = time.monotonic() + deadline_s
        while b"\n" not in self._buffer:
            if not select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no verdict within {deadline_s:g} s")
            chunk = os.read(self._process.stdout.fileno(), 65536)
            if not chunk:
                raise EOFError
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line


class GraderPool:
    """A fixed number of grader processes; `grade` waits for a free one and may be called from any thread."""

    def __init__(self, processes: int, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._graders = [GraderProcess() for _ in range(processes)]
        self._free: queue.SimpleQueue[GraderProcess] = queue.SimpleQueue()
        for grader in self._graders:
            self._free.put(grader)

    def grade(self, gold: str, answer: str) -> Verdict:
        grader = self._free.get()
        try:
            return grader.grade(gold, answer, self._deadline_s)
        finally:
            self._free.put(grader)

    def close(self) -> None:
        """End the processes; call it when no grade is under way."""
        for grader in self._graders:
            grader.close()
