"""One sweep, from its command line to its results table."""

import math
import shlex
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from optuna.trial import TrialState
from yaml import YAMLError

from t5ts.analysis.plots import draw_run, draw_surfaces, own_style, save_figures, surface_of
from t5ts.checks import check
from t5ts.config import NOT_IDENTITY, from_hydra, values_without
from t5ts.errors import ConfigError, DataError, Interrupted, UserError
from t5ts.interruption import interrupt_on_signals
from t5ts.provenance import without_password, write_text, write_yaml
from t5ts.sweep.display import Display, best_trials, budget_of
from t5ts.sweep.ledger import Ledger
from t5ts.sweep.pool import Pool
from t5ts.sweep.settings import SweepSettings, read_settings
from t5ts.sweep.space import Space, arm_name, as_text, choices_of, grid_values, parse_space
from t5ts.sweep.studies import check_purpose, check_results, differences
from t5ts.sweep.trial import Work
from t5ts.sweep.worker import POLL_S, repeated, run_trials

RESULTS = "optimization_results.yaml"
#: The command that resumes the sweep; a database's password is left out.
COMMAND = "command.txt"
#: Workers are considered gone if they take no trial for this long although some are left.
IDLE_S = 5.0
#: Fewer trials than this, and a parameter's importance is noise.
LEAST_FOR_IMPORTANCES = 10


def sweep(config: DictConfig, arguments: Sequence[str], *, hydra_context: HydraContext) -> None:
    """Run the sweep of the command line's task overrides, or resume it.

    `config` is Hydra's composition for the multirun, including its `hydra` node.

    Raises:
        UserError: before any trial if the space, settings, storage or study is invalid;
            later if too many trials fail or none can be run.
        Interrupted: after SIGINT or SIGTERM; the same command resumes the sweep.
    """
    choices = {str(k): str(v) for k, v in config.hydra.runtime.choices.items()}
    experiment = choices.get("experiment", "null")
    settings = read_settings(
        config.hydra.sweeper,
        objective=config.objective,
        experiment=None if experiment in ("None", "null") else experiment,
    )
    work = Work(
        config=_without_password(config),
        hydra_context=hydra_context,
        settings=settings,
        space=_space(settings, arguments, choices),
        sweep_dir=Path(config.hydra.sweep.dir),
    )
    epochs = _check_space(work)
    ledgers = work.ledgers(create=True)
    check_purpose(work, ledgers)
    command = shlex.join(["python", "-m", "t5ts.run", *map(without_password, sys.argv[1:])])
    write_text(work.sweep_dir / COMMAND, command + "\n")
    check_results(work, ledgers)
    display = Display(ledgers, work.space, settings)
    display.announce(epochs)
    if work.space.bases:
        for change in _departures(work):
            display.say(f"  changed  {change}: the search was done without it")
    if _are_done(ledgers):
        display.say("All trials are done; add more with a larger hydra.sweeper.n_trials=N.")
    else:
        _until_done(work, display, ledgers)
    _finish(work, display, ledgers)


def _space(settings: SweepSettings, arguments: Sequence[str], choices: Mapping[str, str]) -> Space:
    """The search space of the command line, at the best settings of another sweep if asked for."""
    best: list[dict[str, Any]] = []
    if settings.best_of is not None:
        # The best trial's command line includes its experiment.
        arguments = [line for line in arguments if not line.startswith("experiment=")]
        best, arguments = _best_arms(Path(settings.best_of) / RESULTS, arguments)
    space = parse_space(
        settings.params,
        arguments,
        arms=settings.arms,
        conditions=settings.conditions,
        choices=choices,
        may_be_empty=bool(best) or settings.custom_search_space is not None,
    )
    if settings.seeds > 1 and "seed" in {*space.distributions, *space.arms[0]}:
        raise ConfigError(
            f"hydra.sweeper.seeds={settings.seeds} trains each setting on seeds of its own: give"
            " one seed (seed=N, the first of them), or leave hydra.sweeper.seeds at 1."
        )
    if not best:
        return space
    if space.arms[0]:
        raise ConfigError(
            f"{', '.join(space.arms[0])}: hydra.sweeper.best_of={settings.best_of} compares no arms"
            " of it; give one value, or none."
        )

    def seed(lines: Sequence[str]) -> int:
        parts = (line.lstrip("+").partition("=") for line in lines)
        value = [value for key, _, value in [("seed", "", "0"), *parts] if key == "seed"][-1]
        if not value.isdecimal():
            raise ConfigError(f"seed={value}: with hydra.sweeper.best_of, allowed: a number.")
        return int(value)

    used = {seed(arm["overrides"]) + k for arm in best for k in range(arm.get("seeds", 1))}
    used.update(*(arm.get("searched_seeds", ()) for arm in best))
    seeds = space.distributions.get("seed")
    firsts = (seed(space.fixed),) if seeds is None else grid_values("seed", seeds)
    given = {int(first) + k for first in firsts for k in range(settings.seeds)}
    if reused := sorted(used & given):
        raise ConfigError(
            f"seed={','.join(map(str, reused))}: hydra.sweeper.best_of={settings.best_of} chose its"
            " settings on that seed, which would favour whatever suits it: give others, such as"
            f" seed={','.join(str(max(used) + 1 + i) for i in range(5))}."
        )
    bases = {arm_name(arm["arm"]): arm for arm in best}
    return replace(space, arms=tuple(arm["arm"] for arm in best), bases=bases)


def _best_arms(path: Path, arguments: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The arms of a finished sweep that the command line selects, and its other overrides."""
    needed = {"arm", "best_params", "overrides", "trials"}
    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(path))
        best = list(found.get("arms", {"all": found}).values())
        is_usable = bool(best) and all(needed <= arm.keys() for arm in best)
    except (OSError, ValueError, AttributeError, YAMLError):
        is_usable = False
    if not is_usable:
        raise ConfigError(
            f"hydra.sweeper.best_of: {path} does not exist, is corrupt, lacks an arm's best"
            " setting, or was written by an older t5ts; allowed: the directory of a finished sweep."
            " That sweep's command with hydra.sweeper.on_change=record writes the file again."
        )
    # Its own seeds are the search's: here they are new.
    searched = {key for arm in best for key in arm["best_params"]} - {"seed"}
    others = []
    parsed = OverridesParser.create().parse_overrides(list(arguments))
    for line, override in zip(arguments, parsed, strict=True):
        key = override.get_key_element().lstrip("+~")
        if key in searched:
            raise ConfigError(
                f"{line}: {path} searched {key}, and its arms are trained at the best setting"
                " found: leave it out, or search again with other values."
            )
        if key not in best[0]["arm"]:
            others.append(line)
            continue
        choices = set(map(as_text, choices_of(override)))
        if absent := choices - {as_text(arm["arm"][key]) for arm in best}:
            raise ConfigError(
                f"{line}: {path} has no arm {key}={', '.join(sorted(absent))}; it has:"
                f" {'; '.join(arm_name(arm['arm']) for arm in best)}."
            )
        best = [arm for arm in best if as_text(arm["arm"][key]) in choices]
    return best, others


def _departures(work: Work) -> list[str]:
    """What the command line changes in the settings that another sweep found."""
    space, ignored = work.space, (*NOT_IDENTITY, "seed")
    arm = space.arms[0]
    found = replace(work, space=replace(space, fixed=())).compose({}, arm)
    now = work.compose(next(space.corners(arm)), arm)
    return differences(values_without(found, ignored), values_without(now, ignored))


def _check_space(work: Work) -> int:
    """Refuse a space with a setting that could never run; the most epochs a trial may train."""
    epochs = 0
    for arm in work.space.arms:
        for corner in work.space.corners(arm):
            try:
                config = work.compose(corner, arm)
                checked = from_hydra(config)
                check(checked)
            except (HydraException, OmegaConfBaseException, ConfigError) as error:
                named = " ".join(f"{k}={v}" for k, v in {**arm, **corner}.items())
                raise ConfigError(
                    f"the space contains a setting that cannot run ({named}):\n{error}\n"
                    "Or sweep other values: the command line's choice or range of a key replaces"
                    " the preset's; whole numbers are range(A,B) or int(interval(A,B))."
                ) from error
            epochs = max(epochs, checked.train.epochs)
    return epochs * work.settings.seeds


def _without_password(config: DictConfig) -> DictConfig:
    """Hydra's settings for every run's directory, where it may write its node."""
    written = config.copy()
    with read_write(written.hydra), open_dict(written.hydra):
        if not OmegaConf.is_interpolation(written.hydra.sweeper, "storage"):
            storage = written.hydra.sweeper.storage
            written.hydra.sweeper.storage = (
                None if storage is None else without_password(str(storage))
            )
        # Unresolved: each trial resolves its own interpolations.
        lines: Any = OmegaConf.to_container(written.hydra.overrides.hydra, resolve=False)
        written.hydra.overrides.hydra = [without_password(line) for line in lines]
    return written


def _are_done(ledgers: Sequence[Ledger]) -> bool:
    return all(ledger.is_finished() for ledger in ledgers)


def _until_done(work: Work, display: Display, ledgers: Sequence[Ledger]) -> None:
    """Start the workers and show their progress until every slot has a result."""
    is_local = work.config.hydra.launcher._target_.endswith("BasicLauncher")
    how_to_resume = f"the same command resumes it (or hydra.sweep.dir={work.sweep_dir})"
    try:
        with interrupt_on_signals():
            if is_local:
                _with_pool(work, display)
            else:
                _with_launcher(work, display, ledgers, how_to_resume)
        done = "the workers ended before the sweep did"
    except KeyboardInterrupt:
        done = f"sweep stopped with {sum(x.finished() for x in ledgers)} trials done"
    finally:
        display.update()
    if not _are_done(ledgers):
        raise Interrupted(f"{done}; {how_to_resume}")


def _with_pool(work: Work, display: Display) -> None:
    pool = Pool(work, work.sweep_dir / ".workers")
    try:
        while pool.watch():
            display.update()
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        display.say(
            "stopping: the workers are writing checkpoints (press Ctrl-C again to stop immediately)"
        )
        raise
    finally:
        pool.stop()


def _with_launcher(
    work: Work, display: Display, ledgers: Sequence[Ledger], how_to_resume: str
) -> None:
    """One job of Hydra's launcher for each worker; it returns when all have ended."""
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=work.hydra_context,
        task_function=partial(run_trials, work),
        config=work.config,
    )
    # The job needs some valid setting to compose; the worker then takes its own trials.
    arm = work.space.arms[0]
    lines = work.space.overrides(next(work.space.corners(arm)), arm)
    lines += [f"hydra.sweep.dir='{work.sweep_dir}'"]
    lines += ["hydra.sweep.subdir=.workers/job-${hydra.job.num}"]
    with repeated(display.update, every_s=2 * POLL_S):
        try:
            jobs = launcher.launch([lines] * work.settings.n_jobs, initial_job_idx=0)
        except Exception as error:  # any error a launcher raises when one of its processes dies
            words = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
            display.say(f"a worker ended: {words}")
            # The others may be running trials, or about to take the next.
            busy_at = time.monotonic()
            while not _are_done(ledgers):
                lost = [line for ledger in ledgers for line in ledger.reclaim()]
                if lost or any(ledger.states()[TrialState.RUNNING] for ledger in ledgers):
                    busy_at = time.monotonic()
                elif time.monotonic() - busy_at > IDLE_S:
                    raise UserError(
                        f"the workers of {work.config.hydra.launcher._target_} ended before the"
                        f" sweep did: {words}\nFinished trials are kept: {how_to_resume}."
                    ) from error
                time.sleep(POLL_S)
            return
    for job in [] if _are_done(ledgers) else jobs:
        _ = job.return_value  # raises the worker's exception


def _finish(work: Work, display: Display, ledgers: Sequence[Ledger]) -> None:
    """Write the table, `optimization_results.yaml`, and plots of the search and the best trials."""
    folders = check_results(work, ledgers)
    display.summarize()
    results = {}
    best_dirs: list[Path] = []
    for ledger in ledgers:
        results[ledger.name] = found = _results(work, ledger)
        best_dirs += folders.get((ledger.study.study_name, found.get("trial", -1)), ())[:1]
    # One study looks like hydra-optuna-sweeper's file; several are nested under their arms.
    single = results["all"] if list(results) == ["all"] else {"name": "t5ts", "arms": results}
    write_yaml(work.sweep_dir / RESULTS, single)
    display.say(f"results    {work.sweep_dir / RESULTS}")
    for picture in _draw(work, ledgers):
        display.say(f"picture    {picture}")
    for folder in best_dirs:
        try:
            draw_run(folder)
            display.say(f"best trial {folder / 'plots'}")
        except DataError as error:  # written by an older t5ts
            display.say(f"best trial {folder}: no plots ({error})")
    display.say(f"next       python -m t5ts.report {shlex.quote(str(work.sweep_dir))}")


def _results(work: Work, ledger: Ledger) -> dict[str, Any]:
    """An arm's entry in `optimization_results.yaml`."""
    best = best_trials(ledger, work.settings)
    if not best:
        return {"name": "t5ts", "best_params": {}, "best_value": math.nan}
    seeds = {int(trial.params["seed"]) for trial in best if "seed" in trial.params}
    return {
        "name": "t5ts",
        "best_params": dict(best[0].params),
        "best_value": best[0].value,
        "trial": best[0].user_attrs["slot"],
        **budget_of(ledger.results()),
        **({"seeds": work.settings.seeds} if work.settings.seeds > 1 else {}),
        **({"searched_seeds": sorted(seeds)} if seeds else {}),  # the best may have one of them
        "arm": ledger.arm,
        "overrides": work.space.overrides(best[0].params, ledger.arm),
    }


def _draw(work: Work, ledgers: Sequence[Ledger]) -> list[Path]:
    """Draw the search as far as there is data for it; returns the pictures' paths.

    Importances are PED-ANOVA's (Watanabe et al. 2023), of the parameters that every trial has.
    """
    from optuna.importance import get_param_importances
    from optuna.visualization import matplotlib as pictures  # half a second

    name, is_more = work.settings.objective, work.settings.direction == "maximize"
    complete = [(x, trials) for x in ledgers if (trials := best_trials(x, work.settings))]
    figures: dict[str, Any] = {}
    with own_style(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its pictures experimental
        found = (
            surface_of(ledger.name, [(t.params, t.values[0]) for t in trials])
            for ledger, trials in complete
        )
        if surfaces := [surface for surface in found if surface is not None]:
            figures["surface"] = draw_surfaces(surfaces, name, maximize=is_more)
        for ledger, trials in complete:
            differ = len(trials) >= LEAST_FOR_IMPORTANCES and trials[0].value != trials[-1].value
            if differ and get_param_importances(ledger.study):  # of what is in every trial
                axes = pictures.plot_param_importances(ledger.study, target_name=name)
                figures[f"importances-{ledger.name}"] = axes.figure
        if complete:
            studies = [ledger.study for ledger, _ in complete]
            axes = pictures.plot_optimization_history(studies, target_name=name)
            # A diverged trial would hide all others.
            values = [trial.values[0] for _, trials in complete for trial in trials]
            low, high = np.quantile(values, [0.1, 1.0] if is_more else [0.0, 0.9])
            if low < high:
                axes.set_ylim(low - (high - low) / 2, high + (high - low) / 2)
            figures["history"] = axes.figure
        return save_figures(figures, work.sweep_dir / "plots")
