"""torchrun that ends with the exit code of the worker that failed first (torchrun's own is always 1).

Stopped by a signal, it says nothing of its own and ends with 128 + signal.

python -m launcher.torchrun --standalone --nproc-per-node 4 -m nemo_vibethinker.pipeline --run-dir runs/NAME
"""

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

if __name__ == "__main__":
    try:
        run(parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        sys.exit(error.get_first_failure()[1].exitcode)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
