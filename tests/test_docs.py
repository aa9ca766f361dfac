"""README and docs: runs are dry-run, other commands parsed; links; the CSV block for real."""

import argparse
import importlib
import itertools
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import chdir
from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from data.ett_files import write_ett
from data.table_files import series_table
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from language_models import SIZES, save
from runs import run

from t5ts.config import CONF, Config
from t5ts.data.fetch import ETT_FILES
from t5ts.model.checkpoint_file import file_sha256
from t5ts.overrides import check_overrides
from t5ts.schema import EttData, HFBackbone, T5Backbone

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Other pages whose links are followed too.
LINKING = [*PAGES, *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG"))]
#: How a command begins; `[` leaves synopses out.
COMMAND = re.compile(r"(?:torchrun \S+|python) -m ((?:t5ts|tools|benchmarks)[\w.]*)([^\n#`]*)")
#: Hydra's directories; and launchers, which are extras of their own.
HYDRAS = ("hydra/launcher", "hydra.launcher", "hydra.run.", "hydra.sweep.", "hydra.sweeper.storage")
TINY = ["train.epochs=1", "data.windows_per_epoch=32", "train.batch_size=16", "tracker=none"]


def joined(page: Path) -> str:
    """A page's text with continued lines joined."""
    return re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command's module and its arguments."""
    for module, rest in COMMAND.findall(text):
        words = shlex.split(rest.strip().partition("  ")[0])  # a remark follows two blanks
        if "…" not in rest and not any(word.startswith("[") for word in words):
            yield module, [word for word in words if not word.startswith("2>")]


REPORT = ROOT / "t5ts" / "analysis" / "report.md.j2"  # it suggests commands too
COMMANDS = {
    (module, *words) for page in (*PAGES, REPORT) for module, words in commands(joined(page))
}
COMMANDS |= {  # each preset opens with its own
    (module, *words)
    for preset in sorted((CONF / "experiment").glob("*.yaml"))
    for module, words in commands(re.sub(r"\\\n# *", "", preset.read_text()))
}
RUNS = sorted(command[1:] for command in COMMANDS if command[0] == "t5ts.run")
OTHERS = sorted(command for command in COMMANDS if command[0] != "t5ts.run")


def values_of(line: str) -> list[str]:
    """An override for each value of a sweep; of a range or an interval for its start."""
    override: Override = OverridesParser.create().parse_override(line)
    if not override.is_sweep_override():
        return [line]
    sweep = override.value()
    if isinstance(sweep, ChoiceSweep):
        return [f"{override.key_or_group}={value}" for value in sweep.list]
    return [f"{override.key_or_group}={sweep.start}"]


def jobs(words: Iterable[str]) -> list[tuple[str, ...]]:
    """The overrides of each job, less Hydra's own directories and launchers."""
    own = [word for word in words if "=" in word or word.startswith("~")]
    check_overrides(own)  # all options of a sweep
    own = [word for word in own if not word.startswith(HYDRAS)]
    return list(itertools.product(*map(values_of, own)))


def test_there_are_commands():
    assert len(RUNS) > 40
    assert {module for module, *_ in OTHERS} >= {"t5ts.report", "t5ts.download", "t5ts.dashboard"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The files that the pages' commands name: tables, ETT's files, a BERT (`DIR`)."""
    place = tmp_path_factory.mktemp("docs")
    save("bert", place / "DIR")
    for name in ("etth1", "etth2"):
        write_ett(place, name)
    times = pl.datetime_range(datetime(2022, 1, 1), datetime(2025, 12, 31), "1d", eager=True)
    values = np.random.default_rng(0).normal(size=len(times)).cumsum()
    wide = pl.DataFrame({"time": times, "load": values, "price": values + 1})
    for name in ("your.csv", "bars.csv"):
        wide.write_csv(place / name)
    wide.write_parquet(place / "bars.parquet")
    long = wide.unpivot(index="time", variable_name="sensor", value_name="reading")
    long.rename({"time": "when"}).write_csv(place / "long.csv")
    return place


#: What only a whole study has: a donor, another sweep. Such a command is composed alone.
OF_A_STUDY = ("init.path", "patch.path", "experiment=final", "_control", "when_to_unfreeze")


def small(config: Config, folder: Path, packaged: Config) -> Config:
    """The same, dry-run in a second: few steps, a small encoder, files that are there."""
    backbone: Any = config.backbone
    if isinstance(backbone, HFBackbone) and config.init.name == "random":
        sizes = {"model_type": "bert", **SIZES}
        backbone = replace(backbone, sizes=sizes, num_layers=1)
    elif isinstance(backbone, HFBackbone):
        where = {"hub_id": None, "path": str(folder / "DIR"), "sizes": {}, "num_layers": 1}
        backbone = replace(backbone, **where)
    elif isinstance(backbone, T5Backbone) and config.init.name != "random":
        backbone = packaged.backbone
    elif isinstance(backbone, T5Backbone):
        sizes = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2}
        backbone = replace(backbone, **sizes)
    data: Any = {}
    for key in ("data", "ood"):
        series = getattr(config, key)
        if isinstance(series, EttData):
            file = folder / ETT_FILES[series.dataset]
            series = replace(series, dir=str(folder), sha256=file_sha256(file))
        elif hasattr(series, "num_rows"):
            series = replace(series, num_rows=min(series.num_rows, 4000))
        data[key] = series
    debug = config.debug
    if debug.name == "none":
        debug = replace(debug, name="fast_dev_run", fast_dev_run=True)
    train = replace(config.train, epochs=1, batch_size=4, eval_batch_size=16, threads=1)
    optim = replace(config.optim, warmup_epochs=0.0)
    tracker = replace(config.tracker, name="none")
    freeze = config.freeze
    if freeze.unfreeze_epoch:
        freeze = replace(freeze, unfreeze_epoch=0.0)
    parts: Any = {"debug": debug, "train": train, "optim": optim, "tracker": tracker}
    return replace(config, backbone=backbone, freeze=freeze, **data, **parts)


@pytest.mark.parametrize(
    "words", [words for words in RUNS if not {"--help", "--cfg"} & set(words)], ids=" ".join
)
def test_run_commands_run(words, composed, folder, tmp_path):
    """The first job of each, as a dry run."""
    config = composed(*jobs(words)[0])
    if any(text in " ".join(words) for text in OF_A_STUDY):
        return
    with chdir(folder):
        made = small(config, folder, composed("backbone=t5_tiny_en", "init=t5"))
        assert run(made, run_dir=tmp_path / "run").arm == made.arm


@pytest.mark.parametrize("command", OTHERS, ids=" ".join)
def test_other_commands_parse(command, monkeypatch):
    """A real `main` up to its `parse_args`; then nothing happens."""
    module, *words = command
    if not module.startswith("t5ts."):
        assert find_spec(module) is not None
        return

    class ParsedError(Exception):
        pass

    def then_stop(parse: Any) -> Any:
        def parse_only(*arguments: object) -> None:
            parse(*arguments)
            raise ParsedError

        return parse_only

    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)
        monkeypatch.setattr(argparse.ArgumentParser, name, then_stop(parse))
    with pytest.raises(ParsedError):
        importlib.import_module(module).main(words)


def test_the_front_door_stays_small():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert (ROOT / "README.md").stat().st_size <= 7_500
    assert (ROOT / "docs" / "report.webp").stat().st_size <= 150_000


def test_ci_runs_the_steps_of_its_script():
    steps = re.findall(r"^make ([a-z-]+)", (ROOT / ".ci" / "run").read_text(), flags=re.M)
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r"run: make ([a-z-]+)", workflow) == steps


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    pages = "\n".join(map(joined, LINKING))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", pages, flags=re.M))
    assert named - {"help"}
    assert named <= targets


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    references = re.findall(r"^\[\w+\]: (\S+)", text, flags=re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + references:
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), flags=re.M)
            slugs = {re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in headings}
            assert anchor in slugs, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_exist(page):
    for path in re.findall(
        r"`((?:t5ts|conf|tests|scripts|docs|tools)/[\w./-]+)`", page.read_text()
    ):
        assert (ROOT / path).exists(), path
    for line in page.read_text().splitlines():
        assert len(line) <= 125, line


def test_the_tree_names_what_is_there():
    tree = (ROOT / "docs" / "developers.md").read_text().split("## The tree")[1].split("```")[1]
    named = set(re.findall(r"[\w.]+\.py\b", tree))
    assert named == {path.name for path in (ROOT / "t5ts").glob("*.py")} - {"__init__.py"}


def test_every_option_is_documented():
    text = (ROOT / "docs" / "configuration.md").read_text()
    for group in CONF.iterdir():
        if group.is_dir() and group.name != "hydra":
            for option in group.glob("*.yaml"):
                assert f"`{option.stem}`" in text, option


def test_every_key_is_documented():
    """Of the groups whose keys have a table; internal keys are left out."""
    from dataclasses import fields

    from t5ts.schema import CsvData, OptimConfig, PartialFreeze, PatchConfig, TrainConfig

    tables = {
        "data.md": CsvData,
        "freezing.md": PartialFreeze,
        "interface.md": PatchConfig,
        "configuration.md": OptimConfig,
        "configuration.md ": TrainConfig,
    }
    internal = {"_target_", "name", "algorithm", "norm"}
    for page, schema in tables.items():
        text = (ROOT / "docs" / page.strip()).read_text()
        for key in {field.name for field in fields(schema)} - internal:
            assert re.search(rf"`{key}`", text), (page, key)


def test_your_own_csv_from_the_run_to_the_forecast(tmp_path, composed, capsys, monkeypatch):
    """README's block, command by command, with few seeds and steps, and a report of one picture."""
    from t5ts.analysis import figures

    monkeypatch.setattr(figures, "PICTURES", {"effects": figures.PICTURES["effects"]})
    hours = np.arange(240)  # as few as README allows
    series_table(load=hours % 24, price=hours * 7 % 31).write_csv(tmp_path / "your.csv")
    block = joined(ROOT / "README.md").split("## Your own CSV")[1].split("## ")[0]
    with chdir(tmp_path):
        for module, words in commands(block):
            if "--help" in words:
                continue
            if module == "t5ts.run":
                folder = next(word.partition("=")[2] for word in words if "hydra." in word)
                few = [re.sub(r"^seed=.*", "seed=0", word) for word in words]
                for number, job in enumerate(jobs(few)):
                    place = Path(folder) / (str(number) if "--multirun" in words else "")
                    run(composed(*job, *TINY), run_dir=place)
            elif module != "t5ts":
                assert importlib.import_module(module).main(words) == 0
        assert Path("multirun/mine/report/report.html").is_file()
        assert len(Path("forecast.csv").read_text().splitlines()) == 1 + 2 * 24
    assert "seed" in capsys.readouterr().out
