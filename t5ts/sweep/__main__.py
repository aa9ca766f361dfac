"""`python -m t5ts.sweep`: a worker process; the coordinator starts it and writes its work to stdin.

It stops, with its trial's checkpoint written, when stdin is closed: a coordinator that was killed
leaves nobody behind.
"""

import os
import pickle
import signal
import sys
import threading

from t5ts.errors import Interrupted, UserError
from t5ts.sweep.worker import Work, work


def main() -> int:
    """Read the work, do trials, and say by the exit status how it ended."""
    job: Work = pickle.load(sys.stdin.buffer)

    def stop_with_coordinator() -> None:
        # Not through sys.stdin, whose lock Python wants back when it ends.
        os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_with_coordinator, daemon=True).start()
    try:
        work(job, worker=int(os.environ["T5TS_WORKER"]))
    except UserError as error:
        print(f"t5ts: {error}", file=sys.stderr)
        return 2
    except Interrupted:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
