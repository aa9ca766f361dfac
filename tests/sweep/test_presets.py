"""The presets that sweep: their arms and points, as the sweeper reads them; nothing is trained."""

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
def test_every_arm_can_be_had_without_a_network(name: str) -> None:
    space, choices = preset(name)
    assert choices["backbone"] == "t5_tiny_en"
    assert {"random", "t5"} <= {arm["init"] for arm in space.arms}


def test_transfer_ood_is_a_paired_grid_tested_on_the_other_airport() -> None:
    space, choices = preset("transfer_ood")
    grids = [space.grid(arm) for arm in space.arms]
    assert grids[0] == grids[1]
    assert {point["freeze"] for point in grids[0]} == {"none", "all", "staged"}
    assert len(grids[0]) == 3 * 5
    assert (choices["data"], choices["data@ood"]) == ("nyc_weather", "nyc_lga")


def test_the_other_series_may_be_swept_like_a_group() -> None:
    space, _ = preset("transfer_ood", "data@ood=nyc_lga,nyc_weather")
    grid = space.grid(space.arms[0])
    assert {point["data@ood"] for point in grid} == {"nyc_lga", "nyc_weather"}
    assert "data@ood=nyc_lga" in space.overrides(grid[0], space.arms[0])


def test_controls_have_linear_once_per_seed() -> None:
    space, choices = preset("controls")
    t5, linear = (space.grid(arm) for arm in space.arms)
    assert [arm["backbone"] for arm in space.arms] == ["t5_efficient_tiny", "linear"]
    assert linear == [{"seed": seed} for seed in range(5)]
    assert len(t5) == 4 * 4 * 5
    assert (choices["init"], choices["freeze"]) == ("random", "none")  # what linear has
    # Whichever T5 is chosen instead.
    names = {path.stem for path in (CONF / "backbone").glob("*.yaml")} - {
        "linear",
        "shared",
        "patchtst",
        "t5_micro",  # it has no checkpoint
    }
    for name in names:
        assert space.grid({"backbone": name}) == t5, name


def test_weights_matter_is_a_paired_grid() -> None:
    space, _ = preset("weights_matter")
    grids = [space.grid(arm) for arm in space.arms]
    assert [arm["init"] for arm in space.arms] == ["random", "t5", "matched", "shuffled"]
    assert all(grid == grids[0] for grid in grids)  # the same seeds and settings in every arm
    assert len(grids[0]) == 2 * 2 * 2 * 5


def test_instruction_tuning_compares_two_checkpoints_with_their_random_arms() -> None:
    space, _ = preset("instruction_tuning")
    assert {(arm["backbone"], arm["init"]) for arm in space.arms} == {
        (backbone, init)
        for backbone in ("flan_t5_small", "t5_v1_1_small")
        for init in ("t5", "random")
    }
    grids = [space.grid(arm) for arm in space.arms]
    assert all(grid == grids[0] for grid in grids)
    assert len(grids[0]) == 2 * 5
