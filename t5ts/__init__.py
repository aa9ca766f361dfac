"""t5ts: does T5's text pretraining help on my time series, and when should I unfreeze it?

Legend of the tensor suffixes used in `model/`, `data/windows.py`, `tasks.py`, `train.py` and
`metrics.py` (one letter per axis, in order):

    B  batch (windows)            H  horizon (steps to predict)
    C  channels (variables)       P  patch length (steps in a patch)
    L  context length (steps)     N  patches (tokens) in a context
    T  rows of the whole series   D  model width
    W  window length (context and target together)
    M  encoder rows: B·C when channels are independent, B when they are mixed
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Before torch loads OpenMP. By default GNU's threads spin for a whole time slice at each barrier
# when another process holds their core: a step on two threads then takes 20 to 40 times as long.
# After 10,000 spins they sleep, which has no measurable cost (LOG.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from t5ts.api import load, results, run, verdict

__version__ = "0.1.0"
__all__ = ["load", "results", "run", "verdict"]


def __getattr__(name: str) -> Any:
    # On first use: the configuration alone takes half a second to import.
    if name == "run":
        return import_module("t5ts.run")
    if name in __all__:
        return getattr(import_module("t5ts.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
