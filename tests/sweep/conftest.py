"""Sweeps by their command line, with the workers' loop in this process: it saves imports."""

import json
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import DefaultsList
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig
from sweep.sweeps import COMMON

from t5ts import run
from t5ts.analysis.results import Result, read_result
from t5ts.config import CONF, Config, register
from t5ts.provenance import write_json
from t5ts.sweep import coordinator, trial
from t5ts.sweep.worker import run_trials

Sweep = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="package", autouse=True)
def _composed_once() -> Iterator[None]:
    """Hydra composes each choice of options once, which takes longer than most of these sweeps.

    Values are set in copies, by Hydra itself.
    """
    lists: dict[Any, DefaultsList] = {}
    composed: dict[int, DictConfig] = {}
    list_defaults = config_loader_impl.create_defaults_list
    compose = ConfigLoaderImpl._compose_config_from_defaults_list

    def find_list(repo: Any, overrides_list: list[Override], **rest: Any) -> DefaultsList:
        if any(override.is_delete() for override in overrides_list):
            return list_defaults(repo=repo, overrides_list=overrides_list, **rest)
        choices = [o for o in overrides_list if repo.group_exists(o.key_or_group)]
        key = *(o.input_line for o in choices), *rest.values()
        if key not in lists:
            lists[key] = list_defaults(repo=repo, overrides_list=choices, **rest)
        values = [o for o in overrides_list if not (o in choices or o.is_sweep_override())]
        return replace(lists[key], config_overrides=values)

    def copy_composed(self: Any, defaults: list[Any], repo: Any) -> DictConfig:
        if not any(found.defaults is defaults for found in lists.values()):
            return compose(self, defaults, repo)
        if id(defaults) not in composed:
            composed[id(defaults)] = compose(self, defaults, repo)
        return deepcopy(composed[id(defaults)])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(config_loader_impl, "create_defaults_list", find_list)
        patched.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", copy_composed)
        yield


def compose_sweep(*overrides: str) -> DictConfig:
    """Hydra's composition of a sweep, its `hydra` node included."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["hydra/sweeper=t5ts", *overrides], return_hydra_config=True)


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys) -> Iterator[Sweep]:
    """Run a sweep in `tmp_path/NAME` (None: where its command leads): status, stdout, stderr.

    `plain`: Hydra's grid instead of the sweeper; `sweep.drawn`: run directories that got pictures.
    """
    monkeypatch.setattr(coordinator, "_with_pool", lambda work, _display: run_trials(work))
    # It composes the whole configuration once more, to learn of a multirun that --multirun tells.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_args, **_kwargs: None)
    # A run's pictures take longer than its training. (The sweep's own are drawn.)
    drawn: list[Path] = []
    monkeypatch.setattr(coordinator, "draw_run", drawn.append)
    monkeypatch.chdir(tmp_path)

    def go(name: str | None, *overrides: str, plain: bool = False) -> tuple[int, str, str]:
        where = [] if name is None else [f"hydra.sweep.dir={tmp_path / name}"]
        common = COMMON[1:] if plain else COMMON
        arguments = ["t5ts.run", "--multirun", *common, *where, *overrides]
        monkeypatch.setattr(sys, "argv", arguments)
        GlobalHydra.instance().clear()
        status: Any = 0
        try:
            run.cli()
        except SystemExit as end:
            status = end.code or 0
        output = capsys.readouterr()
        assert "Traceback" not in output.err or status == 1
        return int(status), output.out, output.err

    go.drawn = drawn
    yield go
    GlobalHydra.instance().clear()


class Training:
    """Instead of `t5ts.experiment.run`: writes what a run writes, and fails on demand.

    Attributes:
        loss: Of a configuration; its learning rate by default.
        fault: Called with a run's configuration before it "trains"; it may raise.
        after: Called when result.json is written; it may raise too.
        done: Learning rates in the order in which they were trained.
        pictures: Whether each run was to draw any.
    """

    def __init__(self) -> None:
        self.loss: Callable[[Config], float] = lambda config: config.optim.lr
        self.fault: Callable[[Config], Any] = lambda _: None
        self.after: Callable[[Config], Any] = lambda _: None
        self.done: list[float] = []
        self.pictures: list[bool] = []

    def __call__(
        self, config: Config, *, run_dir: Path, after_epoch: Any = None, pictures: bool = True,
        **_: Any,
    ) -> Result:  # fmt: skip
        path = run_dir / "result.json"
        if path.exists():
            return read_result(path)
        self.pictures.append(pictures)
        self.fault(config)
        self.done.append(config.optim.lr)
        loss = self.loss(config)
        write_json(run_dir / "provenance.json", {"reuse": None})
        with (run_dir / "metrics.jsonl").open("w") as file:
            last = config.train.early_stopping_epochs or config.train.epochs
            for epoch in range(last + 1):
                row = {"kind": "eval", "epoch": epoch, "val_loss": config.optim.lr}
                file.write(json.dumps(row) + "\n")
                file.flush()
                if after_epoch is not None:
                    after_epoch(row | {"ends_run": epoch == last})
        result = Result(
            identity="", arm="", data="", seed=0, objective_name="val_loss", objective=loss,
            best_epoch=1, metrics={"val_loss": loss}, initial={}, baselines={"val": {}},
            baseline_season=1, best_achievable_loss=None, scale_audit={}, seconds=1.0,
            peak_memory_bytes=1, skipped_steps=0, debug="none",
        )  # fmt: skip
        write_json(path, asdict(result))
        self.after(config)
        return result


@pytest.fixture
def training(monkeypatch) -> Training:
    """Trials that cost nothing."""
    stand_in = Training()
    monkeypatch.setattr("t5ts.experiment.run", stand_in)
    monkeypatch.setattr(trial, "WAIT_S", 0.0)
    monkeypatch.setattr("t5ts.sweep.worker.POLL_S", 0.0)
    monkeypatch.setattr(coordinator, "_draw", lambda *_: [])
    return stand_in
