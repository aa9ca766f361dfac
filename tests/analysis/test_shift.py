"""The selected weights on another series and with time shuffled, against scipy by hand."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis.studies import arm_of, edit, found
from scipy import stats
from statsmodels.stats.multitest import multipletests

from benchmarks.simulated_runs import Arm, write_run
from t5ts.analysis.effects import series_names, under_shift
from t5ts.analysis.judgement import ALIKE, CANNOT_TELL, HIGHER, LOWER, WITHHELD, Findings
from t5ts.analysis.sections import Table, Text, sections
from t5ts.analysis.statistics import Estimate
from t5ts.analysis.words import factor, percent_interval

SHIFT, SHUFFLED = "Under shift", "Shuffled time"


def arms(*, staged: float = -0.04, sd: float = 0.005) -> list[Arm]:
    """T5 and random under three plans; staged is better on the other series alone."""
    effects = {"none": 0.0, "all": 0.02, "staged": staged}
    return [
        Arm(
            init=init, freeze=freeze, effect=-0.06 * (init == "t5"), seed_sd=sd,
            ood_effect=effect, shuffled_effect={"none": 0.3, "all": 0.0, "staged": 0.1}[freeze],
        )
        for init in ("t5", "random")
        for freeze, effect in effects.items()
    ]  # fmt: skip


def study(root: Path, chosen: Iterable[Arm], *, seeds: int = 5, **changes: Any) -> Findings:
    for arm in chosen:
        for seed in range(seeds):
            write_run(root / f"{arm.name}-s{seed}", arm, seed, **changes)
    return found(root)


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> Findings:
    return study(tmp_path_factory.mktemp("study"), arms())


def tables(findings: Findings, word: str) -> list[Table]:
    blocks = sections(findings)[3].blocks
    return [b for b in blocks if isinstance(b, Table) and b.caption.startswith(word)]


def texts(findings: Findings) -> list[str]:
    return [b.text for b in sections(findings)[3].blocks if isinstance(b, Text)]


def metric(findings: Findings, name: str, metric: str) -> np.ndarray:
    return np.array(arm_of(findings, name).values(metric))


def estimate(log_values: np.ndarray) -> Estimate:
    """By scipy."""
    test = stats.ttest_1samp(log_values, 0)
    ends = test.confidence_interval(0.95)
    return Estimate(log_values.mean(), ends.low, ends.high, test.pvalue, np.nan, 5)


def test_every_arm_has_its_losses_and_their_ratio(findings):
    (table,) = tables(findings, SHIFT)
    assert "trained on nyc_weather" in table.caption
    assert "those of nyc_lga" in table.caption
    (shuffled,) = tables(findings, SHUFFLED)
    rows = {row[0]: row for row in table.rows}
    assert len(rows) == 6 + 3
    assert rows["baseline: seasonal naive"][2:5] == ("0.5500", "0.6600", "1.20×")
    for arm, other in zip(findings.main.condition.arms, shuffled.rows, strict=True):
        ood, again, test = (
            metric(findings, arm.name, f"{s}_loss") for s in ("ood", "shuffled", "test")
        )
        assert rows[arm.name][1] == "5"
        assert float(rows[arm.name][3].split()[0]) == pytest.approx(ood.mean(), abs=1e-4)
        assert rows[arm.name][4] == factor(estimate(np.log(ood / test)))
        assert other[:2] == (arm.name, "5")
        assert other[4] == factor(estimate(np.log(again / test)))
        assert ("no difference" in other[5]) == (arm.freeze == "all")


def test_comparisons_are_paired_and_adjusted_in_families_of_their_own(findings):
    shifted = under_shift(findings)
    assert [one.comparison.pair.name for one in shifted] == [
        *(f"t5-{f} vs. random-{f}" for f in ("staged", "none", "all")),
        *(f"{i}-staged vs. {i}-{f}" for i in ("t5", "random") for f in ("none", "all")),
    ]
    p = []
    for one in shifted:
        a, b = (arm.name for arm in one.comparison.pair.arms)
        ood, test = (
            np.log(metric(findings, a, loss) / metric(findings, b, loss))
            for loss in ("ood_loss", "test_loss")
        )
        p.append(estimate(ood).p)
        assert percent_interval(one.beyond) == percent_interval(estimate(ood - test))
        assert one.comparison.new_windows is not None
    adjusted = [*multipletests(p[:3], method="holm")[1], *multipletests(p[3:], method="holm")[1]]
    assert [one.comparison.effect.p for one in shifted] == pytest.approx(adjusted)
    (table,) = tables(findings, "Comparisons of the ood loss")
    assert [(row[3], row[5]) for row in table.rows] == [
        (percent_interval(o.comparison.effect), percent_interval(o.beyond)) for o in shifted
    ]
    (pairs,) = tables(findings, "How much more the first arm loses from shuffling")
    assert len(pairs.rows) == 3


@pytest.mark.parametrize(
    ("effects", "kind"),
    [
        ({"staged": -0.04}, LOWER),
        ({"staged": 0.05}, HIGHER),
        ({"staged": 0.0, "sd": 0.0005}, ALIKE),
        ({"staged": -0.02, "sd": 0.05}, CANNOT_TELL),
    ],
)
def test_what_it_says_of_lp_ft_is_what_intervals_support(tmp_path, effects, kind):
    few = [arm for arm in arms(**effects) if arm.init == "t5" and arm.freeze != "all"]
    findings = study(tmp_path, few)
    (one,) = under_shift(findings)
    assert one.comparison.kind == kind
    (text,) = [text for text in texts(findings) if "LP-FT" in text]
    assert percent_interval(one.comparison.effect) in text
    assert percent_interval(one.beyond) in text


def test_the_verdict_knows_nothing_of_it(findings, tmp_path):
    plain = study(tmp_path, [replace(a, ood_effect=None, shuffled_effect=None) for a in arms()])
    for part in ("kind", "headline", "reasons", "seeds_needed"):
        assert getattr(plain.main, part) == getattr(findings.main, part)
    for word in (SHIFT, SHUFFLED, "Comparisons of the ood loss"):
        assert not tables(plain, word)
    assert not any("LP-FT" in text or "Tan et al." in text for text in texts(plain))


def test_arms_that_met_other_files_are_not_compared(tmp_path):
    study(tmp_path, arms())
    edit(tmp_path, "*-t5-staged-s0", "provenance.json", lambda p: p["ood"].update(sha256="another"))
    findings = found(tmp_path)
    kinds = {o.comparison.pair.name: o.comparison.kind for o in under_shift(findings)}
    assert all((kind == WITHHELD) == ("t5-staged" in name) for name, kind in kinds.items())
    assert findings.main.kind != WITHHELD


def test_series_are_told_apart_by_name_or_settings(tmp_path):
    for name in ("nyc_lga", "etth2", "nyc_weather"):
        study(tmp_path / name, arms()[:1], seeds=1, ood__name=name)
    findings = found(tmp_path)
    assert {series_names(v.condition) for v in findings.verdicts} == {
        ("nyc_weather", "nyc_lga"),
        ("nyc_weather", "etth2"),
        ("nyc_weather (stations=['JFK'])", "nyc_weather (stations=['LGA'])"),
    }
    assert len(tables(findings, SHIFT)) == 3
