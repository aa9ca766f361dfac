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
    "init.keep=[]",  # the position bias is what shows in so few steps
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


@pytest.mark.slow
def test_a_donors_encoder_helps_behind_its_own_interface(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    """A small positive control: the donor's knowledge is seen, and is not its scale."""
    small = ["backbone.d_model=32", "backbone.d_ff=64", "backbone.d_kv=8", "backbone.num_layers=2"]
    small += ["seq_len=64", "train.progress=false", "train.eval_batch_size=1024"]
    long = ["data.num_rows=40000", "data.windows_per_epoch=32000", "train.epochs=1"]
    run(composed("experiment=donor", *small, *long), run_dir=tmp_path / "donor", pictures=False)

    def loss_of(init: str) -> float:
        given = [f"init={init}", f"init.path={tmp_path / 'donor'}", "data.num_rows=12000"]
        few = ["data.fraction=0.3", "train.epochs=1", "data.windows_per_epoch=2048"]
        config = composed("experiment=positive_control", *small, *given, *few)
        return run(config, run_dir=tmp_path / init, pictures=False).metrics["test_loss"]

    losses = {init: loss_of(init) for init in ("run", "random", "matched", "shuffled")}
    assert losses["run"] < 0.9 * min(losses[init] for init in ("random", "matched", "shuffled"))
