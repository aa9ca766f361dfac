"""One sweep from its command line to its table."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState
from rich.console import Console

from t5ts import distributed
from t5ts.analysis.plots import History, draw_sweep
from t5ts.analysis.results import read_result
from t5ts.analysis.words import plural
from t5ts.checks import check
from t5ts.config import CONF, from_hydra
from t5ts.errors import ConfigError, DataError, Interrupted, ResumeError, UserError
from t5ts.interruption import interrupt_on_signals
from t5ts.sweep.display import Display, announce, best_table, best_trials, budget_of, epochs_of
from t5ts.sweep.ledger import Ledger
from t5ts.sweep.pool import Pool
from t5ts.sweep.repeated import repeated
from t5ts.sweep.settings import SweepSettings, read_settings
from t5ts.sweep.space import Base, Space, Value, arm_name, parse_space, value_of
from t5ts.sweep.storage import how_to_rebuild, open_storage, without_password
from t5ts.sweep.studies import made_for, open_studies
from t5ts.sweep.trial import read_trials, values_of
from t5ts.sweep.worker import POLL_S, Work, open_arms
from t5ts.sweep.worker import work as do_trials

RESULTS = "optimization_results.yaml"
#: Of an arm's results, what its search cost.
BUDGET = ("trials", "settings", "complete", "pruned", "failed", "epochs")
#: Workers that have taken no trial for so long, though some are left, are gone.
IDLE_S = 5.0
#: Trials below which a parameter's importance is noise.
LEAST_FOR_IMPORTANCES = 10


def sweep(config: DictConfig, arguments: Sequence[str], *, hydra_context: HydraContext) -> None:
    """Run the sweep, or go on with it.

    Args:
        config: Hydra's composition for the multirun, its `hydra` node included.
        arguments: The command line's task overrides, sweeps among them.
        hydra_context: Hydra's.

    Raises:
        UserError: before any trial for whatever is wrong with space, settings, storage or study;
            later if too many trials fail or none can be done.
        Interrupted: after SIGINT or SIGTERM; the same command goes on.
    """
    choices = {str(k): str(v) for k, v in config.hydra.runtime.choices.items()}
    experiment = choices.get("experiment")
    settings = read_settings(
        config.hydra.sweeper,
        objective=config.objective,
        experiment=None if experiment in (None, "None", "null") else experiment,
    )
    if settings.best_of is not None:
        # The best trial names its own experiment.
        arguments = [line for line in arguments if not line.startswith("experiment=")]
    space = parse_space(
        settings.params,
        arguments,
        arms=settings.arms,
        conditions=settings.conditions,
        config=config,
        groups=config_groups(choices),
        may_be_empty=settings.custom_search_space is not None,
    )
    if settings.best_of is not None:
        space = _from_best(space, Path(settings.best_of) / RESULTS)
    sweep_dir = Path(config.hydra.sweep.dir)
    epochs = _check_space(space, config, choices, hydra_context)
    storage = open_storage(settings.storage, sweep_dir)
    purpose = made_for(space, settings, config)
    studies = open_studies(storage, space, settings, purpose, sweep_dir)
    work = Work(
        config=_to_write_down(config),
        hydra_context=hydra_context,
        settings=settings,
        space=space,
        studies=tuple(study.study_name for study in studies),
        sweep_dir=sweep_dir,
    )
    ledgers = [arm.ledger for arm in open_arms(work)]
    _check_records(settings, ledgers, sweep_dir)
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    announce(console, space, settings, ledgers, epochs)
    if all(ledger.is_finished() for ledger in ledgers):
        console.print(
            "All of them are done; hydra.sweeper.n_trials=N with a larger N adds trials.",
            markup=False,
        )
    else:
        _until_done(work, Display(ledgers, space, settings), ledgers)
    _finish(console, space, settings, ledgers, sweep_dir)


def config_groups(choices: Mapping[str, str]) -> list[str]:
    """What is chosen as a whole: the folders of conf/, and those in other places (data@ood).

    Args:
        choices: Option of each group, as Hydra has them.
    """
    elsewhere = {key for key in choices if "@" in key and not key.startswith("hydra/")}
    return sorted(elsewhere | {folder.name for folder in CONF.iterdir() if folder.is_dir()})


def _from_best(space: Space, path: Path) -> Space:
    """The space's trials, from the best point of each arm of another sweep.

    Raises:
        ConfigError: if that sweep has no such points.
    """
    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError as error:
        raise ConfigError(
            f"hydra.sweeper.best_of: {path} does not exist; allowed: the directory of a sweep that"
            " has ended (it holds that file)."
        ) from error
    arms = found.get("arms", {"all": found})
    if not all({"overrides", "trials"} <= arm.keys() for arm in arms.values()):
        raise ConfigError(
            f"hydra.sweeper.best_of: {path} does not name one best point for each arm (a study of"
            " several objectives has none, nor has one without a finished trial), or was written by"
            " an older t5ts: run that sweep's command again with"
            " hydra.sweeper.on_change=record, which writes it anew."
        )
    return replace(
        space,
        arms=tuple(arm["arm"] for arm in arms.values()),
        bases={
            arm_name(arm["arm"]): Base(
                overrides=tuple(arm["overrides"]),
                searched=tuple(arm["best_params"]),
                budget={key: arm[key] for key in BUDGET if key in arm},
            )
            for arm in arms.values()
        },
    )


def _check_space(
    space: Space, config: DictConfig, choices: Mapping[str, str], hydra_context: HydraContext
) -> int:
    """Compose the corners of the space, so that what could never run is said now.

    Returns:
        The most epochs that a trial may train.

    Raises:
        ConfigError: naming the point.
    """
    composed: dict[tuple[str, ...], DictConfig] = {}
    epochs = 0
    for arm in space.arms:
        for corner in space.corners(arm=arm, choices=choices):
            options = {k: v for k, v in corner.items() if k in choices}
            key = tuple(space.overrides(options, arm))
            try:
                if key not in composed:
                    composed[key] = hydra_context.config_loader.load_sweep_config(config, list(key))
                point = composed[key].copy()
                with open_dict(point):
                    del point["hydra"]
                for name, value in corner.items():
                    if name not in options:
                        OmegaConf.update(point, name, value_of(value))
                checked = from_hydra(point)
                check(checked)
            except (HydraException, OmegaConfBaseException, ConfigError) as error:
                named = " ".join(f"{k}={v}" for k, v in {**arm, **corner}.items())
                raise ConfigError(
                    f"the space holds a point that cannot run ({named}):\n{error}\n"
                    "Or sweep other values: the command line's choice or range of a key replaces"
                    " the preset's."
                ) from error
            epochs = max(epochs, checked.train.epochs)
    return epochs


def _to_write_down(config: DictConfig) -> DictConfig:
    """Hydra writes its node into every run's directory: there without the database's password."""
    written = config.copy()
    with read_write(written.hydra), open_dict(written.hydra):
        if not OmegaConf.is_interpolation(written.hydra.sweeper, "storage"):
            storage = written.hydra.sweeper.storage
            written.hydra.sweeper.storage = None if storage is None else without_password(storage)
        # As they were written: an interpolation in one of them is each trial's own to resolve.
        lines: Any = OmegaConf.to_container(written.hydra.overrides.hydra, resolve=False)
        written.hydra.overrides.hydra = [
            without_password(line) if "sweeper.storage=" in line else line for line in lines
        ]
    return written


def _until_done(work: Work, display: Display, ledgers: Sequence[Ledger]) -> None:
    """Start the workers and show how they go, until every slot has its result."""
    launcher = work.config.hydra.launcher._target_
    try:
        with interrupt_on_signals(), display.shown():
            if distributed.world_size() > 1:
                _in_this_process(work, display)
            elif launcher.endswith("BasicLauncher"):
                _with_pool(work, display)
            else:
                _with_launcher(work, display, ledgers)
    except KeyboardInterrupt:
        done = sum(ledger.progress().finished for ledger in ledgers)
        raise Interrupted(
            f"sweep stopped with {done} trials done; the same command goes on"
            f" (or hydra.sweep.dir={work.sweep_dir})"
        ) from None
    unfinished = [ledger for ledger in ledgers if not ledger.is_finished()]
    if unfinished:
        raise Interrupted(
            "the workers ended before the sweep did; the same command goes on"
            f" (or hydra.sweep.dir={work.sweep_dir})"
        )


def _with_pool(work: Work, display: Display) -> None:
    pool = Pool(work, work.sweep_dir / ".workers")
    try:
        while pool.watch():
            display.update()
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        display.say("stopping: the workers write their checkpoints (once more to stop at once)")
        raise
    finally:
        pool.stop()
        display.update()


def _with_launcher(work: Work, display: Display, ledgers: Sequence[Ledger]) -> None:
    """One job of Hydra's launcher for each worker; it returns when all have ended.

    Raises:
        UserError: if the launcher could not start them, or one died and the others ended too.
    """
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=work.hydra_context, task_function=work, config=work.config
    )
    # Any point of the space composes; the worker's job only carries it to the other machine.
    corner = next(work.space.corners(arm=work.space.arms[0], choices=work.choices()))
    overrides = [
        *work.space.overrides(corner, work.space.arms[0]),
        f"hydra.sweep.dir='{work.sweep_dir}'",
        "hydra.sweep.subdir=.workers/job-${hydra.job.num}",
    ]
    try:
        with repeated(display.update, every_s=2 * POLL_S):
            try:
                jobs = launcher.launch([overrides] * work.settings.n_jobs, initial_job_idx=0)
            except Exception as error:  # whatever a launcher raises when a process of it dies
                said = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
                display.say(f"a worker ended: {said}")
                _wait_for_others(ledgers)
                if all(ledger.is_finished() for ledger in ledgers):
                    return
                raise UserError(
                    f"the workers of {work.config.hydra.launcher._target_} ended before the sweep"
                    f" did: {said}\nWhat is done stays done: the same command goes on (or"
                    f" hydra.sweep.dir={work.sweep_dir})."
                ) from error
    finally:
        display.update()
    if not all(ledger.is_finished() for ledger in ledgers):
        for job in jobs:
            _ = job.return_value  # raises what ended the worker


def _wait_for_others(ledgers: Sequence[Ledger]) -> None:
    """While workers are at trials, or one may be about to take the next."""
    idle_since = time.monotonic()
    while not all(ledger.is_finished() for ledger in ledgers):
        for ledger in ledgers:
            ledger.reclaim()
        if any(ledger.progress().running for ledger in ledgers):
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since > IDLE_S:
            return
        time.sleep(POLL_S)


def _in_this_process(work: Work, display: Display) -> None:
    """Below torchrun: every trial takes all processes, and this one has the study.

    Raises:
        ConfigError: if several workers were asked for.
    """
    if work.settings.n_jobs > 1:
        raise ConfigError(
            f"hydra.sweeper.n_jobs={work.settings.n_jobs} below torchrun: each trial takes all"
            f" {distributed.world_size()} processes; use n_jobs=1, or several workers of one"
            " process each without torchrun."
        )
    try:
        with repeated(display.update, every_s=2 * POLL_S):
            do_trials(work, worker=0)
    finally:
        display.update()


def _finish(
    console: Console,
    space: Space,
    settings: SweepSettings,
    ledgers: Sequence[Ledger],
    sweep_dir: Path,
) -> None:
    """The table, `optimization_results.yaml` and the pictures."""
    found = _check_records(settings, ledgers, sweep_dir)
    console.print(best_table(space, settings, ledgers))
    for arm, ledger in zip(space.arms, ledgers, strict=True):
        budget = budget_of(ledger)
        repeats = budget["trials"] - budget["settings"]
        if repeats:
            console.print(
                f"repeats    {arm_name(arm)}: {plural(repeats, 'trial')} of {budget['trials']} at a"
                f" setting that was drawn before; {budget['settings']} distinct settings",
                markup=False,
            )
    counts = epochs_of([trial for ledger in ledgers for trial in ledger.trials()])
    console.print(
        f"epochs     {counts['trained']} trained of {counts['asked']} asked for"
        f" ({counts['pruned']} saved by pruning, {counts['reused']} by reuse)",
        markup=False,
    )
    results = {
        arm_name(arm): _results(space, arm, settings, ledger)
        for arm, ledger in zip(space.arms, ledgers, strict=True)
    }
    path = sweep_dir / RESULTS
    # One study looks as hydra-optuna-sweeper's file does; several stand under their arms.
    single = results["all"] if list(results) == ["all"] else {"name": "t5ts", "arms": results}
    OmegaConf.save(OmegaConf.create(single), path)
    console.print(f"results    {path}", markup=False)
    for picture in draw_sweep(
        _histories(space, settings, ledgers), settings.objectives[0], sweep_dir
    ):
        console.print(f"picture    {picture}", markup=False)
    for ledger in ledgers:
        for trial in best_trials(ledger, settings)[:1]:
            folder = found.get((ledger.study.study_name, trial.user_attrs["slot"]))
            if folder is not None:
                _draw_best(console, folder)


def _draw_best(console: Console, folder: Path) -> None:
    """The pictures of an arm's best trial; the other trials have none."""
    from t5ts.analysis.plots import draw_run  # matplotlib: half a second

    try:
        draw_run(folder)
    except DataError as error:  # of a directory that another machine has, or an older t5ts wrote
        console.print(f"best trial {folder}: no pictures ({error})", markup=False)
    else:
        console.print(f"best trial {folder / 'plots'}", markup=False)


def _check_records(
    settings: SweepSettings, ledgers: Sequence[Ledger], sweep_dir: Path
) -> dict[tuple[str, int], Path]:
    """Compare the studies with what the trials' result.json say, which is what counts.

    Returns:
        Directory of each trial that is here (a database may have others'), by study and slot.

    Raises:
        ResumeError: naming the trials that differ, and the way out.
    """
    found = read_trials(sweep_dir)
    problems = []
    for ledger in ledgers:
        name = ledger.study.study_name
        for trial in ledger.trials():
            folder, _ = found.get((name, trial.user_attrs.get("slot", -1)), (None, None))
            if trial.state != TrialState.COMPLETE or folder is None:
                continue
            path = folder / "result.json"
            try:
                values = values_of(read_result(path), settings)
            except (DataError, LookupError, TypeError, AttributeError) as error:
                problems.append(f"{path} is corrupt: {error}")
                continue
            pairs = zip(trial.values, values, strict=True)
            if not all(math.isclose(told, own, rel_tol=1e-9) for told, own in pairs):
                problems.append(f"study {name} says {trial.values}, {path} says {values}")
    if problems:
        names = [ledger.study.study_name for ledger in ledgers]
        remedy = how_to_rebuild(settings.storage, sweep_dir, names)
        raise ResumeError("\n".join([*problems, remedy]))
    return {whose: folder for whose, (folder, _) in found.items()}


def _histories(space: Space, settings: SweepSettings, ledgers: Sequence[Ledger]) -> list[History]:
    """What the pictures show of each arm: its first objective by trial."""
    return [
        History(
            arm=arm_name(arm),
            maximize=settings.directions[0] == "maximize",
            slots=[trial.user_attrs["slot"] for trial in trials],
            values=[trial.values[0] for trial in trials],
            params=[dict(trial.params) for trial in trials],
            importances=_importances(ledger, settings),
        )
        for arm, ledger in zip(space.arms, ledgers, strict=True)
        if (trials := [t for t in ledger.trials() if t.state == TrialState.COMPLETE])
    ]


def _importances(ledger: Ledger, settings: SweepSettings) -> dict[str, float]:
    """Share of each parameter in what sets the best trials apart (Watanabe et al. 2023, PED-ANOVA).

    Only of parameters that every trial has; none where the trials are too few or too alike.
    """
    if len(settings.objectives) > 1:
        return {}
    study = ledger.study
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < LEAST_FOR_IMPORTANCES or len({t.value for t in complete}) < 2:
        return {}
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def _results(
    space: Space, arm: Mapping[str, Value], settings: SweepSettings, ledger: Ledger
) -> dict[str, Any]:
    best = best_trials(ledger, settings)
    if len(settings.objectives) > 1:
        return {
            "name": "t5ts",
            "solutions": [{"params": dict(t.params), "values": list(t.values)} for t in best],
        }
    if not best:
        return {"name": "t5ts", "best_params": {}, "best_value": math.nan}
    return {
        "name": "t5ts",
        "best_params": dict(best[0].params),
        "best_value": best[0].values[0],
        "trial": best[0].user_attrs["slot"],
        **budget_of(ledger),
        "arm": dict(arm),
        "overrides": space.overrides(best[0].params, arm),
    }
