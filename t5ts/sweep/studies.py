"""A sweep's studies: created, found again, and refused if they belong to another sweep."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.storages import BaseStorage
from optuna.trial import TrialState

import t5ts
from t5ts.analysis.results import read_json, read_metrics, read_result
from t5ts.config import NOT_IDENTITY
from t5ts.errors import ConfigError, DataError
from t5ts.provenance import LOADED_CODE, write_json
from t5ts.sweep.ledger import STOPPED
from t5ts.sweep.settings import SweepSettings
from t5ts.sweep.space import Space, Value, arm_name, describe
from t5ts.sweep.trial import read_trials, value_of

#: Study attributes: what a study was created for, and its recorded changes.
MADE_FOR, CHANGES = "t5ts:made_for", "t5ts:changes"
#: In the sweep's directory: what its studies were created for.
PURPOSE = "made_for.json"

log = logging.getLogger("t5ts.sweep")


def made_for(space: Space, settings: SweepSettings, config: DictConfig) -> dict[str, Any]:
    """What must stay the same for a study's trials to be comparable, JSON-able.

    `config` is Hydra's composition before anything is sampled.
    """
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    free = (*NOT_IDENTITY, *space.distributions, *(key for arm in space.arms for key in arm))
    sampler = {**settings.sampler, "seed": settings.sampler_seed}
    pruner = {**settings.pruner, "grace_epochs": settings.grace_epochs}
    return {
        "grid": settings.is_grid,
        "seeds": settings.seeds,
        "sampler": None if settings.is_grid else sampler,
        "pruner": pruner if settings.prunes else None,
        "space": {k: distribution_to_json(d) for k, d in space.distributions.items()},
        "conditions": {k: c for k, c in settings.conditions.items() if k in space.distributions},
        "custom_search_space": settings.custom_search_space,
        "bases": {name: base["overrides"] for name, base in space.bases.items()},
        "objectives": {settings.objective: settings.direction},
        "settings": {
            key: value
            for key, value in _leaves(OmegaConf.to_container(own, resolve=False)).items()
            if not any(key == other or key.startswith(f"{other}.") for other in free)
        },
        "code": f"{t5ts.__version__} ({LOADED_CODE[:12]})",
    }


def open_studies(
    storage: BaseStorage,
    space: Space,
    settings: SweepSettings,
    purpose: Mapping[str, Any],
    sweep_dir: Path,
) -> list[optuna.Study]:
    """The study of each arm, in the order of `space.arms`.

    A study that is new although the sweep's directory has its trials (it was corrupt and was
    removed) is rebuilt from them.

    Raises:
        ConfigError: naming every difference, if a study was created for something else and
            `on_change` is refuse, or a grid would be resumed with different points, or trials with
            different seeds.
    """
    on_disk = read_trials(sweep_dir)
    studies = [
        optuna.create_study(
            study_name=study_name(settings.study_name, arm),
            storage=storage,
            direction=settings.direction,  # type: ignore[arg-type]
            load_if_exists=True,
        )
        for arm in space.arms
    ]
    for study in studies:
        before = study.user_attrs.get(MADE_FOR)
        lost = {} if before else {n: of for (s, n), of in on_disk.items() if s == study.study_name}
        if lost and (sweep_dir / PURPOSE).is_file():
            before = read_json(sweep_dir / PURPOSE)
        changes = [] if before is None else differences({"seeds": 1, **before}, purpose)
        fixed = ["seeds:"]
        fixed += ["grid:", "space.", "conditions."] if settings.is_grid else []
        fixed += ["settings.seed:"] if settings.seeds > 1 else []
        is_another = any(change.startswith(tuple(fixed)) for change in changes)
        if changes and (settings.on_change == "refuse" or is_another):
            way_out = (
                "; a grid's points, and the seeds of trials with several, never change."
                if is_another
                else ", or resume it and record the change with hydra.sweeper.on_change=record."
            )
            raise ConfigError(
                f"study {study.study_name} was created for something else:\n"
                + "".join(f"  {change}\n" for change in changes)
                + "Trials from before and after would not be comparable. Give the sweep another"
                " directory (hydra.sweep.dir=DIR) or name (hydra.sweeper.study_name=NAME)" + way_out
            )
        for slot, (folders, record) in sorted(lost.items()):
            study.add_trial(_rebuilt(slot, folders, record, space, settings))
        if lost:
            log.warning("study %s was rebuilt from %s trials", study.study_name, len(lost))
        if changes:
            log.warning("study %s resumed, changed:\n  %s", study.study_name, "\n  ".join(changes))
            recorded = study.user_attrs.get(CHANGES, [])
            change = {"from_trial": len(study.get_trials(deepcopy=False)), "changes": changes}
            study.set_user_attr(CHANGES, [*recorded, change])
        if changes or before is None or lost:
            study.set_user_attr(MADE_FOR, dict(purpose))
    sweep_dir.mkdir(parents=True, exist_ok=True)
    write_json(sweep_dir / PURPOSE, dict(purpose))
    return studies


def _rebuilt(
    slot: int,
    folders: Sequence[Path],
    record: Mapping[str, Any],
    space: Space,
    settings: SweepSettings,
) -> optuna.trial.FrozenTrial:
    """A trial from its seeds' directories and trial.json; an unfinished one has to be run again."""
    attributes = {key: record.get(key) for key in ("epochs", "reason")} | {"slot": slot}
    ends = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    value, curve, objective = None, {}, settings.objective
    try:
        state = ends[record["state"]]
        if state == TrialState.COMPLETE:
            value = value_of((read_result(f / "result.json") for f in folders), settings)
        if state != TrialState.FAIL:
            rows = read_metrics(folders[0], "eval")
            curve = {r["epoch"]: r[objective] for r in rows if r.get(objective) is not None}
    except (DataError, LookupError, TypeError, AttributeError) as error:
        log.warning("trial %s had not ended, or is corrupt, and is run again: %s", slot, error)
        state, value = TrialState.FAIL, None
        attributes |= {"void": STOPPED, "reason": str(error)}
    given = {key: json_to_distribution(d) for key, d in record.get("distributions", {}).items()}
    params = record.get("params", {})
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params=dict(params),
        distributions={key: given.get(key) or space.distributions[key] for key in params},
        user_attrs={key: value for key, value in attributes.items() if value is not None},
        intermediate_values=curve,
    )


def study_name(name: str, arm: Mapping[str, Value]) -> str:
    """The sweep's name, and the arm's if there are several."""
    return f"{name}/{arm_name(arm)}" if arm else name


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each leaf that differs, distributions of searched keys as text."""
    old, new = _leaves(dict(before)), _leaves(json.loads(json.dumps(now)))

    def shown(key: str, value: Any) -> Any:
        is_space = key.startswith("space.") and value != "absent"
        return describe(json_to_distribution(value)) if is_space else value

    pairs = {key: (old.get(key, "absent"), new.get(key, "absent")) for key in {*old, *new}}
    return [
        f"{key}: {shown(key, a)} → {shown(key, b)}"
        for key, (a, b) in sorted(pairs.items())
        if a != b
    ]


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        leaf: value
        for key, child in node.items()
        for leaf, value in _leaves(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }
