"""The verdict on studies whose truth is known, and what withholds it."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated_runs import Arm, write_run
from t5ts.analysis import collect, verdict
from t5ts.analysis.arms import conditions, pairs
from t5ts.analysis.figures import effect_style
from t5ts.analysis.judgement import (
    CANNOT_DISCRIMINATE,
    CANNOT_TELL,
    DOES_NOT,
    LOWER,
    LOWER_HERE,
    NOTHING,
    TRANSFERS,
    UNFINISHED,
    WITHHELD,
    Verdict,
)
from t5ts.analysis.sections import in_short, sections

RANDOM = Arm(init="random", freeze="none")


def t5(effect: float, **kw: Any) -> Arm:
    return Arm(init="t5", freeze="none", effect=effect, **kw)


def write(root: Path, arms: Iterable[Arm], *, seeds: Iterable[int] = range(5), **kw: Any) -> None:
    for arm in arms:
        for seed in seeds:
            write_run(root / f"{arm.name}-s{seed}-{kw.get('data__fraction', '')}", arm, seed, **kw)


def judged(root: Path) -> Verdict:
    return verdict(collect([root])).main


def edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_gain_transfers(tmp_path: Path) -> None:
    write(tmp_path, [t5(-0.06), RANDOM])
    found = judged(tmp_path)
    assert found.kind == LOWER_HERE
    assert found.main is not None
    assert found.main.effect.low < -0.06 < found.main.effect.high
    assert "lower" in found.headline
    assert len(found.main.pair.runs()) == 5


@pytest.mark.parametrize(
    ("matched", "shuffled", "kind", "said"),
    [
        (0.0, 0.01, TRANSFERS, "Pretraining helps"),
        (-0.06, 0.0, DOES_NOT, "It is not the text"),
        (0.0, -0.09, DOES_NOT, "with shuffled weights, which have the checkpoint's scale alone"),
    ],
)
def test_a_gain_that_scale_alone_gives_is_not_the_texts(
    tmp_path: Path, matched: float, shuffled: float, kind: str, said: str
) -> None:
    precise = {"freeze": "none", "seed_sd": 0.002}
    controls = [Arm(init="matched", effect=matched, **precise)]
    controls.append(Arm(init="shuffled", effect=shuffled, **precise))
    write(tmp_path, [t5(-0.06, seed_sd=0.002), RANDOM, *controls])
    found = judged(tmp_path)
    assert found.main is not None
    assert found.main.kind == LOWER  # against random weights
    assert found.kind == kind
    assert said in found.headline


def test_a_gain_that_scale_alone_may_give_is_not_called_the_texts(tmp_path: Path) -> None:
    unsure = Arm(init="matched", freeze="none", effect=-0.05, seed_sd=0.06)
    write(tmp_path, [t5(-0.06, seed_sd=0.002), RANDOM, unsure])
    found = judged(tmp_path)
    assert found.kind == CANNOT_TELL
    assert "Cannot tell the text from the scale" in found.headline


def tuned_less(root: Path) -> None:
    for arm in (t5(0.0), RANDOM):
        write_run(root / f"more-{arm.init}", arm, 0, optim__lr=3e-3)


def made_from_another(root: Path) -> None:
    path = next(root.glob("*-matched-*-s1-*")) / "provenance.json"
    edit(path, lambda p: p["weights"].update(checkpoint_sha256="0" * 64))


@pytest.mark.parametrize(
    ("breaks", "evidence"),
    [(tuned_less, "same number of trials"), (made_from_another, "made from another checkpoint")],
)
def test_a_control_without_the_same_chance_proves_nothing(
    tmp_path: Path, breaks: Callable[[Path], None], evidence: str
) -> None:
    """A control that was tuned less, or comes from other weights, would let scale pass for text."""
    write(tmp_path, [t5(-0.06), RANDOM, Arm(init="matched", freeze="none")])
    breaks(tmp_path)
    found = judged(tmp_path)
    assert found.main is not None
    assert found.main.kind == LOWER  # against random weights
    assert found.kind == CANNOT_TELL
    assert "not given the same chance" in found.headline
    assert any(evidence in reason for reason in found.reasons)


def test_plans_that_were_tuned_unequally_are_noted(tmp_path: Path) -> None:
    plans = [Arm(init=init, freeze="staged") for init in ("t5", "random")]
    write(tmp_path, [t5(-0.06), RANDOM, *plans])
    assert "equal tuning of the plans" not in {check.name for check in judged(tmp_path).checks}
    for plan in plans:
        write_run(tmp_path / f"more-{plan.init}", plan, 0, freeze__unfreeze_epoch=5.0)
    (note,) = [c for c in judged(tmp_path).checks if c.name == "equal tuning of the plans"]
    assert note.status == "note"
    assert "staged 2" in note.detail


def test_a_gain_without_controls_says_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, [t5(-0.06), RANDOM])
    assert any("add init=matched" in reason for reason in judged(tmp_path).reasons)


def test_a_loss_does_not_transfer(tmp_path: Path) -> None:
    write(tmp_path, [t5(0.08), RANDOM])
    found = judged(tmp_path)
    assert found.kind == DOES_NOT
    assert "higher" in found.headline


def test_a_difference_too_small_to_matter_does_not_transfer(tmp_path: Path) -> None:
    write(tmp_path, [t5(0.0, seed_sd=0.0005), Arm(init="random", freeze="none", seed_sd=0.0005)])
    found = judged(tmp_path)
    assert found.kind == DOES_NOT
    assert "no difference that matters" in found.headline


def test_noise_cannot_tell_and_says_how_many_seeds_would(tmp_path: Path) -> None:
    write(tmp_path, [t5(-0.005, seed_sd=0.04), Arm(init="random", freeze="none", seed_sd=0.04)])
    found = judged(tmp_path)
    assert found.kind == CANNOT_TELL
    assert found.seeds_needed is not None
    assert found.seeds_needed > 5
    assert f"{found.seeds_needed} paired seeds" in found.headline


def test_one_seed_cannot_tell(tmp_path: Path) -> None:
    write(tmp_path, [t5(-0.3), RANDOM], seeds=[0])
    found = judged(tmp_path)
    assert found.kind == CANNOT_TELL
    assert "one paired seed" in found.headline


def test_a_frozen_random_encoder_as_good_shows_that_the_data_cannot_discriminate(
    tmp_path: Path,
) -> None:
    quiet = {"seed_sd": 0.001}
    frozen = Arm(init="random", freeze="all", effect=-0.02, **quiet)
    write(tmp_path, [t5(-0.02, **quiet), Arm(init="random", freeze="none", **quiet), frozen])
    found = judged(tmp_path)
    assert found.kind == CANNOT_DISCRIMINATE
    assert "stays random" in found.headline


def test_without_the_fair_arm_there_is_nothing_to_compare(tmp_path: Path) -> None:
    write(tmp_path, [Arm(init="t5", freeze="staged", effect=-0.2), RANDOM])
    found = judged(tmp_path)
    assert found.kind == NOTHING
    assert "init=random freeze=staged" in found.headline
    assert judged_random_alone(tmp_path / "alone").kind == NOTHING


def judged_random_alone(root: Path) -> Verdict:
    write(root, [RANDOM])
    return judged(root)


def test_arms_without_a_common_seed_are_told_so(tmp_path: Path) -> None:
    write(tmp_path, [t5(-0.06)], seeds=range(2))
    write(tmp_path, [RANDOM], seeds=range(5, 7))
    found = judged(tmp_path)
    assert found.kind == NOTHING
    assert found.reasons == [
        "Seeds finished by t5-none: 0, 1; random-none: 5, 6. Run both arms with the same seeds."
    ]


def test_unpaired_seeds_are_named_and_left_out(tmp_path: Path) -> None:
    write(tmp_path, [t5(-0.06)], seeds=range(7))
    write(tmp_path, [RANDOM], seeds=range(1, 6))
    found = judged(tmp_path)
    assert found.main is not None
    assert found.main.pair.seeds == [1, 2, 3, 4, 5]
    (check,) = [c for c in found.checks if c.name == "paired seeds"]
    assert "0, 6" in check.detail
    assert check.status == "note"


def other_rate(root: Path) -> None:
    write(root, [t5(-0.06)], optim__lr=3e-3)
    write(root, [RANDOM])


def more_trials(root: Path) -> None:
    write(root, [t5(-0.06), RANDOM])
    write_run(root / "more", t5(0.0), 0, optim__lr=3e-3)


def other_head(root: Path) -> None:
    write(root, [t5(-0.06), RANDOM])
    path = root / f"{RANDOM.name}-s2-" / "provenance.json"
    edit(path, lambda p: p["initial_sha256"].update(head="0" * 64))


def fake_arm(root: Path) -> None:
    """The lab log's fault: random weights under the name t5."""
    write(root, [t5(-0.06), RANDOM])
    for seed in range(5):
        path = root / f"{t5(0).name}-s{seed}-" / "provenance.json"
        edit(path, lambda p, s=seed: p["initial_sha256"].update(encoder=str(s) * 64))


def other_data(root: Path) -> None:
    write(root, [t5(-0.06), RANDOM])
    path = root / f"{RANDOM.name}-s1-" / "provenance.json"
    edit(path, lambda p: p["data"].update(sha256="0" * 64))


def other_precision(root: Path) -> None:
    write(root, [t5(-0.06), RANDOM])
    path = root / f"{RANDOM.name}-s1-" / "provenance.json"
    edit(path, lambda p: p.update(precision="torch.bfloat16"))


def chosen_by_hand(root: Path) -> None:
    write(root, [t5(-0.06), RANDOM])
    path = root / f"{t5(0).name}-s1-" / "result.json"
    edit(path, lambda r: r.update(best_epoch=1))


def another_init(root: Path) -> None:
    write(root, [t5(-0.06), RANDOM])
    path = root / f"{t5(0).name}-s1-" / "provenance.json"
    edit(path, lambda p: p["weights"].update(init="random"))


def set_distance(path: Path, value: str) -> None:
    moved = re.compile(r'("distance_from_init/block_0": )[0-9.]+')
    path.write_text(moved.sub(rf"\g<1>{value}", path.read_text()))


def never_unfrozen(root: Path) -> None:
    """A plan that unfreezes, and blocks that stay where they were: the optimizer lost them."""
    write(root, [t5(-0.06), RANDOM])
    set_distance(root / f"{t5(0).name}-s1-" / "metrics.jsonl", "0.0")


def moved_while_frozen(root: Path) -> None:
    frozen = [Arm(init="t5", freeze="all", effect=-0.06), Arm(init="random", freeze="all")]
    write(root, frozen)
    set_distance(root / f"{frozen[0].name}-s1-" / "metrics.jsonl", "1e-7")


@pytest.mark.parametrize(
    ("breaks", "invariant", "evidence"),
    [
        (other_rate, "only the weights differ", "optim.lr: 0.003 against 0.001"),
        (more_trials, "equal tuning budget", "2"),
        (
            other_head,
            "paired start: same patch and head tensors at the same seed",
            "head at seed 2",
        ),
        (fake_arm, "the arms' weights are proven", "5 different encoders"),
        (another_init, "the arms' weights are proven", "than the load report names"),
        (never_unfrozen, "frozen parts stood still, unfrozen ones moved", "block_0 of"),
        (moved_while_frozen, "frozen parts stood still, unfrozen ones moved", "block_0 of"),
        (other_data, "same data", "in 1 run"),
        (other_precision, "same precision", "bfloat16"),
        (chosen_by_hand, "validation selected, after all epochs", "reports epoch 1"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_invariant_withholds_the_verdict(
    tmp_path: Path, breaks: Callable[[Path], None], invariant: str, evidence: str
) -> None:
    breaks(tmp_path)
    found = judged(tmp_path)
    assert found.kind == WITHHELD
    assert [check.name for check in found.broken] == [invariant]
    assert evidence in found.broken[0].detail
    assert found.main is not None
    assert effect_style(found.main)[1] == "X"  # drawn, and neither good nor bad


def test_settings_that_change_no_number_may_differ(tmp_path: Path) -> None:
    """Two sweeps: folders of their own, and arms that say by name what they are."""
    for arm in (t5(-0.06), RANDOM):
        changes = {"claims": [f"init={arm.init}"], "train__reuse_dir": f"{arm.init}/.frozen"}
        write(tmp_path, [arm], **changes)
    assert judged(tmp_path).kind == LOWER_HERE


def test_arms_tuned_alike_are_compared_each_at_its_own_best(tmp_path: Path) -> None:
    for rate, better in ((1e-3, "t5"), (3e-4, "random")):
        for arm in (t5(-0.06), RANDOM):
            extra = 0.0 if arm.init == better else 0.1
            for seed in range(5):
                folder = tmp_path / f"{arm.name}-{rate}-{seed}"
                write_run(folder, arm, seed, optim__lr=rate, extra_effect=extra)
    found = judged(tmp_path)
    assert found.kind == LOWER_HERE
    assert found.main is not None
    best = [found.main.pair.treatment.best, found.main.pair.control.best]
    assert [point.settings["optim.lr"] for point in best if point] == [1e-3, 3e-4]


@pytest.mark.parametrize(("trials", "key"), [(30, "optim.lr"), (20, "optim.lr"), (30, "freeze.x")])
def test_best_points_of_sweeps_of_equal_budget_are_compared(
    tmp_path: Path, trials: int, key: str
) -> None:
    """`experiment=final`: each arm at the point that a sweep of 30 trials over optim.lr found."""
    searched = {"keys": [key], "trials": trials}
    for arm, rate, before in (
        (t5(-0.06), 1e-3, {"keys": ["optim.lr"], "trials": 30}),
        (RANDOM, 3e-4, searched),
    ):
        for seed in range(5):
            folder = tmp_path / f"{arm.name}-{seed}"
            trial = {"params": {"seed": seed}, "searched_before": before}
            write_run(folder, arm, seed, optim__lr=rate, trial=trial)
    found = judged(tmp_path)
    assert found.main is not None
    assert found.main.pair.treatment.tried == 30
    assert found.kind == (
        LOWER_HERE if searched["trials"] == 30 and key == "optim.lr" else WITHHELD
    )


def test_conditions_are_never_mixed(tmp_path: Path) -> None:
    write(tmp_path / "a", [t5(-0.06)])
    write(tmp_path / "b", [RANDOM], horizon=12)
    found = verdict(collect([tmp_path]))
    assert len(found.verdicts) == 2
    assert {v.kind for v in found.verdicts} == {NOTHING}


def test_several_data_sets_are_summed_up(tmp_path: Path) -> None:
    for name in ("etth1", "etth2", "ettm1"):
        write(tmp_path / name, [t5(-0.06), RANDOM], data__name=name)
    found = verdict(collect([tmp_path]))
    assert [v.kind for v in found.verdicts] == [LOWER_HERE] * 3
    assert found.kind == LOWER_HERE
    assert "lower in 3 of 3" in found.headline
    assert "3 data sets" in in_short(found)
    assert "3 lower" in in_short(found)
    # One family over the data sets: each p is adjusted for three tests.
    least = min((v.main for v in found.verdicts if v.main), key=lambda c: c.p_t)
    assert least.p_holm == pytest.approx(min(1.0, 3 * least.p_t))


def test_data_fraction_gives_effective_data(tmp_path: Path) -> None:
    """Doubling the data is worth 0.2 in log loss, pretraining 0.18: 2^0.9 times the data."""
    for fraction in (0.25, 0.5, 1.0):
        for seed in range(5):
            for init, effect in (("random", 0.0), ("t5", -0.18)):
                arm = Arm(init=init, freeze="none", effect=effect, seed_sd=0.002)
                extra = -0.2 * (2 + {0.25: -2, 0.5: -1, 1.0: 0}[fraction])
                write_run(tmp_path / f"{fraction}-{init}-{seed}", arm, seed,
                          data__fraction=fraction, extra_effect=extra)  # fmt: skip
    content = sections(verdict(collect([tmp_path])))[6]
    (table,) = [b for b in content.blocks if getattr(b, "caption", "").startswith("Effective")]
    first, middle, last = table.rows  # type: ignore[union-attr]
    assert first[0] == "1,500"
    assert float(first[3].split("×")[0]) == pytest.approx(2**0.9, rel=0.05)
    assert float(middle[3].split("×")[0]) == pytest.approx(2**0.9, rel=0.05)
    assert last[2] == "more than 6,000"


def test_a_small_sure_difference_of_plans_does_not_matter(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"init": "random", "seed_sd": 0.0003}
    write(tmp_path, [Arm(freeze="staged", effect=0.006, **quiet), Arm(freeze="none", **quiet)])
    found = verdict(collect([tmp_path]))
    (c,) = found.main.comparisons
    assert c.effect.low > 0
    table = next(b for b in sections(found)[3].blocks if getattr(b, "columns", [""])[0] == "pair")
    shows = list(table.columns).index("shows")  # type: ignore[union-attr]
    assert table.rows[0][shows] == "no difference that matters"  # type: ignore[union-attr]
    assert effect_style(c) == ("black", "^")


FLAN, V1_1 = "flan_t5_small", "t5_v1_1_small"


def two_checkpoints(flan: float, v1_1: float, **kw: Any) -> list[Arm]:
    """Both with their own random arm, which are one and the same thing."""
    return [
        Arm(init=init, freeze="none", backbone=backbone, effect=effect * (init == "t5"), **kw)
        for backbone, effect in ((FLAN, flan), (V1_1, v1_1))
        for init in ("t5", "random")
    ]


@pytest.mark.parametrize(
    ("flan", "said"),
    [
        (0.02, "Instruction tuning hurts: test loss of flan_t5_small-t5-none against"),
        (-0.15, "Instruction tuning helps: test loss of"),
        (-0.06, "Instruction tuning makes no difference that matters: test loss of"),
    ],
)
def test_whether_instruction_tuning_hurts(tmp_path: Path, flan: float, said: str) -> None:
    write(tmp_path, two_checkpoints(flan, -0.06, seed_sd=0.002))
    found = judged(tmp_path)
    assert any(reason.startswith(said) for reason in found.reasons[1:4])
    assert {name: v.kind for name, v in found.by_checkpoint.items()} == {
        FLAN: LOWER_HERE if flan < 0 else DOES_NOT,
        V1_1: LOWER_HERE,
    }
    best = FLAN if flan < -0.1 else V1_1
    assert found.main is not None
    if flan != -0.06:  # else chance decides which validates best
        assert found.main.pair.treatment.backbone == best
        agreed = "the others agree" if flan < 0 else f"not so {FLAN}: does not transfer"
        said = f"This is {best}, the best of 2 checkpoints on validation; {agreed}."
        assert found.headline.endswith(said)
    kinds = {(c.pair.kind, c.pair.name) for c in found.comparisons}
    assert ("checkpoint", f"{FLAN}-t5-none against {V1_1}-t5-none") in kinds
    assert not [name for kind, name in kinds if kind == "other" and f"against {FLAN}" in name]


def test_two_noisy_checkpoints_cannot_be_told_apart(tmp_path: Path) -> None:
    write(tmp_path, two_checkpoints(0.0, 0.0, seed_sd=0.05))
    assert any(
        reason.startswith("Cannot tell whether instruction tuning helps")
        for reason in judged(tmp_path).reasons
    )


def test_checkpoints_of_other_architectures_are_not_compared(tmp_path: Path) -> None:
    small = [Arm(init=i, freeze="none", backbone="t5_small", d_model=96) for i in ("t5", "random")]
    write(tmp_path, [*two_checkpoints(0.02, -0.06), *small])
    found = judged(tmp_path)
    names = [c.pair.name for c in found.comparisons if c.pair.kind == "checkpoint"]
    assert names == [f"{FLAN}-t5-none against {V1_1}-t5-none"]
    assert any(
        f"architectures differ: {FLAN} and {V1_1}; t5_small." in reason for reason in found.reasons
    )
    table = next(b for b in sections(verdict(collect([tmp_path])))[0].blocks if hasattr(b, "rows"))
    assert [row[0] for row in table.rows] == [FLAN, "t5_small", V1_1]  # type: ignore[union-attr]


def test_a_checkpoint_under_two_names_is_no_comparison(tmp_path: Path) -> None:
    write(tmp_path, two_checkpoints(0.02, -0.06))
    encoder = "0" * 64
    for backbone in (FLAN, V1_1):
        for seed in range(5):
            path = tmp_path / f"{backbone}-t5-none-s{seed}-" / "provenance.json"
            edit(path, lambda p: p["initial_sha256"].update(encoder=encoder))
            edit(path, lambda p: p["weights"].update(tensors_sha256=encoder))
    found = judged(tmp_path)
    assert found.kind in (LOWER_HERE, DOES_NOT)  # each against its random arm
    assert any(
        "cannot be compared: both arms started from the same encoder" in reason
        for reason in found.reasons
    )


def test_folders_of_one_name_are_two_checkpoints(tmp_path: Path) -> None:
    """backbone=local with two paths, swept through: never one arm, never each other's control."""
    for folder, effect in (("a/flan", 0.02), ("b/plain", -0.06)):
        for init in ("t5", "random"):
            arm = Arm(init=init, freeze="none", backbone="local", effect=effect * (init == "t5"))
            for seed in range(5):
                params = {"backbone.path": folder, "init": init}
                write_run(tmp_path / f"{init}{folder}{seed}", arm, seed, backbone__path=folder,
                          trial={"params": params, "state": "complete"})  # fmt: skip
    found = judged(tmp_path)
    assert [(c.pair.kind, c.pair.name) for c in found.comparisons] == [
        ("best", "local:flan-t5-none against local:flan-random-none"),
        ("best", "local:plain-t5-none against local:plain-random-none"),
        ("checkpoint", "local:flan-t5-none against local:plain-t5-none"),
    ]
    assert set(found.by_checkpoint) == {"local:flan", "local:plain"}


def test_the_lab_logs_arms_and_its_table(tmp_path: Path) -> None:
    arms = [
        Arm(init="random", freeze="none", backbone="shared", effect=0.05),
        Arm(init="t5", freeze="staged", effect=-0.08),
        Arm(init="t5", freeze="none", effect=-0.05),
        RANDOM,
    ]
    write(tmp_path, arms)
    found = verdict(collect([tmp_path]))
    text = " ".join(getattr(block, "text", "") for block in sections(found)[3].blocks)
    assert "supports “pretraining transfers”" in text
    assert "supports freezing first" in text
    assert "decides nothing about pretraining" in text
    table = sections(found)[3].blocks[0]
    assert [row[0] for row in table.rows] == [  # type: ignore[union-attr]
        "t5_efficient_tiny-t5-staged",
        "t5_efficient_tiny-t5-none",
        "shared-random-none",
        "t5_efficient_tiny-random-none",
    ]
    assert table.rows[0][4].startswith("unfrozen at epoch 3, 4")  # type: ignore[union-attr]


def test_a_running_sweep_is_reported_so_far(tmp_path: Path) -> None:
    write(tmp_path, [t5(-0.06), RANDOM], seeds=range(3))
    write(tmp_path, [t5(-0.06), RANDOM], seeds=[3], stop_after=4)
    trial = {"state": "failed", "reason": "grad_norm/block_1 is not finite", "params": {}}
    write_run(tmp_path / "failed", RANDOM, 4, stop_after=2, trial=trial)
    found = verdict(collect([tmp_path]))
    assert found.main.main is not None
    assert found.main.main.pair.seeds == [0, 1, 2]
    assert found.kind == UNFINISHED
    assert "3/4 (t5-none) and 4/5 (random-none)" in found.headline
    assert not found.main.broken
    details = {c.name: c.detail for c in found.main.checks}
    assert details["finished"].startswith("6 of 9 runs; 1 failed, 2 unfinished")
    assert "block_1 is not finite" in details["no run failed"]
    assert len(sections(found)) == 8


def test_nothing_finished_yet_still_has_all_sections(tmp_path: Path) -> None:
    write(tmp_path, [t5(-0.06), RANDOM], seeds=[0], stop_after=2)
    found = verdict(collect([tmp_path]))
    assert found.main.kind == UNFINISHED
    assert len(sections(found)) == 8


def test_pairs_name_their_question(tmp_path: Path) -> None:
    write(tmp_path, [t5(0.0), RANDOM, Arm(init="matched", freeze="none"),
                     Arm(init="random", freeze="all", effect=0.1)], seeds=[0])  # fmt: skip
    (condition,) = conditions(collect([tmp_path]))
    kinds = [(p.kind, p.name) for p in pairs(condition)]
    assert kinds == [
        ("best", "t5-none against random-none"),
        ("control", "t5-none against matched-none"),
        ("frozen_random", "t5-none against random-all"),
        ("freezing", "random-all against random-none"),
    ]
