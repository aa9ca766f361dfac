"""What test_distributed.py runs in two processes.

Each run leaves its directory in a folder, and process R writes into `process-R.json` how each run
ended, with which weights, and what else it saw.
"""

import functools
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, TINY_T5
from hydra import compose, initialize_config_dir
from runs import Loud

import t5ts.build
from t5ts import distributed, experiment
from t5ts.checks import check
from t5ts.config import CONF, Config, from_hydra, register
from t5ts.errors import Interrupted, UserError
from t5ts.metrics import RegressionSums

#: Overrides of the runs that must give the numbers of one process (without dropout).
EQUAL = {
    # 381 windows: five batches of 64 and one of 61, each in three parts of a half.
    "none": ["train.grad_accumulation=3", "train.epochs=2"],
    # Batches of 64, 64 and 1: the second process has no window in the last. Stages begin in
    # mid-epoch, block by block, with rates that warm up anew.
    "staged": [
        "freeze=staged", "freeze.unfreeze_epoch=1.34", "freeze.epochs_per_stage=0.67",
        "freeze.rewarmup_epochs=0.67", "data.windows_per_epoch=129", "train.grad_accumulation=2",
        "optim=adamw_rms",
    ],
    # All that the selected checkpoint can be measured on.
    "all": [
        "freeze=all", "train.epochs=2", "train.grad_accumulation=2", "train.eval_batch_size=7",
        "train.shuffled_test=true", "data@ood=synthetic", "ood.num_rows=500", "ood.seed=5",
    ],
}  # fmt: skip
WITHOUT_DROPOUT = "backbone.dropout=0"
STOP_AFTER = 9  # steps, in the middle of an epoch
RUNS = [
    *((name, [WITHOUT_DROPOUT, *overrides]) for name, overrides in EQUAL.items()),
    ("whole", ["train.epochs=2"]),
    *[("parts", ["train.epochs=2"])] * 3,  # the third time it is finished, and shown
    ("fp16", ["train.epochs=2", "train.log_every=1"]),
]


@functools.cache
def config_of(*overrides: str) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = from_hydra(compose("config", overrides=[*SMALL, *TINY_T5, *overrides]))
    check(config)
    return config


def meddle(name: str, seen: dict[str, Any], patch: pytest.MonkeyPatch, *, stops: bool) -> None:
    """Make process 1 stop or overflow in the run of that name; record how each run ends."""
    real_fit = experiment.fit

    def fit(setup, *args, should_stop, **kwargs):
        steps = 0

        def stop() -> bool:
            nonlocal steps
            steps += 1
            return should_stop() or (stops and distributed.rank() == 1 and steps == STOP_AFTER)

        if name == "fp16" and distributed.rank() == 1:
            setup = replace(setup, task=Loud(setup.task.seq_len, setup.task.horizon))
        state = real_fit(setup, *args, should_stop=stop, **kwargs)
        digest = hashlib.sha256()
        for tensor in setup.model.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        ended = {"skipped_steps": state.skipped_steps, "weights": digest.hexdigest()}
        seen["ends"][name] = ended
        seen["dropout"].append(torch.initial_seed())
        return state

    patch.setattr(experiment, "fit", fit)
    if name == "fp16":  # on the CPU, where users are refused it
        patch.setattr(
            t5ts.build, "device_and_precision", lambda _: (torch.device("cpu"), torch.float16)
        )


def forecasts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """5 windows of 3 channels: predictions, truth and last values.

    The second channel's truth does not vary within a process's share and does over all; the
    third's never varies, though a sum of its squares would not say so.
    """
    generator = torch.Generator().manual_seed(0)
    prediction_BCH, target_BCH = torch.randn(2, 5, 3, 4, generator=generator).unbind()
    target_BCH[:3, 1], target_BCH[3:, 1] = 0.1, 0.7
    target_BCH[:, 2] = 0.3
    return prediction_BCH, target_BCH, torch.zeros_like(target_BCH)


def sum_of_shares() -> dict[str, float]:
    """Metrics of the forecasts, of which each process adds its share."""
    sums = RegressionSums(3)
    mine_B = distributed.share(torch.arange(5))
    sums.update(*(tensor[mine_B] for tensor in forecasts()))
    sums.add_other_processes()
    return sums.compute(mase_denominator_C=torch.ones(3), naive_mse=1.0)


def main(where: str) -> None:
    """Every process: all runs, whatever became of the one before."""
    folder = Path(where)
    torch.set_num_threads(1)
    register()
    with distributed.setup():
        seen: dict[str, Any] = {"ends": {}, "dropout": [], "outcomes": []}
        seen["metrics"] = sum_of_shares()
        for name, overrides in RUNS:
            stops = name == "parts" and "Interrupted" not in seen["outcomes"]
            with pytest.MonkeyPatch.context() as patch:
                meddle(name, seen, patch, stops=stops)
                try:
                    result = experiment.run(
                        config_of(*overrides), run_dir=folder / name, pictures=False
                    )
                    seen["outcomes"].append(result.objective)
                except (UserError, Interrupted) as error:
                    seen["outcomes"].append(type(error).__name__)
        (folder / f"process-{distributed.rank()}.json").write_text(json.dumps(seen))
