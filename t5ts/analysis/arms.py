"""From runs to what is compared: conditions, arms, and the settings tried."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
#: Groups whose choice makes an arm; what else varies inside an arm was tuned.
_ARM_GROUPS = ("backbone.", "init.", "freeze.name")
#: Which checkpoint: defines an arm even if a sweep tried several.
CHECKPOINT = ("backbone.name", "backbone.path", "backbone.hub_id", "backbone.revision", "init.path")
#: Sizes of an encoder in a run's config; its token embedding is not counted.
_SIZES = ("d_model", "d_ff", "d_kv", "num_layers", "num_heads", "feed_forward_proj")
#: The order of arms, by init and by schedule.
_ORDER = (*PRETRAINED, RANDOM, "matched", "shuffled", "staged", "none", "norms", "all")


class Setting:
    """One setting of an arm's hyperparameters: its runs differ in the seed alone.

    Attributes:
        values: By key, as its runs have them.
        finished: Finished runs by seed, ascending; of several at one seed the one written first.
        failed: Seeds that failed and no other run finished, ascending.
        num_seeds: Seeds that ended, either way.
        known: The finished runs, one for each seed; all runs if none has finished.
        objective: Mean validation objective over the finished seeds; NaN without any.
        loss: The same, signed so that lower is better; inf without any.
    """

    def __init__(self, runs: list[Run]) -> None:
        self.values, self.runs = runs[0].settings, runs
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
        settings, final: Those tried; those that a sweep had chosen, run again on other seeds.
        ranked: Settings with a finished run, the best first: by mean validation objective, of those
            with the most seeds. The test windows play no part. If the chosen setting was re-run on
            other seeds, only those runs count.
        best, loss: The first of them, or None; its loss, inf without one.
        finished, done: Its finished runs by seed, ascending, and as a list.
        searched_loss: Of the search's own runs of the setting that `final` re-ran; inf without any.
        shown: The setting to draw: the best, or the one with the most epochs if none has finished.
        tuned, searched: Keys that vary between the settings; or did so in the earlier sweep.
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
        self.maximize, given = runs[0].maximize, runs[0].settings
        self.donor: str | None = given.get("init.path") or given.get("init.checkpoint")
        self.weights = backbone, self.init, self.donor
        self.is_pretrained = self.init in PRETRAINED
        self.is_instruction_tuned = "flan" in backbone.lower()
        # What the earlier sweep searched before it passed on its best setting.
        before = [run.trial["searched_before"] for run in runs if run.trial.get("searched_before")]
        by_origin = grouped(runs, lambda run: bool(run.trial.get("searched_before")))
        self.settings, self.final = _settings(by_origin[False]), _settings(by_origin[True])
        self.ranked = [
            setting
            for settings in (self.final, self.settings)
            for setting in sorted(settings, key=lambda s: (-len(s.finished), s.loss))
            if setting.finished
        ]
        self.best = self.ranked[0] if self.ranked else None
        self.loss = self.best.loss if self.best else math.inf
        self.finished = self.best.finished if self.best else {}
        self.done = list(self.finished.values())
        rerun = self.best.values if self.best and self.final else None
        found = (setting.loss for setting in self.settings if setting.values == rerun)
        self.searched_loss = next(found, math.inf)
        every = (*self.settings, *self.final)
        self.shown = self.best or max(every, key=lambda s: sum(run.epochs for run in s.runs))
        self.tuned = set(varying([setting.values for setting in self.settings]))
        self.searched = self.tuned.union(*(search["keys"] for search in before))
        earlier = max((search["trials"] for search in before), default=0)
        self.tried = max(len(self.settings), earlier, 1)
        searched = [run for setting in self.settings for run in setting.runs]
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


def _settings(runs: Sequence[Run]) -> list[Setting]:
    """Group runs by their settings."""
    same = grouped(runs, lambda run: json.dumps(run.settings, sort_keys=True))
    return [Setting(members) for members in same.values()]


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
