"""Studies whose truth is known, and the answer that a hostile reader would accept."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.simulated_runs import Arm, write_run
from t5ts.analysis import collect, verdict
from t5ts.analysis.judgement import (
    CANNOT_TELL,
    DOES_NOT,
    HIGHER,
    LOWER,
    LOWER_HERE,
    NOT_LEARNED,
    NOTHING,
    TRANSFERS,
    UNFINISHED,
    WITHHELD,
    Findings,
)
from t5ts.analysis.sections import sections

QUIET: dict[str, Any] = {"seed_sd": 0.002}


def write(root: Path, effects: dict[str, float], *, seeds: range = range(5), **kw: Any) -> None:
    """Runs of arms called init-freeze, or backbone-init-freeze, with their true effects."""
    for name, effect in effects.items():
        *backbone, init, freeze = name.split("-")
        named = {"backbone": backbone[0]} if backbone else {}
        arm = Arm(init=init, freeze=freeze, effect=effect, **QUIET, **named)
        for seed in seeds:
            folder = root / "-".join([name, str(seed), *map(str, kw.values())]).replace("/", "_")
            write_run(folder, arm, seed, **kw)


def found(root: Path) -> Findings:
    return verdict(collect([root]))


def edit(root: Path, pattern: str, name: str, change: Callable[[Any], Any]) -> None:
    for folder in root.glob(pattern):
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))


# 1. Each at its own best plan.


def test_random_weights_choose_their_own_plan(tmp_path: Path) -> None:
    """t5-staged beats random-staged by 6 %, and is 4 % worse than random weights can be."""
    write(tmp_path, {"t5-staged": -0.06, "random-staged": 0, "t5-none": -0.03, "random-none": -0.1})
    study = found(tmp_path)
    main = study.main.main
    assert main is not None
    assert (main.pair.treatment.name, main.pair.control.name) == ("t5-staged", "random-none")
    assert study.kind == DOES_NOT
    assert main.effect.value == pytest.approx(0.04, abs=0.01)
    # The comparison under one plan, which says the opposite, is on the first screen and in a table.
    assert "t5-staged against random-staged" in study.headline
    kinds = {(c.pair.kind, c.pair.name): c.kind for c in study.main.comparisons}
    assert kinds["weights", "t5-staged against random-staged"] == LOWER
    assert kinds["best", "t5-staged against random-none"] == HIGHER


def test_controls_choose_their_own_plan_too(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"t5-staged": -0.06, "t5-none": 0, "random-staged": 0, "random-none": 0,
         "matched-staged": 0, "matched-none": -0.08},
    )  # fmt: skip
    assert found(tmp_path).kind == DOES_NOT


@pytest.mark.parametrize(
    ("effects", "kind"),
    [
        ({"t5-staged": -0.1, "t5-none": 0, "random-none": 0}, WITHHELD),  # staged never random
        ({"t5-staged": 0, "t5-none": -0.1, "random-none": 0}, LOWER_HERE),  # and it did not matter
        ({"t5-none": -0.1, "random-none": 0, "random-staged": -0.2}, WITHHELD),
        ({"t5-staged": -0.1, "random-none": 0}, NOTHING),
    ],
)
def test_a_winning_plan_must_have_been_run_with_both(
    tmp_path: Path, effects: dict[str, float], kind: str
) -> None:
    write(tmp_path, effects)
    assert found(tmp_path).kind == kind


def test_extra_seeds_do_not_choose_a_plan(tmp_path: Path) -> None:
    write(tmp_path, {"t5-staged": -0.1, "random-staged": 0, "t5-none": 0, "random-none": 0})
    write(tmp_path, {"t5-none": 0}, seeds=range(5, 8))
    main = found(tmp_path).main.main
    assert main is not None
    assert main.pair.treatment.name == "t5-staged"


# 2 and 37. What was asked of the checkpoint.


@pytest.mark.parametrize(
    ("note", "kind"),
    [
        ("all values finite", TRANSFERS),
        ("control, not pretrained: entries permuted inside each tensor", WITHHELD),
        ("note: control, not pretrained: redrawn from normals", WITHHELD),
        ("note: block_1 looks fresh", LOWER_HERE),
        ("note: a Chronos checkpoint, pretrained on time series and not on text", LOWER_HERE),
        ("note: 2 tensors are no T5's", TRANSFERS),
    ],
)
def test_what_the_loader_notes_reaches_the_verdict(tmp_path: Path, note: str, kind: str) -> None:
    write(tmp_path, {"t5-none": -0.06, "random-none": 0, "matched-none": 0})
    edit(tmp_path, "t5-*", "provenance.json", lambda p: p["weights"]["checks"].append(note))
    study = found(tmp_path)
    assert study.kind == kind
    if note != "all values finite":
        shown = " ".join([study.headline, *study.reasons])
        assert note.removeprefix("note: ") in shown


@pytest.mark.parametrize(
    ("loaded", "kind"),
    [
        ({"origin": "pretrained"}, TRANSFERS),
        ({"origin": "control", "is_control": True}, WITHHELD),
        ({"origin": "time series"}, LOWER_HERE),
        ({"origin": "barely trained"}, LOWER_HERE),
        ({"origin": "pretrained", "fresh_tensors": ["block_1.wo"]}, LOWER_HERE),
    ],
)
def test_what_the_loader_found_reaches_the_verdict(
    tmp_path: Path, loaded: dict[str, Any], kind: str
) -> None:
    write(tmp_path, {"t5-none": -0.06, "random-none": 0, "matched-none": 0})
    edit(tmp_path, "t5-*", "provenance.json", lambda p: p["weights"].update(loaded))
    edit(tmp_path, "random-*", "provenance.json", lambda p: p["weights"].update(origin="random"))
    assert found(tmp_path).kind == kind


def test_the_headline_names_the_checkpoint_and_what_was_not_asked(tmp_path: Path) -> None:
    write(tmp_path, {"t5-none": -0.06, "random-none": 0})
    edit(tmp_path, "t5-*", "provenance.json", lambda p: p["weights"].update(source="org/name"))
    study = found(tmp_path)
    assert study.kind == LOWER_HERE
    assert "t5_efficient_tiny (org/name)" in study.headline


# 3. Nothing learned.


def best_at_0(root: Path) -> None:
    for path in root.glob("*/metrics.jsonl"):  # every later epoch is worse
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        first = next(row["val_loss"] for row in rows if row["kind"] == "eval")
        for row in rows:
            if row["kind"] == "eval" and row["epoch"]:
                row["val_loss"] = first + 0.1
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    edit(root, "*", "result.json", lambda r: r.update(best_epoch=0))


def naive_is_better(root: Path) -> None:
    edit(root, "*", "result.json", lambda r: r["baselines"]["val"]["last_value"].update(loss=0.2))


def linear_is_better(root: Path) -> None:
    write(root, {"linear-random-none": -0.2})


@pytest.mark.parametrize("change", [best_at_0, naive_is_better, linear_is_better])
def test_nothing_learned_is_no_verdict(tmp_path: Path, change: Callable[[Path], None]) -> None:
    write(tmp_path, {"t5-none": -0.06, "random-none": 0})
    change(tmp_path)
    study = found(tmp_path)
    assert study.kind == NOT_LEARNED
    assert not study.main.broken


def test_a_worse_linear_map_withholds_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"t5-none": -0.06, "random-none": 0, "linear-random-none": 0.1})
    assert found(tmp_path).kind == LOWER_HERE


# 4. Lost seeds.


def fail(root: Path, init: str, seeds: range) -> None:
    for seed in seeds:
        trial = {"state": "failed", "reason": "diverged"}
        write_run(
            root / f"failed-{init}-{seed}", Arm(init=init, freeze="none"), seed, stop_after=2,
            trial=trial,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("init", "failed", "kind"),
    [("t5", 2, WITHHELD), ("random", 2, WITHHELD), ("t5", 1, LOWER_HERE), ("t5", 5, NOTHING)],
)
def test_failed_seeds_come_first(tmp_path: Path, init: str, failed: int, kind: str) -> None:
    for arm, effect in (("t5", -0.06), ("random", 0.0)):
        lost = failed if arm == init else 0
        write(tmp_path, {f"{arm}-none": effect}, seeds=range(lost, 5))
    fail(tmp_path, init, range(failed))
    study = found(tmp_path)
    assert study.kind == kind
    assert study.headline.startswith(f"{init}-none failed at {failed} of 5 seeds")


def test_a_loss_that_is_not_finite_is_a_failed_seed(tmp_path: Path) -> None:
    write(tmp_path, {"t5-none": -0.06, "random-none": 0})
    for seed in (1, 3):
        edit(
            tmp_path, f"t5-none-{seed}", "result.json",
            lambda r: r["metrics"].update(test_loss=math.nan),
        )  # fmt: skip
    study = found(tmp_path)
    assert study.kind == WITHHELD
    assert study.headline.startswith("t5-none failed at 2 of 5 seeds")


# 5. One seed, run twice.


@pytest.mark.parametrize("again_first", [False, True])
@pytest.mark.parametrize("key", ["train__device", "train__threads"])
def test_of_two_runs_of_one_seed_the_first_counts(
    tmp_path: Path, again_first: bool, key: str
) -> None:
    write(tmp_path, {"t5-none": -0.06, "random-none": 0})
    first = tmp_path / "t5-none-2"
    text = yaml.safe_load((first / "config.yaml").read_text())
    text["train"]["threads"] = 1
    (first / "config.yaml").write_text(yaml.safe_dump(text))
    arm = Arm(init="t5", freeze="none", effect=0.5)
    again = write_run(tmp_path / "again", arm, 2, **{key: 2 if "threads" in key else "cpu"})
    edit(tmp_path, "again", "provenance.json", lambda p: p.update(identity="another"))
    times = (100, 200) if again_first else (200, 100)
    for folder, at in zip((again, first), times, strict=True):
        os.utime(folder / "result.json", (at, at))
    main = found(tmp_path).main
    assert main.main is not None
    assert main.main.pair.treatment.best is not None
    assert main.main.pair.treatment.best.finished[2].path == (again if again_first else first)
    (check,) = [c for c in main.checks if c.name == "paired seeds"]
    assert str(again) in check.detail
    assert str(first) in check.detail


# 6. Several data sets.


def test_data_sets_that_disagree_have_one_answer(tmp_path: Path) -> None:
    effects = {"aaa": 0.05, "mmm": -0.06, "zzz": -0.06}
    for name, effect in effects.items():
        write(tmp_path / name, {"t5-none": effect, "random-none": 0}, data__name=name)
    study = found(tmp_path)
    assert study.kind == CANNOT_TELL
    assert "lower in 2 of 3" in study.headline
    assert [r for name in effects for r in study.reasons if r.startswith(name)] == study.reasons[1:]


@pytest.mark.parametrize(
    ("controls", "kind"), [({}, LOWER_HERE), ({"matched-none": 0.0}, TRANSFERS)]
)
def test_data_sets_that_agree(tmp_path: Path, controls: dict[str, float], kind: str) -> None:
    for number, name in enumerate(("a", "b", "c", "d")):
        arms = {"t5-none": -0.05 - 0.005 * number, "random-none": 0, **controls}
        write(tmp_path / name, arms, data__name=name)
    assert found(tmp_path).kind == kind


def test_a_withheld_data_set_is_not_left_out_in_silence(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / name, {"t5-none": -0.05, "random-none": 0}, data__name=name)
    edit(tmp_path, "b/t5-none-1-b", "provenance.json", lambda p: p.update(precision="other"))
    study = found(tmp_path)
    assert study.kind == WITHHELD
    assert "b, 128" in study.headline


def test_tasks_of_one_data_set_count_once(tmp_path: Path) -> None:
    """a at two horizons and b: two data sets, not three."""
    for name, horizon in (("a", 24), ("a", 48), ("b", 24)):
        write(tmp_path / f"{name}{horizon}", {"t5-none": -0.05, "random-none": 0},
              data__name=name, horizon=horizon)  # fmt: skip
    assert "lower in 2 of 2" in found(tmp_path).headline


# 8. Chosen and tested on the same seeds.


def search(root: Path, *, inits: tuple[str, ...] = ("t5", "random"), **kw: Any) -> None:
    """A search over three rates on seeds 0 to 4."""
    for init in inits:
        for rate in (1e-4, 1e-3, 1e-2):
            arm = Arm(init=init, freeze="none", effect=-0.06 * (init == "t5"), **QUIET)
            for seed in range(5):
                write_run(root / f"{init}-{rate}-{seed}", arm, seed, optim__lr=rate,
                          extra_effect=0.0 if rate == 1e-3 else 0.1, **kw)  # fmt: skip


def final(root: Path, effect: float) -> None:
    before = {"keys": ["optim.lr"], "trials": 3}
    for init in ("t5", "random"):
        arm = Arm(init=init, freeze="none", effect=effect * (init == "t5"), **QUIET)
        for seed in range(100, 105):
            write_run(root / f"final-{init}-{seed}", arm, seed, optim__lr=1e-3,
                      trial={"params": {"seed": seed}, "searched_before": before})  # fmt: skip


def test_a_search_is_provisional_until_final_was_run(tmp_path: Path) -> None:
    search(tmp_path)
    study = found(tmp_path)
    assert study.main.is_provisional
    assert study.headline.startswith("Provisional")
    assert "experiment=final" in study.headline
    final(tmp_path, -0.03)
    study = found(tmp_path)
    main = study.main.main
    assert main is not None
    assert not study.main.is_provisional
    assert main.pair.seeds == list(range(100, 105))
    assert main.effect.value == pytest.approx(-0.03, abs=0.01)
    assert study.kind == LOWER_HERE


def test_plans_run_again_are_chosen_by_the_search(tmp_path: Path) -> None:
    """Fresh seeds test what the search chose, even where another plan looks better on them."""
    before = {"keys": ["optim.lr"], "trials": 1}
    for freeze, searched, again in (("none", -0.05, 0.0), ("staged", 0.0, -0.05)):
        write(tmp_path, {f"{i}-{freeze}": searched for i in ("t5", "random")})
        for init in ("t5", "random"):
            for seed in range(100, 103):
                arm = Arm(init=init, freeze=freeze, effect=again, **QUIET)
                write_run(tmp_path / f"final-{init}-{freeze}-{seed}", arm, seed,
                          trial={"params": {"seed": seed}, "searched_before": before})  # fmt: skip
    main = found(tmp_path).main
    assert main.main is not None
    assert main.main.pair.name == "t5-none against random-none"
    assert not main.is_provisional


# 9. Equal budget.


def trials(root: Path, init: str, rates: list[float], *, pruned: int = 0) -> None:
    """A sweep's trials at seed 0, those after the first `pruned` cut short; one seed each."""
    for number, rate in enumerate(rates):
        arm = Arm(init=init, freeze="none", effect=-0.06 * (init == "t5"), **QUIET)
        cut = number >= len(rates) - pruned
        trial = {"study": "s", "arm": init, "number": number, "n_trials": len(rates),
                 "state": "pruned" if cut else "complete",
                 "params": {"optim.lr": rate}}  # fmt: skip
        write_run(root / f"{init}-{number}", arm, 0, optim__lr=rate, trial=trial,
                  stop_after=1 if cut else None)  # fmt: skip


def budget(study: Findings) -> Any:
    (check,) = [c for c in study.main.checks if c.name == "equal tuning budget"]
    return check


def test_a_point_drawn_twice_is_two_trials(tmp_path: Path) -> None:
    rates = [1e-4 * (1 + i) for i in range(6)]
    trials(tmp_path, "t5", rates)
    trials(tmp_path, "random", [*rates[:5], rates[0]])
    study = found(tmp_path)
    assert budget(study).status == "holds"
    assert "5 settings in 6 trials" in budget(study).detail
    assert study.kind != WITHHELD


def test_trials_that_were_cut_short_are_no_equal_tuning(tmp_path: Path) -> None:
    rates = [1e-4 * (1 + i) for i in range(6)]
    trials(tmp_path, "t5", rates)
    trials(tmp_path, "random", rates, pruned=5)
    study = found(tmp_path)
    assert study.kind == WITHHELD
    assert [c.name for c in study.main.broken] == ["equal tuning budget"]


# 10. What was measured, not where it lay.


def test_one_series_in_two_folders_is_one_condition(tmp_path: Path) -> None:
    write(tmp_path / "a", {"t5-none": -0.06}, data__stations="a.csv")
    write(tmp_path / "b", {"random-none": 0}, data__stations="b.csv", data__name="copy")
    edit(tmp_path, "*/*", "provenance.json", lambda p: p["data"].update(sha256="1" * 64))
    study = found(tmp_path)
    assert len(study.verdicts) == 1
    assert study.kind == LOWER_HERE


def test_borders_make_a_condition(tmp_path: Path) -> None:
    for name, borders in (("a", [10, 20, 30]), ("b", [12, 20, 30])):
        write(tmp_path / name, {"t5-none": -0.06, "random-none": 0}, data__stations=name)
        edit(
            tmp_path, f"{name}/*", "provenance.json",
            lambda p, b=borders: p["data"].update(borders=b),
        )  # fmt: skip
    assert len(found(tmp_path).verdicts) == 2


def test_effective_data_survives_other_best_plans(tmp_path: Path) -> None:
    for fraction, staged in ((0.25, -0.05), (0.5, 0.05), (1.0, -0.05)):
        level = -0.2 * math.log2(4 * fraction)
        write(
            tmp_path,
            {"t5-staged": level - 0.18 + staged, "t5-none": level - 0.18,
             "random-staged": level + 0.1, "random-none": level},
            data__fraction=fraction,
        )  # fmt: skip
    content = sections(found(tmp_path))[6]
    (table,) = [b for b in content.blocks if getattr(b, "caption", "").startswith("Effective")]
    assert [row[1].split()[0] for row in table.rows] == ["t5-staged", "t5-none", "t5-staged"]  # type: ignore[union-attr]


# 11. Intervals and words.


def test_an_interval_excludes_0_exactly_where_its_p_does(tmp_path: Path) -> None:
    for number, effect in enumerate((-0.03, -0.012, -0.008, -0.004)):
        for init in ("t5", "random"):
            arm = Arm(init=init, freeze="none", effect=effect * (init == "t5"), seed_sd=0.007)
            for seed in range(5):
                write_run(tmp_path / f"{number}-{init}-{seed}", arm, seed, data__name=str(number))
    study = found(tmp_path)
    mains = [v.main for v in study.verdicts if v.main]
    assert {c.effect.excludes_zero() for c in mains} == {True, False}
    for c in mains:
        assert c.effect.excludes_zero() == (c.p_holm < 0.05)
        assert c.p_holm >= c.p_t


def test_other_stretches_are_a_log_ratio_around_the_same_value(tmp_path: Path) -> None:
    write(tmp_path, {"t5-none": -1.5, "random-none": 0.0})
    main = found(tmp_path).main.main
    assert main is not None
    assert main.new_windows is not None
    assert main.new_windows.value == pytest.approx(main.effect.value, abs=1e-6)
    assert math.expm1(main.new_windows.low) > -1


def test_no_difference_is_said_of_these_windows(tmp_path: Path) -> None:
    write(tmp_path, {"t5-none": 0.0, "random-none": 0.0})
    for path in tmp_path.glob("t5-*/test_losses.npy"):
        losses = np.load(path)
        slow = 1 + 0.4 * np.sin(2 * np.pi * np.arange(len(losses)) / len(losses))
        np.save(path, losses * slow * losses.mean() / (losses * slow).mean())
    study = found(tmp_path)
    assert study.kind == DOES_NOT
    assert "on these test windows" in study.headline
    assert "other stretches" in study.headline


def test_an_unfinished_sweep_says_how_to_resume(tmp_path: Path) -> None:
    rates = [1e-4 * (1 + i) for i in range(6)]
    trials(tmp_path, "t5", rates)
    trials(tmp_path, "random", rates)
    for gone in ("t5-4", "t5-5", "random-5"):
        for file in (tmp_path / gone).iterdir():
            file.unlink()
        (tmp_path / gone).rmdir()
    overrides = {"task": ["init=t5,random"], "hydra": ["hydra.sweeper.n_jobs=2"]}
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {"overrides": overrides}}))
    study = found(tmp_path)
    assert study.kind == UNFINISHED
    assert not study.main.broken
    assert "4/6" in study.headline
    assert "5/6" in study.headline
    assert "--multirun init=t5,random hydra.sweeper.n_jobs=2" in study.headline


def test_of_one_data_set_the_other_conditions_are_in_the_headline(tmp_path: Path) -> None:
    for horizon, effect in ((24, -0.06), (48, 0.06)):
        write(tmp_path / str(horizon), {"t5-none": effect, "random-none": 0}, horizon=horizon)
    study = found(tmp_path)
    assert study.main.condition.name in study.headline
    assert f"1 {DOES_NOT}" in study.headline


def test_a_control_that_is_not_finished_is_waited_for(tmp_path: Path) -> None:
    write(tmp_path, {"t5-none": -0.06, "random-none": 0})
    write(tmp_path, {"matched-none": 0}, seeds=range(2))
    write_run(tmp_path / "open", Arm(init="matched", freeze="none"), 2, stop_after=3)
    study = found(tmp_path)
    assert study.kind == UNFINISHED
    assert "2/3 (matched-none)" in study.headline


def test_a_data_set_without_learning_is_not_the_studys_answer(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, {"t5-none": -0.06, "random-none": 0}, data__name=name)
    naive_is_better(tmp_path / "a")
    assert found(tmp_path).kind == LOWER_HERE


# Old run directories.


@pytest.mark.parametrize("newer", ["t5-none-*", "*-none-[012]"])
def test_runs_of_an_older_t5ts_without_newer_keys_are_compared(tmp_path: Path, newer: str) -> None:
    write(tmp_path, {"t5-none": -0.06, "random-none": 0})
    for path in tmp_path.glob(f"{newer}/config.yaml"):
        config = yaml.safe_load(path.read_text())
        config["train"] |= {"tf32": True, "resume_on_other_code": False}
        config["data"] |= dict.fromkeys(["separator", "decimal", "nulls"])
        path.write_text(yaml.safe_dump(config))
    for path in tmp_path.glob("*/provenance.json"):
        path.unlink()  # then the data is known by its keys alone
    study = found(tmp_path)
    assert (study.kind, study.main.main.effect.count) == (LOWER_HERE, 5)  # type: ignore[union-attr]


# What a verdict over several data sets, or without a usable control, must not leave out.


def doubted(root: Path) -> None:
    edit(root, "*/t5-*", "provenance.json", lambda p: p["weights"].update(fresh_tensors=["q"]))


def tuned_control(root: Path) -> None:
    for name in "abc":
        write(root / name, {"matched-none": 0.01}, data__name=name, optim__lr=3e-3)


def failed_seed(root: Path) -> None:
    for file in ("result.json", "metrics.jsonl"):
        (root / "b/t5-none-1-b" / file).unlink()
    (root / "b/t5-none-1-b/trial.json").write_text('{"state": "failed", "reason": "diverged"}')


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (doubted, LOWER_HERE, "loader"),
        (tuned_control, CANNOT_TELL, "same chance"),
        (failed_seed, TRANSFERS, "t5-none failed at 1 of 5 seeds"),
    ],
)
def test_an_answer_over_data_sets_keeps_what_each_of_them_says(
    tmp_path: Path, change: Callable[[Path], None], kind: str, said: str
) -> None:
    for number, name in enumerate("abc"):
        arms = {"t5-none": -0.06 + 0.001 * number, "random-none": 0, "matched-none": 0}
        write(tmp_path / name, arms, data__name=name)
    change(tmp_path)
    study = found(tmp_path)
    assert study.kind == kind
    assert said in study.headline


def test_an_answer_over_data_sets_names_every_checkpoint_that_it_is_drawn_from(
    tmp_path: Path,
) -> None:
    for name, one, other in (("a", -0.06, -0.02), ("b", -0.02, -0.06), ("c", -0.06, -0.02)):
        arms = {"one-t5-none": one, "one-random-none": 0}
        write(tmp_path / name, arms | {"other-t5-none": other, "other-random-none": 0},
              data__name=name)  # fmt: skip
    study = found(tmp_path)
    assert "one (" in study.headline
    assert "other (" in study.headline


@pytest.mark.parametrize(("failed", "kind"), [(5, LOWER_HERE), (1, TRANSFERS)])
def test_failed_controls_come_first(tmp_path: Path, failed: int, kind: str) -> None:
    write(tmp_path, {"t5-none": -0.06, "random-none": 0})
    write(tmp_path, {"matched-none": 0}, seeds=range(failed, 5))
    fail(tmp_path, "matched", range(failed))
    study = found(tmp_path)
    assert study.kind == kind
    assert study.headline.startswith(f"matched-none failed at {failed} of 5 seeds")
    assert "not asked" not in study.headline


def test_controls_that_were_run_elsewhere_are_not_called_missing(tmp_path: Path) -> None:
    write(tmp_path, {"t5-none": -0.06, "random-none": 0})
    write(tmp_path, {"matched-staged": 0})
    study = found(tmp_path)
    assert study.kind == LOWER_HERE
    assert "not asked" not in study.headline
    assert any("init=matched with freeze=none" in reason for reason in study.reasons)
