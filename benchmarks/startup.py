"""How long until something happens? python -m benchmarks.startup.

Question: how many seconds pass from a command to its answer (`--help`, `--cfg job`: under 1 s), and
from the command of a default run (t5-small, random init, packaged data, W&B offline) to the first
batch computed (under 6 s)? And where do they go?

What is timed, from before the process is started:

- "first batch": until the model has returned its first batch inside `fit`, with everything set up:
  data, weights, baselines, run directory, tracker. It is a validation batch, since a run evaluates
  before its first step; the scale audit's batch, which comes earlier, does not count.
- "first step": until the first training batch has been through forward, backward and step, in a dry
  run (`debug=fast_dev_run`), whose evaluation before it is one batch.

Both are the real command under `runpy`, in which the functions of `t5ts.experiment` and `t5ts.train`
are timed and the process leaves by SystemExit at that moment. Medians of several runs, after one
that warms the disk cache. The table of imports comes from `python -X importtime`.

Expected (2 quiet cores): 2 minutes; 0.6 s, 0.6 s, 5 s, 6 s.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET_ANSWER_S = 1.0
TARGET_BATCH_S = 6.0
RUN = ["backbone=t5_small", "init=random", "data=nyc_weather", "tracker=wandb"]

#: Runs `t5ts.run` with its parts timed; argv[1] is where to write them, argv[2] where to stop.
DRIVER = """
import json, os, runpy, sys, time
begun = float(os.environ["T5TS_BENCH_BEGUN"])
out, stop_at = sys.argv[1:3]
parts, last = {}, begun

def mark(name):
    global last
    now = time.time()
    parts[name] = parts.get(name, 0.0) + now - last
    last = now

mark("start Python")
import t5ts.run
mark("import Hydra and the config's types")
import torch
mark("import torch")
import t5ts.experiment as experiment, t5ts.build as build, t5ts.train as train
mark("import the rest of t5ts")

def timed(module, name, part):
    function = getattr(module, name)
    def run(*args, **kwargs):
        mark("other")
        try:
            return function(*args, **kwargs)
        finally:
            mark(part)
    setattr(module, name, run)

timed(experiment, "_run_entered", "") if hasattr(experiment, "_run_entered") else None
timed(build, "load_series", "load the data")
timed(build, "build_model", "build the model")
timed(build, "build_optimizer", "build the optimizer")
timed(experiment, "evaluate_baselines", "naive baselines")
timed(experiment, "scale_audit", "scale audit")
timed(experiment, "_write_beginning", "digests, git, provenance.json")
timed(experiment, "_build_tracker", "start W&B")
entered, stop_step = False, stop_at == "step"
fit, run_whole, forward = experiment.fit, experiment.run, t5ts_forward = None, None, None
"""
