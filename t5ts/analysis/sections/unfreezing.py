"""Section 5: when to unfreeze."""

from t5ts.analysis import effects
from t5ts.analysis.arms import Arm, Point
from t5ts.analysis.document import Section
from t5ts.analysis.judgement import Findings
from t5ts.analysis.sections.common import arms_of, named, number_or_text
from t5ts.analysis.words import interval, number


def when_to_unfreeze(findings: Findings) -> Section:
    """Section 5."""
    section = Section(
        number=5, title="When to unfreeze", question="Which unfreeze epoch and learning rate?"
    )
    main = findings.main.condition
    if any(effects.surface(arm) for arm in main.arms):
        section.show(
            "surface",
            f"Mean {main.config['objective']} of every setting tried (best epoch, mean over seeds),"
            " darker is better; the ring marks the best.",
            "; ".join(_best_in_words(arm) for arm in main.arms if arm.best and arm.tuned),
        )
    rows = []
    for v, arm in arms_of(findings):
        if not arm.best or len(arm.points) < 2:
            continue
        near = effects.neighbours(arm)
        rows += [
            (
                named(findings, v, arm.name),
                "best" if place == 0 else f"neighbour {place}",
                _settings(arm, point),
                number(point.objective),
                str(len(point.finished)),
            )
            for place, point in enumerate(near)
        ]
    if rows:
        section.tabulate(
            "Best setting per arm and its nearest neighbours (a best that stands alone is luck)",
            ["arm", "which", "settings", str(main.config["objective"]), "seeds"],
            rows,
        )
    section.tabulate(
        f"Regret in {main.config['objective']}: what a simple rule costs against the best plan of"
        " the same weights (paired over seeds; above 0: worse)",
        ["weights", "best plan", "never unfreeze", "unfreeze at once"],
        _regret_rows(findings),
    )
    if not rows:
        section.say(
            "No arm tried more than one setting: python -m t5ts.run --multirun"
            " freeze.unfreeze_epoch=0,1,3,5 optim.lr=3e-4,1e-3 gives this section its surface."
        )
    return section


def _best_in_words(arm: Arm) -> str:
    assert arm.best is not None
    return f"{arm.name}: best {number(arm.best.objective)} at {_settings(arm, arm.best)}"


def _settings(arm: Arm, point: Point) -> str:
    return (
        ", ".join(f"{k}={number_or_text(point.settings.get(k))}" for k in arm.tuned) or "as given"
    )


def _regret_rows(findings: Findings) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for v in findings.verdicts:
        groups: dict[tuple[str, str], list[Arm]] = {}
        for arm in v.condition.arms:
            if arm.best and arm.freeze in ("none", "staged", "all"):
                groups.setdefault((arm.backbone, arm.init), []).append(arm)
        for (backbone, init), arms in groups.items():
            never = [a.best for a in arms if a.freeze == "all" and a.best]
            at_once = [a.best for a in arms if a.freeze == "none" and a.best]
            # A sweep over the unfreeze epoch has "at once" as one of its points.
            at_once += [
                min(zero, key=lambda p: -p.objective if a.maximize else p.objective)
                for a in arms
                if a.freeze == "staged"
                and (zero := [p for p in a.points if _starts_at_once(p) and p.finished])
            ]
            if not never and not at_once:
                continue
            sign = -1 if arms[0].maximize else 1
            best = min(arms, key=lambda a: sign * a.best.objective)  # type: ignore[union-attr]
            rows.append(
                (
                    named(findings, v, f"{backbone}, {init}"),
                    best.name + (f" ({_settings(best, best.best)})" if best.tuned else ""),  # type: ignore[arg-type]
                    _cost(best, never),
                    _cost(best, at_once),
                )
            )
    return rows


def _cost(best: Arm, points: list[Point]) -> str:
    if not points:
        return "not run"
    return "is the best" if points[0] is best.best else interval(effects.regret(best, points[0]))


def _starts_at_once(point: Point) -> bool:
    return point.settings.get("freeze.unfreeze_epoch") == 0
