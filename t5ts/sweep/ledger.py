"""Who does which trial: slots, owners and heartbeats, on any Optuna storage.

A study has `n_trials` slots, numbered from 0, and every trial is an attempt at one of them. An
attempt that ends without a result (its worker died or was stopped, say) is *released*: its slot is
free again, for another attempt with the same parameters and directory. All rules are read from the
trials' own records, so that no worker needs to agree with another:

- of a slot's trials that were not released, the one with the smallest number counts: of two workers
  that take a slot at the same moment, the later one sees the other's trial and takes another slot;
- an owner is dead if its process is gone from this machine, or if its heartbeat, watched by this
  process's clock, has not changed for some time.
"""

import itertools
import os
import random
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from t5ts.sweep.space import Value, arm_name

#: How an attempt ends without being the slot's result: its worker died, it was stopped, it lacked
#: data or weights, another process runs in its directory, or another attempt has its slot.
DIED, STOPPED, REFUSED, BUSY, SURPLUS = "died", "stopped", "refused", "busy", "surplus"
#: Trial attribute that holds one of these; studies on disk use this name.
RELEASED = "void"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A trial that this worker runs.

    Attributes:
        trial: Optuna's handle, with the sampler of this slot.
        before: How often the slot's earlier attempts ended in each way.
        last_reason: Why the attempt before this one ended.
    """

    ledger: "Ledger"
    trial: Trial
    slot: int
    before: Counter[str]
    last_reason: str | None

    def release(self, how: str, reason: str) -> None:
        """End it without a result for its slot."""
        self.ledger.release(self.trial._trial_id, how, reason)


def owner_name() -> str:
    """This process, named so that another can check whether it is alive."""
    return f"{_place()}/{os.getpid()}/{_birth(os.getpid())}/{uuid.uuid4().hex[:8]}"


def is_dead(owner: str) -> bool | None:
    """Whether a process of this machine is gone; None if that cannot be seen from here."""
    place, pid, birth, _ = owner.rsplit("/", 3)
    if place != _place() or not Path("/proc/self").exists():
        return None
    return _birth(int(pid)) != birth


def _place() -> str:
    """This machine and process namespace: containers on one machine do not see each other."""
    namespace, boot = Path("/proc/self/ns/pid"), Path("/proc/sys/kernel/random/boot_id")
    parts = [socket.gethostname()]
    parts += [str(namespace.readlink())] if namespace.exists() else []
    return " ".join(parts + ([boot.read_text().strip()] if boot.exists() else []))


def _birth(pid: int) -> str:
    """When a process started, so that a reused process id is not mistaken for it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return "gone"
    return "gone" if fields[0] == "Z" else fields[19]


class Ledger:
    """One arm's study and its slots.

    Args:
        study: On any storage.
        n_trials: Slots.
        lost_after_s: A heartbeat unchanged for this long belongs to a dead worker.
        sampler_of: Makes a slot's sampler.
        grid: Each slot's parameters, if they are not sampled.
        arm: The settings that are compared; none if there is one arm.
    """

    def __init__(
        self,
        study: Study,
        *,
        n_trials: int,
        lost_after_s: float,
        sampler_of: Callable[[int], BaseSampler],
        grid: Sequence[Mapping[str, Any]] | None = None,
        arm: Mapping[str, Value] | None = None,
    ) -> None:
        self.study, self.n_trials, self.arm = study, n_trials, dict(arm or {})
        self._lost_after_s, self._sampler_of, self._grid = lost_after_s, sampler_of, grid
        self._storage = study._storage
        self._heartbeats: dict[int, tuple[Any, float]] = {}

    @property
    def name(self) -> str:
        """The arm's name, in directories too."""
        return arm_name(self.arm)

    def trials(self) -> list[FrozenTrial]:
        """All attempts, by number."""
        return self.study.get_trials(deepcopy=False)

    def results(self) -> list[FrozenTrial]:
        """The finished trials that count."""
        return [t for t in self.trials() if t.state.is_finished() and not is_released(t)]

    def states(self) -> Counter[TrialState]:
        """How many slots have a trial in each state."""
        current = _by_slot(self.trials())
        return Counter(trial.state for slot, trial in current.items() if slot < self.n_trials)

    def finished(self) -> int:
        """Slots that have a result."""
        return sum(count for state, count in self.states().items() if state.is_finished())

    def is_finished(self) -> bool:
        """Whether every slot has a result."""
        return self.finished() >= self.n_trials

    def refused_by(self, owner: str) -> list[str]:
        """Why a process set trials aside, for those that nobody has taken since."""
        trials = self.trials()
        last = {_slot(t): t.user_attrs for t in trials if t.user_attrs.get(RELEASED) == REFUSED}
        free = last.keys() - _by_slot(trials).keys()
        return [last[slot]["reason"] for slot in free if last[slot].get("owner") == owner]

    def claim(self, owner: str) -> Claim | None:
        """Take a slot: the first free one, those set aside last; None if none is free."""
        for losses in itertools.count():
            trials = self.trials()
            free = {*range(self.n_trials)} - _by_slot(trials).keys()
            if not free:
                return None
            aside = (t for t in trials if t.user_attrs.get(RELEASED) in (REFUSED, BUSY))
            times = Counter(map(_slot, aside))
            order = sorted(free, key=lambda slot: (times[slot], slot))
            slot = random.choice(order[: 1 + losses])  # or workers would lose to each other again
            earlier = [t for t in trials if _slot(t) == slot and is_released(t)]
            params = {name: value for t in earlier for name, value in t.params.items()}
            trial_id = self._storage.create_new_trial(
                self.study._study_id,
                create_trial(
                    state=TrialState.RUNNING,
                    user_attrs={"slot": slot, "owner": owner},
                    system_attrs={"fixed_params": self._grid[slot] if self._grid else params},
                ),
            )
            current = _by_slot(self.trials()).get(slot)
            if current is None or current._trial_id != trial_id:
                self.release(trial_id, SURPLUS, "another attempt has this slot")
                continue
            name, sampler = self.study.study_name, self._sampler_of(slot)
            attempts = [t.user_attrs for t in earlier if t.user_attrs[RELEASED] != SURPLUS]
            return Claim(
                ledger=self,
                trial=Trial(Study(name, self._storage, sampler, self.study.pruner), trial_id),
                slot=slot,
                before=Counter(str(attempt[RELEASED]) for attempt in attempts),
                last_reason=attempts[-1].get("reason") if attempts else None,
            )
        raise AssertionError

    def beat(self, trial: Trial) -> None:
        """Record that this trial's worker is alive."""
        trial.set_user_attr("heartbeat", time.time())

    def release(self, trial_id: int, how: str, reason: str) -> None:
        """End an attempt (by Optuna's id, not its number) without a result, unless it has ended."""
        try:
            self._storage.set_trial_user_attr(trial_id, RELEASED, how)
            self._storage.set_trial_user_attr(trial_id, "reason", reason)
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            pass

    def reclaim(self) -> list[str]:
        """Release the trials of dead workers; returns a line for each."""
        lines = []
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and (reason := self._is_lost(trial)):
                self.release(trial._trial_id, DIED, reason)
                lines.append(f"trial {_slot(trial)}: {reason}")
        return lines

    def _is_lost(self, trial: FrozenTrial) -> str | None:
        owner = trial.user_attrs.get("owner")
        dead = None if owner is None else is_dead(owner)
        if dead is not None:
            return "its worker died" if dead else None
        beat, now = trial.user_attrs.get("heartbeat"), time.monotonic()
        last, since = self._heartbeats.setdefault(trial.number, (beat, now))
        if last != beat:
            self._heartbeats[trial.number] = beat, now
        elif now - since > self._lost_after_s:
            return f"no heartbeat from its worker for {self._lost_after_s:g} s"
        return None


def is_released(trial: FrozenTrial) -> bool:
    """Whether an attempt ended without a result for its slot."""
    return trial.state == TrialState.FAIL and RELEASED in trial.user_attrs


def _slot(trial: FrozenTrial) -> int | None:
    return trial.user_attrs.get("slot")


def _by_slot(trials: list[FrozenTrial]) -> dict[int, FrozenTrial]:
    """The trial that counts for each slot. (Only an earlier t5ts left trials waiting.)"""
    current: dict[int, FrozenTrial] = {}
    for trial in trials:
        slot = _slot(trial)
        if slot is not None and trial.state != TrialState.WAITING and not is_released(trial):
            current.setdefault(slot, trial)
    return current
