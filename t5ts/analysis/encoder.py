"""What is known of an arm's encoder: source, loader's notes, scale, whether it took part."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from t5ts.analysis.arms import Arm, last_part, short_names
from t5ts.analysis.statistics import Estimate, largest, log_ratio
from t5ts.analysis.study import Run, grouped
from t5ts.analysis.words import NONE, plural

#: Matches loader notes on weights that are not what a pretrained init promises.
NOT_PRETRAINED = re.compile("control, not pretrained|origin: (control|random)")
#: Loader notes that contradict what an init promises.
_DOUBTS = re.compile(
    "origin:|fresh|not on text|barely trained|shuffled|before any training|redrawn"
)
#: An encoder with this cosine between its tokens and its output is called an identity: what it
#: adds is under 2 % of the output's energy (1 − cosine²).
IDENTITY = 0.99
#: Blocks that moved less than this share of their norm did not move measurably: rounding normally
#: distributed weights to bfloat16 moves them as far.
MOVED = 0.00166
#: Prefix of how far a component has moved, in the evaluations.
MOVES = "distance_from_init/"


class InPlay(NamedTuple):
    """Whether an arm's encoder took part in its forecasts, over its finished seeds.

    Attributes:
        cosines: Of the encoder's tokens and its output, before training and selected; means.
        bypassed: Log-ratio of the selected weights' val_loss without the blocks to that with them.
        moved: Largest distance from its start, relative to its norm, of any block at any epoch.
        never_moved: Whether the schedule trains whole blocks, yet none of them moved.
    """

    cosines: tuple[float, float]
    bypassed: Estimate
    moved: float
    never_moved: bool

    @property
    def is_identity(self) -> bool:
        """Whether it passes its tokens on, before training and after it."""
        return min(self.cosines) >= IDENTITY

    def answer(self, margin: float) -> str:
        """Whether the forecasts differ without it: yes, no, or cannot tell.

        No if the whole interval over seeds is inside the margin, yes if it excludes 0; the value of
        a single run decides alone. Being near an identity is not enough for a no: a head can use
        even the little that is added.
        """
        loss = self.bypassed
        if loss.within(margin) or (not loss.is_known and abs(loss.value) < margin):
            return "no"
        return "yes" if loss.excludes_zero() or not loss.is_known else "cannot tell"


def in_play(arm: Arm) -> InPlay | None:
    """Whether an arm's encoder took part; None if that was not recorded, or it has no encoder."""
    names = ("encoder_cosine_initial", "encoder_cosine", "bypassed_val_loss", "val_loss")
    initial, selected, bypassed, val = map(arm.values, names)
    if not arm.done or not np.isfinite([*initial, *selected, *bypassed]).all():
        return None
    plan = ((run, *item) for run in arm.done for item in schedule(run).items())
    trains = any(n.startswith("block_") and min(at) < run.epochs_due for run, n, at in plan)
    evals = (column for run in arm.done for column in run.evals.items())
    moved = largest(column for name, column in evals if name.startswith(f"{MOVES}block_"))
    return InPlay(
        cosines=(float(np.mean(initial)), float(np.mean(selected))),
        bypassed=log_ratio(bypassed, val),
        moved=moved,
        never_moved=arm.freeze != "norms" and trains and moved < MOVED,
    )


def schedule(run: Run) -> dict[str, list[float]]:
    """The epochs at which the parts of each component start to train; inf if never."""
    lines = grouped(run.provenance.get("plan") or (), lambda line: str(line["component"]))
    starts = {name: [line["start_epoch"] for line in parts] for name, parts in lines.items()}
    return {name: [math.inf if s is None else s for s in parts] for name, parts in starts.items()}


def scale_audit(arm: Arm) -> dict[str, float]:
    """RMS at step 0 of the encoder's input, each block and the output, mean over the shown runs."""
    known = [run.provenance.get("scale_audit") for run in arm.shown.known]
    audits = [audit for audit in known if audit is not None]
    return {
        key: float(np.mean([audit[key] for audit in audits]))
        for key, value in (audits[0] if audits else {}).items()
        if not key.startswith(("residual_ratio", "cosine")) and value is not None
    }


def loader_notes(arm: Arm) -> list[str]:
    """The loader's notes on a pretrained arm's weights, each note once."""
    promised = arm.pretraining.origin if arm.is_pretrained else "pretrained"
    notes: list[str] = []
    for loaded in (run.weights for run in arm.runs):
        notes += [
            check.removeprefix("note:").strip()
            for check in loaded.get("checks") or ()
            if check.startswith("note:") or NOT_PRETRAINED.search(check)
        ]
        if loaded.get("origin", promised) != promised:
            notes.append(f"origin: {loaded['origin']}")
        # A donor run's records prove its training: tensors it barely moved cast no doubt on it.
        if arm.init != "run" and (fresh := loaded.get("fresh_tensors")):
            shown = ", ".join(fresh[:3]) + (", …" if len(fresh) > 3 else "")
            notes.append(f"{plural(len(fresh), 'tensor')} like a fresh draw ({shown})")
    return list(dict.fromkeys(notes))


def is_doubted(arm: Arm) -> bool:
    """Whether a loader note contradicts what the weights promise."""
    return any(map(_DOUBTS.search, loader_notes(arm)))


def checkpoint_of(arm: Arm) -> str:
    """The pretrained weights: their option's name and where they were read, or the donor's name."""
    loaded = (run.weights for run in arm.runs)
    sources = {str(report["source"]) for report in loaded if report.get("source")} - {arm.backbone}
    if arm.init == "run":
        sources = {*short_names(sources, last_part, str).values()}
    return f"{arm.backbone} ({', '.join(sorted(sources))})" if sources else arm.backbone


def weights_names(arms: Sequence[Arm]) -> dict[tuple[str, str, str | None], str]:
    """A name for pretrained weights: the backbone, and what distinguishes several with it."""
    return short_names(
        (arm.weights for arm in arms if arm.is_pretrained),
        lambda of: of[0],
        lambda of: f"{of[0]}-{of[1]}",
        lambda of: f"{of[0]}-{of[1]} ({last_part(str(of[2]))})",
        lambda of: f"{of[0]}-{of[1]} ({of[2]})",
    )


def encoder_source(arm: Arm) -> tuple[str, str, str]:
    """Where an arm's encoder comes from, its tensors' checksum, and the load report's checks."""
    digests = {str(run.initial.get("encoder"))[:12] for run in arm.runs}
    shown = f"{next(iter(digests))}…" if len(digests) == 1 else f"{len(digests)} (one per seed)"
    loaded = (run.weights for run in arm.runs)
    weights: dict[str, Any] = next(filter(None, loaded), {"source": "drawn from the seed"})
    return str(weights.get("source")), shown, "; ".join(weights.get("checks") or ()) or NONE
