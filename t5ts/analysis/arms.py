"""From runs to what is compared: conditions, arms, settings tried, and pairs of arms."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t5ts.analysis.statistics import Array, Estimate, log_ratio
from t5ts.analysis.study import K, Run, Study, grouped, measured_on, varying
from t5ts.analysis.words import arm_words, model_name


class Pretraining(NamedTuple):
    """What an init promises about its weights.

    Attributes:
        content: What they have learned, which their controls (`matched`, `shuffled`) lack.
        promise: How the weights are described; loader notes may contradict it.
        origin: `LoadReport.origin` of such weights, unless a check contradicts it.
    """

    content: str
    promise: str
    origin: str


#: The pretrained inits, in the order in which they are shown; `Arm.pretraining` names the model.
PRETRAINED = {
    "t5": Pretraining("T5's text pretraining", "T5's, pretrained on text", "pretrained"),
    "pretrained": Pretraining(
        "{model}'s text pretraining", "{model}'s, pretrained on text", "pretrained"
    ),
    "run": Pretraining("the donor run's pretraining", "a trained donor run's", "time series"),
    "chronos": Pretraining(
        "Chronos's pretraining", "Chronos-T5's, pretrained on time series", "time series"
    ),
}
#: The init they are compared with.
RANDOM = "random"
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
#: Groups whose choice makes an arm; what else varies inside an arm was tuned.
_ARM_GROUPS = ("backbone.", "init.", "freeze.name")
#: Which checkpoint: defines an arm even if a sweep tried several.
CHECKPOINT = ("backbone.name", "backbone.path", "backbone.hub_id", "backbone.revision", "init.path")
#: Sizes of an encoder in a run's config; its token embedding is not counted.
_SIZES = ("d_model", "d_ff", "d_kv", "num_layers", "num_heads", "feed_forward_proj")
#: The order of arms, by init and by schedule.
_ORDER = (*PRETRAINED, RANDOM, "matched", "shuffled", "staged", "none", "norms", "all")


class Point:
    """One choice of settings within an arm: its runs differ in the seed alone.

    Attributes:
        finished: Finished runs by seed, ascending; of several at one seed the one written first.
        failed: Seeds that failed and no other run finished, ascending.
        num_seeds: Seeds that ended, either way.
        known: The finished runs, one for each seed; all runs if none has finished.
        objective: Mean validation objective over the finished seeds; NaN without any.
        loss: The same, signed so that lower is better; inf without any.
    """

    def __init__(self, runs: list[Run]) -> None:
        self.settings, self.runs = runs[0].settings, runs
        done = sorted((run for run in runs if run.result is not None), key=lambda r: r.written)
        self.finished = dict(sorted({run.seed: run for run in reversed(done)}.items()))
        failed = {run.seed for run in runs if run.state == "failed"}
        self.failed = sorted(failed - self.finished.keys())
        self.num_seeds = len(self.failed) + len(self.finished)
        self.known = list(self.finished.values()) or runs
        objectives = [run.objective for run in self.finished.values()]
        self.objective = float(np.mean(objectives)) if objectives else math.nan
        self.loss = (-self.objective if runs[0].maximize else self.objective) if done else math.inf


class Arm:
    """An encoder, its weights' origin and its freezing, with every setting that was tried.

    Attributes:
        name: backbone-init-freeze, and what else tells it from other arms.
        words, is_alone: The same in the field's words; whether its condition has no other such arm.
        backbone, model: Its option's name (and folder, if several share it); the model's name.
        donor: The run or Chronos-T5 that its weights, or those it is a control of, come from.
        weights: Which weights: encoder, init and donor.
        points, final: Settings tried; those that a sweep had chosen, run again on other seeds.
        ranked: Points with a finished run, the best first: by mean validation objective, of those
            with the most seeds. The test windows play no part. If the chosen setting was re-run on
            other seeds, only those runs count.
        best, loss: The first of them, or None; its loss, inf without one.
        finished, done: Its finished runs by seed, ascending, and as a list.
        searched_loss: Of the search's own runs of the setting that `final` re-ran; inf without any.
        shown: The point to draw: the best, or the one with the most epochs if none has finished.
        tuned, searched: Settings that vary between the points; or did so in the earlier sweep.
        tried, trials: How many settings the best was chosen from, in how many trials (repeated
            draws included), here or in the earlier sweep.
        share_trained: Share of the requested epochs that its trials reached: 1 without pruning or
            failures.
        epochs_trained: Epochs over all runs, minus those reused from a shared frozen phase.
        architecture: The encoder's shape, as built by its runs, else as configured, or None.
    """

    def __init__(self, runs: list[Run], backbone: str) -> None:
        config = runs[0].config
        self.backbone, self.runs = backbone, runs
        self.init, self.freeze = str(config["init.name"]), str(config["freeze.name"])
        self.name = f"{backbone}-{self.init}-{self.freeze}"
        built = [run.weights["architecture"] for run in runs if run.weights.get("architecture")]
        self.model = model_name(config.get("backbone.title"), built[0] if built else {})
        self.words = arm_words(backbone, self.init, self.freeze, model=self.model)
        self.is_alone = True
        self.maximize, settings = runs[0].maximize, runs[0].settings
        self.donor: str | None = settings.get("init.path") or settings.get("init.checkpoint")
        self.weights = backbone, self.init, self.donor
        self.is_pretrained = self.init in PRETRAINED
        self.is_instruction_tuned = "flan" in backbone.lower()
        # What the earlier sweep searched before it passed on its best point.
        before = [run.trial["searched_before"] for run in runs if run.trial.get("searched_before")]
        by_origin = grouped(runs, lambda run: bool(run.trial.get("searched_before")))
        self.points, self.final = _points(by_origin[False]), _points(by_origin[True])
        self.ranked = [
            point
            for points in (self.final, self.points)
            for point in sorted(points, key=lambda p: (-len(p.finished), p.loss))
            if point.finished
        ]
        self.best = self.ranked[0] if self.ranked else None
        self.loss = self.best.loss if self.best else math.inf
        self.finished = self.best.finished if self.best else {}
        self.done = list(self.finished.values())
        rerun = self.best.settings if self.best and self.final else None
        found = (point.loss for point in self.points if point.settings == rerun)
        self.searched_loss = next(found, math.inf)
        every = (*self.points, *self.final)
        self.shown = self.best or max(every, key=lambda p: sum(run.epochs for run in p.runs))
        self.tuned = set(varying([point.settings for point in self.points]))
        self.searched = self.tuned.union(*(search["keys"] for search in before))
        earlier = max((search["trials"] for search in before), default=0)
        self.tried = max(len(self.points), earlier, 1)
        searched = [run for point in self.points for run in point.runs]
        trial_ids = {run.trial_id for first in searched for run in (first, *first.copies)}
        self.trials = max(len(trial_ids), earlier)
        trained = searched or runs
        self.share_trained = sum(r.epochs for r in trained) / sum(r.epochs_due for r in trained)
        self.epochs_trained = sum(r.epochs - int(r.trial.get("reused_epochs") or 0) for r in runs)
        sizes = {key: config.get(f"backbone.{key}") for key in _SIZES}
        shape = built[0] if built else None if None in sizes.values() else sizes
        self.architecture = shape and {k: v for k, v in shape.items() if k != "vocab_size"}

    @property
    def pretraining(self) -> Pretraining:
        """What its init promises, naming the model."""
        return Pretraining(*(text.format(model=self.model) for text in PRETRAINED[self.init]))

    def is_control_of(self, arm: "Arm") -> bool:
        """Whether it has that arm's encoder with random weights, or weights made from the arm's."""
        is_made_of_it = self.init == RANDOM or self.donor == arm.donor
        return self.backbone == arm.backbone and not self.is_pretrained and is_made_of_it

    def values(self, metric: str) -> list[float]:
        """A final metric of its finished runs, by seed; NaN where it is unknown."""
        return [run.metric(metric) for run in self.done]


class Condition:
    """Runs on the same data, for the same task and lengths: arms are compared within it.

    Attributes:
        config, fraction: The settings that its runs share; that of the training data.
        series: Which data set: its checksum if known.
        interface: How windows become tokens and forecasts, which all arms share or tuned.
    """

    def __init__(self, runs: list[Run]) -> None:
        self.arms = _arms(runs)
        self.config = {key: json.loads(value) for key, value in runs[0].condition}
        self.fraction = float(self.config["data.fraction"])
        self.runs = [run for arm in self.arms for run in arm.runs]
        prints = (json.loads(run.fingerprint)[0] for run in self.runs if run.fingerprint)
        self.series = str(next(prints, self.config["data.name"]))
        self.interface = _interface(runs)
        reach = "masked" if self.config["horizon"] is None else f"→ {self.config['horizon']}"
        self.name = f"{self.config['data.name']}, {self.config['seq_len']} {reach} steps"


def _interface(runs: Sequence[Run]) -> str:
    """The patch embedding, its scale and the head, in words."""

    def every(key: str, default: str) -> str:
        return " or ".join(sorted({str(run.config.get(key) or default) for run in runs}))

    paths = {run.config.get("patch.path") for run in runs}
    donors = short_names(sorted(str(path) for path in paths if path is not None), last_part, str)
    origins = ["fresh"] * (None in paths) + [f"of {name}" for name in donors.values()]
    counts = {run.config.get("patch.num_prototypes") for run in runs}
    mixed = [f"{count} prototypes" for count in counts if count is not None]
    linear = ["a linear map"] * (None in counts and bool(mixed))
    patches = " or ".join(origins) + (f" from {' or '.join(linear + mixed)}" if mixed else "")
    scale, head = every("patch.scale", "none"), every("head", "flatten")
    return f"interface: patch embedding {patches}, scale {scale}, head {head}"


class Pair:
    """Two arms at the same seeds; a negative difference in loss favours the treatment.

    Attributes:
        kind: Of `KINDS`.
        seeds: Seeds finished in both arms' best points, ascending.
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


def conditions(study: Study) -> list[Condition]:
    """The study's conditions: by data set, the most training data first."""
    found = [Condition(runs) for runs in measured_on(study.runs).values()]
    arms = [arm for condition in found for arm in condition.arms]
    if len({arm.backbone for arm in arms}) == 1:
        for arm in arms:
            arm.name = arm.name.removeprefix(f"{arm.backbone}-")  # shared by all
    found.sort(key=lambda c: (str(c.config.get("data.name")), -c.fraction))
    names = told_apart([(c.name, c.config) for c in found], "{}, {}")
    for c, name in zip(found, names, strict=True):
        c.name = name
    return found


def told_apart(named: Sequence[tuple[str, dict[str, Any]]], form: str = "{} ({})") -> list[str]:
    """Names, each of several equal ones with the settings that distinguish it, unless null."""
    found = []
    for name, own in named:
        keys = varying([settings for other, settings in named if other == name])
        parts = [
            f"{100 * own[k]:g} % of the training data" if k == "data.fraction" else f"{k}={own[k]}"
            for k in keys
            if own.get(k) is not None
        ]
        found.append(form.format(name, ", ".join(parts)) if parts else name)
    return found


def _arms(runs: Sequence[Run]) -> list[Arm]:
    # A key that a sweep sampled is tuned, even if it belongs to the backbone.
    sampled: set[str] = set()
    for run in runs:
        before = run.trial.get("searched_before") or {"keys": ()}
        sampled.update(run.trial.get("params") or (), before["keys"])
    sampled = {key for key in sampled if "." in key} - set(CHECKPOINT)

    def own(run: Run) -> dict[str, Any]:
        keys = {key for key in run.settings if key.startswith(_ARM_GROUPS)} - sampled
        return {key: run.settings[key] for key in keys}

    # Of several folders under one name (backbone=local) each is named.
    encoders = short_names(
        map(_encoder, runs), lambda e: e[0], lambda e: f"{e[0]}:{last_part(e[1])}", ":".join
    )
    groups = grouped(runs, lambda run: json.dumps(own(run), sort_keys=True)).values()
    arms = [Arm(members, encoders[_encoder(members[0])]) for members in groups]
    names = told_apart([(arm.name, own(arm.runs[0])) for arm in arms])
    for arm, name in zip(arms, names, strict=True):
        arm.name = name
        arm.is_alone = [other.words for other in arms].count(arm.words) == 1
    order = _ORDER.index
    arms.sort(key=lambda arm: (order(arm.init), arm.backbone, order(arm.freeze), arm.name))
    return arms


def _points(runs: Sequence[Run]) -> list[Point]:
    """Group runs by their settings."""
    same = grouped(runs, lambda run: json.dumps(run.settings, sort_keys=True))
    return [Point(members) for members in same.values()]


def _encoder(run: Run) -> tuple[str, str]:
    return run.config["backbone.name"], str(run.config.get("backbone.path"))


def short_names(items: Iterable[K], *forms: Callable[[K], str]) -> dict[K, str]:
    """A name for each of different items: the first of its forms that no other has, or the last."""
    found = {item: forms[-1](item) for item in items}
    for form in reversed(forms[:-1]):
        names = Counter(map(form, found))
        found |= {item: form(item) for item in found if names[form(item)] == 1}
    return found


def last_part(path: str) -> str:
    """The last part of a path."""
    return Path(path).name


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
    return sum(1 if arm.final else len(arm.points) for arm in arms)


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
