"""How a sweep shows itself: what it will do, how it goes, what came out."""

import contextlib
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from t5ts.analysis.words import plural
from t5ts.sweep.ledger import Ledger, is_void
from t5ts.sweep.settings import SweepSettings
from t5ts.sweep.space import Space, arm_name, short_names

#: Rows of the table of the best trials.
BEST = 10
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def epochs_of(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Sums over finished trials: epochs asked for, trained, reused, and not trained by pruning."""
    counts = {"asked": 0, "trained": 0, "reused": 0, "pruned": 0}
    for trial in trials:
        epochs = trial.user_attrs.get("epochs", {})
        for key, value in epochs.items():
            counts[key] += value
        if epochs and trial.state == TrialState.PRUNED:
            counts["pruned"] += epochs["asked"] - epochs["trained"] - epochs["reused"]
    return counts


def budget_of(ledger: Ledger) -> dict[str, Any]:
    """What an arm's search has cost so far: trials that count, their settings and their epochs."""
    counted = [t for t in ledger.trials() if t.state.is_finished() and not is_void(t)]
    states = Counter(STATES[trial.state] for trial in counted)
    return {
        "trials": len(counted),
        "settings": len({json.dumps(t.params, sort_keys=True) for t in counted}),
        **{state: states[state] for state in ("complete", "pruned", "failed")},
        "epochs": epochs_of(counted),
    }


class Display:
    """The live lines of a sweep on a terminal; a line per finished trial elsewhere.

    Args:
        ledgers: One for each arm.
        space: The sweep's.
        settings: The sweeper's.
    """

    def __init__(self, ledgers: Sequence[Ledger], space: Space, settings: SweepSettings) -> None:
        self._ledgers, self._settings = ledgers, settings
        self._names = [arm_name(arm) for arm in space.arms]
        self._short = short_names(list(space.distributions))
        self._console = Console(file=sys.stdout, highlight=False)
        self._live: Live | None = None
        self._started = time.monotonic()
        self._already = {
            (name, trial.number)
            for name, ledger in zip(self._names, ledgers, strict=True)
            for trial in ledger.trials()
            if trial.state.is_finished()
        }
        self._finished = {
            name: ledger.progress().finished
            for name, ledger in zip(self._names, ledgers, strict=True)
        }
        self._finished_before = sum(self._finished.values())

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """While the sweep runs."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=4, transient=True) as self._live:
            yield
        self._live = None

    def say(self, line: str) -> None:
        """One line, above the live ones."""
        self._console.print(line, markup=False, soft_wrap=True)

    def update(self) -> None:
        """Look at the studies, say what has ended, redraw the live lines."""
        lines: list[str] = []
        running: list[str] = []
        for name, ledger in zip(self._names, self._ledgers, strict=True):
            for trial in ledger.trials():
                if trial.state == TrialState.RUNNING:
                    running.append(self._worker_line(name, trial))
                if trial.state.is_finished() and (name, trial.number) not in self._already:
                    self._already.add((name, trial.number))
                    if not is_void(trial):
                        self._finished[name] += 1
                        count = f"{self._finished[name]}/{ledger.n_trials}"
                        lines.append(self._end_line(name, trial, count))
        for line in lines:
            self.say(line)
        if self._live is not None:
            shown = [*running, *self._study_lines()]
            self._live.update(Group(*(Text(s, no_wrap=True, overflow="ellipsis") for s in shown)))

    def _worker_line(self, name: str, trial: FrozenTrial) -> str:
        live: dict[str, Any] = trial.user_attrs.get("live", {})
        if not live:
            return f"worker –  {name}: starting"
        value = "–" if live["value"] is None else f"{live['value']:.4f}"
        return (
            f"worker {live['worker']}  {name} #{trial.user_attrs.get('slot', '?')}"
            f"  epoch {live['epoch']}/{live['epochs']}"
            f"  {self._settings.objectives[0]} {value}  {self._params(trial)}"
        )

    def _study_lines(self) -> list[str]:
        lines = []
        total = finished = 0
        for name, ledger in zip(self._names, self._ledgers, strict=True):
            progress = ledger.progress()
            total, finished = total + ledger.n_trials, finished + progress.finished
            best = best_trials(ledger, self._settings)
            value = f"{best[0].values[0]:.4f}" if best else "–"
            lines.append(
                f"study {name}: {progress.finished}/{ledger.n_trials} done"
                f" ({progress.pruned} pruned, {progress.failed} failed), best"
                f" {self._settings.objectives[0]} {value}"
            )
        # A line of their own, so that 80 columns are enough.
        epochs = epochs_of([trial for ledger in self._ledgers for trial in ledger.trials()])
        last = f"epochs saved: {epochs['pruned']} by pruning, {epochs['reused']} by reuse"
        new = finished - self._finished_before
        if new:
            left = (time.monotonic() - self._started) / new * (total - finished)
            last += f"; about {duration(left)} left"
        return [*lines, last]

    def _end_line(self, name: str, trial: FrozenTrial, count: str) -> str:
        head = f"{name} {count}  #{trial.user_attrs.get('slot', '?')} {STATES[trial.state]}"
        if trial.state == TrialState.COMPLETE:
            numbers = zip(self._settings.objectives, trial.values, strict=True)
            head += "  " + "  ".join(f"{key} {value:.4f}" for key, value in numbers)
        elif "reason" in trial.user_attrs:
            head += f" {str(trial.user_attrs['reason']).splitlines()[0]}"
        return f"{head}  {self._params(trial)}"

    def _params(self, trial: FrozenTrial) -> str:
        named = ((self._short.get(key, key), value) for key, value in trial.params.items())
        return " ".join(f"{name}={_number(value)}" for name, value in named)


def best_trials(ledger: Ledger, settings: SweepSettings) -> list[FrozenTrial]:
    """Complete trials, the best first; the Pareto front for several objectives."""
    complete = [t for t in ledger.trials() if t.state == TrialState.COMPLETE]
    if len(settings.objectives) > 1:
        return list(ledger.study.best_trials) if complete else []
    sign = -1 if settings.directions[0] == "maximize" else 1
    return sorted(complete, key=lambda trial: sign * trial.values[0])


def announce(
    console: Console,
    space: Space,
    settings: SweepSettings,
    ledgers: Sequence[Ledger],
    epochs: int,
) -> None:
    """Before anything is trained: the space, the budget, and what is done already."""
    console.print(f"sweep      {settings.study_name}", markup=False)
    for line in space.describe():
        console.print(f"  searched {line}", markup=False)
    for key, groups in space.conditions.items():
        if key in space.distributions:
            only = ", ".join(f"{group}={'|'.join(options)}" for group, options in groups.items())
            console.print(f"           … {key} only with {only}", markup=False)
    for line in space.fixed:
        console.print(f"  fixed    {line}", markup=False)
    trials = [ledger.n_trials for ledger in ledgers]
    to_do = sum(trials) - sum(ledger.progress().finished for ledger in ledgers)
    console.print(
        f"budget     {plural(sum(trials), 'trial')}"
        + (f" ({trials[0]} for each of {len(trials)} arms)" if len(trials) > 1 else "")
        + f", {to_do} to do: at most {plural(to_do * epochs, 'epoch')};"
        f" {plural(settings.n_jobs, 'worker')}",
        markup=False,
    )
    pruner = str(settings.pruner["_target_"]).rpartition(".")[2] if settings.prunes else "none"
    sampler = str(settings.sampler["_target_"]).rpartition(".")[2]
    console.print(
        f"           sampler {sampler}; pruner {pruner}"
        + (f", from epoch {settings.grace_epochs:g} after unfreezing" if settings.prunes else "")
        + f"; frozen phases are {'reused' if settings.reuse else 'trained by each trial'}",
        markup=False,
    )
    for arm, ledger in zip(space.arms, ledgers, strict=True):
        progress = ledger.progress()
        console.print(
            f"study      {arm_name(arm)}: {progress.finished} of {ledger.n_trials} done"
            f" ({progress.complete} complete, {progress.pruned} pruned, {progress.failed} failed)",
            markup=False,
        )


def best_table(space: Space, settings: SweepSettings, ledgers: Sequence[Ledger]) -> Table:
    """The best trials of each arm, and how each arm's budget was spent."""
    best = [best_trials(ledger, settings)[:BEST] for ledger in ledgers]
    # Besides what the grammar says, what custom_search_space asked for.
    keys = list(
        dict.fromkeys([*space.distributions, *(k for b in best for t in b for k in t.params)])
    )
    table = Table(title="best trials", title_justify="left")
    for heading in ("arm", "trial", *settings.objectives, *short_names(keys).values()):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm, trials in zip(space.arms, best, strict=True):
        for trial in trials:
            table.add_row(
                arm_name(arm),
                str(trial.user_attrs["slot"]),
                *(f"{value:.4f}" for value in trial.values),
                *(_number(trial.params.get(key)) for key in keys),
            )
        table.add_section()
    return table


def duration(seconds: float) -> str:
    """12 s, 3 min, 2 h 05 min."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
