"""Stopping a run between two steps: a signal or the budget asks, the stage saves its resume point and ends.

Signal handlers of the processes set a flag, which a stage's loop polls (`StageContext.stop_requested`); so none leaves
a collective in which the others wait. A stage that has no such loop, or is not yet in it, has nothing to save and ends
at once.
"""

import os
import signal
import time
from types import FrameType

SAVED = 75  # exit code (EX_TEMPFAIL of sysexits.h): stopped where it can go on; start the same command again
OVER_BUDGET = 3  # exit code: saved like that, but not to be started again as it is
RESUME = "the same command resumes"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAME_REQUEST_S = 1.0  # a scheduler and torchrun may both hand on one signal; the second one is no second request


class Interrupted(BaseException):
    """The run stops here by request, with what is done saved. Not an error: `except Exception` lets it pass."""

    def __init__(self, reason: str, exit_code: int = SAVED, advice: str = RESUME) -> None:
        super().__init__(reason, exit_code, advice)  # as arguments, so that it can be sent to other processes
        self.reason = reason
        self.exit_code = exit_code
        self.advice = advice


_request: Interrupted | None = None
_requested_at = 0.0
_polling = False  # the stage at work asks between its steps


def request(reason: str, exit_code: int = SAVED, advice: str = RESUME) -> None:
    """Ask the run to stop after the step at work; the first request counts."""
    global _request, _requested_at
    if _request is None:
        _request, _requested_at = Interrupted(reason, exit_code, advice), time.monotonic()


def poll() -> Interrupted | None:
    """What this process was asked. From the first poll of a stage on, signals wait for the next one."""
    global _polling
    _polling = True
    return _request


def stop_polling() -> None:
    """Signals end this process at once again."""
    global _polling
    _polling = False


def handle_signals(*, main: bool) -> None:
    """Install the handlers. `main`: this process tells the user.

    The first signal asks a stage that polls to stop; any other ends the process at once, with 128 + its number.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if _polling and _request is None:
            request(f"stopped by {name}")
            _say(f"{name}: stopping after this step; once more stops at once", main)
        elif _request is None or time.monotonic() - _requested_at > SAME_REQUEST_S:
            for other in SIGNALS:
                signal.signal(other, signal.SIG_IGN)
            _say(f"stopped by {name}; the same command resumes", main)
            raise SystemExit(128 + number)

    for number in SIGNALS:
        signal.signal(number, handle)


def _say(text: str, main: bool) -> None:
    if main:
        os.write(2, f"{text}\n".encode())  # print is not reentrant
