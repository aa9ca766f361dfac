"""Fixtures that all tests share: composed configs and small, fast settings."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from t5ts.checks import check
from t5ts.config import Config, from_hydra, register
from t5ts.run import CONF

#: A T5 of 2 blocks and width 16 on a short synthetic series: a whole run in a second.
TINY = [
    "backbone=t5_efficient_tiny",
    "backbone.d_model=16",
    "backbone.d_ff=32",
    "backbone.d_kv=8",
    "backbone.num_layers=2",
    "backbone.num_heads=2",
    "backbone.vocab_size=100",
    "data=synthetic",
    "data.num_rows=600",
    "seq_len=32",
    "horizon=8",
    "patch.patch_len=8",
    "train.epochs=4",
    "train.batch_size=64",
    "train.log_every=2",
    "train.probe_every=3",
    "optim.lr=3e-3",
    "tracker=none",
]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two test workers share two cores; and sums on one thread are the same everywhere."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def composed() -> Callable[..., Config]:
    """Compose and check a configuration from overrides, as the command line does."""
    register()

    def make(*overrides: str) -> Config:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = from_hydra(compose("config", overrides=list(overrides)))
        check(config)
        return config

    return make


@pytest.fixture
def tiny(composed: Callable[..., Config]) -> Callable[..., Config]:
    """Compose the tiny setting with more overrides."""
    return lambda *overrides: composed(*TINY, *overrides)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A place for one run."""
    return tmp_path / "run"
