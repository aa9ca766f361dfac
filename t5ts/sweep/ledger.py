"""Who does which trial: slots, owners, heartbeats and second attempts, on any Optuna storage.

A study has `n_trials` slots, numbered from 0. An *original* trial's slot is its permanent rank
among the study's originals, so two workers that ask at the same moment never get the same one, and
the later of two that took the last one knows that it is surplus. A trial whose worker died or was
stopped is *lost*: it ends as failed, and a *second attempt* at the same point, which inherits
slot, parameters and directory, waits for the next worker. (The same happens to a surplus trial once
`n_trials` has grown past its slot.) All rules are read from the trials' own records, so that no
worker needs to agree with another:

- of several second attempts at one lost trial, the one with the smallest number counts, and later
  attempts at the others count no more than they do;
- an owner is dead if its process is gone from this machine, or if its heartbeat, watched by this
  process's clock, has not changed for some time.
"""

import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study, Trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

#: How an attempt ends without being the slot's result: its worker died, it was stopped, it lacked
#: data or weights, or it is beyond `n_trials` or another attempt has its slot.
DIED, STOPPED, REFUSED, SURPLUS = "died", "stopped", "refused", "surplus"


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


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A study's progress, in slots."""

    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int

    @property
    def finished(self) -> int:
        """Slots that have a result."""
        return self.complete + self.pruned + self.failed


class Owner:
    """This process, identified so that another can check whether it is alive."""

    def __init__(self) -> None:
        self.name = f"{_place()}/{os.getpid()}/{_birth(os.getpid())}/{uuid.uuid4().hex[:8]}"

    @staticmethod
    def is_dead(name: str) -> bool | None:
        """Whether a process of this machine is gone; None for another machine's."""
        place, pid, birth, _ = name.rsplit("/", 3)
        if place != _place():
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
        if Path("/proc/self").exists():
            return "gone"
        try:
            os.kill(pid, 0)  # no /proc on this system: only whether it is alive can be known
            return "alive"
        except ProcessLookupError:
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
        self._lost_after_s = lost_after_s
        self._seen: dict[int, tuple[Any, float]] = {}

    def trials(self) -> list[FrozenTrial]:
        """All attempts, by number."""
        return self.study.get_trials(deepcopy=False)

    def progress(self) -> Progress:
        """Counts over slots."""
        trials = self.trials()
        slots = _slots(trials)
        states = Counter(
            trial.state
            for trial in trials
            if self._counts(slots[trial.number]) and not is_void(trial)
        )
        # A lost trial whose second attempt is not enqueued yet still has to be run.
        return Progress(
            complete=states[TrialState.COMPLETE],
            pruned=states[TrialState.PRUNED],
            failed=states[TrialState.FAIL],
            running=states[TrialState.RUNNING],
            waiting=states[TrialState.WAITING] + len(self._without_successor(trials)),
        )

    def started(self) -> int:
        """Slots that are taken or finished."""
        progress = self.progress()
        return progress.finished + progress.running

    def is_finished(self) -> bool:
        """Whether every slot has a result."""
        return self.progress().finished >= self.n_trials

    def claim(
        self,
        owner: Owner,
        *,
        sampler_of: Callable[[int], BaseSampler],
        point_of: Callable[[int], dict[str, Any] | None],
    ) -> Claim | None:
        """Take the next trial; None if none is available now.

        Args:
            owner: This process.
            sampler_of: The sampler of a slot.
            point_of: A slot's parameters where they are fixed (a grid), else None.
        """
        while True:
            trials = self.trials()
            has_waiting = any(trial.state == TrialState.WAITING for trial in trials)
            originals = sum(1 for trial in trials if _before(trial) is None)
            if not has_waiting and originals >= self.n_trials:
                return None
            self.study.sampler = RandomSampler()  # only until the slot, and so the seed, is known
            asked = self.study.ask()
            asked.set_user_attr("owner", owner.name)
            trials = self.trials()
            mine = trials[asked.number]
            slot = _slots(trials)[mine.number]
            if not self._counts(slot):
                self._end(mine, SURPLUS, "another attempt has this slot, or none was left")
                continue
            assert slot is not None
            asked.set_user_attr("slot", slot)
            self.study.sampler = sampler_of(slot)
            point = point_of(slot)
            if point is not None:
                self.study._storage.set_trial_system_attr(asked._trial_id, "fixed_params", point)
            trial = Trial(self.study, asked._trial_id)
            earlier = _earlier(trials, mine)
            return Claim(
                trial=trial,
                slot=slot,
                before=Counter(str(attempt.user_attrs.get("void")) for attempt in earlier),
                last_reason=earlier[0].user_attrs.get("reason") if earlier else None,
            )

    def beat(self, trial: Trial) -> None:
        """Record that this trial's worker is alive."""
        trial.set_user_attr("heartbeat", time.time())

    def is_mine(self, trial: Trial) -> bool:
        """Whether the trial is still running, i.e. was not declared lost."""
        state = self.study._storage.get_trial(trial._trial_id).state
        return state == TrialState.RUNNING

    def hand_back(self, trial_id: int, how: str, reason: str) -> None:
        """End an attempt (by Optuna's id, not its number) as DIED or STOPPED; enqueue another."""
        trial = self.study._storage.get_trial(trial_id)
        if self._end(trial, how, reason):
            self._enqueue_again(trial)

    def set_aside(self, trial_id: int, reason: str) -> None:
        """End an attempt as refused; another is enqueued when nothing else is left."""
        self._end(self.study._storage.get_trial(trial_id), REFUSED, reason)

    def reclaim(self) -> list[str]:
        """Release the trials of dead workers; returns a line for each."""
        lines = []
        trials = self.trials()
        for trial in trials:
            if trial.state == TrialState.RUNNING and (reason := self._is_lost(trial)):
                self.hand_back(trial._trial_id, DIED, reason)
                lines.append(f"trial {trial.user_attrs.get('slot', trial.number)}: {reason}")
        # The worker that ended these died before enqueuing the next, or n_trials has grown.
        for trial in self._without_successor(trials):
            self._enqueue_again(trial)
        return lines

    def _is_lost(self, trial: FrozenTrial) -> str | None:
        owner = trial.user_attrs.get("owner")
        dead = None if owner is None else Owner.is_dead(owner)
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

    def _end(self, trial: FrozenTrial, how: str, reason: str) -> bool:
        """Fail an attempt; False if it has already ended."""
        storage = self.study._storage
        try:
            storage.set_trial_user_attr(trial._trial_id, "void", how)
            storage.set_trial_user_attr(trial._trial_id, "reason", reason)
            return storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            return False

    def _enqueue_again(self, trial: FrozenTrial) -> None:
        trials = self.trials()
        lost = trials[trial.number]
        slot = _slots(trials)[lost.number]
        if self._counts(slot):
            self.study.enqueue_trial(
                dict(lost.params), user_attrs={"attempt_after": lost.number, "slot": slot}
            )

    def _counts(self, slot: int | None) -> bool:
        return slot is not None and slot < self.n_trials

    def _without_successor(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Lost trials that nobody has retried."""
        slots = _slots(trials)
        followed = {_before(trial) for trial in trials}
        return [
            trial
            for trial in trials
            if is_void(trial) and self._counts(slots[trial.number]) and trial.number not in followed
        ]


def is_void(trial: FrozenTrial) -> bool:
    """Whether an attempt ended without a result for its slot."""
    return trial.state == TrialState.FAIL and "void" in trial.user_attrs


def _before(trial: FrozenTrial) -> int | None:
    """Number of the lost trial that this attempt retries."""
    return trial.user_attrs.get("attempt_after")


def _slots(trials: Sequence[FrozenTrial]) -> list[int | None]:
    """Each trial's slot; None if another attempt at the same lost trial counts instead of it.

    A function of the numbers and of what each trial was created with, neither of which changes.
    """
    slots: list[int | None] = []
    followed: set[int] = set()
    originals = 0
    for trial in trials:
        before = _before(trial)
        if before is None:
            slots.append(originals)
            originals += 1
        else:
            slots.append(None if before in followed else slots[before])
            followed.add(before)
    return slots


def _earlier(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> list[FrozenTrial]:
    """The attempts before this one at the same slot, the latest first."""
    found = []
    while (before := _before(trial)) is not None:
        trial = trials[before]
        found.append(trial)
    return found
