"""A program for test_distributed.py: several runs in the processes that torchrun started.

    torchrun --nproc-per-node=2 tests/two_processes.py FOLDER

Each run leaves its directory in FOLDER; `outcomes.json` says how each of them ended, `ends-R.json`
with which weights process R came out of it, `about-R.json` what else it saw. All runs share one
start, since that is most of the time.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, TINY_T5
from hydra import compose, initialize_config_dir

import t5ts.build
import t5ts.train
from t5ts import distributed, experiment
from t5ts.checks import check
from t5ts.config import CONF, Config, from_hydra, register
from t5ts.errors import Interrupted, UserError
from t5ts.metrics import RegressionSums
from t5ts.tasks import Batch, Forecast

#: Overrides of the runs that must give the numbers of one process (without dropout).
EQUAL = {
    # 381 windows: five batches of 64 and one of 61, each in three parts of a half.
    "none": ["train.grad_accumulation=3"],
    # Batches of 64, 64 and 1: the second process has no window in the last. Stages begin in
    # mid-epoch, block by block, with rates that warm up anew.
    "staged": [
        "freeze=staged", "freeze.unfreeze_epoch=1.34", "freeze.epochs_per_stage=0.67",
        "freeze.rewarmup_epochs=0.67", "data.windows_per_epoch=129", "train.grad_accumulation=2",
        "optim=adamw_rms",
    ],
    # All that the selected checkpoint can be measured on.
    "all": [
        "freeze=all", "train.grad_accumulation=2", "train.eval_batch_size=7",
        "train.shuffled_test=true", "data@ood=synthetic", "ood.num_rows=500", "ood.seed=5",
    ],
}  # fmt: skip
WITHOUT_DROPOUT = "backbone.dropout=0"
STOP_AFTER = 9  # steps, in the middle of an epoch


class Pruned(Exception):
    """What a sweep raises to end a trial."""


def config_of(*overrides: str) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = from_hydra(compose("config", overrides=[*SMALL, *TINY_T5, *overrides]))
    check(config)
    return config


class Loud(Forecast):
    """Losses whose gradients overflow fp16 at the scaler's first scale."""

    def loss(self, prediction_BCH: torch.Tensor, batch: Batch) -> torch.Tensor:
        return 100 * super().loss(prediction_BCH, batch)


def no_space(*_: Any) -> None:
    raise OSError("No space left on device")


def out_of_memory(_: Config) -> None:
    raise RuntimeError("out of memory")


def meddle(name: str, ends: dict[str, Any], patch: pytest.MonkeyPatch, *, resumes: bool) -> None:
    """In every process: what must go wrong in the run of that name; and note how it ends."""
    real_fit = experiment.fit

    def fit(setup, *args, should_stop, **kwargs):
        steps = 0

        def stop() -> bool:
            nonlocal steps
            steps += 1
            stops_here = name == "parts" and not resumes and distributed.rank() == 1
            return should_stop() or (stops_here and steps == STOP_AFTER)

        if name == "fp16" and distributed.rank() == 1:
            setup = replace(setup, task=Loud(setup.task.seq_len, setup.task.horizon))
        state = real_fit(setup, *args, should_stop=stop, **kwargs)
        digest = hashlib.sha256()
        for tensor in setup.model.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        ends[name] = {"skipped_steps": state.skipped_steps, "weights": digest.hexdigest()}
        return state

    patch.setattr(experiment, "fit", fit)
    if name == "fp16":  # on the CPU, where users are refused it
        patch.setattr(
            t5ts.build, "device_and_precision", lambda _: (torch.device("cpu"), torch.float16)
        )
    if name == "unbuilt" and distributed.rank() == 1:
        patch.setattr(experiment, "build", out_of_memory)
    if name == "unwritten":
        patch.setattr(t5ts.train, "save_checkpoint", no_space)


def prune_after_two(row: Mapping[str, Any]) -> None:
    if row["epoch"] == 2:
        raise Pruned


def lead(folder: Path) -> None:
    """Process 0: start every run, whatever became of the one before."""
    dry = [WITHOUT_DROPOUT, "debug=fast_dev_run"]
    plan = [
        *((name, [WITHOUT_DROPOUT, *overrides]) for name, overrides in EQUAL.items()),
        ("whole", []),
        ("parts", []),
        ("parts", []),
        ("refused", [*dry, "train.batch_size=1"]),
        ("pruned", []),
        ("unbuilt", dry),
        ("unwritten", dry),
        ("fp16", ["train.epochs=2", "train.log_every=1"]),
    ]
    outcomes: dict[str, list[str]] = {}
    for name, overrides in plan:
        after_epoch = prune_after_two if name == "pruned" else lambda _row: None
        try:
            experiment.run(config_of(*overrides), run_dir=folder / name, after_epoch=after_epoch)
            outcome = "finished"
        except (UserError, Interrupted, Pruned, OSError) as error:
            outcome = f"{type(error).__name__}: {error}"
        outcomes.setdefault(name, []).append(outcome)
    (folder / "outcomes.json").write_text(json.dumps(outcomes, indent=1))


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


def main(folder: Path) -> None:
    """Every process."""
    torch.set_num_threads(1)
    register()
    ends: dict[str, Any] = {}
    dropout: list[int] = []
    real_run = experiment._run

    def run_and_meddle(config, run_dir, group, resume_from, *args):
        with pytest.MonkeyPatch.context() as patch:
            meddle(run_dir.name, ends, patch, resumes=resume_from is not None)
            result = real_run(config, run_dir, group, resume_from, *args)
            dropout.append(torch.initial_seed())
            return result

    experiment._run = run_and_meddle
    with distributed.setup():
        number = distributed.rank()
        about = {"metrics": sum_of_shares()}
        if distributed.is_main():
            lead(folder)
        else:
            experiment.follow()
    (folder / f"ends-{number}.json").write_text(json.dumps(ends))
    (folder / f"about-{number}.json").write_text(json.dumps(about | {"dropout": dropout}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
