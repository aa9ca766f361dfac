"""A sweep's studies: refused if they belong to another sweep, rebuilt from its run directories."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

import t5ts
from t5ts.analysis.results import read_json, read_metrics, read_result
from t5ts.config import NOT_IDENTITY
from t5ts.errors import ConfigError, DataError, ResumeError
from t5ts.provenance import LOADED_CODE, write_json
from t5ts.sweep.ledger import RELEASED, STOPPED, Ledger
from t5ts.sweep.space import describe
from t5ts.sweep.storage import how_to_rebuild
from t5ts.sweep.trial import ENDS, Work, read_trials, value_of

#: Study attributes: what a study was created for, and its recorded changes.
MADE_FOR, CHANGES = "t5ts:made_for", "t5ts:changes"
#: In the sweep's directory: what its studies were created for.
PURPOSE = "made_for.json"
#: What a corrupt result.json raises.
CORRUPT = (DataError, LookupError, TypeError, AttributeError)

log = logging.getLogger("t5ts.sweep")


def made_for(work: Work) -> dict[str, Any]:
    """What must stay the same for a study's trials to be comparable, JSON-able."""
    settings, space = work.settings, work.space
    own = OmegaConf.masked_copy(work.config, [str(key) for key in work.config if key != "hydra"])
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
            if not any(f"{key}.".startswith(f"{other}.") for other in free)
        },
        "code": f"{t5ts.__version__} ({LOADED_CODE[:12]})",
    }


def check_purpose(work: Work, ledgers: Sequence[Ledger]) -> None:
    """Compare what the studies were created for with this sweep, and record that or its changes.

    A study that is new although the sweep's directory has its trials (it was corrupt and was
    removed) is rebuilt from them.

    Raises:
        ConfigError: naming every difference, if a study was created for something else and
            `on_change` is refuse, or a grid would be resumed with different settings, or trials
            with different seeds.
    """
    settings, path, purpose = work.settings, work.sweep_dir / PURPOSE, made_for(work)
    on_disk = read_trials(work.sweep_dir)
    never = ["seeds:"]
    if settings.seeds > 1:
        never += ["settings.seed:"]
    if settings.is_grid:
        never += ["grid:", "space.", "conditions."]
    for study in (ledger.study for ledger in ledgers):
        before = study.user_attrs.get(MADE_FOR)
        lost = {} if before else {n: t for (s, n), t in on_disk.items() if s == study.study_name}
        if lost and path.is_file():
            before = read_json(path)
        changes = [] if before is None else differences({"seeds": 1, **before}, purpose)
        is_another = any(change.startswith(tuple(never)) for change in changes)
        if changes and (settings.on_change == "refuse" or is_another):
            way_out = (
                "; a grid's settings, and the seeds of trials with several, never change."
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
            study.add_trial(_rebuilt(work, slot, folders, record))
        if lost:
            log.warning("study %s was rebuilt from %s trials", study.study_name, len(lost))
        if changes:
            log.warning("study %s resumed, changed:\n  %s", study.study_name, "\n  ".join(changes))
            change = {"from_trial": len(study.get_trials(deepcopy=False)), "changes": changes}
            study.set_user_attr(CHANGES, [*study.user_attrs.get(CHANGES, []), change])
        if changes or before is None or lost:
            study.set_user_attr(MADE_FOR, purpose)
    write_json(path, purpose)


def _rebuilt(
    work: Work, slot: int, folders: Sequence[Path], record: Mapping[str, Any]
) -> FrozenTrial:
    """A trial from its seeds' directories and trial.json; an unfinished one has to be run again."""
    attributes = {key: record.get(key) for key in ("epochs", "reason")} | {"slot": slot}
    value, curve, objective = None, {}, work.settings.objective
    try:
        state = ENDS[record["state"]]
        if state == TrialState.COMPLETE:
            value = value_of((read_result(f / "result.json") for f in folders), work.settings)
        if state != TrialState.FAIL:
            rows = read_metrics(folders[0], "eval")
            curve = {r["epoch"]: r[objective] for r in rows if r.get(objective) is not None}
    except CORRUPT as error:
        log.warning("trial %s had not ended, or is corrupt, and is run again: %s", slot, error)
        state, value = TrialState.FAIL, None
        attributes |= {RELEASED: STOPPED, "reason": str(error)}
    given = {key: json_to_distribution(d) for key, d in record.get("distributions", {}).items()}
    params = record.get("params", {})
    return create_trial(
        state=state,
        value=value,
        params=dict(params),
        distributions={key: given.get(key) or work.space.distributions[key] for key in params},
        user_attrs={key: value for key, value in attributes.items() if value is not None},
        intermediate_values=curve,
    )


def check_results(work: Work, ledgers: Sequence[Ledger]) -> dict[tuple[str, int], list[Path]]:
    """Compare the studies with the trials' result.json files, which are authoritative.

    Returns:
        Run directories of each trial that was completed here (a database may have others, also
        of trials that were begun here), by study and slot.

    Raises:
        ResumeError: naming the trials that differ, and how to fix it.
    """
    found, params = {}, {}
    for key, (runs, record) in read_trials(work.sweep_dir).items():
        if record.get("state") == "complete":
            found[key], params[key] = runs, record.get("params")
    problems = []
    for ledger in ledgers:
        name = ledger.study.study_name
        for trial in ledger.results():
            key = name, trial.user_attrs.get("slot", -1)
            folders = found.get(key)
            if trial.state != TrialState.COMPLETE or not folders:
                continue
            named = ", ".join(str(folder / "result.json") for folder in folders)
            try:
                results = [read_result(folder / "result.json") for folder in folders]
                value = value_of(results, work.settings)
            except CORRUPT as error:
                problems.append(f"{named} is corrupt: {error}")
            else:
                if not math.isclose(trial.values[0], value, rel_tol=1e-9):
                    problems.append(f"study {name} has {trial.value}, {named} has {value}")
                elif params[key] not in (None, json.loads(json.dumps(trial.params))):
                    problems.append(f"study {name} has {trial.params}, {named} {params[key]}")
    if problems:
        names = [ledger.study.study_name for ledger in ledgers]
        how = how_to_rebuild(work.settings.storage, work.sweep_dir, names)
        raise ResumeError("\n".join([*problems, how]))
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each leaf that differs, distributions of searched keys as text."""
    old, new = _leaves(dict(before)), _leaves(json.loads(json.dumps(now)))
    pairs = {key: (old.get(key, "absent"), new.get(key, "absent")) for key in sorted({*old, *new})}

    def shown(key: str, value: Any) -> Any:
        is_space = key.startswith("space.") and value != "absent"
        return describe(json_to_distribution(value)) if is_space else value

    changed = ((key, a, b) for key, (a, b) in pairs.items() if a != b)
    return [f"{key}: {shown(key, a)} → {shown(key, b)}" for key, a, b in changed]


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    children = ((f"{prefix}.{key}" if prefix else str(key), child) for key, child in node.items())
    return {key: leaf for name, child in children for key, leaf in _leaves(child, name).items()}
