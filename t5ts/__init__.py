"""t5ts: does T5's text pretraining help on my time series, and when should I unfreeze it?

Legend of the tensor suffixes used in `model/`, `data/windows.py`, `task.py`, `train.py` and
`metrics.py` (one letter per axis, in order):

    B  batch (windows)            H  horizon (steps to predict)
    C  channels (variables)       P  patch length (steps in a patch)
    L  context length (steps)     N  patches (tokens) in a context
    T  rows of the whole series   D  model width
    W  window length (context and target together)
    M  encoder rows: B·C when channels are independent, B when they are mixed
"""

__version__ = "0.1.0"
