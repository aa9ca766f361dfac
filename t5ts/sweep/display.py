"""A sweep's terminal output: the search, its progress, its best trials."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.table import Table

from t5ts.analysis.words import plural
from t5ts.sweep.ledger import Ledger, is_void
from t5ts.sweep.settings import SweepSettings
from t5ts.sweep.space import Space, arm_name, describe

#: Rows of the table of the best trials.
BEST = 10
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def epochs_of(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Sums over finished trials: epochs requested, trained, reused, and saved by pruning."""
    counts = {"asked": 0, "trained": 0, "reused": 0, "pruned": 0}
    for trial in trials:
        epochs = trial.user_attrs.get("epochs", {})
        for key, value in epochs.items():
            counts[key] += value
        if epochs and trial.state == TrialState.PRUNED:
            counts["pruned"] += epochs["asked"] - epochs["trained"] - epochs["reused"]
    return counts


def budget_of(ledger: Ledger) -> dict[str, Any]:
    """The cost of an arm's search so far: trials that count, their settings and their epochs."""
    counted = [t for t in ledger.trials() if t.state.is_finished() and not is_void(t)]
    states = Counter(STATES[trial.state] for trial in counted)
    return {
        "trials": len(counted),
        "settings": len({json.dumps(t.params, sort_keys=True) for t in counted}),
        **{state: states[state] for state in STATES.values()},
        "epochs": epochs_of(counted),
    }


def best_trials(ledger: Ledger, settings: SweepSettings) -> list[FrozenTrial]:
    """Complete trials, the best first; the Pareto front for several objectives."""
    complete = [t for t in ledger.trials() if t.state == TrialState.COMPLETE]
    if len(settings.objective) > 1:
        return list(ledger.study.best_trials) if complete else []
    sign = -1 if settings.direction[0] == "maximize" else 1
    return sorted(complete, key=lambda trial: sign * trial.values[0])


class Display:
    """A line for each finished trial and, on a terminal, a live table of the arms.

    Args:
        ledgers: One for each arm.
        space: The sweep's.
        settings: The sweeper's.
    """

    def __init__(self, ledgers: Sequence[Ledger], space: Space, settings: SweepSettings) -> None:
        self._arms = list(zip(map(arm_name, space.arms), ledgers, strict=True))
        self._space, self._settings = space, settings
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._started = time.monotonic()
        self._shown: set[tuple[str, int]] = set()
        self._finished = {name: ledger.progress().finished for name, ledger in self._arms}
        self._finished_before = sum(self._finished.values())
        self._new_trials()

    def say(self, line: str) -> None:
        """Print one line above the live table."""
        self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def live(self) -> Iterator[None]:
        """The live display while the sweep runs."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=4, transient=True) as self._live:
            yield
        self._live = None

    def update(self) -> None:
        """Read the studies, print the trials that ended, redraw the live table."""
        for name, ledger, trial in self._new_trials():
            self._finished[name] += 1
            line = f"{name} {self._finished[name]}/{ledger.n_trials}"
            line += f"  #{trial.user_attrs.get('slot', '?')} {STATES[trial.state]}"
            if trial.state == TrialState.COMPLETE:
                told = zip(self._settings.objective, trial.values, strict=True)
                line += "".join(f"  {key} {value:.4f}" for key, value in told)
            elif "reason" in trial.user_attrs:
                line += f" {str(trial.user_attrs['reason']).splitlines()[0]}"
            names = short_names(list(trial.params))
            values = (f" {names[key]}={_number(value)}" for key, value in trial.params.items())
            self.say(f"{line} {''.join(values)}")
        if self._live is not None:
            self._live.update(self._table())

    def _new_trials(self) -> list[tuple[str, Ledger, FrozenTrial]]:
        """Trials that ended since the last update, without those that do not count."""
        new = [
            (name, ledger, trial)
            for name, ledger in self._arms
            for trial in ledger.trials()
            if trial.state.is_finished() and (name, trial.number) not in self._shown
        ]
        self._shown |= {(name, trial.number) for name, _, trial in new}
        return [(name, ledger, trial) for name, ledger, trial in new if not is_void(trial)]

    def _table(self) -> Table:
        table = Table("arm", "done", "pruned", "failed", "best", "running: epoch, value", box=None)
        to_do = 0
        for name, ledger in self._arms:
            progress, best = ledger.progress(), best_trials(ledger, self._settings)
            to_do += ledger.n_trials - progress.finished
            live = (
                f"#{t.user_attrs.get('slot')} {_now(t.user_attrs['live'])}"
                for t in ledger.trials()
                if t.state == TrialState.RUNNING and "live" in t.user_attrs
            )
            table.add_row(
                name,
                f"{progress.finished}/{ledger.n_trials}",
                str(progress.pruned),
                str(progress.failed),
                _number(best[0].values[0] if best else None),
                "; ".join(live),
            )
        epochs = epochs_of([trial for _, ledger in self._arms for trial in ledger.trials()])
        caption = f"epochs saved: {epochs['pruned']} by pruning, {epochs['reused']} by reuse"
        if new := sum(self._finished.values()) - self._finished_before:
            left = timedelta(seconds=round((time.monotonic() - self._started) / new * to_do))
            caption += f"; about {left} left"
        table.caption = caption
        return table

    def announce(self, epochs: int) -> None:
        """Print, before training, the space, the budget, and the trials already done.

        Args:
            epochs: The most a trial may train.
        """
        space, settings = self._space, self._settings
        self.say(f"sweep      {settings.study_name}")
        for key, distribution in space.distributions.items():
            conditions = space.conditions.get(key, {})
            only = ", ".join(f"{group}={'|'.join(of)}" for group, of in conditions.items())
            self.say(f"  searched {key}: {describe(distribution)}{only and f' (only with {only})'}")
        if space.fixed:
            self.say(f"  fixed    {' '.join(space.fixed)}")
        trials = [ledger.n_trials for _, ledger in self._arms]
        to_do = sum(trials) - self._finished_before
        each = f" ({trials[0]} for each of {len(trials)} arms)" if len(trials) > 1 else ""
        each += f" of {settings.seeds} seeds" if settings.seeds > 1 else ""
        self.say(
            f"budget     {plural(sum(trials), 'trial')}{each}, {to_do} to do: at most"
            f" {plural(to_do * epochs, 'epoch')}; {plural(settings.n_jobs, 'worker')}"
        )
        sampler = str(settings.sampler["_target_"]).rpartition(".")[2]
        pruner = str(settings.pruner["_target_"]).rpartition(".")[2]
        from_epoch = f"{pruner}, from epoch {settings.grace_epochs:g} after unfreezing"
        from_epoch += ", by the first seed" if settings.seeds > 1 else ""
        self.say(
            f"           sampler {sampler}; pruner {from_epoch if settings.prunes else 'none'};"
            f" frozen phases are {'reused' if settings.reuse else 'trained by each trial'}"
        )
        for name, ledger in self._arms:
            progress = ledger.progress()
            if progress.finished:
                self.say(
                    f"study      {name}: {progress.finished} of {ledger.n_trials} done"
                    f" ({progress.complete} complete, {progress.pruned} pruned,"
                    f" {progress.failed} failed)"
                )

    def summarize(self) -> None:
        """Print, after the sweep, the best trials of each arm and how the budget was spent."""
        best = {name: best_trials(ledger, self._settings)[:BEST] for name, ledger in self._arms}
        # The grammar's keys, and those that custom_search_space sampled.
        sampled = (key for trials in best.values() for trial in trials for key in trial.params)
        keys = list(dict.fromkeys([*self._space.distributions, *sampled]))
        table = Table(title="best trials", title_justify="left")
        for heading in ("arm", "trial", *self._settings.objective, *short_names(keys).values()):
            table.add_column(heading, justify="left" if heading == "arm" else "right")
        for name, trials in best.items():
            for trial in trials:
                cells = [*trial.values, *(trial.params.get(key) for key in keys)]
                table.add_row(name, str(trial.user_attrs["slot"]), *map(_number, cells))
            table.add_section()
        self._console.print(table)
        for name, ledger in self._arms:
            budget = budget_of(ledger)
            if repeats := budget["trials"] - budget["settings"]:
                self.say(
                    f"repeats    {name}: {plural(repeats, 'trial')} of {budget['trials']} at a"
                    f" setting drawn before; {budget['settings']} distinct settings"
                )
        counts = epochs_of([trial for _, ledger in self._arms for trial in ledger.trials()])
        self.say(
            f"epochs     {counts['trained']} trained of {counts['asked']} requested"
            f" ({counts['pruned']} saved by pruning, {counts['reused']} by reuse)"
        )


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key's last word if it is unique: `lr` for `optim.lr`."""
    last = {key: key.rpartition(".")[2] for key in keys}
    counts = Counter(last.values())
    return {key: word if counts[word] == 1 else key for key, word in last.items()}


def _now(live: Mapping[str, Any]) -> str:
    """Where a running trial is."""
    seed = f"seed {live['seed']}, " if "seed" in live else ""
    return f"{seed}{live['epoch']} {_number(live['value'])}"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
