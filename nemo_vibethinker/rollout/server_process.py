"""One vLLM server process, seen from the trainer that started it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from array import array
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_SERVER = Path(__file__).parent / "vllm_side" / "nvt_vllm_server.py"
_LOG_TAIL = 600  # characters of the server's log in an error


class EngineFailure(Exception):
    """An engine died, hung, or refused a call; it has to be started anew."""


class ServerProcess:
    """A server and its workers, in a process group of their own that ends with either side.

    Args:
        python: interpreter of vLLM's environment.
        settings: vLLM's engine arguments.
        environment: variables to set, and to leave out where the value is None.
        log: file for all that vLLM prints, appended to.
    """

    def __init__(
        self, python: str, settings: Mapping[str, Any], environment: Mapping[str, str | None], log: Path
    ) -> None:
        self.log = log
        ours, theirs = socket.socketpair()
        variables = {k: v for k, v in ({**os.environ} | dict(environment)).items() if v is not None}
        log.parent.mkdir(parents=True, exist_ok=True)
        with theirs, log.open("ab") as output:
            self.process = subprocess.Popen(
                [python, str(_SERVER), str(theirs.fileno()), json.dumps(settings)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )
        self.connection = Connection(ours.detach())
        self.is_ready = False

    def await_ready(self, deadline_s: float) -> None:
        """Wait until vLLM has started."""
        self._reply("start", deadline_s)
        self.is_ready = True

    def call(self, method: str, deadline_s: float, **arguments: Any) -> Any:
        """Call a method of the engine (or of all its workers) and wait for the answer.

        Raises:
            EngineFailure: it failed, or gave no answer in time.
        """
        self._send(("call", method, arguments))
        return self._reply(method, deadline_s)

    def generate(self, key: str, prompt: Sequence[int], sampling: Mapping[str, Any]) -> None:
        """Begin a response; `receive` gets it when it has ended."""
        self._send(("generate", key, array("i", prompt), dict(sampling)))

    def abort(self, keys: Sequence[str]) -> None:
        """End these responses as they are; they come with the finish reason "abort"."""
        self._send(("abort", list(keys)))

    def receive(self) -> tuple:
        """The next message.

        Raises:
            EngineFailure: the server has failed or died.
        """
        try:
            kind, *rest = self.connection.recv()
        except (EOFError, OSError):
            raise EngineFailure(f"the vLLM server died; the end of {self.log}: {self._log_tail()}") from None
        if kind == "failed":
            raise EngineFailure(f"{rest[0]} (log: {self.log})")
        return kind, *rest

    def _send(self, message: tuple) -> None:
        try:
            self.connection.send(message)
        except OSError:
            raise EngineFailure(f"the vLLM server died; the end of {self.log}: {self._log_tail()}") from None

    def _reply(self, what: str, deadline_s: float) -> Any:
        end = time.monotonic() + deadline_s
        while self.connection.poll(max(0.0, end - time.monotonic())):
            kind, *rest = self.receive()
            if kind == "reply":
                return rest[0]
        raise EngineFailure(f"{what}: no answer in {deadline_s:g} s (log: {self.log})")

    def _log_tail(self) -> str:
        return " ".join(self.log.read_text(errors="replace")[-_LOG_TAIL:].split())

    def kill(self) -> None:
        """End the server and all its workers at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()
