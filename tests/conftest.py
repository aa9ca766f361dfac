"""Fixtures that all tests share: composed configs and small, fast settings."""

import functools
import gc
import os
import pickle
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.plugins.config_source import ConfigResult
from hypothesis import settings
from omegaconf import DictConfig

from t5ts.checks import check
from t5ts.config import CONF, Config, from_hydra, register

#: A short synthetic series and short training, for any backbone.
SMALL = [
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
#: A T5 of 2 blocks and width 16: a whole run in a second.
TINY_T5 = [
    "backbone=t5_efficient_tiny",
    "backbone.d_model=16",
    "backbone.d_ff=32",
    "backbone.d_kv=8",
    "backbone.num_layers=2",
    "backbone.num_heads=2",
    "backbone.vocab_size=100",
]


def pytest_configure(config: pytest.Config) -> None:
    """A GPU is hidden from all tests but those for one, so that they are the same everywhere."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Short files come last, so that no worker waits long for the other."""
    items.sort(key=lambda item: "/pretrain/" in item.nodeid)


# A deadline would measure the machine.
settings.register_profile("t5ts", deadline=None)
settings.load_profile("t5ts")

# Python's own collections go through all of torch, too often for a tenth of the suite's time.
gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="module", autouse=True)
def _frozen_libraries() -> None:
    """Each run collects its garbage, and may skip what was imported before."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two test workers share two cores; and sums on one thread are the same everywhere."""
    import torch  # not where tests are only handed out, which would wait for it

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A run writes 15 files that outlast a loss of power, which no test is about."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda _file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _hydra_does_nothing_twice() -> Iterator[None]:
    """Files of conf are read, and overrides parsed, once; a configuration is copied by pickle.

    Half the time of a composition or a sweep, of which the suite makes hundreds.
    """
    load, parse = ConfigRepository.load_config, OverridesParser.parse_rule
    deepcopy_, kept = DictConfig.__deepcopy__, {}

    def once(key: tuple[Any, ...], make: Callable[..., Any], *arguments: Any) -> Any:
        if key not in kept:
            kept[key] = pickle.dumps(make(*arguments), pickle.HIGHEST_PROTOCOL)
        return pickle.loads(kept[key])

    def load_once(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        if any(source.scheme() == "file" and Path(source.path) != CONF for source in self.sources):
            return load(self, config_path)  # a test's own folder, whose name may be used again
        key = (config_path, *(source.path for source in self.sources))
        return once(key, load, self, config_path)

    def copied(self: DictConfig, memo: dict[int, Any]) -> DictConfig:
        if self._get_parent() is not None:
            return deepcopy_(self, memo)
        return pickle.loads(pickle.dumps(self, pickle.HIGHEST_PROTOCOL))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ConfigRepository, "load_config", load_once)
        patched.setattr(OverridesParser, "parse_rule", lambda *of: once(of[1:], parse, *of))
        patched.setattr(DictConfig, "__deepcopy__", copied)
        yield


@pytest.fixture(scope="session")
def composed() -> Callable[..., Config]:
    """Compose and check a configuration from overrides, as the command line does.

    Hydra composes each choice of options once, which takes longer than many a run; then its own
    function applies the values.
    """
    register()

    @functools.cache
    def chosen(*choices: str) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=list(choices), return_hydra_config=True)

    def is_value(override: Override) -> bool:
        is_group = override.package is not None or (CONF / override.key_or_group).is_dir()
        return override.type == OverrideType.CHANGE and not (
            is_group or override.is_sweep_override() or override.is_hydra_override()
        )

    def make(*overrides: str) -> Config:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        node = deepcopy(chosen(*(o.input_line for o in parsed if not is_value(o))))
        ConfigLoaderImpl._apply_overrides_to_config([o for o in parsed if is_value(o)], node)
        config = from_hydra(node)
        check(config)
        return config

    return make


@pytest.fixture
def small(composed) -> Callable[..., Config]:
    """Compose the small setting with more overrides (a backbone among them)."""
    return lambda *overrides: composed(*SMALL, *overrides)


@pytest.fixture
def tiny(small) -> Callable[..., Config]:
    """Compose the small setting with a tiny T5 and more overrides."""
    return lambda *overrides: small(*TINY_T5, *overrides)


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A place for one run."""
    return tmp_path / "run"
