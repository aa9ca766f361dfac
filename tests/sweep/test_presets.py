"""The presets that sweep: their arms and points, as the sweeper reads them; nothing is trained."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from t5ts.config import CONF, register
from t5ts.sweep.space import Space, parse_space

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())


def preset(name: str) -> tuple[Space, dict[str, str]]:
    """Its space, and the options of its groups."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"experiment={name}"], return_hydra_config=True)
    sweeper = OmegaConf.to_container(config.hydra.sweeper)
    assert isinstance(sweeper, dict)
    space = parse_space(
        sweeper["params"],
        [],
        arms=sweeper["arms"],
        conditions=sweeper["conditions"],
        config=config,
        groups=GROUPS,
    )
    return space, dict(config.hydra.runtime.choices)


@pytest.mark.parametrize("name", ["unfreeze_lr", "weights_matter"])
def test_every_arm_can_be_had_without_a_network(name: str) -> None:
    space, choices = preset(name)
    assert choices["backbone"] == "t5_tiny_en"
    assert {"random", "t5"} <= {arm["init"] for arm in space.arms}


def test_weights_matter_is_a_paired_grid() -> None:
    space, choices = preset("weights_matter")
    grids = [space.grid(arm=arm, choices=choices) for arm in space.arms]
    assert [arm["init"] for arm in space.arms] == ["random", "t5", "matched", "shuffled"]
    assert all(grid == grids[0] for grid in grids)  # the same seeds and settings in every arm
    assert len(grids[0]) == 2 * 2 * 2 * 5


def test_instruction_tuning_compares_two_checkpoints_with_their_random_arms() -> None:
    space, choices = preset("instruction_tuning")
    assert {(arm["backbone"], arm["init"]) for arm in space.arms} == {
        (backbone, init)
        for backbone in ("flan_t5_small", "t5_v1_1_small")
        for init in ("t5", "random")
    }
    grids = [space.grid(arm=arm, choices=choices) for arm in space.arms]
    assert all(grid == grids[0] for grid in grids)
    assert len(grids[0]) == 2 * 5
