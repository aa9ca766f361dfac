"""From runs to what is compared: conditions, arms, settings tried, and pairs of arms."""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np

from t5ts.analysis.statistics import Array, Estimate, log_ratio
from t5ts.analysis.study import Run, Study, measured_on, varying
from t5ts.config import OBJECTIVES


@dataclass(frozen=True)
class Pretraining:
    """What an init promises about its weights.

    Attributes:
        content: What they have learned, which their controls (`matched`, `shuffled`) lack.
        promise: What they are; the loader may doubt it.
        origin: The load report's word for them, unless it doubts them.
    """

    content: str
    promise: str
    origin: str


#: The pretrained inits, in the order in which they are shown.
PRETRAINED = {
    "t5": Pretraining("T5's text pretraining", "T5's, pretrained on text", "pretrained"),
    "pretrained": Pretraining("text pretraining", "pretrained on text", "pretrained"),
    "run": Pretraining("the donor run's pretraining", "a trained donor run's", "time series"),
    "chronos": Pretraining(
        "Chronos's pretraining", "Chronos-T5's, pretrained on time series", "time series"
    ),
}
#: The init they are compared with.
RANDOM = "random"
#: Kinds of pairs in the order in which they are shown.
QUESTIONS = (
    "best",
    "control",
    "weights",
    "same_plan",
    "frozen_random",
    "checkpoint",
    "freezing",
    "other",
)
#: Groups whose choice makes an arm; what else varies inside an arm was tuned.
_ARM_GROUPS = ("backbone.", "init.", "freeze.name")
#: Which checkpoint: defines an arm even if a sweep tried several.
CHECKPOINT = (
    "backbone.name",
    "backbone.path",
    "backbone.hub_id",
    "backbone.revision",
    "init.path",
)
#: Sizes of an encoder in a run's config; its token embedding is not counted.
_SIZES = ("d_model", "d_ff", "d_kv", "num_layers", "num_heads", "feed_forward_proj")


@dataclass(kw_only=True, eq=False)
class Point:
    """One choice of settings within an arm: its runs differ in the seed alone."""

    settings: dict[str, Any]
    runs: list[Run]

    @cached_property
    def finished(self) -> dict[int, Run]:
        """Finished runs by seed, ascending; of several at one seed the one written first."""
        runs: dict[int, Run] = {}
        for run in sorted(self.runs, key=lambda run: run.written):
            if run.result is not None:
                runs.setdefault(run.seed, run)
        return dict(sorted(runs.items()))

    @cached_property
    def failed(self) -> dict[int, Run]:
        """Failed runs by seed, ascending, of seeds that no other run finished."""
        runs = {run.seed: run for run in self.runs if run.state == "failed"}
        return {seed: run for seed, run in sorted(runs.items()) if seed not in self.finished}

    @property
    def known(self) -> list[Run]:
        """The finished runs, one for each seed; all runs while there is none."""
        return list(self.finished.values()) or self.runs

    @property
    def objective(self) -> float:
        """Mean validation objective over the finished seeds; NaN without any."""
        values = [run.objective for run in self.finished.values()]
        return float(np.mean(values)) if values else math.nan


@dataclass(kw_only=True, eq=False)
class Arm:
    """An encoder, its weights' origin and its freezing, with every setting that was tried.

    Attributes:
        backbone: Which encoder: its option's name, and its folder's where several go by that name.
        donor: The run or the Chronos-T5 that the weights, or those that they are the control of,
            come from.
        points: Every setting tried.
        final: Settings that a sweep had chosen, run again on other seeds (`experiment=final`).
    """

    name: str
    backbone: str
    init: str
    freeze: str
    maximize: bool
    points: list[Point] = field(default_factory=list)
    final: list[Point] = field(default_factory=list)
    donor: str | None = None

    @property
    def is_pretrained(self) -> bool:
        """Whether its weights are the pretrained ones of a comparison."""
        return self.init in PRETRAINED

    @property
    def model(self) -> str:
        """What its encoder is called: T5, GPT-2."""
        return str(self.runs[0].config.get("backbone.title") or "T5")

    @property
    def pretraining(self) -> Pretraining:
        """What its init promises, naming the model."""
        promised = PRETRAINED[self.init]
        if self.init != "pretrained":
            return promised
        model = f"{self.model}'s"
        return Pretraining(
            f"{model} {promised.content}", f"{model}, {promised.promise}", "pretrained"
        )

    @property
    def weights(self) -> tuple[str, str, str | None]:
        """Which weights: encoder, init and donor."""
        return self.backbone, self.init, self.donor

    def is_control_of(self, arm: "Arm") -> bool:
        """Whether it has that arm's encoder with random weights, or weights made from the arm's."""
        same = self.backbone == arm.backbone and not self.is_pretrained
        return same and (self.init == RANDOM or self.donor == arm.donor)

    @property
    def runs(self) -> list[Run]:
        """All runs, finished or not."""
        return [run for point in (*self.points, *self.final) for run in point.runs]

    @cached_property
    def best(self) -> Point | None:
        """The point with the best mean validation objective, of those with the most seeds.

        Validation selects here as it does within a run; the test windows play no part. If the
        chosen setting was re-run on other seeds, only those runs count.
        """
        for points in (self.final, self.points):
            done = [point for point in points if point.finished]
            if done:
                return min(done, key=lambda p: (-len(p.finished), self.loss(p)))
        return None

    @property
    def finished(self) -> dict[int, Run]:
        """Finished runs of the best point by seed, ascending."""
        return self.best.finished if self.best else {}

    @property
    def done(self) -> list[Run]:
        """Finished runs of the best point, by seed."""
        return list(self.finished.values())

    def loss(self, point: Point | None) -> float:
        """A point's objective, signed so that lower is better; inf without any."""
        value = math.nan if point is None else point.objective
        return math.inf if math.isnan(value) else -value if self.maximize else value

    @cached_property
    def searched_point(self) -> Point | None:
        """The search's own runs of the setting that `final` re-ran; None if not in the study."""
        again = self.best if self.final else None
        found = (p for p in self.points if again is not None and p.settings == again.settings)
        return next((p for p in found if p.finished), None)

    @cached_property
    def shown(self) -> Point:
        """The point to draw: the best, or the one with most epochs if none has finished."""
        every = (*self.points, *self.final)
        return self.best or max(every, key=lambda p: sum(run.epochs for run in p.runs))

    @cached_property
    def tuned(self) -> dict[str, list[Any]]:
        """Settings that vary between the points, with the values tried, ascending."""
        settings = [point.settings for point in self.points]
        tried = {
            key: {json.dumps(one.get(key)): one.get(key) for one in settings}
            for key in varying(settings)
        }
        return {key: sorted(values.values(), key=_sort_key) for key, values in tried.items()}

    @cached_property
    def architecture(self) -> dict[str, Any] | None:
        """The encoder's shape, as built by its runs, else as configured; None if unknown."""
        for run in self.runs:
            built = (run.provenance.get("weights") or {}).get("architecture")
            if built:
                return {k: v for k, v in built.items() if k != "vocab_size"}
        sizes = {key: self.runs[0].config.get(f"backbone.{key}") for key in _SIZES}
        return None if None in sizes.values() else sizes

    @cached_property
    def searched(self) -> set[str]:
        """Settings that were tuned, by its own points or by the earlier sweep."""
        return {*self.tuned, *(key for before in self._searched_before for key in before["keys"])}

    @cached_property
    def tried(self) -> int:
        """Number of settings the best one was chosen from, here or in the earlier sweep."""
        before = [before["trials"] for before in self._searched_before]
        return max(len(self.points), *before, 1)

    @cached_property
    def trials(self) -> int:
        """Trials run here, including repeated draws of one setting, or in the earlier sweep."""
        runs = [run for point in self.points for run in point.runs]
        here = {run.trial_id for first in runs for run in (first, *first.copies)}
        return max(len(here), *(before["trials"] for before in self._searched_before), 0)

    @property
    def share_trained(self) -> float:
        """Epochs that its trials came to, of those due: pruning and failures lower it."""
        runs = [run for point in self.points or self.final for run in point.runs]
        return sum(run.epochs for run in runs) / sum(run.epochs_due for run in runs)

    @property
    def _searched_before(self) -> list[dict[str, Any]]:
        """What the earlier sweep searched before it passed on its best point (`final`)."""
        recorded = (run.trial.get("searched_before") for run in self.runs)
        return [before for before in recorded if before]

    @property
    def epochs_trained(self) -> int:
        """Epochs over all runs, minus those reused from a shared frozen phase."""
        return sum(run.epochs - int(run.trial.get("reused_epochs") or 0) for run in self.runs)


def _sort_key(value: Any) -> tuple[int, Any]:
    if value is None:
        return (2, 0)
    if isinstance(value, int | float):
        return (0, value)
    return (1, str(value))


@dataclass(kw_only=True, eq=False)
class Condition:
    """Runs on the same data, for the same task and lengths: arms are compared within it."""

    name: str
    config: dict[str, Any]
    arms: list[Arm]

    @property
    def runs(self) -> list[Run]:
        """All runs of all arms."""
        return [run for arm in self.arms for run in arm.runs]

    @property
    def series(self) -> str:
        """Which data set: its checksum if known."""
        prints = (json.loads(run.fingerprint)[0] for run in self.runs if run.fingerprint)
        return str(next(prints, self.config["data.name"]))

    def arm(self, name: str) -> Arm:
        """The arm of a name: backbone-init-freeze, or init-freeze where all share the backbone."""
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(kw_only=True, eq=False)
class Pair:
    """Two arms at the same seeds.

    Attributes:
        kind: best (pretrained vs. random weights, each under its own best schedule), control (the
            same vs. matched or shuffled weights), weights and same_plan (the same two
            questions under one schedule), frozen_random (vs. a frozen random encoder),
            checkpoint (of another checkpoint of the same architecture), freezing (the same
            weights, another schedule), or other.
        treatment, control: The arms; a negative difference in loss favours the treatment.
        seeds: Seeds finished in both arms' best points, ascending.
        rivals: The arms that treatment and control were chosen from, including themselves.
    """

    kind: str
    treatment: Arm
    control: Arm
    seeds: list[int]
    rivals: tuple[list[Arm], list[Arm]]

    @property
    def arms(self) -> tuple[Arm, Arm]:
        """Treatment and control."""
        return self.treatment, self.control

    @property
    def name(self) -> str:
        """Both arms' names."""
        return f"{self.treatment.name} vs. {self.control.name}"

    @property
    def unpaired(self) -> dict[str, list[int]]:
        """Seeds finished in one arm only, by arm."""
        return {arm.name: sorted(set(arm.finished) - set(self.seeds)) for arm in self.arms}

    def runs(self) -> list[tuple[Run, Run]]:
        """The paired runs (treatment, control) in the order of the seeds."""
        return [(self.treatment.finished[s], self.control.finished[s]) for s in self.seeds]

    @property
    def all_runs(self) -> list[Run]:
        """The paired runs in one list."""
        return [run for both in self.runs() for run in both]

    def values(self, metric: str) -> tuple[Array, Array]:
        """A final metric of both arms by seed."""
        a, b = ([arm.finished[s].metric(metric) for s in self.seeds] for arm in self.arms)
        return np.array(a), np.array(b)

    def log_ratio(self, metric: str) -> Estimate:
        """Mean paired log-ratio treatment / control of a final loss."""
        return log_ratio(*self.values(metric))

    def curves(self, metric: str) -> tuple[Array, Array, Array]:
        """Epochs (E,) evaluated in all paired runs, and both arms' curves (S, E)."""
        curves = [run.curve(metric) for run in self.all_runs]
        if not curves:
            return np.empty(0), np.empty((0, 0)), np.empty((0, 0))
        epochs, values = shared_epochs(curves)
        return epochs, values[::2], values[1::2]


def shared_epochs(curves: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Epochs (E,) that all of C curves have, and their values there (C, E)."""
    epochs = reduce(np.intersect1d, (x for x, _ in curves))
    return epochs, np.stack([y[np.isin(x, epochs)] for x, y in curves])


def conditions(study: Study) -> list[Condition]:
    """The study's conditions: by data set, the most training data first."""
    found = [
        Condition(
            name="", config={k: json.loads(v) for k, v in runs[0].condition}, arms=_arms(runs)
        )
        for runs in measured_on(study.runs).values()
    ]
    if len({arm.backbone for condition in found for arm in condition.arms}) == 1:
        for arm in (arm for condition in found for arm in condition.arms):
            arm.name = arm.name.removeprefix(f"{arm.backbone}-")  # shared by all
    found.sort(key=lambda c: (str(c.config.get("data.name")), -float(c.config["data.fraction"])))
    _name_conditions(found)
    return found


def _name_conditions(found: Sequence[Condition]) -> None:
    """Data and lengths, and anything else that differs between conditions of that name."""
    same: dict[str, list[Condition]] = defaultdict(list)
    for c in found:
        reach = "masked" if c.config["horizon"] is None else f"→ {c.config['horizon']}"
        same[f"{c.config['data.name']}, {c.config['seq_len']} {reach} steps"].append(c)
    for base, members in same.items():
        differing = varying([c.config for c in members])
        for c in members:
            parts = [
                f"{100 * c.config[k]:g} % of the training data"
                if k == "data.fraction"
                else f"{k}={c.config.get(k)}"
                for k in differing
            ]
            c.name = ", ".join([base, *parts])


def _arms(runs: Sequence[Run]) -> list[Arm]:
    # A key that a sweep sampled is tuned, even if it belongs to the backbone.
    sampled: set[str] = set()
    for run in runs:
        before = run.trial.get("searched_before") or {"keys": ()}
        sampled.update(run.trial.get("params") or (), before["keys"])
    sampled = {key for key in sampled if "." in key} - set(CHECKPOINT)
    encoders = _encoders(runs)
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        own = {k: v for k, v in run.settings.items() if k.startswith(_ARM_GROUPS)}
        own = {k: v for k, v in own.items() if k not in sampled}
        groups[json.dumps(own, sort_keys=True)].append(run)
    named: dict[str, list[tuple[Arm, dict[str, Any]]]] = defaultdict(list)
    for key, members in groups.items():
        arm = _arm(members, encoders[_encoder(members[0])])
        named[arm.name].append((arm, json.loads(key)))
    arms = []
    for twins in named.values():
        differing = varying([own for _, own in twins])
        for arm, own in twins:
            extra = ", ".join(f"{k}={own.get(k)}" for k in own if k in differing)
            arm.name += f" ({extra})" if extra else ""
            arms.append(arm)
    inits = [*PRETRAINED, RANDOM, "matched", "shuffled"]
    freezes = ["staged", "none", "norms", "all"]

    def place(name: str, names: list[str]) -> int:
        return names.index(name) if name in names else len(names)

    arms.sort(key=lambda a: (place(a.init, inits), a.backbone, place(a.freeze, freezes), a.name))
    return arms


def _arm(runs: list[Run], backbone: str) -> Arm:
    """The arm of runs that differ in what was tuned, and in seeds."""
    points: dict[tuple[bool, str], list[Run]] = defaultdict(list)
    for run in runs:
        is_final = bool(run.trial.get("searched_before"))
        points[is_final, json.dumps(run.settings, sort_keys=True)].append(run)
    search, final = (
        [Point(settings=m[0].settings, runs=m) for (of, _), m in points.items() if of == is_final]
        for is_final in (False, True)
    )
    config = runs[0].config
    init, freeze = config["init.name"], config["freeze.name"]
    return Arm(
        name=f"{backbone}-{init}-{freeze}",
        backbone=backbone,
        init=init,
        freeze=freeze,
        donor=runs[0].settings.get("init.path") or runs[0].settings.get("init.checkpoint"),
        maximize=OBJECTIVES.get(str(config["objective"]), "min") == "max",
        points=search,
        final=final,
    )


def _encoder(run: Run) -> tuple[str, str | None]:
    return run.config["backbone.name"], run.config.get("backbone.path")


def _encoders(runs: Sequence[Run]) -> dict[tuple[str, str | None], str]:
    """A name for each encoder, with its folder if several share one name (backbone=local)."""
    folders: dict[str, set[str]] = defaultdict(set)
    for name, path in map(_encoder, runs):
        folders[name].add(str(path))
    return {
        (name, path): f"{name}:{short_path(str(path), of)}" if len(of) > 1 else name
        for name, path in map(_encoder, runs)
        for of in (folders[name],)
    }


def short_path(path: str, among: Iterable[str] = ()) -> str:
    """A path's last part; the whole path if another one ends alike."""
    name = Path(path).name
    return path if any(p != path and Path(p).name == name for p in among) else name


def paired(kind: str, treatment: Arm, control: Arm) -> Pair:
    """Two arms at the seeds that both have finished."""
    return Pair(
        kind=kind,
        treatment=treatment,
        control=control,
        seeds=sorted(treatment.finished.keys() & control.finished.keys()),
        rivals=([treatment], [control]),
    )


def at_their_best(kind: str, treatments: list[Arm], controls: list[Arm]) -> Pair:
    """Each side's best schedule and setting by validation, of those with most of the shared seeds.

    If all schedules of a side were re-run (`final`), the search's runs choose between them.
    """

    def best(arms: list[Arm], others: list[Arm]) -> Arm:
        shared = {seed for other in others for seed in other.finished}
        by_search = all(arm.searched_point for arm in arms)

        def rank(arm: Arm) -> tuple[int, float]:
            chosen_by = arm.searched_point if by_search else arm.best
            return -len(arm.finished.keys() & shared), arm.loss(chosen_by)

        return min(arms, key=rank)

    pair = paired(kind, best(treatments, controls), best(controls, treatments))
    pair.rivals = (treatments, controls)
    return pair


def chosen_from(arms: Sequence[Arm]) -> int:
    """Number of schedules and settings that one was chosen from on the seeds it is tested on."""
    if all(arm.searched_point for arm in arms):
        return 1
    return sum(1 if arm.final else len(arm.points) for arm in arms)


def pairs(condition: Condition) -> list[Pair]:
    """Every comparison that answers one of the questions, `best` first; no two arms twice."""
    found: dict[tuple[int, int], Pair] = {}
    for pair in _candidates(condition.arms):
        found.setdefault((id(pair.treatment), id(pair.control)), pair)
    return sorted(found.values(), key=lambda pair: QUESTIONS.index(pair.kind))


def _candidates(arms: list[Arm]) -> Iterator[Pair]:
    pretrained = [arm for arm in arms if arm.is_pretrained]
    for weights in dict.fromkeys(arm.weights for arm in pretrained):
        treatments = [arm for arm in pretrained if arm.weights == weights]
        plans = {arm.freeze for arm in treatments}
        rivals: dict[str, list[Arm]] = defaultdict(list)
        for arm in arms:
            if arm.is_control_of(treatments[0]):
                rivals[arm.init].append(arm)
        for init, controls in rivals.items():
            if plans & {arm.freeze for arm in controls}:
                yield at_their_best("best" if init == RANDOM else "control", treatments, controls)
    for arm, other in itertools.product(pretrained, arms):
        if other.is_control_of(arm):
            if other.freeze == arm.freeze:
                yield paired("weights" if other.init == RANDOM else "same_plan", arm, other)
            if other.init == RANDOM and other.freeze == "all" and arm.freeze != "all":
                yield paired("frozen_random", arm, other)
    for arm, other in itertools.product(arms, arms):
        same = other.weights == arm.weights
        if same and other.freeze == "none" and arm.freeze != "none":
            yield paired("freezing", arm, other)
    # Instruction-tuned checkpoints first: their effect is the question, so they are the treatment.
    pretrained.sort(key=lambda arm: (not is_instruction_tuned(arm.backbone), arm.name))
    for arm, other in itertools.combinations(pretrained, 2):
        # Different architectures are not paired: each is compared with its own random arm only.
        alike = arm.architecture is not None and arm.architecture == other.architecture
        if alike and arm.weights != other.weights and arm.freeze == other.freeze:
            yield paired("checkpoint", arm, other)
    with_checkpoint = {arm.backbone for arm in pretrained}
    for arm, other in itertools.product((a for a in arms if a.is_pretrained), arms):
        same = other.backbone == arm.backbone and other.freeze == "none"
        if other.init == RANDOM and (same or other.backbone not in with_checkpoint):
            yield paired("other", arm, other)


def is_instruction_tuned(backbone: str) -> bool:
    """By its name: Flan-T5 (Chung et al. 2022)."""
    return "flan" in backbone.lower()
