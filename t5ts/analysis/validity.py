"""Whether the arms may be compared at all: every invariant, with what breaks it."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t5ts.analysis.arms import CHECKPOINT, PRETRAINED, RANDOM, Arm, Condition, Pair
from t5ts.analysis.study import Run
from t5ts.analysis.words import plural

#: Fewer paired seeds than this, and a t interval is wide whatever the truth is.
FEW_SEEDS = 5
#: Step-0 output scales of two arms that differ by more than this factor confound the weights.
SCALE_FACTOR = 10.0
#: An arm that fails at a larger share of its seeds is judged by the seeds that it survived.
FAILED_SHARE = 0.2
#: One arm's trials came to less than this share of what the other's did: no equal tuning.
TRAINED_SHARE = 0.5
#: Words of the loader's notes on weights that are not what init=t5 promises.
NOT_PRETRAINED = re.compile("control, not pretrained|origin: (control|random)")
#: Settings that name a checkpoint or say what is known of it: they may differ between two.
_OF_CHECKPOINT = (
    *CHECKPOINT,
    "backbone.sha256",
    "backbone.licence",
    "backbone.full_params",
    "backbone.embedding_rms",
)
OK, NOTE, BROKEN = "holds", "note", "broken"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One invariant: what it asks, whether it holds, and the evidence.

    Attributes:
        status: holds, note (worth knowing, the comparison stands), or broken (no verdict).
    """

    name: str
    status: str
    detail: str


def check_pair(pair: Pair) -> list[Check]:
    """Everything that must hold before a difference may be blamed on the weights."""
    return [
        _differences(pair),
        *_both_plans(pair),
        _budget(pair),
        _failed_seeds(pair),
        _same_start(pair),
        _weights_proven(pair),
        _freezing_proven(pair),
        _same(pair, "same data", lambda r: (r.provenance.get("data") or {}).get("sha256"), BROKEN),
        _same(pair, "same windows", lambda r: r.provenance.get("windows"), BROKEN),
        _same(pair, "same precision", lambda r: r.provenance.get("precision"), BROKEN),
        _same(pair, "same code", lambda r: r.provenance.get("git"), NOTE),
        _same(pair, "same versions", lambda r: r.provenance.get("versions"), NOTE),
        _same(
            pair,
            "same device",
            lambda r: (r.provenance.get("device"), r.provenance.get("processor")),
            NOTE,
        ),
        _selection(pair),
        _seeds(pair),
        _scale(pair),
    ]


def settings_that_differ(pair: Pair) -> dict[str, tuple[Any, Any]]:
    """Settings of the two best points that differ: key to (treatment's, control's)."""
    if pair.treatment.best is None or pair.control.best is None:
        return {}
    a, b = pair.treatment.best.settings, pair.control.best.settings
    return {k: (a.get(k), b.get(k)) for k in sorted(a | b) if a.get(k) != b.get(k)}


def check_plans(pairs: Iterable[Pair]) -> list[Check]:
    """Whether arms that are compared across freezing plans were tuned alike.

    A note where they were not, since a plan may have settings of its own to search.
    """
    unequal = [
        f"{pair.treatment.name} {pair.treatment.tried}, {pair.control.name} {pair.control.tried}"
        for pair in pairs
        if pair.kind in ("freezing", "frozen_random") and pair.treatment.tried != pair.control.tried
    ]
    if not unequal:
        return []
    detail = f"settings tried: {'; '.join(unequal)}. The one that was tuned more is favoured"
    return [Check(name="equal tuning of the plans", status=NOTE, detail=detail)]


def loader_notes(arm: Arm) -> list[str]:
    """What the loader noted of a pretrained arm's weights, each note once."""
    notes: list[str] = []
    for loaded in (run.provenance.get("weights") or {} for run in arm.runs):
        notes += [
            check.removeprefix("note:").strip()
            for check in loaded.get("checks") or ()
            if check.startswith("note:") or NOT_PRETRAINED.search(check)
        ]
        promised = PRETRAINED[arm.init].origin if arm.is_pretrained else "pretrained"
        if loaded.get("origin", promised) != promised:
            notes.append(f"origin: {loaded['origin']}")
        if fresh := loaded.get("fresh_tensors"):
            shown = ", ".join(fresh[:3]) + (", …" if len(fresh) > 3 else "")
            notes.append(f"{plural(len(fresh), 'tensor')} like a fresh draw ({shown})")
    return list(dict.fromkeys(notes))


def _differences(pair: Pair) -> Check:
    """The arms differ in init.* or the checkpoint alone, or else in what both of them tuned."""
    name = "only the weights differ"
    differing = settings_that_differ(pair)
    tuned = searched(pair.rivals[0]) & searched(pair.rivals[1])
    weights: tuple[str, ...] = _OF_CHECKPOINT if pair.kind == "checkpoint" else ("init.",)
    if pair.treatment.freeze != pair.control.freeze:
        weights += ("freeze.",)  # whether both had the plans is a check of its own
    wrong = {k: v for k, v in differing.items() if not k.startswith(weights) and k not in tuned}
    if wrong:
        what = "; ".join(f"{k}: {_show(a)} against {_show(b)}" for k, (a, b) in wrong.items())
        return Check(name=name, status=BROKEN, detail=f"{pair.name} also differ in {what}")
    both = [k for k in differing if k in tuned and not k.startswith(weights)]
    detail = f"{pair.name}: " + (
        "; ".join(f"{k}: {_show(a)} against {_show(b)}" for k, (a, b) in differing.items())
        or "no setting differs"
    )
    if both:
        detail += f" ({', '.join(both)} tuned in both arms, each at its own best)"
    return Check(name=name, status=OK, detail=detail)


def searched(arms: Sequence[Arm]) -> set[str]:
    """Settings that were searched within the arms or, such as the freezing plan, between them."""
    points = [point for arm in arms for point in (*arm.points, *arm.final)]
    keys = {key for point in points for key in point.settings}
    varied = {k for k in keys if len({json.dumps(p.settings.get(k)) for p in points}) > 1}
    return varied.union(*(arm.searched for arm in arms))


def _both_plans(pair: Pair) -> list[Check]:
    """Each side's own best plan was run with the other's weights too.

    An encoder that stays random needs no such twin: it asks what the encoder is good for at all.
    """
    plans = [{arm.freeze for arm in arms} for arms in pair.rivals]
    if plans[0] == plans[1]:
        return []
    missing = [
        f"init={other.init} freeze={mine.freeze}"
        for mine, other, tried in (
            (pair.treatment, pair.control, plans[1]),
            (pair.control, pair.treatment, plans[0]),
        )
        if mine.freeze not in tried and (mine.init, mine.freeze) != (RANDOM, "all")
    ]
    name = "both weights had the same plans"
    if missing:
        detail = f"the best plan of one was never run with the other: add {' and '.join(missing)}"
        return [Check(name=name, status=BROKEN, detail=detail)]
    detail = f"run with one of them only, and worse: {', '.join(sorted(plans[0] ^ plans[1]))}"
    return [Check(name=name, status=NOTE, detail=detail)]


def _budget(pair: Pair) -> Check:
    """Trials and epochs that each side's best was chosen from, over the plans that both had."""
    name = "equal tuning budget"
    shared = set.intersection(*({arm.freeze for arm in arms} for arms in pair.rivals))
    sides = [[arm for arm in arms if arm.freeze in shared] for arms in pair.rivals]
    if not all(sides):
        sides = [[pair.treatment], [pair.control]]

    def total(arms: Sequence[Arm], of: Callable[[Arm], int]) -> int:
        plans = {arm.freeze for arm in arms}
        return sum(max(of(arm) for arm in arms if arm.freeze == plan) for plan in plans)

    settings = [total(arms, lambda arm: arm.tried) for arms in sides]
    trials = [total(arms, lambda arm: arm.trials) for arms in sides]
    trained = [float(np.mean([arm.share_trained for arm in arms])) for arms in sides]
    epochs = [sum(arm.epochs_trained for arm in arms) for arms in sides]
    detail = "; ".join(
        f"{side[0].init}: {plural(n, 'setting')} in {plural(t, 'trial')}, {e:,} epochs trained"
        f" ({100 * share:.0f} % of those asked)"
        for side, n, t, e, share in zip(sides, settings, trials, epochs, trained, strict=True)
    )
    if pair.treatment.init == pair.control.init:
        detail = detail.replace(f"{pair.treatment.init}:", f"{pair.treatment.name}:", 1)
        detail = detail.replace(f"; {pair.control.init}:", f"; {pair.control.name}:", 1)
    # A sampler may draw one point twice: then the trials are equal and the settings nearly.
    equal = settings[0] == settings[1] or (
        trials[0] == trials[1] and 2 * min(settings) >= max(settings)
    )
    if not equal:
        detail += ". Give both the same number of trials"
        return Check(name=name, status=BROKEN, detail=detail)
    if max(settings) > 1 and min(trained) < TRAINED_SHARE * max(trained):
        detail += ". Most trials of one were cut short: tune both without a pruner, or alike"
        return Check(name=name, status=BROKEN, detail=detail)
    only = sorted(
        set.symmetric_difference(*({k for arm in side for k in arm.searched} for side in sides))
    )
    if only:
        detail += f". Searched in one only: {', '.join(only)}"
        return Check(name=name, status=BROKEN, detail=detail)
    return Check(name=name, status=OK, detail=detail)


def failures(arm: Arm) -> tuple[list[int], int]:
    """Seeds at which the arm's best setting failed, and how many it was run at."""
    point = arm.shown
    return list(point.failed), len(point.failed) + len(point.finished)


def _failed_seeds(pair: Pair) -> Check:
    """An arm that loses many of its seeds cannot be judged by the rest."""
    name = "no arm lost its seeds"
    lost = {arm.name: failures(arm) for arm in (pair.treatment, pair.control)}
    shown = "; ".join(
        f"{arm} failed at {len(seeds)} of {count} seeds ({', '.join(map(str, seeds))})"
        for arm, (seeds, count) in lost.items()
        if seeds
    )
    if not shown:
        return Check(name=name, status=OK, detail="none failed at its best setting")
    too_many = any(len(seeds) > FAILED_SHARE * count for seeds, count in lost.values())
    return Check(name=name, status=BROKEN if too_many else NOTE, detail=shown)


def _same_start(pair: Pair) -> Check:
    """At the same seed patch and head start from the same tensors, bit for bit."""
    name = "paired start: same patch and head tensors at the same seed"
    wrong, unknown = [], []
    for seed, (a, b) in zip(pair.seeds, pair.runs(), strict=True):
        digests = [run.provenance.get("initial_sha256") or {} for run in (a, b)]
        for part in ("patch", "head"):
            one, other = (d.get(part) for d in digests)
            if one is None or other is None:
                unknown.append(seed)
            elif one != other:
                wrong.append(f"{part} at seed {seed}")
    if wrong:
        return Check(name=name, status=BROKEN, detail=f"{pair.name} differ in {', '.join(wrong)}")
    if unknown:
        where = ", ".join(map(str, sorted(set(unknown))))
        return Check(name=name, status=NOTE, detail=f"not recorded at seed {where}")
    return Check(name=name, status=OK, detail=f"equal at {len(pair.seeds)} seeds")


def _weights_proven(pair: Pair) -> Check:
    """A pretrained encoder is one checkpoint at every seed, a drawn one differs by seed."""
    name = "the arms' weights are proven"
    pretrained: dict[str, set[str]] = {}
    drawn, other, made_from = [], [], set()
    for arm in (pair.treatment, pair.control):
        notes = [note for note in loader_notes(arm) if NOT_PRETRAINED.search(note)]
        if arm.is_pretrained and notes:
            detail = f"the loader says of {arm.name}: {'; '.join(notes)}"
            return Check(name=name, status=BROKEN, detail=detail)
        for run in arm.best.finished.values() if arm.best else ():
            digest = (run.provenance.get("initial_sha256") or {}).get("encoder")
            if digest is None:
                return Check(name=name, status=NOTE, detail=f"no checksum in {run.path}")
            loaded = run.provenance.get("weights") or {}
            said = (loaded.get("init", arm.init), loaded.get("tensors_sha256", digest))
            if said != (arm.init, digest):
                other.append(run.path.name)
            if arm.is_pretrained:
                pretrained.setdefault(arm.name, set()).add(digest)
            else:
                drawn.append(digest)
                made_from.add(loaded.get("checkpoint_sha256"))
    for arm_name, digests in pretrained.items():
        if len(digests) > 1:
            detail = f"{arm_name} started from {len(digests)} different encoders"
            return Check(name=name, status=BROKEN, detail=detail)
    checkpoints = [digest for digests in pretrained.values() for digest in digests]
    if len(set(checkpoints)) < len(checkpoints) or set(checkpoints) & set(drawn):
        detail = "both arms started from the same encoder tensors"
        return Check(name=name, status=BROKEN, detail=detail)
    if len(set(drawn)) < len(drawn):
        detail = f"{pair.control.name}: two seeds started from the same encoder tensors"
        return Check(name=name, status=BROKEN, detail=detail)
    if made_from - {None, *checkpoints}:
        detail = f"{pair.control.name} was made from another checkpoint"
        return Check(name=name, status=BROKEN, detail=detail)
    if other:
        detail = f"trained other weights than the load report names: {', '.join(other[:5])}"
        return Check(name=name, status=BROKEN, detail=detail)
    detail = " and ".join(
        f"pretrained encoder {digest[:12]}… at every seed" for digest in checkpoints
    )
    if drawn:
        detail += "; the control's differs at each seed"
    return Check(name=name, status=OK, detail=detail)


def _freezing_proven(pair: Pair) -> Check:
    """What is frozen has not moved from its first tensors, and what is unfrozen has."""
    name = "frozen parts stood still, unfrozen ones moved"
    wrong: list[str] = []
    known = 0
    for run in (run for both in pair.runs() for run in both):
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
        detail = f"the plan was not kept by {', '.join(wrong[:5])}{more}"
        return Check(name=name, status=BROKEN, detail=detail)
    if not known:
        return Check(name=name, status=NOTE, detail="not recorded")
    return Check(name=name, status=OK, detail=f"at {known} evaluations of a component")


def _same(pair: Pair, name: str, of: Callable[[Run], Any], otherwise: str) -> Check:
    values: dict[str, list[Run]] = {}
    for run in (run for both in pair.runs() for run in both):
        values.setdefault(json.dumps(of(run), sort_keys=True), []).append(run)
    if len(values) > 1:
        shown = "; ".join(
            f"{_short(v)} in {plural(len(runs), 'run')}" for v, runs in values.items()
        )
        return Check(name=name, status=otherwise, detail=shown)
    value = next(iter(values), "null")
    if "null" in (value, value.strip("[]")):
        return Check(name=name, status=NOTE, detail="not recorded")
    return Check(name=name, status=OK, detail=_short(value))


def _short(value: str) -> str:
    """A recorded value for the eye: JSON without its marks, a checksum's beginning."""
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


def _selection(pair: Pair) -> Check:
    """The reported epoch is the one that validation selects, after all epochs asked for."""
    name = "validation selected, after all epochs"
    wrong = []
    for run in (run for both in pair.runs() for run in both):
        assert run.result is not None
        epochs, values = run.curve(str(run.config["objective"]))
        if len(values) == 0:
            wrong.append(f"{run.path.name} has no curve")
            continue
        best = values.max() if pair.treatment.maximize else values.min()
        if run.result.best_epoch not in epochs[values == best]:
            wrong.append(f"{run.path.name} reports epoch {run.result.best_epoch}, not the best")
        elif epochs[-1] != run.config["train.epochs"]:
            wrong.append(f"{run.path.name} ends at epoch {epochs[-1]:g}")
    if wrong:
        return Check(name=name, status=BROKEN, detail="; ".join(wrong[:5]))
    return Check(name=name, status=OK, detail=f"in all {2 * len(pair.seeds)} paired runs")


def _seeds(pair: Pair) -> Check:
    name = "paired seeds"
    twice = [
        f"seed {seed} of {arm.name}: {used.path} is used, {other.path} finished later and is not"
        for arm in (pair.treatment, pair.control)
        for point in ([arm.best] if arm.best else [])
        for seed, used in point.finished.items()
        for other in point.runs
        if other.result is not None and other.seed == seed and other is not used
    ]
    detail = f"{len(pair.seeds)} paired: {', '.join(map(str, pair.seeds)) or 'none'}"
    lone = {arm: seeds for arm, seeds in pair.unpaired.items() if seeds}
    for arm, seeds in lone.items():
        detail += f"; left out since only {arm} finished them: {', '.join(map(str, seeds))}"
    if len(pair.seeds) < FEW_SEEDS:
        detail += f"; fewer than {FEW_SEEDS}, so the interval is wide whatever the truth is"
    if twice:
        detail += f"; run twice: {'; '.join(twice)}"
    good = not lone and not twice and len(pair.seeds) >= FEW_SEEDS
    return Check(name=name, status=OK if good else NOTE, detail=detail)


def _scale(pair: Pair) -> Check:
    name = "scale at step 0"
    outputs = []
    for arm in (pair.treatment, pair.control):
        runs = arm.best.finished.values() if arm.best else ()
        values = [
            r.provenance["scale_audit"]["output"] for r in runs if "scale_audit" in r.provenance
        ]
        outputs.append(float(np.mean(values)) if values else float("nan"))
    detail = (
        f"RMS of the encoder's output: {pair.treatment.name} {outputs[0]:.3g},"
        f" {pair.control.name} {outputs[1]:.3g}"
    )
    if not all(np.isfinite(outputs)) or min(outputs) <= 0:
        return Check(name=name, status=NOTE, detail=detail + " (not recorded)")
    if max(outputs) / min(outputs) > SCALE_FACTOR:
        detail += (
            ": they differ by more than a factor of 10, so a gain may be scale and not text; the"
            " control init=matched tells them apart"
        )
        return Check(name=name, status=NOTE, detail=detail)
    return Check(name=name, status=OK, detail=detail)


def check_condition(condition: Condition, left_out: Iterable[Run] = ()) -> list[Check]:
    """What is worth knowing of all runs on one data set, whichever arms are compared."""
    return [
        _unfinished(condition),
        _diverged(condition),
        _worse_than_mean(condition),
        *_left_out(left_out),
    ]


def _unfinished(condition: Condition) -> Check:
    open_runs = [run for run in condition.runs if run.result is None]
    if not open_runs:
        detail = f"all {len(condition.runs)} runs are finished"
        return Check(name="finished", status=OK, detail=detail)
    states = {run.state for run in open_runs}
    counts = ", ".join(f"{sum(r.state == s for r in open_runs)} {s}" for s in sorted(states))
    return Check(
        name="finished",
        status=NOTE,
        detail=f"{len(condition.runs) - len(open_runs)} of {len(condition.runs)} runs; {counts}."
        " What is unfinished counts in curves and in no verdict",
    )


def _diverged(condition: Condition) -> Check:
    failed = [run for run in condition.runs if run.state == "failed"]
    if not failed:
        return Check(name="no run failed", status=OK, detail="none is known to have failed")
    lines = [
        f"{run.arm} seed {run.seed}: {run.trial.get('reason') or 'no reason given'}"
        for run in failed[:5]
    ]
    return Check(
        name="no run failed",
        status=NOTE,
        detail=f"{len(failed)} failed ({'; '.join(lines)})",
    )


def _worse_than_mean(condition: Condition) -> Check:
    name = "better than predicting the mean"
    bad = [
        run
        for run in condition.runs
        if run.result is not None
        and run.metric("val_loss") > run.result.baselines["val"]["mean"]["loss"]
    ]
    if not bad:
        return Check(name=name, status=OK, detail="every finished run, on validation")
    shown = ", ".join(
        f"{run.arm} seed {run.seed} ({run.metric('val_loss'):.4g})" for run in bad[:4]
    )
    return Check(
        name=name,
        status=NOTE,
        detail=f"{len(bad)} runs are worse: {shown}. Look for an error of scale or a learning rate"
        " that is too high",
    )


def _left_out(left_out: Iterable[Run]) -> list[Check]:
    runs = list(left_out)
    if not runs:
        return []
    lines = "; ".join(f"{run.path.name}: {str(run.problem).rstrip('.')}" for run in runs[:8])
    more = f"; and {len(runs) - 8} more" if len(runs) > 8 else ""
    return [
        Check(
            name="every run could be read",
            status=NOTE,
            detail=f"{len(runs)} left out: {lines}{more}",
        )
    ]


def arms_needed(arm: Arm) -> str:
    """The override that would give the arm to compare a pretrained one with."""
    return f"init={RANDOM} freeze={arm.freeze}"


def _show(value: Any) -> str:
    return "null" if value is None else str(value)
