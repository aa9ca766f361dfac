"""hydra-optuna-sweeper compared with ours: the presets run on it, and it reads a space as we do.

It needs Hydra 1.4, of which there are only pre-releases, so an environment of its own is made:
Hydra, OmegaConf and the plugin fresh from the package index, the rest borrowed from this one. So
these tests are no part of the offline suite: `make test-stock` runs them.
"""

import json
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import SMALL
from optuna.distributions import (
    BaseDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)
from runs import read
from sweep.sweeps import ROOT, environment
from sweep.test_space import GRAMMAR

from t5ts.config import CONF
from t5ts.sweep.space import parse_space

pytestmark = pytest.mark.index
#: The extra's pre-releases, as tested.
FRESH = ["hydra-core==1.4.0rc3", "omegaconf==2.4.1rc1", "hydra-optuna-sweeper==1.4.0rc3"]
PRESETS = [
    path.stem
    for path in sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
    if "override /hydra/sweeper" in path.read_text()
]

#: Run in that environment: reads command lines from stdin, prints how both read each of them.
ORACLE = """
import json, sys
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from optuna.distributions import distribution_to_json
from t5ts.config import CONF
from t5ts.sweep.space import parse_space

choices = {path.name: "" for path in CONF.iterdir() if path.is_dir()}
as_json = lambda space: {key: distribution_to_json(d) for key, d in space.items()}
for line in json.load(sys.stdin):
    try:
        stock, fixed, _ = create_params_from_overrides(line)
        stock = as_json(stock)
    except Exception as error:
        stock = fixed = type(error).__name__
    try:
        space = parse_space({}, line, conditions={}, choices=choices)
        ours, ours_fixed = as_json(space.distributions), list(space.fixed)
    except Exception as error:
        ours = ours_fixed = type(error).__name__
    print(json.dumps([stock, fixed, ours, ours_fixed]))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of the environment."""
    folder = tmp_path_factory.mktemp("stock") / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / "bin" / "python"
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet", "--no-deps",
         "--disable-pip-version-check", "--retries=1", "--timeout=10", *FRESH],
        capture_output=True, text=True,
    )  # fmt: skip
    if installed.returncode:
        last = (installed.stderr.strip().splitlines() or ["pip failed"])[-1]
        pytest.fail(f"{' '.join(FRESH)} could not be installed: {last}", pytrace=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # Searched last, and .pth files in there are not read; see scripts/check_wheel.py.
    borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    site = folder / "lib" / version / "site-packages"
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    code = "import hydra, optuna; print(hydra.__version__, optuna.__version__)"
    done = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.4.0rc3", "5.0.0"]
    return interpreter


@pytest.fixture(scope="module")
def read_by_both(python) -> Callable[[list[list[str]]], list[list]]:
    def ask(lines: list[list[str]]) -> list[list]:
        done = subprocess.run(
            [python, "-W", "ignore", "-c", ORACLE], input=json.dumps(lines), env=environment(),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask


def test_the_extra_names_what_is_tested():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert FRESH[2] in extras["optional-dependencies"]["stock-sweeper"]


def start(python: Path, *arguments: str, cwd: Path, status: int = 0) -> str:
    """`t5ts.run` in that environment; what it printed."""
    done = subprocess.run(
        [python, "-W", "ignore", "-m", "t5ts.run", *arguments], cwd=cwd, env=environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == status, output
    assert "Traceback" not in output
    return output


def on_stock(
    python: Path, *overrides: str, cwd: Path, status: int = 0, sweeper: str = "optuna"
) -> str:
    """A sweep of two trials, each a dry run."""
    small = [override for override in SMALL if not override.startswith("optim.lr=")]
    return start(
        python, "--multirun", f"hydra/sweeper={sweeper}", *small, "train.epochs=9",
        "debug=fast_dev_run", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=sweep", *overrides,
        cwd=cwd, status=status,
    )  # fmt: skip


def objectives(folder: Path) -> list[float]:
    values = [read(path)["objective"] for path in (folder / "sweep").glob("*/result.json")]
    assert len(values) == 2
    return values


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes_with_the_stock_sweeper(python, preset, tmp_path):
    config = start(
        python, f"experiment={preset}", "hydra/sweeper=optuna", "--cfg", "hydra", cwd=tmp_path
    )
    assert "StockSweeper" in config


@pytest.mark.parametrize("preset", ["unfreeze_lr", "seed_log"])
def test_presets_run_on_the_stock_sweeper(python, preset, tmp_path):
    """Same parameters, same objective; hydra-optuna-sweeper does the rest as it does."""
    on_stock(python, f"experiment={preset}", cwd=tmp_path)
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    written = yaml.safe_load((ROOT / "conf" / "experiment" / f"{preset}.yaml").read_text())
    assert set(best["best_params"]) == set(written["hydra"]["sweeper"]["params"])
    assert best["best_value"] == min(objectives(tmp_path))


def test_more_is_better_where_the_objective_says_so(python, tmp_path):
    space = ["backbone=linear", "optim.lr=1e-5,1e-2", "hydra/sweeper/sampler=grid"]
    on_stock(python, *space, "objective=val_corr", cwd=tmp_path)
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(objectives(tmp_path)) > min(objectives(tmp_path))


def test_our_sweeper_runs_in_the_same_environment(python, tmp_path):
    """On the other Hydra, with both plugins installed."""
    space = ["backbone=linear", "optim.lr=interval(1e-4,1e-2)"]
    on_stock(python, *space, cwd=tmp_path, sweeper="t5ts")
    assert objectives(tmp_path)
    assert (tmp_path / "sweep" / "study.journal").exists()


def test_what_the_stock_sweeper_lacks_is_one_message(python, tmp_path):
    final = ["experiment=final", "hydra.sweeper.best_of=there"]
    assert "hydra.sweeper.best_of=there" in on_stock(python, *final, cwd=tmp_path, status=2)
    here = on_stock(Path(sys.executable), "experiment=unfreeze_lr", cwd=tmp_path, status=2)
    assert "t5ts[stock-sweeper]" in here  # without the plugin


def distributions(space: dict[str, str]) -> dict[str, BaseDistribution]:
    return {key: json_to_distribution(text) for key, text in space.items()}


#: Command lines that both read, to the same distributions; the offline tests have theirs by hand.
SAME = [line for line, _ in GRAMMAR if "freeze.unfreeze_epoch" not in line] + [
    "optim.lr=interval(0,1)",
    "train.epochs=int(interval(1.2,9.7))",
    "optim.lr=float(interval(1,10))",
    "train.epochs=range(1,10,3)",
    "train.epochs=range(4)",
    "train.epochs=range(1,2)",
    "train.epochs=sort(range(1,5),reverse=true)",
    "backbone.dropout=range(0.0,0.3,0.05)",
    "backbone.dropout=range(0.5,0.1,-0.1)",
    "optim.lr=float(range(1,4))",
    "train.epochs=sort(3,1,2)",
    "train.epochs=tag(a,choice(1,2))",
    "tracker.project='a b','c,d'",
    "tracker.project=a,'1'",
    "train.progress=true,false",
    "freeze.unfreeze_epoch=range(0,9)",
    "freeze.unfreeze_epoch=0,2.5",
]

#: Hydra 1.3 casts the ends of a range, 1.4 each of its values: the same values, of another kind.
CAST_BY_HYDRA_1_3 = {
    "optim.lr=float(range(1,4))": {"optim.lr": FloatDistribution(1.0, 3.0, step=1.0)}
}


def test_command_lines_give_the_stock_sweepers_distributions(read_by_both):
    """By the other Hydra's parser, and by the one that this test runs on."""
    fixed_line = "horizon=8"
    lines = [[line, fixed_line] for line in SAME]
    choices = {path.name: "" for path in CONF.iterdir() if path.is_dir()}
    different = []
    for line, (stock, fixed, ours, ours_fixed) in zip(lines, read_by_both(lines), strict=True):
        assert isinstance(stock, dict), line
        assert (fixed, ours_fixed) == ({"horizon": "8"}, [fixed_line]), (line, ours)
        here = parse_space({}, line, conditions={}, choices=choices)
        expected = CAST_BY_HYDRA_1_3.get(line[0], distributions(stock))
        if distributions(ours) != distributions(stock) or here.distributions != expected:
            different.append((line, stock, ours, here.distributions))
    assert different == []


def test_an_unfreeze_epoch_is_the_one_exception(read_by_both):
    ((stock, _, ours, _),) = read_by_both([["freeze.unfreeze_epoch=interval(0.0,8.0)"]])
    assert "FloatDistribution" in stock["freeze.unfreeze_epoch"]
    assert json_to_distribution(ours["freeze.unfreeze_epoch"]) == IntDistribution(0, 8)


def test_what_the_stock_sweeper_refuses_is_refused(read_by_both):
    lines = [
        ["optim.lr=interval(2,1)"],
        ["optim.lr=tag(log,interval(0,1))"],
        ["train.epochs=range(3,3)"],
        ["init=glob(*)"],
    ]
    for line, (stock, _, ours, _) in zip(lines, read_by_both(lines), strict=True):
        assert isinstance(stock, str), line
        assert ours == "ConfigError", line
