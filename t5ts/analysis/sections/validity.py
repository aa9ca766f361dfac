"""Section 7: whether the arms may be compared."""

from t5ts.analysis import effects
from t5ts.analysis.arms import Arm
from t5ts.analysis.document import Section
from t5ts.analysis.judgement import Findings
from t5ts.analysis.sections.common import KINDS, arms_of, named, number_or_text, questions
from t5ts.analysis.statistics import log_ratio
from t5ts.analysis.validity import BROKEN, settings_that_differ
from t5ts.analysis.words import NONE, number, percent_interval


def validity(findings: Findings) -> Section:
    """Section 7."""
    section = Section(
        number=7, title="Validity", question="Do the arms differ in nothing but the weights?"
    )
    for v in findings.verdicts:
        section.tabulate(
            f"Invariants, on {v.condition.name}",
            ["invariant", "status", "evidence"],
            [(c.name, c.status, c.detail) for c in v.checks],
            broken={i for i, c in enumerate(v.checks) if c.status == BROKEN},
        )
    for v, c in questions(findings, "control", "weights", "same_plan", "checkpoint"):
        if c.pair.kind in ("weights", "same_plan") and not c.broken:
            continue
        section.tabulate(
            f"Invariants of {named(findings, v, c.pair.name)}",
            ["invariant", "status", "evidence"],
            [(k.name, k.status, k.detail) for k in c.checks],
            broken={i for i, k in enumerate(c.checks) if k.status == BROKEN},
        )
    section.tabulate(
        "What differs between the arms of each comparison (best settings)",
        ["pair", "question", "settings: first arm against second"],
        [
            (
                named(findings, v, c.pair.name),
                KINDS[c.pair.kind],
                "; ".join(
                    f"{k}: {number_or_text(a)} against {number_or_text(b)}"
                    for k, (a, b) in settings_that_differ(c.pair).items()
                )
                or "nothing",
            )
            for v, c in questions(findings, *KINDS)
        ],
    )
    section.tabulate(
        "Tuning budget",
        [
            "arm",
            "settings tried",
            "trials",
            "seeds of the best",
            "pruned",
            "failed",
            "epochs trained",
            "epochs asked",
        ],
        [
            (
                named(findings, v, arm.name),
                str(arm.tried),
                str(arm.trials),
                str(len(arm.best.finished)) if arm.best else "0",
                *(str(sum(r.state == state for r in arm.runs)) for state in ("pruned", "failed")),
                f"{arm.epochs_trained:,}",
                f"{sum(int(r.config['train.epochs']) for r in arm.runs):,}",
            )
            for v, arm in arms_of(findings)
        ],
    )
    _baselines(findings, section)
    if any(effects.scale_audit(arm) for arm in findings.main.condition.arms):
        section.show(
            "scale",
            "Scale at step 0: RMS of what goes into the encoder, of each block's output, and of"
            " the encoder's output. Arms that start at other scales differ in more than what T5"
            " learnt.",
            "; ".join(
                f"{arm.name}: output {number(effects.scale_audit(arm).get('output'), digits=3)}"
                for arm in findings.main.condition.arms
            ),
        )
    section.tabulate(
        "Where each arm's encoder comes from",
        ["arm", "source", "encoder tensors, SHA-256", "load report"],
        [(named(findings, v, arm.name), *_weights(arm)) for v, arm in arms_of(findings)],
    )
    return section


def _baselines(findings: Findings, section: Section) -> None:
    rows = []
    first = "seasonal naive"
    for v, arm in arms_of(findings):
        runs = list(arm.best.finished.values()) if arm.best else []
        # The task's own naive forecast stands first.
        naive = [next(iter(r.result.baselines["test"].values()))["loss"] for r in runs if r.result]
        last = [r.result.baselines["test"]["last_value"]["loss"] for r in runs if r.result]
        test = [r.metric("test_loss") for r in runs]
        if not runs:
            continue
        if runs[0].result is not None:
            first = next(iter(runs[0].result.baselines["test"])).replace("_", " ")
        linear = next((a for a in v.condition.arms if a.backbone == "linear" and a.best), None)
        against_linear = "not run"
        if linear is not None and linear.best is not None and linear is not arm:
            seeds = sorted(set(linear.best.finished) & set(arm.best.finished))  # type: ignore[union-attr]
            ratio = log_ratio(
                [arm.best.finished[s].metric("test_loss") for s in seeds],  # type: ignore[union-attr]
                [linear.best.finished[s].metric("test_loss") for s in seeds],
            )
            against_linear = percent_interval(ratio)
        rows.append(
            (
                named(findings, v, arm.name),
                percent_interval(log_ratio(test, naive)),
                percent_interval(log_ratio(test, last)),
                against_linear,
            )
        )
    section.tabulate(
        "Test loss against forecasts that need no encoder (geometric mean over seeds)",
        ["arm", first, "last value", "linear"],
        rows,
    )


def _weights(arm: Arm) -> tuple[str, str, str]:
    digests = {
        str((r.provenance.get("initial_sha256") or {}).get("encoder"))[:12] for r in arm.runs
    }
    weights = next((r.provenance["weights"] for r in arm.runs if r.provenance.get("weights")), None)
    shown = next(iter(digests)) + "…" if len(digests) == 1 else f"{len(digests)} (one per seed)"
    if weights is None:
        return "drawn from the seed", shown, NONE
    return (
        str(weights.get("source")),
        shown,
        "; ".join(weights.get("checks") or ()) or NONE,
    )
