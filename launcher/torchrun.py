"""torchrun that ends with the exit code of the worker that failed first (torchrun's own is always 1).

In a step of Slurm, which starts one on each node, a node's rank is Slurm's number of it. Signals are handed on to the
workers, which save and end on their own time; torchrun would kill them after 30 s.

python -m launcher.torchrun --standalone --nproc-per-node 4 -m nemo_vibethinker.pipeline --run-dir runs/NAME
"""

import logging
import os
import signal
import sys
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from nemo_vibethinker.interruption import SIGNALS

TORCHRUN_HANDLES = "SIGHUP,SIGQUIT"  # the rest is ours


def hand_on(number: int, frame: FrameType | None) -> None:
    """Signal the workers; without any, end."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # that workers end is no news then
    workers = psutil.Process().children()
    for worker in workers:
        worker.send_signal(number)
    if not workers:
        sys.exit(128 + number)


if __name__ == "__main__":
    for number in SIGNALS:
        signal.signal(number, hand_on)
    try:
        arguments = sys.argv[1:]
        if "SLURM_NODEID" in os.environ and "--standalone" not in arguments:
            arguments = ["--node-rank", os.environ["SLURM_NODEID"], *arguments]
        run(parse_args(["--signals-to-handle", TORCHRUN_HANDLES, *arguments]))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        sys.exit(code if code >= 0 else 128 - code)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
