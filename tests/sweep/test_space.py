"""The sweep grammar, by hand-worked distributions; the stock plugin is the oracle elsewhere."""

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from t5ts.config import CONF, register
from t5ts.errors import ConfigError
from t5ts.sweep.space import Space, arm_name, parse_space

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
CONDITIONS = {"freeze.unfreeze_epoch": {"freeze": ["staged"]}}
CHOICES = {"freeze": "none", "init": "random"}


@pytest.fixture(scope="module")
def config() -> DictConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config")


@pytest.fixture(scope="module")
def parse(config: DictConfig) -> Callable[..., Space]:
    def make(*arguments: str, arms: tuple[str, ...] = (), **params: Any) -> Space:
        return parse_space(
            params,
            arguments,
            arms=arms,
            conditions=CONDITIONS,
            config=config,
            groups=GROUPS,
        )

    return make


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("optim.lr=interval(1e-4,1e-2)", FloatDistribution(1e-4, 1e-2)),
        ("optim.lr=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("optim.lr=interval(1,10)", FloatDistribution(1, 10)),
        ("train.epochs=int(interval(1,10))", IntDistribution(1, 10)),
        ("train.batch_size=tag(log,int(interval(8,64)))", IntDistribution(8, 64, log=True)),
        ("train.epochs=range(1,9,3)", IntDistribution(1, 7, step=3)),
        ("train.epochs=range(5,1,-1)", IntDistribution(2, 5)),
        ("backbone.dropout=range(0.1,0.5,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("train.epochs=1,2,4", CategoricalDistribution((1, 2, 4))),
        ("train.epochs=choice(1,2)", CategoricalDistribution((1, 2))),
        ("init=random,t5", CategoricalDistribution(("random", "t5"))),
        ("patch.stride=null,8", CategoricalDistribution(("null", 8))),
        # An unfreeze epoch is whole unless fractions are asked for.
        ("freeze.unfreeze_epoch=interval(0,8)", IntDistribution(0, 8)),
        ("freeze.unfreeze_epoch=tag(fraction,interval(0,8))", FloatDistribution(0, 8)),
        ("freeze.unfreeze_epoch=interval(0.5,7.5)", FloatDistribution(0.5, 7.5)),
    ],
)
def test_grammar(parse: Callable[..., Space], argument: str, expected: Any) -> None:
    space = parse(argument)
    assert list(space.distributions.values()) == [expected]


def test_shuffled_choices_are_the_same_choices(parse: Callable[..., Space]) -> None:
    space = parse("train.epochs=shuffle(range(1,6))")
    (distribution,) = space.distributions.values()
    assert isinstance(distribution, CategoricalDistribution)
    assert sorted(distribution.choices) == [1, 2, 3, 4, 5]


def test_command_line_wins_over_the_preset_key_by_key(parse: Callable[..., Space]) -> None:
    preset = {"optim.lr": "interval(1e-4,1e-2)", "train.epochs": "1,2"}
    fixed = parse("optim.lr=0.1", **preset)
    assert list(fixed.distributions) == ["train.epochs"]
    assert fixed.fixed == ("optim.lr=0.1",)
    swept = parse("optim.lr=0.1,0.2", **preset)
    assert swept.distributions["optim.lr"] == CategoricalDistribution((0.1, 0.2))


def test_groups_are_sampled_before_what_depends_on_them(parse: Callable[..., Space]) -> None:
    space = parse("freeze.unfreeze_epoch=range(0,3)", "freeze=none,staged")
    assert list(space.distributions) == ["freeze", "freeze.unfreeze_epoch"]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        trial = study.ask()
        space.suggest(trial, arm={}, choices=CHOICES)
        assert ("freeze.unfreeze_epoch" in trial.params) == (trial.params["freeze"] == "staged")
        seen.add(trial.params["freeze"])
        study.tell(trial, 0.0)
    assert seen == {"none", "staged"}


def test_arms_split_the_space(parse: Callable[..., Space]) -> None:
    space = parse("init=random,t5", "optim.lr=interval(1e-4,1e-2)", arms=("init", "backbone"))
    assert [arm_name(arm) for arm in space.arms] == ["init=random", "init=t5"]
    assert list(space.distributions) == ["optim.lr"]
    assert space.overrides({"optim.lr": 0.5}, space.arms[1]) == ["init=t5", "optim.lr=0.5"]


def test_arms_alone_are_a_sweep_of_single_trials(parse: Callable[..., Space]) -> None:
    space = parse("init=random,t5", arms=("init",))
    assert space.grid(arm=space.arms[0], choices=CHOICES) == [{}]


def test_grid_counts_each_point_once_without_what_means_nothing(
    parse: Callable[..., Space],
) -> None:
    space = parse("freeze=none,staged", "freeze.unfreeze_epoch=range(1,4)", "seed=0,1")
    grid = space.grid(arm={}, choices=CHOICES)
    assert len(grid) == 2 * (1 + 3)
    assert {"freeze": "none", "seed": 0} in grid
    assert len({tuple(sorted(point.items())) for point in grid}) == len(grid)


def test_grid_steps_are_written_as_one_would_write_them(parse: Callable[..., Space]) -> None:
    space = parse("backbone.dropout=range(0.1,0.45,0.1)")
    values = [p["backbone.dropout"] for p in space.grid(arm={}, choices={})]
    assert values == [0.1, 0.2, 0.3, 0.4]


@given(
    low=st.integers(-50, 50),
    size=st.integers(0, 30),
    step=st.integers(1, 7),
)
def test_a_range_excludes_its_stop_as_python_does(
    config: DictConfig, low: int, size: int, step: int
) -> None:
    stop = low + size + 1
    space = parse_space(
        {},
        [f"seed=range({low},{stop},{step})"],
        arms=(),
        conditions={},
        config=config,
        groups=GROUPS,
    )
    points = [point["seed"] for point in space.grid(arm={}, choices={})]
    assert points == list(range(low, stop, step))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optim.lrr=1,2"], "optim.lrr is not a setting, so it cannot be swept. Did you mean"),
        (["train.epochs=interval(1.5,9)"], "train.epochs is a whole number"),
        (["train.epochs=interval(1,9)"], "int(interval(A,B))"),
        (["train.epochs=1.5,2"], "train.epochs is a whole number"),
        (["optim.lr=interval(2,1)"], "interval(2, 1) is empty"),
        (["optim.lr=interval(1,1)"], "one value"),
        (["optim.lr=tag(lgo,interval(1e-4,1))"], "lgo"),
        (["train.epochs=range(3,3)"], "empty"),
        (["train.epochs=range(3,5,0)"], "step"),
        (["optim.lr=tag(log,interval(0,1))"], "optim.lr"),
        (["optim.lr=0.1,0.1"], "named twice"),
        (["optim.lr=0.1"], "nothing to sweep"),
        ([], "nothing to sweep"),
        (["init=glob(*)"], "not a space that can be searched"),
        (["optim.lr=interval(1,"], "hydra.sweeper.params"),
    ],
)
def test_bad_spaces_are_refused_by_name(
    parse: Callable[..., Space], arguments: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*arguments)
    assert said in str(caught.value)


def test_a_continuous_arm_is_refused(parse: Callable[..., Space]) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.arms: optim\.lr"):
        parse("optim.lr=interval(1e-4,1e-2)", arms=("optim.lr",))


def test_a_continuous_grid_is_refused(parse: Callable[..., Space]) -> None:
    with pytest.raises(ConfigError, match="which has no grid"):
        parse("optim.lr=interval(1e-4,1e-2)").grid(arm={}, choices={})


def test_an_absurd_grid_is_refused(parse: Callable[..., Space]) -> None:
    with pytest.raises(ConfigError, match="points, above"):
        parse("seed=range(0,1000)", "train.epochs=range(1,1000)").grid(arm={}, choices={})
