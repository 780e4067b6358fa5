"""What a process that reads data for another does first. Imports no torch."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def serve_parent(worker: int = 0) -> None:
    """Leave it to the parent what signals mean, and die with it (on Linux at once).

    Ctrl-C and SLURM's signals reach every process of a job: workers that died of them would end a run before it could
    save, and workers that outlived a killed parent would hold its locks and its memory.

    Args:
        worker: number of a DataLoader's worker, which takes this as its worker_init_fn.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
