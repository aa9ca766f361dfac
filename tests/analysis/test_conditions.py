"""Studies of several conditions, data sets, donors or checkpoints, and studies that go on."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from analysis.studies import (
    GAIN,
    ZEROS,
    Arms,
    Change,
    about,
    assert_shows,
    edit,
    found,
    judged,
    main,
    results,
    runs,
    shown,
    write,
)

from t5ts.analysis.judgement import (
    ALIKE,
    CANNOT_TELL,
    DOES_NOT,
    HIGHER,
    LOWER,
    LOWER_HERE,
    NOTHING,
    TRANSFERS,
    UNFINISHED,
    WITHHELD,
)
from t5ts.analysis.sections import header, markdown, sections

#: A seed that failed.
FAILED = {"stop_after": 2, "trial": {"state": "failed", "reason": "diverged"}}


def test_an_unfinished_sweep_says_how_to_resume(tmp_path):
    sweep = {"study": "s", "n_trials": 6, "state": "complete", "params": {}}
    for init, ended in (("t5", 4), ("random", 5)):
        for seed in range(ended):
            trial = sweep | {"arm": init, "number": seed}
            write(tmp_path / str(seed), {f"{init}-none": 0}, seeds=[seed], trial=trial)
    overrides = {"task": ["init=t5,random"], "hydra": ["hydra.sweeper.n_jobs=2"]}
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": overrides}}))
    study = found(tmp_path)
    assert_shows(study, kind=UNFINISHED, broken=[])
    for part in ("4/6", "5/6", "--multirun init=t5,random hydra.sweeper.n_jobs=2"):
        assert part in study.headline


def open_run(arm: str, seed: int) -> Change:
    return runs({arm: 0}, seeds=[seed], stop_after=4)


@pytest.mark.parametrize(
    ("changes", "headline", "paired"),
    [
        ([runs(GAIN, seeds=range(3)), open_run("t5-none", 3), open_run("random-none", 3),
          runs({"random-none": 0}, seeds=[4], **FAILED)],
         r"t5-none.* 3/4 .*random-none.* 4/5", 3),
        ([runs(GAIN), runs({"matched-none": 0}, seeds=range(2)), open_run("matched-none", 2)],
         "matched-none.* 2/3", 5),
        ([open_run(f"{init}-none", 0) for init in ("t5", "random", "matched")],
         "matched-none.* 0/1", 0),
    ],
    ids=["two arms", "a control", "nothing finished"],
)  # fmt: skip
def test_what_is_open_is_waited_for(tmp_path, changes, headline, paired):
    study = judged(tmp_path, *changes)
    assert_shows(study, kind=UNFINISHED, broken=[], headline=headline, seeds=[*range(paired)])
    assert len(sections(study)) == 8


# What is one condition, and what several show together.


def by_horizon(*effects: tuple[int, float], **options: Any) -> list[Change]:
    return [runs({"t5-none": effect, "random-none": 0}, str(h), horizon=h, **options)
            for h, effect in effects]  # fmt: skip


def borders(*values: int) -> list[Change]:
    name = str(values[0])
    data = about(f"{name}/*", "data", borders=list(values))
    return [runs(GAIN, name, seeds=range(2), data__stations=name), data]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([runs({"t5-none": -0.06}, "a"), runs({"random-none": 0}, "b", horizon=12)],
         {"kinds": [NOTHING, NOTHING]}),
        ([runs({"t5-none": -0.06}, "a"),
          runs({"random-none": 0}, "b", init__keep=["relative_attention_bias"])],
         {"kinds": [NOTHING, NOTHING]}),
        # One series in two folders and under two names; and two tests of one series.
        ([runs({"t5-none": -0.06}, "a", data__stations="a.csv"),
          runs({"random-none": 0}, "b", data__stations="b.csv", data__name="copy"),
          about("*/*", "data", sha256="1" * 64)], {"kinds": [LOWER_HERE]}),
        ([*borders(10, 20, 30), *borders(12, 20, 30)], {"kinds": [LOWER_HERE, LOWER_HERE]}),
        # Two data sets, not three; of each, the most training data counts.
        ([*by_horizon((24, -0.06), (48, -0.06), data__name="a", seeds=range(3)),
          runs(GAIN, "b", data__name="b", seeds=range(3))], {"headline": "2 of 2"}),
        ([runs({"t5-none": effect, "random-none": 0}, name, seeds=range(3), data__name=name,
               data__fraction=fraction)
          for name in "abc" for fraction, effect in ((0.25, 0.06), (1.0, -0.06))],
         {"kind": LOWER_HERE}),
        # The other conditions of one data set are in the headline.
        (by_horizon((24, -0.06), (48, 0.06)), {"headline": rf"→ 24.*{DOES_NOT} \(1\)"}),
    ],
)  # fmt: skip
def test_conditions(tmp_path, changes, expected):
    assert_shows(judged(tmp_path, *changes), **expected)


@pytest.mark.parametrize("names", ["ab", "aa"])
def test_of_several_conditions_each_answer_is_given_once(tmp_path, names):
    for name, horizon in zip(names, (24, 48), strict=True):
        arms: Arms = {"t5-none": (0, 0.05), "random-none": (0, 0.05)}
        write(tmp_path / f"{name}{horizon}", arms, data__name=name, horizon=horizon)
    study = found(tmp_path)
    assert {study.kind, *(v.kind for v in study.verdicts)} == {CANNOT_TELL}
    told = [reason for reason in study.reasons if ", 128 → " in reason and CANNOT_TELL in reason]
    assert len(told) == (2 if names == "ab" else 1)  # of one data set the headline is another
    assert all(reason.lower().count(CANNOT_TELL) == 1 for reason in told)
    assert CANNOT_TELL not in header(study)["headline"].lower().replace(f"{CANNOT_TELL} (1)", "")


def test_conditions_and_interfaces_are_named_without_defaults_that_are_null(tmp_path):
    other = {"data__channels": ["temp"], "patch__path": "runs/donor"}
    changes = runs(GAIN, "a", seeds=range(2)), runs(GAIN, "b", seeds=range(2), **other)
    study = judged(tmp_path, *changes, about("b/*", "data", sha256="b"))
    first, second = (v.condition for v in study.verdicts)
    assert "None" not in first.name + second.name
    assert first.name != second.name
    assert "fresh, scale" in first.interface
    assert "of donor, scale" in second.interface


def no_control_of_c(root: Path) -> None:
    for path in root.glob("c/matched-*"):
        shutil.rmtree(path)


def failed_seed(root: Path) -> None:
    shutil.rmtree(root / "b/t5-none-1-b")
    write(root / "b", {"t5-none": 0}, seeds=[1], data__name="b", **FAILED)


def more(arm: str, effect: float, **changes: Any) -> Change:
    """Runs of another arm on all data sets."""

    def change(root: Path) -> None:
        for name in "abc":
            write(root / name, {arm: effect}, data__name=name, **changes)

    return change


OTHER_PRECISION = about("b/t5-none-1-b", precision="other")
DOUBTED = about("*/t5-*", "weights", fresh_tensors=["q"])
NOT_LEARNED = results("a/*", lambda r: r["baselines"]["val"]["last_value"].update(loss=0.2))
BETTER = (-0.05, -0.055, -0.06)


@pytest.mark.parametrize(
    ("effects", "control", "changes", "kind", "headline"),
    [
        ((0.05, -0.06, -0.06), None, [], CANNOT_TELL, "2 of 3"),
        (BETTER, None, [], LOWER_HERE, "3 of 3"),
        (BETTER, 0.0, [], TRANSFERS, "3 of 3"),
        ((0.05, 0.055, 0.06), 0.0, [], DOES_NOT, "0 of 3"),
        ((0.0, 0.001, 0.0005), 0.0, [], DOES_NOT, "of 3"),
        (BETTER, -0.045, [], CANNOT_TELL, "3 of 3"),
        (BETTER, 0.0, [more("shuffled-none", -0.055)], CANNOT_TELL, "3 of 3"),
        (BETTER, 0.0, [no_control_of_c], LOWER_HERE, "3 of 3"),
        (BETTER, 0.0, [DOUBTED], LOWER_HERE, "a, 128"),
        # The control was tuned more.
        (BETTER, 0.0, [more("matched-none", 0.01, optim__lr=3e-3)], CANNOT_TELL, "3 of 3"),
        (BETTER, 0.0, [failed_seed], TRANSFERS, "1 of 5"),
        (BETTER, None, [OTHER_PRECISION], WITHHELD, "b, 128"),
        (BETTER, 0.0, [NOT_LEARNED], TRANSFERS, "2 of 2"),
    ],
)
def test_data_sets_have_one_answer(tmp_path, effects, control, changes, kind, headline):
    controls: Arms = {} if control is None else {"matched-none": control}
    for name, effect in zip("abc", effects, strict=True):
        write(tmp_path / name, {"t5-none": effect, "random-none": 0, **controls}, data__name=name)
    study = judged(tmp_path, *changes)
    assert_shows(study, kind=kind, headline=headline)
    each = [reason for reason in study.reasons if re.match("[abc], 128", reason)]
    assert len(each) == 3
    # One family over the data sets: each p is adjusted for its tests, as the interval is.
    mains = [v.main for v in study.verdicts if v.main]
    least = min(mains, key=lambda c: c.p_t)
    assert least.effect.p == pytest.approx(min(1.0, 3 * least.p_t))
    assert all(c.effect.excludes_zero() == (c.effect.p < 0.05) for c in mains)


@pytest.mark.parametrize(
    ("broken", "kind", "drawn"), [((1.0,), LOWER_HERE, 0.5), ((0.5, 1.0), WITHHELD, 1.0)]
)
def test_a_withheld_fraction_is_named_and_not_the_headline(tmp_path, broken, kind, drawn):
    changes = [runs(GAIN, data__fraction=fraction) for fraction in (0.5, 1.0)]
    changes += [about(f"t5-none-1-{fraction}", precision="other") for fraction in broken]
    study = judged(tmp_path, *changes)
    assert study.kind == kind
    assert study.main.condition.fraction == drawn
    for v in study.verdicts:
        assert (v.kind == WITHHELD) == (v.condition.fraction in broken)
        assert v.condition.name in study.headline


def test_data_fraction_gives_effective_data(tmp_path):
    """Doubling the data is worth 0.2 in log loss, pretraining 0.18 or 0.23 at its best plan."""
    for fraction, staged in ((0.25, -0.05), (0.5, 0.05), (1.0, -0.05)):
        level = -0.2 * math.log2(4 * fraction)
        pretrained = {"t5-staged": level - 0.18 + staged, "t5-none": level - 0.18}
        random = {"random-staged": level + 0.1, "random-none": level}
        write(tmp_path, pretrained | random, data__fraction=fraction)
    blocks: list[Any] = sections(found(tmp_path))[6].blocks
    (table,) = [b for b in blocks if getattr(b, "caption", "").startswith("Effective")]
    assert [row[0] for row in table.rows] == ["1,500", "3,000", "6,000"]
    assert [row[1].split()[0] for row in table.rows] == ["t5-staged", "t5-none", "t5-staged"]
    for row, worth in zip(table.rows[:2], (0.23, 0.18), strict=True):
        assert float(row[3].split("×")[0]) == pytest.approx(2 ** (worth / 0.2), rel=0.05)
    assert "6,000" in table.rows[2][2]


# Donors: the encoder of a finished run is a pretrained arm with controls of its own.


@pytest.mark.parametrize(
    ("t5", "run", "of_t5", "of_run", "kinds"),
    [
        (-0.03, -0.08, 0.0, 0.0, [TRANSFERS, TRANSFERS]),
        (-0.03, -0.08, -0.03, 0.0, [DOES_NOT, TRANSFERS]),  # each against its own control
        (-0.03, -0.08, 0.0, -0.08, [TRANSFERS, DOES_NOT]),
        (-0.08, 0.05, 0.0, 0.0, [TRANSFERS, DOES_NOT]),
    ],
)
def test_text_and_a_donor_are_each_judged(tmp_path, t5, run, of_t5, of_run, kinds):
    donor = runs({"run-none": run, "matched-none": of_run}, init__path="donor")
    study = judged(tmp_path, {"t5-none": t5, "random-none": 0, "matched-none": of_t5}, donor)
    each = study.main.by_checkpoint
    assert [each[f"t5_efficient_tiny-{init}"].kind for init in ("t5", "run")] == kinds
    assert study.kind == kinds[run < t5]  # the one that validates best
    assert {name for kind, name in shown(study) if kind == "control"} == {
        "t5-none vs. matched-none",
        "run-none vs. matched-none (init.path=donor)",
    }
    assert ("checkpoint", "run-none vs. t5-none") in shown(study)


def test_a_donors_path_is_not_in_the_headline(tmp_path):
    for donor, effect in (("/data/runs/first", -0.06), ("/data/runs/second", -0.03)):
        name = Path(donor).name
        runs({"run-none": effect}, name, init__path=donor)(tmp_path)
        about(f"{name}/*", "weights", source=donor)(tmp_path)
    study = judged(tmp_path, {"random-none": 0})
    assert "/data" not in study.headline
    assert "(first)" in study.headline
    assert "/data/runs/first" in markdown(study)


def test_random_weights_have_no_donor(tmp_path):
    """A sweep sets the donor for all arms: it does not affect random weights."""
    write(tmp_path, {"run-none": -0.06, "random-none": 0, "shuffled-none": 0}, init__path="donor")
    study = judged(tmp_path, runs({"random-none": 0}, seeds=range(5, 7)))
    assert study.kind == TRANSFERS
    names = [arm.name for arm in study.main.condition.arms]
    assert names == ["run-none", "random-none", "shuffled-none"]


# Several checkpoints.

FLAN, V1_1 = "flan_t5_small", "t5_v1_1_small"


def checkpoints(flan: Any, v1_1: Any, random: Any = 0) -> Arms:
    """Both have a random arm of their own; the two are identical."""
    effects = {FLAN: flan, V1_1: v1_1}
    return {f"{name}-t5-none": effect for name, effect in effects.items()} | {
        f"{name}-random-none": random for name in effects
    }


@pytest.mark.parametrize(
    ("arms", "shows", "best", "kinds"),
    [
        (checkpoints(0.02, -0.06), HIGHER, V1_1, [DOES_NOT, LOWER_HERE]),
        (checkpoints(-0.15, -0.06), LOWER, FLAN, [LOWER_HERE, LOWER_HERE]),
        (checkpoints(-0.06, -0.06), ALIKE, None, [LOWER_HERE, LOWER_HERE]),
        (checkpoints(*[(0, 0.05)] * 3), CANNOT_TELL, None, [CANNOT_TELL, CANNOT_TELL]),
    ],
)
def test_two_checkpoints(tmp_path, arms, shows, best, kinds):
    study = judged(tmp_path, arms)
    assert [study.main.by_checkpoint[name].kind for name in (FLAN, V1_1)] == kinds
    assert shown(study)["checkpoint", f"{FLAN}-t5-none vs. {V1_1}-t5-none"] == shows
    named = rf"\({FLAN}-t5-none\) vs\. .* \({V1_1}-t5-none\)"
    assert any(re.search(named, reason) for reason in study.reasons)
    assert not [name for kind, name in shown(study) if kind == "other" and f"vs. {FLAN}" in name]
    if best:
        assert main(study).pair.treatment.backbone == best
        # Better on the test windows alone, the other is not chosen.
        other = f"{FLAN if best == V1_1 else V1_1}-t5-*"
        edit(tmp_path, other, "result.json", lambda r: r["metrics"].update(test_loss=0.1))
        assert main(found(tmp_path)).pair.treatment.backbone == best


def test_checkpoints_of_other_architectures_are_not_compared(tmp_path):
    small = runs({"t5_small-t5-none": 0, "t5_small-random-none": 0}, backbone__d_model=96)
    wider = about("t5_small-*", "weights", architecture={"d_model": 96})
    study = judged(tmp_path, checkpoints(0.02, -0.06), small, wider)
    names = [name for kind, name in shown(study) if kind == "checkpoint"]
    assert names == [f"{FLAN}-t5-none vs. {V1_1}-t5-none"]
    assert any("t5_small." in reason for reason in study.reasons)
    table = next(b for b in sections(study)[0].blocks if hasattr(b, "rows"))
    assert [row[0] for row in table.rows] == [FLAN, "t5_small", V1_1]


def test_a_checkpoint_under_two_names_is_no_comparison(tmp_path):
    same = about("*-t5-none-*", "initial_sha256", encoder=ZEROS)
    loaded = about("*-t5-none-*", "weights", tensors_sha256=ZEROS)
    study = judged(tmp_path, checkpoints(0.02, -0.06), same, loaded)
    assert [of for (kind, _), of in shown(study).items() if kind == "checkpoint"] == [WITHHELD]
    assert study.kind in (LOWER_HERE, DOES_NOT)  # each against its random arm


def test_folders_of_one_name_are_two_checkpoints(tmp_path):
    """backbone=local with two paths, swept through: never one arm, never each other's control."""
    for folder, effect in (("a/flan", 0.02), ("b/plain", -0.06)):
        for init in ("t5", "random"):
            trial = {"params": {"backbone.path": folder, "init": init}, "state": "complete"}
            arms: Arms = {f"local-{init}-none": effect * (init == "t5")}
            write(tmp_path / folder, arms, backbone__path=folder, trial=trial)
    study = found(tmp_path)
    assert [*shown(study)] == [
        ("best", "local:flan-t5-none vs. local:flan-random-none"),
        ("best", "local:plain-t5-none vs. local:plain-random-none"),
        ("checkpoint", "local:flan-t5-none vs. local:plain-t5-none"),
    ]
    assert set(study.main.by_checkpoint) == {"local:flan", "local:plain"}


def test_an_answer_over_data_sets_names_every_checkpoint(tmp_path):
    for name, one, other in (("a", -0.06, -0.02), ("b", -0.02, -0.06), ("c", -0.06, -0.02)):
        write(tmp_path / name, checkpoints(one, other), data__name=name)
    study = found(tmp_path)
    assert f"{FLAN} (" in study.headline
    assert f"{V1_1} (" in study.headline
