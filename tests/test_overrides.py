"""Whatever is typed after the command: a run, or one message that names the key.

The real entry point of `python -m t5ts.run` is called; what would be trained is only counted.
"""

import random
import subprocess
import sys
from collections.abc import Callable

import pytest
from hostile import HOSTILE, TOGETHER, Outcome, outcome

from t5ts.config import CONF

Enter = Callable[..., Outcome]
#: Keys without a dot, which are named in messages too.
TOP = ("seed", "seq_len", "horizon", "objective")
FUZZED = 20


@pytest.fixture
def enter(tmp_path, capsys, monkeypatch) -> Enter:
    return lambda *arguments: outcome(list(arguments), tmp_path / "cwd", capsys, monkeypatch)


@pytest.mark.parametrize(("line", "named"), HOSTILE)
def test_nonsense_is_refused_by_name(line, named, enter):
    assert enter(*line.split()).fault(named) is None


@pytest.mark.parametrize("line", TOGETHER)
def test_all_impossible_values_are_named_together(line, enter):
    keys = [override.partition("=")[0] for override in line.split()]
    assert enter(*line.split()).fault(*(k for k in keys if "." in k or k in TOP)) is None


def test_tab_completion_is_hydras(enter):
    assert enter("-sc", "install=bash").status == 0


@pytest.mark.parametrize(
    ("line", "runs"),
    [
        ("", 1),
        ("init=t5 freeze=staged freeze.unfreeze_epoch=2.5 optim.lr=3e-4 seed=1", 1),
        ("freeze.always=[layer_norm,'block.0'] freeze=staged_norms tracker.tags=[a,b]", 1),
        ("++optim.lr=0.1 data@ood=nyc_lga ~data@ood", 1),
        ("data=csv 'data.path=~/x.csv'", 0),
        ("data=csv data.path='~/x.csv' data.name=my.v2", 1),
        ("experiment=demo ~experiment optim={} data.windows_per_epoch=null", 0),
        ("hydra.run.dir=here hydra.job.chdir=true", 1),
        ("--multirun seed=0,1 backbone=choice(shared,linear)", 4),
        ("--multirun seed=range(0,3) optim.lr=1e-3", 3),
        ("--multirun data=glob(nyc_*) freeze.always=[layer_norm] freeze=norms", 2),
    ],
)
def test_sense_is_accepted(line, runs, enter):
    got = enter(*line.split())
    assert got.trained == runs, got.said
    assert (got.status == 0) == (runs > 0)


@pytest.mark.parametrize(
    ("yaml", "named"),
    [
        ("optim: {learning_rate: 5}", "learning_rate"),
        ("optimizer: sgd", "optimizer"),
        ("optim: {lr: .nan}", "optim.lr"),
        ("optim: 3", "OptimConfig"),
    ],
)
def test_an_experiment_of_ones_own_is_checked_as_the_command_line_is(yaml, named, tmp_path, enter):
    folder = tmp_path / "mine" / "arm"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\n{yaml}\n")
    got = enter("--config-dir", str(tmp_path / "mine"), "arm=mine")
    assert got.fault(named) is None


@pytest.mark.parametrize("line", ["optim.lr=nan", "--multirun ~seed seed=0,1"])
def test_a_process_refuses_as_the_entry_point_does(line, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "t5ts.run", *line.split()], cwd=tmp_path, check=False,
        env={"PYTHONPATH": str(CONF.parent), "PATH": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("t5ts: ")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------- fuzz

VALID = [
    "optim.lr=1e-3", "seed=3", "data=synthetic", "backbone=shared", "init=random", "freeze=staged",
    "train.epochs=4", "freeze.unfreeze_epoch=2", "freeze.always=[layer_norm]", "tracker=none",
    "data.name=mine", "backbone.dropout=0.2", "horizon=12", "optim.clip_norm=null", "seq_len=64",
    "train.precision=bf16", "data@ood=nyc_lga", "arm=log_fair",
    "hydra.job.name=x", "patch.stride=8", "train.resume=never", "data.windows_per_epoch=64",
    "task=reconstruct", "debug=fast_dev_run", "experiment=demo",
]  # fmt: skip
VALUES = [
    "", "null", "nan", "-inf", "inf", "1e309", "-1", "0", "99999999999999999999999", "true", "???",
    "[]", "[1,2]", "[nan]", "['']", "{}", "{a:1}", "${nope}", "${seed}", "${oc.env:NOPE}", "${",
    "'", '"', "~/x", "a/b", "..", "../x", "\\", "(", ")", "[", "{", "1,2", "interval(0,1)",
    "range(1)", "choice(1)", "int(", "ñ", "日本", "\u202e", " ", "\t", "%s", "a b", ":",
    "@", "x" * 300, "1_000", "0x10", "=", "==", "os.system", "t5", "linear",
]  # fmt: skip
PREFIXES = ["+", "++", "~", "=", "@", ".", "-", "--", "hydra.", "${seed}", "a.", " "]


def mutated(chance: random.Random) -> list[str]:
    """A valid line of one to three overrides, with one of them broken."""
    line = chance.sample(VALID, chance.randint(1, 3))
    place = chance.randrange(len(line))
    key, _, value = line[place].partition("=")
    line[place] = chance.choice(
        [
            f"{key}={chance.choice(VALUES)}",
            f"{key}={chance.choice(VALUES)}",
            f"{key}={chance.choice(VALUES)}",
            f"{chance.choice(PREFIXES)}{key}={value}",
            f"{key}{chance.choice(VALUES)}={value}",
            f"{key}.{chance.choice(['_target_', 'name', 'x', 'lr', ''])}={chance.choice(VALUES)}",
            f"~{key}",
            key,
            f"{key}={value}{chance.choice(VALUES)}",
        ]
    )
    if chance.random() < 0.1:
        line.insert(0, chance.choice(["--multirun", "--cfg", "--resolve", "--info"]))
    return line


@pytest.mark.parametrize("number", range(FUZZED))
def test_a_broken_line_is_run_or_refused_in_one_message(number, enter):
    line = mutated(random.Random(number))
    got = enter(*line)
    if got.status != 0 or not (got.trained or "--info" in line):
        assert got.fault() is None, line
