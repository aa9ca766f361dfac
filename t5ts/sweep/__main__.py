"""`python -m t5ts.sweep`: a worker process; the coordinator starts it and writes its work to stdin.

It stops, with its trial's checkpoint written, when stdin is closed: a coordinator that was killed
leaves nobody behind.
"""

import contextlib
import json
import os
import pickle
import signal
import sys
import threading
import traceback

from t5ts.errors import Interrupted, UserError
from t5ts.sweep.worker import BrokenDevice, Work, disk_fault, work

#: Exit status of a worker whose GPU failed; a new process may find it well.
BROKEN_DEVICE = 3


def main() -> int:
    """Read the work, do trials, and say by the exit status how it ended.

    Standard output is a pipe to the coordinator for the last message alone, which must get there
    on a full disk too; everything else goes to the log, which is standard error.
    """
    to_coordinator = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job: Work = pickle.load(sys.stdin.buffer)

    def end(status: int, message: str, trials_done: int = 0) -> int:
        report = {"message": message[:10_000], "trials_done": trials_done}
        os.write(to_coordinator, json.dumps(report).encode())
        with contextlib.suppress(OSError):  # the log's disk may be full
            print(f"t5ts: {message}", file=sys.stderr)
        return status

    def stop_with_coordinator() -> None:
        # Not through sys.stdin, whose lock Python wants back when it ends.
        os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_with_coordinator, daemon=True).start()
    try:
        work(job, worker=int(os.environ["T5TS_WORKER"]))
    except BrokenDevice as error:
        return end(BROKEN_DEVICE, str(error), error.trials_done)
    except UserError as error:
        return end(2, str(error))
    except Interrupted:
        return 130
    except Exception as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        if words := disk_fault(error):
            return end(2, f"{words}: free some space, and run the same command again.")
        return end(1, f"{type(error).__name__}: {error}")
    return 0


if __name__ == "__main__":
    ended = main()
    try:
        sys.stdout.flush()
    except OSError:
        os._exit(ended)  # Python's own end would flush again, and leave with another status
    sys.exit(ended)
