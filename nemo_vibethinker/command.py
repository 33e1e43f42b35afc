"""How the command lines end: exit codes, and one line for an error."""

import signal
import sys
from collections.abc import Callable


def run_command(name: str, work: Callable[[], int | None], *, stopped: str = "nothing was written") -> int:
    """Do a command's work and give its exit code.

    The work's own (None is 0); 2 and one line for a user's mistake (ValueError) or a file that cannot be read or
    written (OSError); 1 and one line for a fault on the way (RuntimeError); 130 and a line with `stopped` after SIGINT.
    SIGTERM ends the process with 143, after temporary files are removed. Call it in the main thread.
    """
    earlier = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return work() or 0
    except KeyboardInterrupt:
        print(f"{name}: stopped; {stopped}", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2
    finally:
        signal.signal(signal.SIGTERM, earlier)
