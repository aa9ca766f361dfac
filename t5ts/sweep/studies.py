"""A sweep's studies: made, found again, and refused where they are another sweep's."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

import t5ts
from t5ts.analysis.results import read_json, read_metrics, read_result
from t5ts.config import NOT_IDENTITY
from t5ts.errors import ConfigError, DataError
from t5ts.provenance import code_digest, write_json
from t5ts.sweep.ledger import STOPPED
from t5ts.sweep.settings import SweepSettings
from t5ts.sweep.space import Space, Value, arm_name, describe
from t5ts.sweep.trial import read_trials, values_of

#: Study attributes: what a study was made for, and what was recorded when that changed.
MADE_FOR, CHANGES = "t5ts:made_for", "t5ts:changes"
#: In the sweep's directory: what its studies were made for.
PURPOSE = "made_for.json"

log = logging.getLogger("t5ts.sweep")


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
        "sampler": None
        if settings.is_grid
        else {**settings.sampler, "seed": settings.sampler_seed},
        "pruner": {**settings.pruner, "grace_epochs": settings.grace_epochs}
        if settings.prunes
        else None,
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
    sweep_dir: Path,
) -> list[optuna.Study]:
    """The study of each arm, in the order of `space.arms`.

    A study that is new although the sweep's directory has trials of it (it was corrupt, and taken
    away) is rebuilt from them.

    Raises:
        ConfigError: naming every difference, if a study was made for something else and
            `on_change` is refuse, or a grid would go on where its points are not the trials'.
    """
    on_disk = read_trials(sweep_dir)
    recorded_purpose = sweep_dir / PURPOSE
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
        lost = {} if before else {n: of for (s, n), of in on_disk.items() if s == study.study_name}
        if lost and recorded_purpose.is_file():
            before = read_json(recorded_purpose)
        changes = [] if before is None else differences(before, purpose)
        is_other_grid = settings.is_grid and any(
            change.startswith(("grid:", "space.", "conditions.")) for change in changes
        )
        if changes and (settings.on_change == "refuse" or is_other_grid):
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
        if lost:
            rebuild(study, space, settings, lost)
        if changes:
            log.warning("study %s goes on, changed:\n  %s", study.study_name, "\n  ".join(changes))
            recorded = study.user_attrs.get(CHANGES, [])
            change = {"from_trial": len(study.get_trials(deepcopy=False)), "changes": changes}
            study.set_user_attr(CHANGES, [*recorded, change])
        if changes or before is None or lost:
            study.set_user_attr(MADE_FOR, dict(purpose))
    sweep_dir.mkdir(parents=True, exist_ok=True)
    write_json(recorded_purpose, dict(purpose))
    return studies


def rebuild(
    study: optuna.Study,
    space: Space,
    settings: SweepSettings,
    on_disk: Mapping[int, tuple[Path, Mapping[str, Any]]],
) -> None:
    """Fill an empty study from its trials' directories; those without an end are to be done again.

    Args:
        study: Without trials.
        space: The sweep's.
        settings: The sweeper's.
        on_disk: Directory and trial.json by slot.
    """
    for slot in range(max(on_disk) + 1):
        folder, record = on_disk.get(slot, (None, {}))
        params = dict(record.get("params", {}))
        told = record.get("distributions", {})
        state, values, curve = TrialState.FAIL, None, {}
        attributes = {"slot": slot, "epochs": record.get("epochs"), "reason": record.get("reason")}
        try:
            if folder is not None and record.get("state") in ("complete", "pruned"):
                curve = {
                    row["epoch"]: row[settings.objectives[0]]
                    for row in read_metrics(folder, "eval")
                    if row.get(settings.objectives[0]) is not None
                }
            if folder is not None and record.get("state") == "complete":
                values = values_of(read_result(folder / "result.json"), settings)
                state = TrialState.COMPLETE
            elif record.get("state") == "pruned":
                state = TrialState.PRUNED
            elif record.get("state") != "failed":
                raise DataError("it had not ended")
        except (DataError, LookupError, TypeError, AttributeError) as error:
            log.warning("study %s: trial %s is done again: %s", study.study_name, slot, error)
            attributes |= {"void": STOPPED, "reason": str(error)}
            curve = {}
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=values,
                params=params,
                distributions={
                    key: json_to_distribution(told[key])
                    if key in told
                    else space.distributions[key]
                    for key in params
                },
                user_attrs={key: value for key, value in attributes.items() if value is not None},
                intermediate_values=curve,
            )
        )
    log.warning(
        "study %s was rebuilt from the directories of %s trials", study.study_name, len(on_disk)
    )


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
