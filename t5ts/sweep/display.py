"""A sweep's terminal output: the search, its finished trials, the best of them and their cost."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from t5ts.analysis.words import plural
from t5ts.sweep.ledger import Ledger
from t5ts.sweep.settings import SweepSettings
from t5ts.sweep.space import Space, describe
from t5ts.sweep.trial import ENDS

#: Rows of the table of the best trials, for each arm.
BEST = 10
STATES = {state: name for name, state in ENDS.items()}


def budget_of(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """The cost of a search: its trials that count, their settings, and their epochs.

    Epochs are sums: requested, trained, reused, and saved by pruning.
    """
    epochs = Counter(asked=0, trained=0, reused=0, pruned=0)
    for trial in trials:
        own = trial.user_attrs.get("epochs", {})
        epochs.update(own)
        if own and trial.state == TrialState.PRUNED:
            epochs["pruned"] += own["asked"] - own["trained"] - own["reused"]
    states = Counter(STATES[trial.state] for trial in trials)
    return {
        "trials": len(trials),
        "settings": len({json.dumps(t.params, sort_keys=True) for t in trials}),
        **{state: states[state] for state in ENDS},
        "epochs": dict(epochs),
    }


def best_trials(ledger: Ledger, settings: SweepSettings) -> list[FrozenTrial]:
    """Complete trials, the best first."""
    complete = [t for t in ledger.results() if t.state == TrialState.COMPLETE]
    sign = -1 if settings.direction == "maximize" else 1
    return sorted(complete, key=lambda trial: sign * (trial.value or 0.0))


class Display:
    """Prints the search before it starts, a line per finished trial, and a summary."""

    def __init__(self, ledgers: Sequence[Ledger], space: Space, settings: SweepSettings) -> None:
        self._ledgers, self._space, self._settings = ledgers, space, settings
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._shown = {x.name: {trial.number for trial in x.results()} for x in ledgers}

    def say(self, line: str) -> None:
        """Print one line."""
        self._console.print(line, markup=False, soft_wrap=True)

    def update(self) -> None:
        """Read the studies and print the trials that ended since the last time."""
        for ledger in self._ledgers:
            shown = self._shown[ledger.name]
            for trial in ledger.results():
                if trial.number in shown:
                    continue
                shown.add(trial.number)
                value = str(trial.user_attrs.get("reason", "")).partition("\n")[0]
                if trial.state == TrialState.COMPLETE:
                    value = f" {self._settings.objective} {trial.value:.4f}"
                names = short_names(list(trial.params))
                params = " ".join(f"{names[k]}={_number(v)}" for k, v in trial.params.items())
                self.say(
                    f"{ledger.name} {len(shown)}/{ledger.n_trials}  #{trial.user_attrs['slot']}"
                    f" {STATES[trial.state]} {value}  {params}"
                )

    def announce(self, epochs: int) -> None:
        """Print the space and the budget before training; `epochs` are a trial's at most."""
        space, settings = self._space, self._settings
        self.say(f"sweep      {settings.study_name}")
        for key, distribution in space.distributions.items():
            conditions = space.conditions.get(key, {})
            only = ", ".join(f"{group}={'|'.join(names)}" for group, names in conditions.items())
            self.say(f"  searched {key}: {describe(distribution)}{only and f' (only with {only})'}")
        if space.fixed:
            self.say(f"  fixed    {' '.join(space.fixed)}")
        trials = [ledger.n_trials for ledger in self._ledgers]
        to_do = sum(trials) - sum(map(len, self._shown.values()))
        either = " to ".join(map(str, sorted({min(trials), max(trials)})))
        each = f" ({either} for each of {len(trials)} arms)" if len(trials) > 1 else ""
        each += f" of {settings.seeds} seeds" if settings.seeds > 1 else ""
        self.say(
            f"budget     {plural(sum(trials), 'trial')}{each}, {to_do} to do: at most"
            f" {plural(to_do * epochs, 'epoch')}; {plural(settings.n_jobs, 'worker')}"
        )

    def summarize(self) -> None:
        """Print, after the sweep, the best trials of each arm and how the budget was spent."""
        best = {x.name: best_trials(x, self._settings)[:BEST] for x in self._ledgers}
        # The grammar's keys, and those that custom_search_space sampled.
        sampled = (key for trials in best.values() for trial in trials for key in trial.params)
        keys = list(dict.fromkeys([*self._space.distributions, *sampled]))
        table = Table("arm", title="best trials", title_justify="left")
        for heading in ("trial", self._settings.objective, *short_names(keys).values()):
            table.add_column(heading, justify="right")
        for name, trials in best.items():
            for trial in trials:
                cells = [trial.value, *(trial.params.get(key) for key in keys)]
                table.add_row(name, str(trial.user_attrs["slot"]), *map(_number, cells))
            table.add_section()
        self._console.print(table)
        epochs: Counter[str] = Counter()
        for ledger in self._ledgers:
            budget = budget_of(ledger.results())
            epochs.update(budget["epochs"])
            if repeats := budget["trials"] - budget["settings"]:
                self.say(
                    f"repeats    {ledger.name}: {plural(repeats, 'trial')} of {budget['trials']} at"
                    f" a setting drawn before; {budget['settings']} distinct settings"
                )
        self.say(
            f"epochs     {epochs['trained']} trained of {epochs['asked']} requested"
            f" ({epochs['pruned']} saved by pruning, {epochs['reused']} by reuse)"
        )


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key's last word if it is unique: `lr` for `optim.lr`."""
    last = {key: key.rpartition(".")[2] for key in keys}
    counts = Counter(last.values())
    return {key: word if counts[word] == 1 else key for key, word in last.items()}


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
