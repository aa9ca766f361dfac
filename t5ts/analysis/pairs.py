"""Pairs of arms: which are compared, and what each comparison answers."""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np

from t5ts.analysis.arms import RANDOM, Arm, Condition
from t5ts.analysis.statistics import Array, Estimate, log_ratio
from t5ts.analysis.study import grouped

#: Kinds of pairs in display order, and what each compares.
KINDS = {
    "best": "each at its own best schedule",
    "control": "control, each at its own best schedule",
    "weights": "weights only, same schedule",
    "same_plan": "control, same schedule",
    "frozen_random": "vs. a frozen random encoder",
    "checkpoint": "another checkpoint",
    "freezing": "freezing schedule",
    "other": "more than the weights differ",
}


class Pair:
    """Two arms at the same seeds; a negative difference in loss favours the treatment.

    Attributes:
        kind: Of `KINDS`.
        seeds: Seeds finished at both arms' best settings, ascending.
        unpaired: Those that only one arm finished, by arm.
        runs: The runs at these seeds: the treatment's, the control's, and so on.
        rivals: The arms that treatment and control were chosen from, including themselves.
        num_windows: Training windows in an epoch of the treatment; 0 if not recorded.
    """

    def __init__(self, kind: str, treatment: Arm, control: Arm) -> None:
        self.kind, self.treatment, self.control = kind, treatment, control
        self.arms = treatment, control
        self.name = f"{treatment.name} vs. {control.name}"
        self.seeds = sorted(treatment.finished.keys() & control.finished.keys())
        lone = {arm: sorted(set(arm.finished) - set(self.seeds)) for arm in self.arms}
        self.unpaired = {arm: seeds for arm, seeds in lone.items() if seeds}
        self.runs = [arm.finished[seed] for seed in self.seeds for arm in self.arms]
        self.rivals = [treatment], [control]
        windows = treatment.runs[0].provenance.get("windows") or {}
        self.num_windows = int(windows.get("train") or 0)

    @property
    def overruled(self) -> list[tuple[Arm, Arm, float, float]]:
        """Where the search chose a schedule and validation at the pair's seeds prefers another.

        Returns:
            The preferred arm, the chosen one, and their mean objectives at these seeds.
        """
        found = []
        for chosen, arms in zip(self.arms, self.rivals, strict=True):
            searched = [arm.searched_loss for arm in arms]
            if math.inf in searched or arms[int(np.argmin(searched))] is not chosen:
                continue
            means = {
                arm: float(np.mean([arm.finished[seed].objective for seed in self.seeds]))
                for arm in arms
                if self.seeds and {*self.seeds} <= arm.finished.keys()
            }
            best = max if chosen.maximize else min
            preferred = best(means, key=lambda arm: means[arm], default=chosen)
            if preferred is not chosen:
                found.append((preferred, chosen, means[preferred], means[chosen]))
        return found

    def values(self, metric: str) -> tuple[Array, Array]:
        """A final metric of both arms by seed."""
        found = np.array([run.metric(metric) for run in self.runs])
        return found[::2], found[1::2]

    def log_ratio(self, metric: str) -> Estimate:
        """Mean paired log-ratio treatment / control of a final loss."""
        return log_ratio(*self.values(metric))

    def curves(self, metric: str) -> tuple[Array, Array, Array]:
        """Epochs (E,) evaluated in all paired runs, and both arms' curves (S, E)."""
        epochs, values = shared_epochs([run.curve(metric) for run in self.runs])
        return epochs, values[::2], values[1::2]


def shared_epochs(curves: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Epochs (E,) that all of C curves have, and their values there (C, E); empty without any."""
    if not curves:
        return np.empty(0), np.empty((0, 0))
    epochs = reduce(np.intersect1d, (x for x, _ in curves))
    return epochs, np.stack([y[np.isin(x, epochs)] for x, y in curves])


def at_their_best(kind: str, treatments: list[Arm], controls: list[Arm]) -> Pair:
    """Pair each side's best schedule by validation, among those with the most shared seeds.

    If all schedules of a side were re-run (`final`), the search's runs choose between them.
    """

    def best(arms: list[Arm], others: list[Arm]) -> Arm:
        shared = {seed for other in others for seed in other.finished}
        by_search = all(arm.searched_loss < math.inf for arm in arms)
        seeds = {arm: len(arm.finished.keys() & shared) for arm in arms}
        loss = {arm: arm.searched_loss if by_search else arm.loss for arm in arms}
        return min(arms, key=lambda arm: (-seeds[arm], loss[arm]))

    pair = Pair(kind, best(treatments, controls), best(controls, treatments))
    pair.rivals = (treatments, controls)
    return pair


def chosen_from(arms: Sequence[Arm]) -> int:
    """Number of schedules and settings that one was chosen from on the seeds it is tested on."""
    if all(arm.searched_loss < math.inf for arm in arms):
        return 1
    return sum(1 if arm.final else len(arm.settings) for arm in arms)


def pairs(condition: Condition) -> list[Pair]:
    """Every comparison that answers one of the questions, `best` first; no two arms twice."""
    found: dict[tuple[Arm, Arm], Pair] = {}
    for pair in _candidates(condition.arms):
        found.setdefault(pair.arms, pair)
    return sorted(found.values(), key=lambda pair: [*KINDS].index(pair.kind))


def _candidates(arms: list[Arm]) -> Iterator[Pair]:
    pretrained = [arm for arm in arms if arm.is_pretrained]
    for treatments in grouped(pretrained, lambda arm: arm.weights).values():
        controls = [arm for arm in arms if arm.is_control_of(treatments[0])]
        for init, rivals in grouped(controls, lambda arm: arm.init).items():
            if {arm.freeze for arm in treatments} & {arm.freeze for arm in rivals}:
                yield at_their_best("best" if init == RANDOM else "control", treatments, rivals)
    for arm, other in itertools.product(pretrained, arms):
        if other.is_control_of(arm):
            if other.freeze == arm.freeze:
                yield Pair("weights" if other.init == RANDOM else "same_plan", arm, other)
            if other.init == RANDOM and other.freeze == "all" and arm.freeze != "all":
                yield Pair("frozen_random", arm, other)
    for arm, other in itertools.product(arms, arms):
        if other.weights == arm.weights and other.freeze == "none" and arm.freeze != "none":
            yield Pair("freezing", arm, other)
    # Instruction-tuned checkpoints first: their effect is the question, so they are the treatment.
    tuned_first = sorted(pretrained, key=lambda arm: (not arm.is_instruction_tuned, arm.name))
    for arm, other in itertools.combinations(tuned_first, 2):
        # Different architectures are not paired: each is compared with its own random arm only.
        same_shape = arm.architecture is not None and arm.architecture == other.architecture
        if same_shape and arm.weights != other.weights and arm.freeze == other.freeze:
            yield Pair("checkpoint", arm, other)
    with_checkpoint = {arm.backbone for arm in pretrained}
    for arm, other in itertools.product(pretrained, arms):
        same = other.backbone == arm.backbone and other.freeze == "none"
        if other.init == RANDOM and (same or other.backbone not in with_checkpoint):
            yield Pair("other", arm, other)
