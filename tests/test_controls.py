"""The standing controls, small: where pretrained weights help, that is what comes out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from t5ts.config import Config
from t5ts.experiment import run

#: experiment=text_in_disguise in 24 steps of 16 windows.
SMALLER = [
    "experiment=text_in_disguise",
    "data.num_rows=6000",
    "data.windows_per_epoch=384",
    "train.epochs=1",
    "train.eval_every_epochs=1",
    "train.batch_size=16",
    "optim.lr=3e-3",
    "optim.warmup_epochs=0.2",
]


@pytest.mark.slow
def test_pretraining_on_english_helps_on_english_in_disguise(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    loss = {}
    for init in ("t5", "random"):
        result = run(composed(*SMALLER, f"init={init}"), run_dir=tmp_path / init, pictures=False)
        loss[init] = result.metrics["test_loss"] / result.baselines["test"]["mean"]["loss"]
    assert loss["t5"] < 0.985 < loss["random"]
