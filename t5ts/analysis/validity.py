"""Whether the arms may be compared at all: every invariant, with its evidence."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5ts.analysis.arms import CHECKPOINT, RANDOM, Condition
from t5ts.analysis.encoder import MOVES, NOT_PRETRAINED, loader_notes, scale_audit, schedule
from t5ts.analysis.pairs import Pair
from t5ts.analysis.study import Run, grouped, varying
from t5ts.analysis.words import in_words, plural

#: With fewer paired seeds than this, a t interval is wide whatever the truth is.
FEW_SEEDS = 5
#: Step-0 output scales of two arms that differ by more than this factor confound the weights.
SCALE_FACTOR = 10.0
#: An arm that fails at a larger share of its seeds is judged by the seeds that it survived.
FAILED_SHARE = 0.2
#: If one arm's trials trained less than this share of the other's, tuning was not equal.
TRAINED_SHARE = 0.5
#: Settings that name or describe a checkpoint: they may differ between two checkpoints.
_OF_CHECKPOINT = (*CHECKPOINT, "backbone.sha256", "backbone.licence", "backbone.embedding_rms")
OK, NOTE, BROKEN = "holds", "note", "broken"
#: Whether an invariant holds, and the evidence.
Evidence = tuple[str, str]


class Check(NamedTuple):
    """One invariant: whether it holds, is worth a note, or is broken (no verdict); and why."""

    name: str
    status: str
    detail: str


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
        "same device": _same(pair, lambda run: (run.get("device"), run.get("processor")), NOTE),
        "same number of threads": _threads(pair),
        "validation selected, after all epochs": _selection(pair),
        "paired seeds": _seeds(pair),
        "scale at step 0": _scale(pair),
    }
    return [Check(name, *evidence) for name, evidence in found.items() if evidence is not None]


def check_condition(condition: Condition, pairs: Sequence[Pair]) -> list[Check]:
    """What is worth knowing about all runs on one data set, whichever arms are compared."""
    runs = condition.runs
    # A note only, since a schedule may have settings that only it can search.
    unequal = "; ".join(
        ", ".join(f"{arm.name} {arm.tried}" for arm in pair.arms)
        for pair in pairs
        if pair.kind in ("freezing", "frozen_random") and pair.treatment.tried != pair.control.tried
    )
    states = Counter(run.state for run in runs if run.result is None)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    failed = [
        f"{run.label}: {run.trial.get('reason') or 'no reason given'}"
        for run in runs
        if run.state == "failed"
    ]
    worse = [
        f"{run.label} ({run.metric('val_loss'):.4g})"
        for run in runs
        if run.result and run.metric("val_loss") > run.result.baselines["val"]["mean"]["loss"]
    ]
    found = [
        ("equal tuning of the schedules", unequal,
         f"settings tried: {unequal}. This favours the arm with more", ""),
        ("finished", states,
         f"{len(runs) - states.total()} of {len(runs)} runs; {counts}."
         " Unfinished runs appear in curves, not in verdicts",
         f"all {len(runs)} runs are finished"),
        ("no run failed", failed, f"{len(failed)} failed ({_first(failed)})",
         "no recorded failure"),
        ("better than predicting the mean", worse,
         f"{len(worse)} runs are worse: {_first(worse)}."
         " Check the scaling, and whether the learning rate is too high",
         "every finished run, on validation"),
    ]  # fmt: skip
    return [
        Check(name, NOTE, note) if noted else Check(name, OK, good)
        for name, noted, note, good in found
        if noted or good
    ]


def check_reading(left_out: Sequence[Run]) -> list[Check]:
    """A note on the runs that could not be used; empty if there are none."""
    shown = _first([f"{run.path.name}: {str(run.problem).rstrip('.')}" for run in left_out])
    evidence = f"{len(left_out)} left out: {shown}"
    return [Check("every run could be read", NOTE, evidence)] if left_out else []


def _first(items: Sequence[str], *, most: int = 5) -> str:
    """The first few of a list."""
    more = f"; and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more


def settings_that_differ(pair: Pair) -> dict[str, tuple[Any, Any]]:
    """Settings of the two best settings that differ: key to (treatment's, control's)."""
    if pair.treatment.best is None or pair.control.best is None:
        return {}
    a, b = pair.treatment.best.values, pair.control.best.values
    return {k: (a.get(k), b.get(k)) for k in sorted(a | b) if a.get(k) != b.get(k)}


def _differences(pair: Pair) -> Evidence:
    """The arms differ only in init.* or the checkpoint, and in settings that both tuned."""
    differing = settings_that_differ(pair)
    weights = ("init.", *(_OF_CHECKPOINT if pair.kind == "checkpoint" else ()))
    if pair.treatment.freeze != pair.control.freeze:
        weights += ("freeze.",)  # a separate check compares the schedules tried
    # Searched within the arms or, like the freezing schedule, between them.
    tried = [[s for arm in arms for s in (*arm.settings, *arm.final)] for arms in pair.rivals]
    tuned = [
        {*varying([setting.values for setting in side])}.union(*(arm.searched for arm in arms))
        for arms, side in zip(pair.rivals, tried, strict=True)
    ]

    def shown(keys: Iterable[str]) -> str:
        values = {k: ["null" if v is None else str(v) for v in differing[k]] for k in keys}
        return "; ".join(f"{k}: {' vs. '.join(both)}" for k, both in values.items())

    others = [k for k in differing if not k.startswith(weights)]
    if wrong := [k for k in others if k not in tuned[0] & tuned[1]]:
        return BROKEN, f"also {shown(wrong)}"
    detail = shown(differing) or "no setting differs"
    both = f" ({', '.join(others)} tuned in both arms, each at its own best)" if others else ""
    return OK, detail + both


def _both_plans(pair: Pair) -> Evidence | None:
    """Each side's best schedule was also run with the other's weights.

    A frozen random encoder needs no such twin: it measures whether the encoder helps at all.
    """
    plans = [{arm.freeze for arm in arms} for arms in pair.rivals]
    if plans[0] == plans[1]:
        return None
    missing = [
        f"init={other.init} freeze={mine.freeze}"
        for mine, other, tried in zip(pair.arms, pair.arms[::-1], plans[::-1], strict=True)
        if mine.freeze not in tried and (mine.init, mine.freeze) != (RANDOM, "all")
    ]
    if missing:
        add = " and ".join(missing)
        return BROKEN, f"one side's best schedule was never run with the other's weights: add {add}"
    worse = ", ".join(sorted(plans[0] ^ plans[1]))
    return NOTE, f"schedules run on one side only, and worse: {worse}"


def _budget(pair: Pair) -> Evidence:
    """Trials and epochs each side's best was chosen from, over the schedules both sides had."""
    shared = set.intersection(*({arm.freeze for arm in arms} for arms in pair.rivals))
    sides = [[arm for arm in arms if arm.freeze in shared] for arms in pair.rivals]
    if not all(sides):
        sides = [[arm] for arm in pair.arms]
    # The largest per schedule, summed.
    plans = [grouped(arms, lambda arm: arm.freeze).values() for arms in sides]
    settings = [sum(max(arm.tried for arm in arms) for arms in side) for side in plans]
    trials = [sum(max(arm.trials for arm in arms) for arms in side) for side in plans]
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
    # A sampler may draw one setting twice: then the trials are equal and the settings nearly so.
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
    lost = [(in_words(arm), arm.shown) for arm in pair.arms if arm.shown.failed]
    if not lost:
        return OK, "none failed at its best setting"
    too_many = any(len(best.failed) > FAILED_SHARE * best.num_seeds for _, best in lost)
    return BROKEN if too_many else NOTE, "; ".join(
        f"{name} failed at {len(best.failed)} of {best.num_seeds} seeds"
        f" ({', '.join(map(str, best.failed))})"
        for name, best in lost
    )


def _same_start(pair: Pair) -> Evidence:
    """At the same seed patch and head start from the same tensors, bit for bit."""
    started = [
        (seed, part, [arm.finished[seed].initial.get(part) for arm in pair.arms])
        for seed in pair.seeds
        for part in ("patch", "head")
    ]
    if wrong := [f"{part} at seed {seed}" for seed, part, (a, b) in started if a and b and a != b]:
        return BROKEN, f"differing: {', '.join(wrong)}"
    if unknown := {seed for seed, _, both in started if None in both}:
        return NOTE, f"not recorded at seed {', '.join(map(str, sorted(unknown)))}"
    return OK, f"equal at {len(pair.seeds)} seeds"


def _weights_proven(pair: Pair) -> Evidence:
    """A pretrained encoder is the same at every seed; a randomly drawn one differs by seed."""
    for arm in pair.arms:
        notes = [note for note in loader_notes(arm) if NOT_PRETRAINED.search(note)]
        if arm.is_pretrained and notes:
            return BROKEN, f"loader notes on {in_words(arm)}: {'; '.join(notes)}"
    runs = [(run, arm) for arm in pair.arms for run in arm.done]
    start = {run: run.initial.get("encoder") for run, _ in runs}
    if unknown := [run.path for run, _ in runs if start[run] is None]:
        return NOTE, f"no checksum in {unknown[0]}"
    # Each pretrained arm's different encoders, and the control's runs if it was drawn.
    loaded = {arm: {start[run] for run in arm.done} for arm in pair.arms if arm.is_pretrained}
    checkpoints = [str(encoder) for encoders in loaded.values() for encoder in encoders]
    drawn = [run for run, arm in runs if not arm.is_pretrained]
    made_from = {run.weights.get("checkpoint_sha256") for run in drawn} - {None, *checkpoints}
    unlike = [
        run.path.name
        for run, arm in runs
        if run.weights.get("init", arm.init) != arm.init
        or run.weights.get("tensors_sha256", start[run]) != start[run]
    ]
    control, different = in_words(pair.control), {start[run] for run in drawn}
    faults = [
        *((len(encoders) > 1, f"{in_words(arm)} started from {len(encoders)} different encoders")
          for arm, encoders in loaded.items()),
        (len({*checkpoints, *different}) < len(checkpoints) + len(different),
         "both arms started from the same encoder tensors"),
        (len(different) < len(drawn),
         f"{control}: two seeds started from the same encoder tensors"),
        (made_from, f"{control} was made from another checkpoint"),
        (unlike, f"trained weights other than those in the load report: {_first(unlike)}"),
    ]  # fmt: skip
    if wrong := next((fault for is_there, fault in faults if is_there), None):
        return BROKEN, wrong
    detail = " and ".join(f"pretrained encoder {sha[:12]}… at every seed" for sha in checkpoints)
    return OK, detail + ("; the control's differs at each seed" if drawn else "")


def _freezing_proven(pair: Pair) -> Evidence:
    """Frozen parts have not moved from their initial tensors, and unfrozen parts have."""
    wrong: list[str] = []
    known = 0
    for run in pair.runs:
        for component, starts in schedule(run).items():
            epochs, distances = run.curve(MOVES + component)
            known += len(epochs)
            if ((distances > 0) != (epochs > min(starts))).any():
                wrong.append(f"{component} of {run.path.name}")
    if wrong:
        return BROKEN, f"the freezing schedule was not followed by {_first(wrong)}"
    return (OK, f"at {known} evaluations of a component") if known else (NOTE, "not recorded")


def _same(pair: Pair, entry: Callable[[dict[str, Any]], Any], otherwise: str) -> Evidence:
    """Whether an entry of the provenance is the same in all paired runs."""
    counts = Counter(json.dumps(entry(run.provenance), sort_keys=True) for run in pair.runs)
    if len(counts) > 1:
        shown = (f"{_short(value)} in {plural(n, 'run')}" for value, n in counts.items())
        return otherwise, "; ".join(shown)
    value = next(iter(counts), "null")
    is_known = "null" not in (value, value.strip("[]"))
    return (OK, _short(value)) if is_known else (NOTE, "not recorded")


def _threads(pair: Pair) -> Evidence | None:
    """A note where runs on CPUs had different numbers of threads."""
    recorded = [run.provenance for run in pair.runs if run.provenance.get("device") == "cpu"]
    if len({about.get("threads") for about in recorded}) < 2:
        return None
    _, counts = _same(pair, lambda about: about.get("threads"), NOTE)
    return NOTE, f"{counts}. Sums round differently, which can change the selected epoch"


def _short(value: str) -> str:
    """A recorded value for display: JSON without its punctuation, shortened checksums."""
    found = json.loads(value)
    if isinstance(found, dict):
        found = [f"{key} {item}" for key, item in found.items() if item is not False]
    if isinstance(found, list):
        found = ", ".join(str(item) for item in found if item is not None)
    text = re.sub("^([0-9a-f]{12})[0-9a-f]{52}$", r"SHA-256 \1…", str(found).removeprefix("torch."))
    return re.sub("(?<=commit )([0-9a-f]{10})[0-9a-f]{30}", r"\1", text)


def _selection(pair: Pair) -> Evidence:
    """The reported epoch is the one that validation selects, after all requested epochs."""
    wrong, stopped = [], []
    for run in pair.runs:
        assert run.result is not None
        if run.result.stopped_epoch is not None:
            stopped.append(f"{run.label} at epoch {run.result.stopped_epoch}")
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
        return BROKEN, _first(wrong)
    early = f"; early stopping ended {_first(stopped)}" if stopped else ""
    return OK, f"in all {2 * len(pair.seeds)} paired runs{early}"


def _seeds(pair: Pair) -> Evidence:
    """The seeds that are paired, unpaired, and run twice."""
    detail = f"{len(pair.seeds)} paired: {', '.join(map(str, pair.seeds)) or 'none'}"
    twice = [
        f"seed {other.seed} of {arm.name}: {used.path} is used, {other.path} finished later"
        " and is not"
        for arm in pair.arms
        for other in (arm.best.runs if arm.best else ())
        if other.result is not None and (used := arm.finished[other.seed]) is not other
    ]
    for arm, seeds in pair.unpaired.items():
        detail += f"; left out because only {arm.name} finished them: {', '.join(map(str, seeds))}"
    if is_few := len(pair.seeds) < FEW_SEEDS:
        detail += f"; fewer than {FEW_SEEDS}, so the interval is wide"
    if twice:
        detail += f"; run twice: {'; '.join(twice)}"
    return NOTE if pair.unpaired or twice or is_few else OK, detail


def _scale(pair: Pair) -> Evidence:
    """Whether both encoders' outputs have the same scale before the first step."""
    outputs = {arm.name: scale_audit(arm).get("output", math.nan) for arm in pair.arms}
    shown = ", ".join(f"{name} {rms:.3g}" for name, rms in outputs.items())
    detail, low, high = f"RMS of the encoder's output: {shown}", *sorted(outputs.values())
    if not low > 0 or not math.isfinite(high):
        return NOTE, f"{detail} (not recorded)"
    if high / low > SCALE_FACTOR:
        return NOTE, (
            f"{detail}: they differ by more than a factor of {SCALE_FACTOR:g}, so a gain may"
            " come from scale rather than text; the control init=matched separates the two"
        )
    return OK, detail
