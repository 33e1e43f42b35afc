"""The child process that compares answers by algebra, and is killed when it takes too long.

Requests and replies are JSON lines on standard input and output: a list of [gold, answer] pairs, and for each pair in
order [kind, reason], sent as soon as it is known.
"""

import importlib
import json
import os
import resource
import signal
import sys

from nemo_vibethinker.reward._equivalence import equivalent
from nemo_vibethinker.reward._grader_pool import CHEAP_ANSWER
from nemo_vibethinker.reward._numeric import TooLarge

_MEMORY = 4 << 30
_LAST_RESORT_S = 60  # for a child that computes on after its parent was killed


def grade(gold: str, answer: str) -> tuple[str, str]:
    """Kind and reason of the verdict. A failure is the answer's fault where the reference alone makes none."""
    try:
        return ("right", "") if equivalent(gold, answer) else ("wrong", "not equal")
    except TooLarge as error:
        return "wrong", f"the answer is {error}"
    except Exception as error:  # whatever hostile text provokes in the parsers is reported, never hidden
        reason = f"{type(error).__name__}: {str(error)[:200]}"
    try:
        equivalent(gold, CHEAP_ANSWER)
    except Exception as error:
        return "ungraded", f"the grader failed on the reference: {type(error).__name__}: {str(error)[:200]}"
    return "wrong", f"the answer can't be evaluated: {reason}"


def main() -> None:
    """Serve requests until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    sys.set_int_max_str_digits(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children; Ctrl-C is for the parent
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not look like a reply
    importlib.import_module("math_verify")  # half a second, before any deadline runs
    replies.write("ready\n")
    for line in sys.stdin:
        for gold, answer in json.loads(line):
            signal.alarm(_LAST_RESORT_S)
            replies.write(json.dumps(grade(gold, answer)) + "\n")
            signal.alarm(0)
