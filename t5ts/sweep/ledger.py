"""Who does which trial: slots, owners and heartbeats, on any Optuna storage.

A study has `n_trials` slots, numbered from 0, and every trial is created for one of them. A trial
that ends without a result (its worker died or was stopped, say) is *void*: its slot is free again,
for another attempt with the same parameters and directory. All rules are read from the trials' own
records, so that no worker needs to agree with another:

- of a slot's trials that are not void, the one with the smallest number holds it: of two workers
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

#: How an attempt ends without being the slot's result: its worker died, it was stopped, it lacked
#: data or weights, another process runs in its directory, or another attempt has its slot.
DIED, STOPPED, REFUSED, BUSY, SURPLUS = "died", "stopped", "refused", "busy", "surplus"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A trial that this worker runs.

    Attributes:
        trial: Optuna's handle, with the sampler of this slot.
        slot: Its number in the study.
        before: How often its earlier attempts ended in each way.
        last_reason: Why the attempt before this one ended.
    """

    trial: Trial
    slot: int
    before: Counter[str]
    last_reason: str | None


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
    namespace = Path("/proc/self/ns/pid")
    boot = Path("/proc/sys/kernel/random/boot_id")
    parts = [socket.gethostname()]
    if namespace.exists():
        parts.append(str(namespace.readlink()))
    if boot.exists():
        parts.append(boot.read_text().strip())
    return " ".join(parts)


def _birth(pid: int) -> str:
    """When a process started, so that a reused process id is not mistaken for it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return "gone"
    return "gone" if fields[0] == "Z" else fields[19]


class Ledger:
    """One study's slots.

    Args:
        study: On any storage.
        n_trials: Slots.
        lost_after_s: A heartbeat unchanged for this long belongs to a dead worker.
    """

    def __init__(self, study: Study, *, n_trials: int, lost_after_s: float) -> None:
        self.study = study
        self.n_trials = n_trials
        self._storage = study._storage
        self._lost_after_s = lost_after_s
        self._seen: dict[int, tuple[Any, float]] = {}

    def trials(self) -> list[FrozenTrial]:
        """All attempts, by number."""
        return self.study.get_trials(deepcopy=False)

    def results(self) -> list[FrozenTrial]:
        """The finished trials that count."""
        return [t for t in self.trials() if t.state.is_finished() and not is_void(t)]

    def states(self) -> Counter[TrialState]:
        """How many slots have a trial in each state."""
        held = _holders(self.trials())
        return Counter(trial.state for slot, trial in held.items() if slot < self.n_trials)

    def finished(self) -> int:
        """Slots that have a result."""
        return sum(count for state, count in self.states().items() if state.is_finished())

    def is_finished(self) -> bool:
        """Whether every slot has a result."""
        return self.finished() >= self.n_trials

    def refused_by(self, owner: str) -> list[str]:
        """Why a process set trials aside, as far as nobody has taken them since."""
        trials = self.trials()
        held = _holders(trials)
        last = {_slot(t): t.user_attrs for t in trials if t.user_attrs.get("void") == REFUSED}
        mine = (a for slot, a in last.items() if slot not in held and a.get("owner") == owner)
        return [attributes["reason"] for attributes in mine]

    def claim(
        self,
        owner: str,
        *,
        sampler_of: Callable[[int], BaseSampler],
        point_of: Callable[[int], dict[str, Any] | None],
    ) -> Claim | None:
        """Take a slot: the first free one, those set aside last; None if none is free.

        Args:
            owner: Name of this process.
            sampler_of: The sampler of a slot.
            point_of: A slot's parameters where they are fixed (a grid), else None.
        """
        for losses in itertools.count():
            trials = self.trials()
            free = {*range(self.n_trials)} - _holders(trials).keys()
            if not free:
                return None
            aside = (t for t in trials if t.user_attrs.get("void") in (REFUSED, BUSY))
            times = Counter(map(_slot, aside))
            order = sorted(free, key=lambda slot: (times[slot], slot))
            slot = random.choice(order[: 1 + losses])  # or workers would lose to each other again
            earlier = [t for t in trials if _slot(t) == slot and is_void(t)]
            point = point_of(slot)
            if point is None:
                point = next((dict(t.params) for t in reversed(earlier) if t.params), {})
            trial_id = self._storage.create_new_trial(
                self.study._study_id,
                create_trial(
                    state=TrialState.RUNNING,
                    user_attrs={"slot": slot, "owner": owner},
                    system_attrs={"fixed_params": point},
                ),
            )
            holder = _holders(self.trials()).get(slot)
            if holder is None or holder._trial_id != trial_id:
                self.release(trial_id, SURPLUS, "another attempt has this slot")
                continue
            study = Study(self.study.study_name, self._storage, sampler_of(slot), self.study.pruner)
            attempts = [t.user_attrs for t in earlier if t.user_attrs["void"] != SURPLUS]
            return Claim(
                trial=Trial(study, trial_id),
                slot=slot,
                before=Counter(str(attempt["void"]) for attempt in attempts),
                last_reason=attempts[-1].get("reason") if attempts else None,
            )
        raise AssertionError

    def beat(self, trial: Trial) -> None:
        """Record that this trial's worker is alive."""
        trial.set_user_attr("heartbeat", time.time())

    def release(self, trial_id: int, how: str, reason: str) -> None:
        """End an attempt (by Optuna's id, not its number) without a result, unless it has ended."""
        try:
            self._storage.set_trial_user_attr(trial_id, "void", how)
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
        beat = trial.user_attrs.get("heartbeat")
        last, since = self._seen.get(trial.number, (None, None))
        now = time.monotonic()
        if since is None or last != beat:
            self._seen[trial.number] = (beat, now)
            return None
        if now - since > self._lost_after_s:
            return f"no heartbeat from its worker for {self._lost_after_s:g} s"
        return None


def is_void(trial: FrozenTrial) -> bool:
    """Whether an attempt ended without a result for its slot."""
    return trial.state == TrialState.FAIL and "void" in trial.user_attrs


def _slot(trial: FrozenTrial) -> int | None:
    return trial.user_attrs.get("slot")


def _holders(trials: list[FrozenTrial]) -> dict[int, FrozenTrial]:
    """The trial that holds each slot. (Only an earlier t5ts left trials waiting.)"""
    held: dict[int, FrozenTrial] = {}
    for trial in trials:
        slot = _slot(trial)
        if slot is not None and trial.state != TrialState.WAITING and not is_void(trial):
            held.setdefault(slot, trial)
    return held
