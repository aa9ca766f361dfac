"""Slots: each ends with one result, whatever dies when; no live trial is touched."""

import itertools
import os
from contextlib import suppress
from typing import Any
from unittest import mock

import optuna
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from benchmarks.sweep_kills import run
from t5ts.sweep.ledger import (
    BUSY,
    DIED,
    REFUSED,
    STOPPED,
    SURPLUS,
    Claim,
    Ledger,
    is_dead,
    is_released,
    owner_name,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_ledger(storage: BaseStorage, n_trials: int, lost_after_s: float = 0.0) -> Ledger:
    study = optuna.create_study(storage=storage, study_name="study", load_if_exists=True)
    seeds = itertools.count()  # as TPE, which draws another point when it has seen more trials
    return Ledger(
        study, n_trials=n_trials, lost_after_s=lost_after_s,
        sampler_of=lambda _: RandomSampler(seed=next(seeds)),
    )  # fmt: skip


def take(ledger: Ledger, owner: str) -> Claim | None:
    claim = ledger.claim(owner)
    if claim is not None:
        claim.trial.suggest_float("x", 0, 1)
    return claim


class Workers(RuleBasedStateMachine):
    """Workers that claim, finish, stop and die at any moment, in any order, on one study."""

    @initialize(n_trials=st.integers(1, 4))
    def begin(self, n_trials: int) -> None:
        storage = InMemoryStorage()
        # Two sweeps on one study, each with a ledger of its own.
        self.ledgers = [open_ledger(storage, n_trials) for _ in range(2)]
        self.n_trials = n_trials
        self.names = 0
        self.dead: set[str] = set()
        self.running: list[tuple[Claim, str]] = []
        self.drawn: dict[int, float] = {}
        self.patch = mock.patch("t5ts.sweep.ledger.is_dead", lambda name: name in self.dead)
        self.patch.start()

    def teardown(self) -> None:
        if not hasattr(self, "patch"):
            return
        try:
            self.finish_everything()
        finally:
            self.patch.stop()

    def owner(self) -> str:
        self.names += 1
        return f"worker-{self.names}"

    def claim(self, which: int, owner: str | None = None) -> bool:
        owner = owner or self.owner()
        claim = take(self.ledgers[which], owner)
        if claim is None:
            return False
        # A second attempt is with the same parameters.
        x = claim.trial.params["x"]
        assert self.drawn.setdefault(claim.slot, x) == x
        self.running.append((claim, owner))
        return True

    @rule(which=st.integers(0, 1))
    def ask(self, which: int) -> None:
        self.claim(which)

    @rule(
        which=st.integers(0, 1), when=st.sampled_from(["before", "after", ""]), dies=st.booleans()
    )
    def two_ask_at_the_same_moment(self, which: int, when: str, dies: bool) -> None:
        """Another worker claims before or after this one's trial is created, of which it is blind.

        It may also find that trial before this one knows whether the slot is its own, or this one
        may die just after it created the trial.
        """
        owner, storage = self.owner(), self.ledgers[which]._storage
        create = storage.create_new_trial
        if dies:
            self.dead.add(owner)

        def create_and_be_overtaken(*arguments: Any) -> int:
            storage.create_new_trial = create
            if when == "before":
                self.claim(1 - which)
            number = create(*arguments)
            if dies:
                raise InterruptedError
            if when == "after":
                self.claim(1 - which)
            return number

        patch = mock.patch.object(storage, "create_new_trial", create_and_be_overtaken)
        with patch, suppress(InterruptedError):
            self.claim(which, owner)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), state=st.sampled_from(["COMPLETE", "PRUNED", "FAIL"]))
    def finish(self, data: st.DataObject, state: str) -> None:
        claim, _ = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        values = 1.0 if state == "COMPLETE" else None
        self.ledgers[0].study.tell(claim.trial, values, state=TrialState[state])

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        _, owner = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.dead.add(owner)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from([STOPPED, REFUSED]))
    def stop(self, data: st.DataObject, how: str) -> None:
        """Handed back, perhaps by several at once."""
        claim, _ = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        for ledger in self.ledgers:
            ledger.release(claim.trial._trial_id, how, "why")

    @rule(which=st.integers(0, 1))
    def reclaim(self, which: int) -> None:
        self.ledgers[which].reclaim()

    @precondition(lambda self: self.n_trials < 7)
    @rule(which=st.integers(0, 1))
    def ask_for_more(self, which: int) -> None:
        """One sweep's n_trials grows; the other's may stay behind."""
        self.n_trials += 1
        self.ledgers[which].n_trials = self.n_trials

    @invariant()
    def live_trials_are_untouched_and_no_slot_is_doubled(self) -> None:
        if not hasattr(self, "ledgers"):
            return
        trials = self.ledgers[0].trials()
        assert all(trials[c.trial.number].state == TrialState.RUNNING for c, _ in self.running)
        has_result = [
            t.user_attrs["slot"] for t in trials if t.state.is_finished() and not is_released(t)
        ]
        taken = has_result + [claim.slot for claim, _ in self.running]
        assert len(set(taken)) == len(taken)

    def finish_everything(self) -> None:
        """The remaining workers finish; then every slot has exactly one result."""
        for ledger in self.ledgers:
            ledger.n_trials = self.n_trials
        ledger = self.ledgers[0]
        for _ in range(200):
            while self.running:
                claim, _ = self.running.pop()
                ledger.study.tell(claim.trial, 1.0)
            if ledger.is_finished():
                break
            if not self.claim(0):
                ledger.reclaim()
        results = sorted(
            t.user_attrs["slot"]
            for t in ledger.trials()
            if t.state.is_finished() and not is_released(t)
        )
        assert results == list(range(self.n_trials))
        assert ledger.finished() == ledger.states().total() == self.n_trials


def test_whatever_dies_every_slot_has_one_result():
    run_state_machine_as_test(
        Workers, settings=settings(max_examples=80, stateful_step_count=25, deadline=None)
    )


@pytest.mark.parametrize(("how", "next_slot"), [(DIED, 0), (STOPPED, 0), (REFUSED, 1), (BUSY, 1)])
def test_a_lost_trial_is_done_again_at_its_point_in_its_slot(how, next_slot):
    ledger = open_ledger(InMemoryStorage(), 2)
    first = take(ledger, "one")
    assert first is not None
    ledger.release(first.trial._trial_id, how, "why")
    assert ledger.refused_by("one") == (["why"] if how == REFUSED else [])
    assert ledger.refused_by("two") == []
    assert ledger.states().total() == 0
    assert ledger.results() == []
    claims = [take(ledger, "two"), take(ledger, "two")]  # what was refused is tried last
    again = next(claim for claim in claims if claim is not None and claim.slot == 0)
    assert claims[0] is not None
    assert claims[0].slot == next_slot
    assert again.trial.params == first.trial.params
    assert again.before == {how: 1}
    assert again.trial.number != first.trial.number
    assert ledger.refused_by("one") == []


def test_an_attempt_repeats_everything_that_was_drawn_and_counts_what_ran():
    """Its predecessor died between two draws; workers that lost the slot to another never ran."""
    ledger = open_ledger(InMemoryStorage(), 1)
    ends = [(DIED, "first"), (DIED, "second"), (SURPLUS, "lost the slot")]
    for number, (how, reason) in enumerate(ends):
        claim = take(ledger, f"{number}")
        assert claim is not None
        if number == 1:
            drawn = {"y": claim.trial.suggest_float("y", 0, 1), **claim.trial.params}
        ledger.release(claim.trial._trial_id, how, reason)
    last = ledger.claim("last")
    assert last is not None
    assert {name: last.trial.suggest_float(name, 0, 1) for name in "xy"} == drawn
    assert (last.before, last.last_reason) == ({DIED: 2}, "second")


def test_a_smaller_sweep_of_a_study_counts_its_own_slots_only():
    storage = InMemoryStorage()
    larger, smaller = open_ledger(storage, 3), open_ledger(storage, 2)
    for number in range(3):
        assert not smaller.is_finished()
        claim = take(larger, str(number))
        assert claim is not None
        if claim.slot:
            larger.study.tell(claim.trial, 1.0)
        else:
            first = claim
    assert smaller.finished() == 1  # of the two
    larger.study.tell(first.trial, 1.0)
    assert smaller.is_finished()
    assert smaller.states().total() == 2


def test_a_trial_that_ended_is_not_released():
    ledger = open_ledger(InMemoryStorage(), 1)
    claim = take(ledger, "one")
    assert claim is not None
    ledger.study.tell(claim.trial, 1.0)
    ledger.release(claim.trial._trial_id, DIED, "too late")
    assert (ledger.states()[TrialState.COMPLETE], len(ledger.trials())) == (1, 1)


def test_this_process_lives_and_one_that_ended_is_dead():
    mine = owner_name()
    assert is_dead(mine) is False
    place, pid, birth, token = mine.rsplit("/", 3)
    assert is_dead(f"{place}/{pid}/{birth}0/{token}") is True  # its number was reused
    assert is_dead(f"elsewhere/{pid}/{birth}/{token}") is None
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert is_dead(f"{place}/{child}/{birth}/{token}") is True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1e9


@pytest.mark.parametrize(
    ("owner", "beats", "is_lost"),
    [
        ("another machine/1/2/3", 5, False),
        ("another machine/1/2/3", 2, True),
        ("another machine/1/2/3", 0, True),
        # Its process lives on this machine: whatever it is busy with, nobody takes its trial.
        (owner_name(), 0, False),
    ],
    # A worker's own name differs in every process.
    ids=("heard", "heard twice", "silent", "this machine"),
)
def test_another_machines_worker_is_known_by_its_heartbeat(owner, beats, is_lost):
    clock = Clock()
    ledger = open_ledger(InMemoryStorage(), 1, lost_after_s=10)
    with mock.patch("t5ts.sweep.ledger.time", clock):
        claim = take(ledger, owner)
        assert claim is not None
        lost = []
        for number in range(5):
            if number < beats:
                ledger.beat(claim.trial)
            lost += ledger.reclaim()
            clock.now += 6
    assert ledger.states()[TrialState.RUNNING] != is_lost
    assert len(lost) == is_lost


def test_sixty_trials_with_kills_and_restarts(tmp_path):
    """Real processes, killed at random moments, on the journal."""
    # Long enough for kills to find trials under way, also on a busy machine.
    accidents = {"kills": 3, "restarts": 2, "seed": 0, "work_s": 0.1}
    counts = run(None, tmp_path, n_trials=60, workers=4, **accidents)
    assert counts["finished"] == counts["distinct"] == 60
    assert counts["lost"] == counts["doubled"] == counts["other_params"] == 0
    assert counts["attempts"] > 60  # something was killed in the middle
