"""`python -m t5ts.sweep`: a worker process, started by the coordinator, with its work on stdin.

It stops, with its trial's checkpoint written, when stdin is closed: a coordinator that was killed
leaves no workers behind.
"""

import contextlib
import os
import pickle
import signal
import sys
import threading
import traceback

from t5ts.errors import Interrupted, UserError
from t5ts.sweep.worker import BrokenDevice, Work, disk_fault, work


def main() -> int:
    """Read the work, run trials, and return the exit status.

    Standard output is a pipe to the coordinator for the final message only, which must arrive
    even on a full disk; everything else goes to the log, which is standard error.
    """
    if "T5TS_WORKER" not in os.environ:
        print(
            "t5ts: t5ts.sweep is started by a sweep, not by hand: use python -m t5ts.run"
            " --multirun hydra/sweeper=t5ts.",
            file=sys.stderr,
        )
        return 2
    to_coordinator = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job: Work = pickle.load(sys.stdin.buffer)

    def stop_with_coordinator() -> None:
        # Not through sys.stdin, whose lock Python needs again at exit.
        os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_with_coordinator, daemon=True).start()
    try:
        work(job)
        return 0
    except Interrupted:
        return 130
    except Exception as error:
        message = str(error)
        # The GPU may work again in another process.
        status = 1 if isinstance(error, BrokenDevice) else 2
        if not isinstance(error, UserError):
            with contextlib.suppress(OSError):  # the log's disk may be full
                traceback.print_exc()
            words = disk_fault(error)
            status = 2 if words else 1
            message = (
                f"{words}: free some space and run the same command again."
                if words
                else f"{type(error).__name__}: {error}"
            )
    os.write(to_coordinator, message[:10_000].encode())
    with contextlib.suppress(OSError):
        print(f"t5ts: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    ended = main()
    try:
        sys.stdout.flush()
    except OSError:
        os._exit(ended)  # a normal exit would flush again and change the status
    sys.exit(ended)
