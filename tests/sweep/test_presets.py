"""The presets that sweep: their arms and settings, as the sweeper reads them."""

from collections.abc import Callable

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from t5ts.config import CONF, Config, register
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
def test_every_arm_can_be_had_without_a_network(name: str) -> None:
    space, choices = preset(name)
    assert choices["backbone"] == "t5_tiny_en"
    assert {"random", "t5"} <= {arm["init"] for arm in space.arms}


#: Rates are tuned within every arm: settings where the encoder trains, and where it is frozen.
TRAINED, FROZEN, SEEDS = 2 * 2, 2, 5


@pytest.mark.parametrize(
    ("name", "arms", "settings"),
    [
        ("data_fraction", 6, 2 * 3 * TRAINED // 2),  # 2 inits at 3 shares; 2 unfreeze epochs
        ("seed_log", 5, TRAINED),
        ("instruction_tuning", 4, 2 * TRAINED),
    ],
)
def test_comparing_presets_tune_every_arm_alike_on_paired_seeds(
    name: str, arms: int, settings: int
) -> None:
    space, _ = preset(name)
    grids = [space.grid(arm) for arm in space.arms]
    assert len(grids) == arms
    assert all(grid == grids[0] for grid in grids)
    assert len(grids[0]) == settings * SEEDS


@pytest.mark.parametrize(
    "name",
    [
        "transfer_ood", "weights_matter", "data_fraction", "seed_log", "instruction_tuning",
        "controls", "unfreeze_lr", "unfreeze_grid", "defaults",
    ],
)  # fmt: skip
def test_presets_train_a_stated_number_of_steps(name: str, composed: Callable[..., Config]) -> None:
    config = composed(f"experiment={name}")
    assert config.data.windows_per_epoch is not None
    steps = config.train.epochs * config.data.windows_per_epoch // config.train.batch_size
    assert 300 <= steps <= 1000


@pytest.mark.parametrize(
    ("name", "arms", "rates"), [("transfer_ood", 2 * 3, 2), ("weights_matter", 4 * 2 * 2, 3)]
)
def test_arms_under_one_schedule_have_equal_budgets(name: str, arms: int, rates: int) -> None:
    space, _ = preset(name)
    assert len(space.arms) == arms
    for arm in space.arms:
        encoder_rates = 1 if arm["freeze"] == "all" else 2  # a frozen encoder has no rate
        assert len(space.grid(arm)) == rates * encoder_rates * SEEDS


def test_transfer_ood_is_tested_on_the_other_airport() -> None:
    _, choices = preset("transfer_ood")
    assert (choices["data"], choices["data@ood"]) == ("nyc_weather", "nyc_lga")


def test_the_other_series_may_be_swept_like_a_group() -> None:
    space, _ = preset("transfer_ood", "data@ood=nyc_lga,nyc_weather")
    grid = space.grid(space.arms[0])
    assert {setting["data@ood"] for setting in grid} == {"nyc_lga", "nyc_weather"}
    assert "data@ood=nyc_lga" in space.overrides(grid[0], space.arms[0])


def test_controls_compare_every_init_under_every_freezing_schedule() -> None:
    space, _ = preset("controls")
    assert len(space.arms) == 4 * 4
    for arm in space.arms:
        settings = FROZEN if arm["freeze"] == "all" else TRAINED
        assert len(space.grid(arm)) == settings * SEEDS
    linear, _ = preset(
        "controls", "backbone=linear", "init=random", "freeze=none", "optim.encoder_lr_scale=1"
    )
    assert len(linear.grid(linear.arms[0])) == 2 * SEEDS
