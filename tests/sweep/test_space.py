"""The sweep grammar against hand-worked distributions (test_stock.py uses the stock plugin)."""

from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from t5ts.errors import ConfigError
from t5ts.sweep.space import Space, arm_name, parse_space

CONDITIONS = {"freeze.unfreeze_epoch": {"freeze": ["staged"]}}
CHOICES = {"freeze": "none", "init": "random"}


def parse(*arguments: str, arms: tuple[str, ...] = (), **params: Any) -> Space:
    return parse_space(params, arguments, arms=arms, conditions=CONDITIONS, choices=CHOICES)


#: Hand-worked; the stock plugin is asked for the same lines.
GRAMMAR = [
    ("optim.lr=interval(1e-4,1e-2)", FloatDistribution(1e-4, 1e-2)),
    ("optim.lr=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
    ("optim.lr=interval(1,10)", FloatDistribution(1, 10)),
    ("optim.lr=interval(1,3.5)", FloatDistribution(1, 3.5)),
    ("train.epochs=int(interval(1,10))", IntDistribution(1, 10)),
    ("train.epochs=int(interval(1,3.5))", IntDistribution(1, 3)),
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
]


@pytest.mark.parametrize(("argument", "expected"), GRAMMAR)
def test_grammar(argument, expected):
    assert list(parse(argument).distributions.values()) == [expected]


def test_shuffled_choices_are_the_same_choices():
    (distribution,) = parse("train.epochs=shuffle(range(1,6))").distributions.values()
    assert isinstance(distribution, CategoricalDistribution)
    assert sorted(distribution.choices) == [1, 2, 3, 4, 5]


def test_command_line_wins_over_the_preset_key_by_key():
    preset = {"optim.lr": "interval(1e-4,1e-2)", "train.epochs": "1,2"}
    fixed = parse("optim.lr=0.1", **preset)
    assert (list(fixed.distributions), fixed.fixed) == (["train.epochs"], ("optim.lr=0.1",))
    swept = parse("optim.lr=0.1,0.2", **preset)
    assert swept.distributions["optim.lr"] == CategoricalDistribution((0.1, 0.2))


def test_groups_are_sampled_before_what_depends_on_them():
    space = parse("freeze.unfreeze_epoch=range(0,3)", "freeze=none,staged")
    assert list(space.distributions) == ["freeze", "freeze.unfreeze_epoch"]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        trial = study.ask()
        space.suggest(trial, arm={})
        assert ("freeze.unfreeze_epoch" in trial.params) == (trial.params["freeze"] == "staged")
        seen.add(trial.params["freeze"])
        study.tell(trial, 0.0)
    assert seen == {"none", "staged"}


def test_arms_split_the_space():
    space = parse("init=random,t5", "optim.lr=interval(1e-4,1e-2)", arms=("init", "backbone"))
    assert [arm_name(arm) for arm in space.arms] == ["init=random", "init=t5"]
    assert list(space.distributions) == ["optim.lr"]
    assert space.overrides({"optim.lr": 0.5}, space.arms[1]) == ["init=t5", "optim.lr=0.5"]
    alone = parse("init=random,t5", arms=("init",))
    assert alone.grid(alone.arms[0]) == [{}]


def test_a_grid_has_each_point_once_and_the_longest_frozen_phase_first():
    grid = parse("freeze=none,staged", "freeze.unfreeze_epoch=range(1,4)", "seed=0,1").grid({})
    assert grid[:2] == [{"freeze": "none", "seed": 0}, {"freeze": "none", "seed": 1}]
    staged = [(p["seed"], p["freeze.unfreeze_epoch"]) for p in grid[2:]]
    assert staged == [(0, 3), (0, 1), (0, 2), (1, 3), (1, 1), (1, 2)]


def test_grid_steps_are_written_as_one_would_write_them():
    grid = parse("backbone.dropout=range(0.1,0.45,0.1)").grid({})
    assert [p["backbone.dropout"] for p in grid] == [0.1, 0.2, 0.3, 0.4]


@given(low=st.integers(-50, 50), size=st.integers(0, 30), step=st.integers(1, 7))
def test_a_range_excludes_its_stop_as_python_does(low, size, step):
    stop = low + size + 1
    grid = [setting["seed"] for setting in parse(f"seed=range({low},{stop},{step})").grid({})]
    assert grid == list(range(low, stop, step))


def test_corners_have_every_choice_and_both_ends():
    corners = list(parse("init=random,t5,matched", "seed=range(3,9)").corners({}))
    assert {corner["init"] for corner in corners} == {"random", "t5", "matched"}
    assert {corner["seed"] for corner in corners} == {3, 8}
    assert {"init": "matched", "seed": 8} in corners


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["optim.lr=interval(2,1)"], "optim.lr"),
        (["optim.lr=interval(1,1)"], "optim.lr"),
        (["optim.lr=tag(lgo,interval(1e-4,1))"], "lgo"),
        (["train.epochs=range(3,3)"], "train.epochs"),
        (["train.epochs=range(3,5,0)"], "step"),
        (["optim.lr=tag(log,interval(0,1))"], "optim.lr"),
        (["optim.lr=0.1,0.1"], "optim.lr"),
        (["optim.lr=0.1"], "nothing to sweep"),
        ([], "nothing to sweep"),
        (["init=glob(*)"], "init"),
        (["optim.lr=interval(1,"], "hydra.sweeper.params"),
    ],
)
def test_bad_spaces_are_refused_by_name(arguments, key):
    with pytest.raises(ConfigError, match=key):
        parse(*arguments)


def test_continuous_arms_and_continuous_or_absurd_grids_are_refused():
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.arms: optim\.lr"):
        parse("optim.lr=interval(1e-4,1e-2)", arms=("optim.lr",))
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        parse("optim.lr=interval(1e-4,1e-2)").grid({})
    with pytest.raises(ConfigError, match="999,000"):
        parse("seed=range(0,1000)", "train.epochs=range(1,1000)").grid({})
