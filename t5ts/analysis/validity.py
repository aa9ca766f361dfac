"""Whether the arms may be compared at all: every invariant, with its evidence."""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t5ts.analysis.arms import CHECKPOINT, PRETRAINED, RANDOM, Arm, Condition, Pair
from t5ts.analysis.statistics import Estimate, log_ratio
from t5ts.analysis.study import Run, varying
from t5ts.analysis.words import plural

#: With fewer paired seeds than this, a t interval is wide whatever the truth is.
FEW_SEEDS = 5
#: Step-0 output scales of two arms that differ by more than this factor confound the weights.
SCALE_FACTOR = 10.0
#: An arm that fails at a larger share of its seeds is judged by the seeds that it survived.
FAILED_SHARE = 0.2
#: If one arm's trials trained less than this share of the other's, tuning was not equal.
TRAINED_SHARE = 0.5
#: Matches loader notes on weights that are not what a pretrained init promises.
NOT_PRETRAINED = re.compile("control, not pretrained|origin: (control|random)")
#: Settings that name or describe a checkpoint: they may differ between two checkpoints.
_OF_CHECKPOINT = (
    *CHECKPOINT,
    "init.",
    "backbone.sha256",
    "backbone.licence",
    "backbone.embedding_rms",
)
#: An encoder with this cosine between its tokens and its output is called an identity: what it
#: adds is under 2 % of the output's energy (1 − cosine²).
IDENTITY = 0.99
#: Blocks that moved less than this share of their norm did not move measurably: rounding normally
#: distributed weights to bfloat16 moves them as far.
MOVED = 0.00166
OK, NOTE, BROKEN = "holds", "note", "broken"
#: Whether an invariant holds, and the evidence.
Evidence = tuple[str, str]


@dataclass(frozen=True)
class Check:
    """One invariant: its name, whether it holds, and the evidence.

    Attributes:
        status: holds, note (worth knowing, the comparison is kept), or broken (no verdict).
    """

    name: str
    status: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class InPlay:
    """Whether an arm's encoder took part in its forecasts, over its finished seeds.

    Attributes:
        cosines: Of the encoder's tokens and its last block's output, before training and with the
            selected weights, mean over the seeds.
        bypassed: Log-ratio of the selected weights' validation loss without the encoder's blocks
            to that with them.
        moved: Largest distance from its start, relative to its norm, of any block at any epoch.
        trains: Whether the schedule trains whole blocks.
    """

    cosines: tuple[float, float]
    bypassed: Estimate
    moved: float
    trains: bool

    @property
    def is_identity(self) -> bool:
        """Whether it passes its tokens on, before training and after it."""
        return min(self.cosines) >= IDENTITY

    @property
    def never_moved(self) -> bool:
        """Whether it was trained and is where it was."""
        return self.trains and self.moved < MOVED

    def is_idle(self, margin: float) -> bool:
        """Whether the forecasts are as good without it.

        Being near an identity is not enough: a head can use even the little that is added.
        """
        return abs(self.bypassed.value) < math.log1p(margin)


def in_play(arm: Arm) -> InPlay | None:
    """Whether an arm's encoder took part; None if that was not recorded, or it has no encoder."""
    runs = list(arm.finished.values())
    names = ("encoder_cosine_initial", "encoder_cosine", "bypassed_val_loss", "val_loss")
    initial, selected, bypassed, val = ([run.metric(name) for run in runs] for name in names)
    if not runs or not np.isfinite([*initial, *selected, *bypassed]).all():
        return None
    starts = [
        line["start_epoch"] is not None and line["start_epoch"] < run.epochs_due
        for run in runs
        for line in run.provenance.get("plan") or ()
        if line["component"].startswith("block_")
    ]
    moves = [
        run.curve(name)[1]
        for run in runs
        for name in run.evals
        if name.startswith("distance_from_init/block_")
    ]
    return InPlay(
        cosines=(float(np.mean(initial)), float(np.mean(selected))),
        bypassed=log_ratio(bypassed, val),
        moved=float(max((m.max() for m in moves if len(m)), default=math.nan)),
        trains=arm.freeze != "norms" and any(starts),
    )


def check_pair(pair: Pair) -> list[Check]:
    """Everything that must hold before a difference may be attributed to the weights."""
    found = {
        "only the weights differ": _differences(pair),
        "both sides tried the same schedules": _both_plans(pair),
        "equal tuning budget": _budget(pair),
        "no arm lost its seeds": _failed_seeds(pair),
        "paired start: same patch and head tensors at the same seed": _same_start(pair),
        "the arms' weights are proven": _weights_proven(pair),
        "frozen parts did not move, unfrozen ones did": _freezing_proven(pair),
        "same data": _same(pair, lambda about: (about.get("data") or {}).get("sha256"), BROKEN),
        "same windows": _same(pair, lambda about: about.get("windows"), BROKEN),
        "same precision": _same(pair, lambda about: about.get("precision"), BROKEN),
        "same code": _same(pair, lambda about: about.get("git"), NOTE),
        "same versions": _same(pair, lambda about: about.get("versions"), NOTE),
        "same device": _same(pair, lambda of: (of.get("device"), of.get("processor")), NOTE),
        "validation selected, after all epochs": _selection(pair),
        "paired seeds": _seeds(pair),
        "scale at step 0": _scale(pair),
    }
    return _checks(found)


def check_condition(condition: Condition, left_out: Sequence[Run] = ()) -> list[Check]:
    """What is worth knowing about all runs on one data set, whichever arms are compared."""
    return _checks(
        {
            "finished": _unfinished(condition),
            "no run failed": _diverged(condition),
            "better than predicting the mean": _worse_than_mean(condition),
            "every run could be read": _left_out(left_out),
        }
    )


def check_plans(pairs: Iterable[Pair]) -> list[Check]:
    """Whether arms that are compared across freezing schedules were tuned equally.

    A note if not, since a schedule may have settings that only it can search.
    """
    unequal = [
        f"{pair.treatment.name} {pair.treatment.tried}, {pair.control.name} {pair.control.tried}"
        for pair in pairs
        if pair.kind in ("freezing", "frozen_random") and pair.treatment.tried != pair.control.tried
    ]
    detail = f"settings tried: {'; '.join(unequal)}. This favours the arm with more"
    return _checks({"equal tuning of the schedules": (NOTE, detail) if unequal else None})


def _checks(found: dict[str, Evidence | None]) -> list[Check]:
    """The checks for which there is evidence."""
    return [Check(name, *evidence) for name, evidence in found.items() if evidence is not None]


def settings_that_differ(pair: Pair) -> dict[str, tuple[Any, Any]]:
    """Settings of the two best points that differ: key to (treatment's, control's)."""
    if pair.treatment.best is None or pair.control.best is None:
        return {}
    a, b = pair.treatment.best.settings, pair.control.best.settings
    return {k: (a.get(k), b.get(k)) for k in sorted(a | b) if a.get(k) != b.get(k)}


def loader_notes(arm: Arm) -> list[str]:
    """The loader's notes on a pretrained arm's weights, each note once."""
    promised = PRETRAINED[arm.init].origin if arm.is_pretrained else "pretrained"
    notes: list[str] = []
    for loaded in (run.provenance.get("weights") or {} for run in arm.runs):
        notes += [
            check.removeprefix("note:").strip()
            for check in loaded.get("checks") or ()
            if check.startswith("note:") or NOT_PRETRAINED.search(check)
        ]
        if loaded.get("origin", promised) != promised:
            notes.append(f"origin: {loaded['origin']}")
        # That a donor was trained is in its run's own records; what it barely moved is no doubt.
        if arm.init != "run" and (fresh := loaded.get("fresh_tensors")):
            shown = ", ".join(fresh[:3]) + (", …" if len(fresh) > 3 else "")
            notes.append(f"{plural(len(fresh), 'tensor')} like a fresh draw ({shown})")
    return list(dict.fromkeys(notes))


def failures(arm: Arm) -> tuple[list[int], int]:
    """Seeds at which the arm's best setting failed, and the number of seeds it was run at."""
    point = arm.shown
    return list(point.failed), len(point.failed) + len(point.finished)


def arms_needed(arm: Arm) -> str:
    """The overrides that produce the arm to compare a pretrained one with."""
    return f"init={RANDOM} freeze={arm.freeze}"


def _differences(pair: Pair) -> Evidence:
    """The arms differ only in init.* or the checkpoint, and in settings that both tuned."""
    differing = settings_that_differ(pair)
    tuned = _searched(pair.rivals[0]) & _searched(pair.rivals[1])
    weights: tuple[str, ...] = _OF_CHECKPOINT if pair.kind == "checkpoint" else ("init.",)
    if pair.treatment.freeze != pair.control.freeze:
        weights += ("freeze.",)  # a separate check compares the schedules tried

    def shown(keys: Iterable[str]) -> str:
        values = {k: ["null" if v is None else str(v) for v in differing[k]] for k in keys}
        return "; ".join(f"{k}: {' vs. '.join(both)}" for k, both in values.items())

    others = [k for k in differing if not k.startswith(weights)]
    if wrong := [k for k in others if k not in tuned]:
        return BROKEN, f"{pair.name} differ in more than the weights: {shown(wrong)}"
    detail = f"{pair.name}: {shown(differing) or 'no setting differs'}"
    if others:
        detail += f" ({', '.join(others)} tuned in both arms, each at its own best)"
    return OK, detail


def _searched(arms: Sequence[Arm]) -> set[str]:
    """Settings that were searched within the arms or, like the freezing schedule, between them."""
    varied = varying([point.settings for arm in arms for point in (*arm.points, *arm.final)])
    return set(varied).union(*(arm.searched for arm in arms))


def _both_plans(pair: Pair) -> Evidence | None:
    """Each side's best schedule was also run with the other's weights.

    A frozen random encoder needs no such twin: it measures whether the encoder helps at all.
    """
    plans = [{arm.freeze for arm in arms} for arms in pair.rivals]
    if plans[0] == plans[1]:
        return None
    a, b = pair.arms
    missing = [
        f"init={other.init} freeze={mine.freeze}"
        for mine, other, tried in ((a, b, plans[1]), (b, a, plans[0]))
        if mine.freeze not in tried and (mine.init, mine.freeze) != (RANDOM, "all")
    ]
    if missing:
        add = " and ".join(missing)
        return BROKEN, f"one side's best schedule was never run with the other's weights: add {add}"
    return (
        NOTE,
        f"schedules run on one side only, and worse: {', '.join(sorted(plans[0] ^ plans[1]))}",
    )


def _budget(pair: Pair) -> Evidence:
    """Trials and epochs each side's best was chosen from, over the schedules both sides had."""
    shared = set.intersection(*({arm.freeze for arm in arms} for arms in pair.rivals))
    sides = [[arm for arm in arms if arm.freeze in shared] for arms in pair.rivals]
    if not all(sides):
        sides = [[arm] for arm in pair.arms]

    def most(of: Callable[[Arm], int]) -> list[int]:  # the largest per schedule, summed
        plans = [sorted({arm.freeze for arm in arms}) for arms in sides]
        return [
            sum(max(of(arm) for arm in arms if arm.freeze == plan) for plan in of_side)
            for arms, of_side in zip(sides, plans, strict=True)
        ]

    settings, trials = most(lambda arm: arm.tried), most(lambda arm: arm.trials)
    trained = [float(np.mean([arm.share_trained for arm in arms])) for arms in sides]
    searched = [{key for arm in arms for key in arm.searched} for arms in sides]
    by_name = pair.treatment.init == pair.control.init
    detail = "; ".join(
        f"{arm.name if by_name else arm.init}: {plural(settings[i], 'setting')} in"
        f" {plural(trials[i], 'trial')}, {sum(a.epochs_trained for a in sides[i]):,} epochs trained"
        f" ({100 * trained[i]:.0f} % of those requested)"
        for i, arm in enumerate(pair.arms)
    )
    fewer, more = sorted(settings)
    # A sampler may draw one point twice: then the trials are equal and the settings nearly so.
    if fewer != more and (trials[0] != trials[1] or 2 * fewer < more):
        return BROKEN, f"{detail}. Give both the same number of trials"
    if more > 1 and min(trained) < TRAINED_SHARE * max(trained):
        cure = "tune both without a pruner, or with the same one"
        return BROKEN, f"{detail}. Most trials of one were cut short: {cure}"
    if only := sorted(searched[0] ^ searched[1]):
        return BROKEN, f"{detail}. Searched on one side only: {', '.join(only)}"
    return OK, detail


def _failed_seeds(pair: Pair) -> Evidence:
    """An arm that loses many of its seeds cannot be judged by the rest."""
    lost = {arm.name: failures(arm) for arm in pair.arms}
    shown = "; ".join(
        f"{arm} failed at {len(seeds)} of {count} seeds ({', '.join(map(str, seeds))})"
        for arm, (seeds, count) in lost.items()
        if seeds
    )
    if not shown:
        return OK, "none failed at its best setting"
    too_many = any(len(seeds) > FAILED_SHARE * count for seeds, count in lost.values())
    return BROKEN if too_many else NOTE, shown


def _initial(run: Run) -> dict[str, str]:
    """Checksums of what a run started from: patch, encoder, head."""
    return run.provenance.get("initial_sha256") or {}


def _same_start(pair: Pair) -> Evidence:
    """At the same seed patch and head start from the same tensors, bit for bit."""
    wrong, unknown = [], []
    for seed, runs in zip(pair.seeds, pair.runs(), strict=True):
        for part in ("patch", "head"):
            one, other = (_initial(run).get(part) for run in runs)
            if one is None or other is None:
                unknown.append(seed)
            elif one != other:
                wrong.append(f"{part} at seed {seed}")
    if wrong:
        return BROKEN, f"{pair.name} differ in {', '.join(wrong)}"
    if unknown:
        return NOTE, f"not recorded at seed {', '.join(map(str, sorted(set(unknown))))}"
    return OK, f"equal at {len(pair.seeds)} seeds"


def _weights_proven(pair: Pair) -> Evidence:
    """A pretrained encoder is the same at every seed; a randomly drawn one differs by seed."""
    checkpoints: list[str] = []
    drawn: list[str] = []
    several, other, made_from = [], [], set()
    for arm in pair.arms:
        notes = [note for note in loader_notes(arm) if NOT_PRETRAINED.search(note)]
        if arm.is_pretrained and notes:
            return BROKEN, f"loader notes on {arm.name}: {'; '.join(notes)}"
        digests = []
        for run in arm.finished.values():
            digest = _initial(run).get("encoder")
            if digest is None:
                return NOTE, f"no checksum in {run.path}"
            loaded = run.provenance.get("weights") or {}
            reported = loaded.get("init", arm.init), loaded.get("tensors_sha256", digest)
            if reported != (arm.init, digest):
                other.append(run.path.name)
            digests.append(digest)
            if not arm.is_pretrained:
                made_from.add(loaded.get("checkpoint_sha256"))
        if arm.is_pretrained:
            distinct = set(digests)
            checkpoints += distinct
            if len(distinct) > 1:
                several.append(f"{arm.name} started from {len(distinct)} different encoders")
        else:
            drawn += digests
    pretrained = set(checkpoints)
    is_shared = len(pretrained) < len(checkpoints) or bool(pretrained & set(drawn))
    control = pair.control.name
    faults = {
        "; ".join(several[:1]): bool(several),
        "both arms started from the same encoder tensors": is_shared,
        f"{control}: two seeds started from the same encoder tensors": len({*drawn}) < len(drawn),
        f"{control} was made from another checkpoint": bool(made_from - {None, *pretrained}),
        f"trained weights other than those in the load report: {', '.join(other[:5])}": bool(other),
    }
    for fault, is_there in faults.items():
        if is_there:
            return BROKEN, fault
    detail = " and ".join(f"pretrained encoder {it[:12]}… at every seed" for it in checkpoints)
    return OK, detail + ("; the control's differs at each seed" if drawn else "")


def _freezing_proven(pair: Pair) -> Evidence:
    """Frozen parts have not moved from their initial tensors, and unfrozen parts have."""
    wrong: list[str] = []
    known = 0
    for run in pair.all_runs:
        starts: dict[str, list[float]] = {}
        for line in run.provenance.get("plan") or ():
            start = line["start_epoch"]
            starts.setdefault(line["component"], []).append(np.inf if start is None else start)
        for component, begins in starts.items():
            epochs, distances = run.curve(f"distance_from_init/{component}")
            known += len(epochs)
            if ((distances > 0) != (epochs > min(begins))).any():
                wrong.append(f"{component} of {run.path.name}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        return BROKEN, f"the freezing schedule was not followed by {', '.join(wrong[:5])}{more}"
    return (OK, f"at {known} evaluations of a component") if known else (NOTE, "not recorded")


def _same(pair: Pair, of: Callable[[dict[str, Any]], Any], otherwise: str) -> Evidence:
    """Whether an entry of the provenance is the same in all paired runs."""
    values: dict[str, list[Run]] = {}
    for run in pair.all_runs:
        values.setdefault(json.dumps(of(run.provenance), sort_keys=True), []).append(run)
    if len(values) > 1:
        return otherwise, "; ".join(
            f"{_short(value)} in {plural(len(runs), 'run')}" for value, runs in values.items()
        )
    value = next(iter(values), "null")
    is_known = "null" not in (value, value.strip("[]"))
    return (OK, _short(value)) if is_known else (NOTE, "not recorded")


def _short(value: str) -> str:
    """A recorded value for display: JSON without its punctuation, a shortened checksum."""
    found = json.loads(value)
    if isinstance(found, dict) and set(found) == {"commit", "changed"}:
        changes = " with uncommitted changes" if found["changed"] else ""
        return f"commit {found['commit'][:10]}{changes}"
    if isinstance(found, dict):
        text = ", ".join(f"{key} {item}" for key, item in found.items())
    elif isinstance(found, list):
        text = ", ".join(str(item) for item in found if item is not None)
    else:
        text = str(found).removeprefix("torch.")
    is_digest = re.fullmatch("[0-9a-f]{64}", text) is not None
    return f"SHA-256 {text[:12]}…" if is_digest else text


def _selection(pair: Pair) -> Evidence:
    """The reported epoch is the one that validation selects, after all requested epochs."""
    wrong, stopped = [], []
    for run in pair.all_runs:
        assert run.result is not None
        if run.result.stopped_epoch is not None:
            stopped.append(f"{run.arm} seed {run.seed} at epoch {run.result.stopped_epoch}")
        epochs, values = run.curve(str(run.config["objective"]))
        if len(values) == 0:
            wrong.append(f"{run.path.name} has no curve")
            continue
        best = values.max() if pair.treatment.maximize else values.min()
        if run.result.best_epoch not in epochs[values == best]:
            wrong.append(f"{run.path.name} reports epoch {run.result.best_epoch}, not the best")
        elif epochs[-1] != run.epochs_due:
            wrong.append(f"{run.path.name} ends at epoch {epochs[-1]:g}")
    if wrong:
        return BROKEN, "; ".join(wrong[:5])
    detail = f"in all {2 * len(pair.seeds)} paired runs"
    if stopped:
        detail += f"; early stopping ended {', '.join(stopped[:10])}"
        detail += f" and {len(stopped) - 10} more" if len(stopped) > 10 else ""
    return OK, detail


def _seeds(pair: Pair) -> Evidence:
    """The seeds that are paired, unpaired, and run twice."""
    twice = [
        f"seed {seed} of {arm.name}: {used.path} is used, {other.path} finished later and is not"
        for arm in pair.arms
        for seed, used in arm.finished.items()
        for other in (arm.best.runs if arm.best else ())
        if other.result is not None and other.seed == seed and other is not used
    ]
    detail = f"{len(pair.seeds)} paired: {', '.join(map(str, pair.seeds)) or 'none'}"
    lone = {arm: seeds for arm, seeds in pair.unpaired.items() if seeds}
    for arm, seeds in lone.items():
        detail += f"; left out because only {arm} finished them: {', '.join(map(str, seeds))}"
    if len(pair.seeds) < FEW_SEEDS:
        detail += f"; fewer than {FEW_SEEDS}, so the interval is wide"
    if twice:
        detail += f"; run twice: {'; '.join(twice)}"
    return NOTE if lone or twice or len(pair.seeds) < FEW_SEEDS else OK, detail


def _scale(pair: Pair) -> Evidence:
    """Whether both encoders' outputs have the same scale before the first step."""
    outputs = []
    for arm in pair.arms:
        audits = [run.provenance.get("scale_audit") for run in arm.finished.values()]
        values = [audit["output"] for audit in audits if audit is not None]
        outputs.append(float(np.mean(values)) if values else float("nan"))
    shown = (f"{arm.name} {rms:.3g}" for arm, rms in zip(pair.arms, outputs, strict=True))
    detail = f"RMS of the encoder's output: {', '.join(shown)}"
    if not all(np.isfinite(outputs)) or min(outputs) <= 0:
        return NOTE, f"{detail} (not recorded)"
    if max(outputs) / min(outputs) > SCALE_FACTOR:
        return NOTE, (
            f"{detail}: they differ by more than a factor of {SCALE_FACTOR:g}, so a gain may"
            " come from scale rather than text; the control init=matched separates the two"
        )
    return OK, detail


def _unfinished(condition: Condition) -> Evidence:
    runs = condition.runs
    states = [run.state for run in runs if run.result is None]
    if not states:
        return OK, f"all {len(runs)} runs are finished"
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    done = f"{len(runs) - len(states)} of {len(runs)} runs"
    return NOTE, f"{done}; {counts}. Unfinished runs appear in curves, not in verdicts"


def _diverged(condition: Condition) -> Evidence:
    failed = [run for run in condition.runs if run.state == "failed"]
    if not failed:
        return OK, "no recorded failure"
    shown = "; ".join(
        f"{run.arm} seed {run.seed}: {run.trial.get('reason') or 'no reason given'}"
        for run in failed[:5]
    )
    return NOTE, f"{len(failed)} failed ({shown})"


def _worse_than_mean(condition: Condition) -> Evidence:
    finished = [run for run in condition.runs if run.result is not None]
    bad = [
        run
        for run in finished
        if run.result and run.metric("val_loss") > run.result.baselines["val"]["mean"]["loss"]
    ]
    if not bad:
        return OK, "every finished run, on validation"
    shown = ", ".join(
        f"{run.arm} seed {run.seed} ({run.metric('val_loss'):.4g})" for run in bad[:4]
    )
    cure = "Check the scaling, and whether the learning rate is too high"
    return NOTE, f"{len(bad)} runs are worse: {shown}. {cure}"


def _left_out(runs: Sequence[Run]) -> Evidence | None:
    if not runs:
        return None
    lines = "; ".join(f"{run.path.name}: {str(run.problem).rstrip('.')}" for run in runs[:8])
    more = f"; and {len(runs) - 8} more" if len(runs) > 8 else ""
    return NOTE, f"{len(runs)} left out: {lines}{more}"
