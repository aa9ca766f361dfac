"""The presets that sweep: their arms and settings, as the sweeper reads them."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from t5ts.config import CONF, register
from t5ts.sweep.space import Space, parse_space


def preset(name: str, *arguments: str) -> tuple[Space, dict[str, str]]:
    """Its space, under more of the command line, and the options of its groups."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"experiment={name}"], return_hydra_config=True)
    sweeper = OmegaConf.to_container(config.hydra.sweeper)
    assert isinstance(sweeper, dict)
    space = parse_space(
        sweeper["params"],
        arguments,
        arms=sweeper["arms"],
        conditions=sweeper["conditions"],
        choices=config.hydra.runtime.choices,
    )
    return space, dict(config.hydra.runtime.choices)


@pytest.mark.parametrize("name", ["unfreeze_lr", "weights_matter", "transfer_ood"])
def test_every_arm_can_be_had_without_a_network(name):
    space, choices = preset(name)
    assert choices["backbone"] == "t5_tiny_en"
    assert {"random", "t5"} <= {arm["init"] for arm in space.arms}


#: Settings of an arm: rates of head and encoder, token scales, unfreeze epochs where it waits.
NONE, ALL, STAGED = 2 * 2 * 2, 2 * 2, 2 * 2 * 2 * 2


@pytest.mark.parametrize(
    ("name", "arms", "settings"),
    [
        ("controls", 4 * 4, {"none": NONE, "norms": NONE, "staged": NONE, "all": ALL}),
        ("weights_matter", 4 * 2 * 2, {"none": 3 * 2 * 2, "all": 3 * 2}),
        ("transfer_ood", 2 * 3, {"none": NONE, "staged": STAGED, "all": ALL}),
        ("instruction_tuning", 2 * 2, {None: 2 * 2 * (1 + 2)}),  # native scale
        ("data_fraction", 2 * 3, {None: 3 * 2 * 2 * 2}),
        ("language_models", 4, {None: 4 * 2 * 2}),
        ("seed_log", 5, {None: 2 * 2 * 5}),  # five seeds; scale and unfreeze epoch are the log's
    ],
)
def test_comparing_presets_tune_every_arm_of_a_schedule_alike(name, arms, settings):
    space, _ = preset(name)
    assert len(space.arms) == arms
    for arm in space.arms:
        grid = space.grid(arm)
        assert len(grid) == settings[arm.get("freeze")]
        if "patch.scale" in grid[0]:
            assert len({setting["patch.scale"] for setting in grid}) == 2


def test_a_linear_map_is_tuned_as_much_as_a_frozen_encoder():
    linear = "backbone=linear init=random freeze=none optim.lr=1e-3,3e-3,1e-2,3e-2"
    linear += " optim.encoder_lr_scale=1 patch.scale=native"
    space, _ = preset("controls", *linear.split())
    assert len(space.grid(space.arms[0])) == ALL


@pytest.mark.parametrize(
    "name",
    [
        "transfer_ood", "weights_matter", "data_fraction", "seed_log", "instruction_tuning",
        "controls", "unfreeze_lr", "unfreeze_grid", "defaults",
    ],
)  # fmt: skip
def test_presets_train_a_stated_number_of_steps(name, composed):
    config = composed(f"experiment={name}")
    steps = config.train.epochs * config.data.windows_per_epoch // config.train.batch_size
    assert 300 <= steps <= 1000


def test_transfer_ood_is_tested_on_the_other_airport():
    _, choices = preset("transfer_ood")
    assert (choices["data"], choices["data@ood"]) == ("nyc_weather", "nyc_lga")


def test_the_other_series_may_be_swept_like_a_group():
    space, _ = preset("transfer_ood", "data@ood=nyc_lga,nyc_weather")
    grid = space.grid(space.arms[0])
    assert {setting["data@ood"] for setting in grid} == {"nyc_lga", "nyc_weather"}
    assert "data@ood=nyc_lga" in space.overrides(grid[0], space.arms[0])
