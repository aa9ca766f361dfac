"""A sweep's studies: made, found again, and refused where they are another sweep's."""

import json
from collections.abc import Mapping
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

import t5ts
from t5ts.config import NOT_IDENTITY
from t5ts.errors import ConfigError
from t5ts.provenance import code_digest
from t5ts.sweep.settings import SweepSettings
from t5ts.sweep.space import Space, Value, arm_name, describe

#: Study attributes: what a study was made for, and what was recorded when that changed.
MADE_FOR, CHANGES = "t5ts:made_for", "t5ts:changes"


def made_for(space: Space, settings: SweepSettings, config: DictConfig) -> dict[str, Any]:
    """What must stay the same for a study's trials to be comparable, JSON-able.

    Args:
        space: What is searched.
        settings: The sweeper's.
        config: Hydra's composition before anything is sampled.
    """
    swept = {*space.distributions, *(key for arm in space.arms for key in arm)}
    values = OmegaConf.to_container(
        OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]),
        resolve=False,
    )
    leaves = _leaves(values)
    settled = {
        key: value
        for key, value in leaves.items()
        if not any(key == s or key.startswith(f"{s}.") for s in (*NOT_IDENTITY, *swept))
    }
    searched = space.as_json()
    return {
        "grid": settings.is_grid,
        "space": searched["distributions"],
        "conditions": searched["conditions"],
        "custom_search_space": settings.custom_search_space,
        "bases": searched["bases"],
        "objectives": dict(zip(settings.objectives, settings.directions, strict=True)),
        "settings": settled,
        "code": f"{t5ts.__version__} ({code_digest()[:12]})",
    }


def open_studies(
    storage: BaseStorage,
    space: Space,
    settings: SweepSettings,
    purpose: Mapping[str, Any],
) -> list[optuna.Study]:
    """The study of each arm, in the order of `space.arms`.

    Raises:
        ConfigError: naming every difference, if a study was made for something else and
            `on_change` is refuse, or a grid would go on where its points are not the trials'.
    """
    studies = [
        optuna.create_study(
            study_name=study_name(settings.study_name, arm),
            storage=storage,
            directions=[StudyDirection[name.upper()] for name in settings.directions],
            load_if_exists=True,
        )
        for arm in space.arms
    ]
    for study in studies:
        before = study.user_attrs.get(MADE_FOR)
        if before is None:
            study.set_user_attr(MADE_FOR, dict(purpose))
            continue
        changes = differences(before, purpose)
        if not changes:
            continue
        is_other_grid = settings.is_grid and any(
            change.startswith(("grid:", "space.", "conditions.")) for change in changes
        )
        if settings.on_change == "refuse" or is_other_grid:
            raise ConfigError(
                f"study {study.study_name} was made for something else:\n"
                + "".join(f"  {change}\n" for change in changes)
                + "Trials from before and after would not be comparable. Give the sweep another"
                " directory (hydra.sweep.dir=DIR) or name (hydra.sweeper.study_name=NAME)"
                + (
                    "; a grid's points are numbered, so it cannot go on as another one."
                    if is_other_grid
                    else ", or go on and have the change recorded with"
                    " hydra.sweeper.on_change=record."
                )
            )
        recorded = study.user_attrs.get(CHANGES, [])
        from_trial = len(study.get_trials(deepcopy=False))
        study.set_user_attr(CHANGES, [*recorded, {"from_trial": from_trial, "changes": changes}])
        study.set_user_attr(MADE_FOR, dict(purpose))
    return studies


def study_name(name: str, arm: Mapping[str, Value]) -> str:
    """The sweep's name, and the arm's where there are several."""
    return f"{name}/{arm_name(arm)}" if arm else name


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each leaf that differs."""
    old, new = _leaves(dict(before)), _leaves(json.loads(json.dumps(now)))
    return [
        f"{key}: {_shown(key, old.get(key, 'absent'))} → {_shown(key, new.get(key, 'absent'))}"
        for key in sorted({*old, *new})
        if old.get(key, "absent") != new.get(key, "absent")
    ]


def _shown(key: str, value: Any) -> Any:
    """A searched key's distribution in words."""
    if not key.startswith("space.") or value == "absent":
        return value
    return describe(json_to_distribution(value))


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        leaf: value
        for key, child in node.items()
        for leaf, value in _leaves(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }
