"""The invariants that withhold a verdict, and what is only noted."""

from pathlib import Path
from typing import Any

import pytest
from analysis.studies import (
    GAIN,
    ZEROS,
    Change,
    about,
    assert_shows,
    edit,
    found,
    judged,
    main,
    results,
    rewritten,
    runs,
    write,
)

from t5ts.analysis.judgement import WITHHELD

WEIGHTS, BUDGET, PLANS = (
    "only the weights differ", "equal tuning budget", "equal tuning of the schedules",
)  # fmt: skip
START = "paired start: same patch and head tensors at the same seed"
PROVEN, FROZEN = "the arms' weights are proven", "frozen parts did not move, unfrozen ones did"
BY_VALIDATION = "validation selected, after all epochs"
SHA = "initial_sha256"


def other_encoders(root: Path) -> None:
    """The lab log's fault: random weights under the name t5."""
    for seed in range(5):
        about(f"t5-none-{seed}", SHA, encoder=str(seed) * 64)(root)


def same_encoders(root: Path) -> None:
    about("random-none-[12]", SHA, encoder=ZEROS)(root)
    about("random-none-[12]", weights={})(root)


def distance(run: str, value: str) -> Change:
    """Move the first block by so much, at every epoch."""
    old = r'("distance_from_init/block_0": )[0-9.]+'
    return rewritten(f"{run}/metrics.jsonl", old, rf"\g<1>{value}")


def setting(old: str, new: str) -> Change:
    return rewritten("t5-*/config.yaml", old, new)


@pytest.mark.parametrize(
    ("freeze", "breaks", "broken", "evidence"),
    [
        ("none", setting("lr: 0.001", "lr: 0.003"), WEIGHTS, "optim.lr: 0.003 vs. 0.001"),
        ("none", setting("  epochs: 10\n", "  epochs: 10\n  early_stopping_epochs: 2\n"), WEIGHTS,
         "early_stopping_epochs: 2 vs."),
        ("none", runs({"t5-none": 0}, seeds=[0], optim__lr=3e-3), BUDGET, "2"),
        ("none", about("random-none-2", SHA, head=ZEROS), START, "head at seed 2"),
        ("none", other_encoders, PROVEN, "5"),
        ("none", same_encoders, PROVEN, "two seeds"),
        ("none", about("t5-none-1", "weights", init="random"), PROVEN, "t5-none-1"),
        ("none", distance("t5-none-1", "0.0"), FROZEN, "block_0 of t5-none-1"),  # never unfrozen
        ("all", distance("t5-all-1", "1e-7"), FROZEN, "block_0 of t5-all-1"),  # moved all the same
        ("none", about("random-none-1", "data", sha256=ZEROS), "same data", "1 run"),
        ("none", about("random-none-1", windows={"test": 9}), "same windows", "test 9 in 1 run"),
        ("none", about("random-none-1", precision="torch.bfloat16"), "same precision", "bfloat16"),
        ("none", results("t5-none-1", lambda r: r.update(best_epoch=1)), BY_VALIDATION, "epoch 1"),
    ],
)  # fmt: skip
def test_a_broken_invariant_withholds_the_verdict(tmp_path, freeze, breaks, broken, evidence):
    study = judged(tmp_path, {f"t5-{freeze}": -0.06, f"random-{freeze}": 0}, breaks)
    assert_shows(study, broken=[broken], evidence=evidence)
    assert f"{broken} (" in study.reasons[0]
    assert main(study).kind == WITHHELD


def trials(init: str, rates: list[float], *, pruned: int = 0) -> list[Change]:
    """A sweep's trials at seed 0, the last ones pruned."""
    ended = {"state": "complete"}, {"state": "pruned"}
    cut = [number >= len(rates) - pruned for number in range(len(rates))]
    sweep = {"study": "s", "arm": init, "n_trials": len(rates)}
    return [
        runs({f"{init}-none": -0.06 * (init == "t5")}, str(number), seeds=[0], optim__lr=rate,
             stop_after=1 if cut[number] else None,
             trial=sweep | {"number": number, "params": {"optim.lr": rate}} | ended[cut[number]])
        for number, rate in enumerate(rates)
    ]  # fmt: skip


def again(arm: str, effect: float = 0.0, **before: Any) -> Change:
    """The best setting of an arm's search on other seeds."""
    searched = {"keys": ["optim.lr"], "trials": 3} | before
    trial = {"params": {}, "searched_before": searched}
    rate = 1e-4 if arm.startswith("random") else 1e-3
    return runs({arm: effect}, "final", seeds=range(100, 105), optim__lr=rate, trial=trial)


OTHER_PLANS = {"t5-staged": 0, "random-staged": 0}
RATES = [1e-4 * (1 + i) for i in range(6)]
SIX = trials("t5", RATES)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Two sweeps, each in its own folder, with arms identified by name.
        ([runs({name: effect}, arm_requires=[name], train__reuse_dir=f"{name}/.frozen")
          for name, effect in GAIN.items()], {"outcome": "lower"}),
        ([runs(GAIN), about("t5-*", "scale_audit", output=50.0)],
         {"outcome": "lower", "scale at step 0": "note"}),
        ([runs(GAIN), about("*", threads=1)], {"same number of threads": "none"}),
        ([runs(GAIN), about("*", threads=1), about("t5-*", threads=2)],
         {"outcome": "lower", "same number of threads": "note"}),
        ([*SIX, *trials("random", RATES)], {BUDGET: "holds", "is_provisional": True}),
        # One drawn twice, and most of them cut short.
        ([*SIX, *trials("random", [*RATES[:5], RATES[0]])], {BUDGET: "holds"}),
        ([*SIX, *trials("random", RATES, pruned=5)], {BUDGET: "broken", "outcome": "broken"}),
        ([runs(GAIN | OTHER_PLANS)], {PLANS: "none"}),
        ([runs(GAIN | OTHER_PLANS), runs(OTHER_PLANS, seeds=[0], freeze__unfreeze_epoch=5.0)],
         {PLANS: "note"}),
        # Final runs alone know their search.
        ([again("t5-none", -0.06), again("random-none")], {BUDGET: "holds", "outcome": "lower"}),
        ([again("t5-none", -0.06), again("random-none", trials=20)],
         {BUDGET: "broken", "outcome": "broken"}),
        ([again("t5-none", -0.06), again("random-none", keys=["freeze.x"])],
         {BUDGET: "broken", "outcome": "broken"}),
    ],
)  # fmt: skip
def test_what_may_differ(tmp_path, changes, expected):
    assert_shows(judged(tmp_path, *changes), **expected)


def test_runs_that_early_stopping_ended_are_whole(tmp_path):
    """A run that ends before its last epoch without it is not."""
    longer = rewritten("*/config.yaml", "  epochs: 8\n", "  epochs: 10\n")
    assert_shows(judged(tmp_path, runs(GAIN, epochs=8), longer), outcome="broken")
    edit(tmp_path, "*", "result.json", lambda result: result.update(stopped_epoch=8))
    study = found(tmp_path)
    assert_shows(study, broken=[])
    (selection,) = (c for c in main(study).checks if c.name == BY_VALIDATION)
    assert "epoch 8" in selection.detail
    assert main(study).pair.treatment.share_trained == 1


def test_a_search_is_provisional_until_final_was_run(tmp_path):
    for init, best in (("t5", 1e-3), ("random", 1e-4)):
        for rate in (1e-4, 1e-3):
            effect = -0.06 * (init == "t5") + 0.1 * (rate != best)
            write(tmp_path, {f"{init}-none": effect}, optim__lr=rate)
    study = found(tmp_path)
    assert_shows(study, is_provisional=True, outcome="lower")
    chosen = [arm.best.values["optim.lr"] for arm in main(study).pair.arms if arm.best]
    assert chosen == [1e-3, 1e-4]
    study = judged(tmp_path, again("t5-none", -0.03), again("random-none"))
    assert_shows(study, is_provisional=False, outcome="lower", seeds=[*range(100, 105)])
    assert main(study).effect.value == pytest.approx(-0.03, abs=0.01)
    assert main(study).pair.treatment.tried == 3


def test_plans_run_again_are_chosen_by_the_search(tmp_path):
    """Fresh seeds test what the search chose, even where another plan looks better on them."""
    for freeze, searched, later in (("none", -0.05, 0.0), ("staged", 0.0, -0.05)):
        for init, rate in (("t5", 1e-3), ("random", 1e-4)):
            write(tmp_path, {f"{init}-{freeze}": searched}, optim__lr=rate)
            again(f"{init}-{freeze}", later, trials=1)(tmp_path)
    study = found(tmp_path)
    assert_shows(study, pair="t5-none vs. random-none", is_provisional=False)
    assert [arm.name for arm, *_ in main(study).pair.overruled] == ["t5-staged", "random-staged"]
    assert sum("gradual unfreezing to T5" in reason for reason in study.reasons) == 1
    # But for a schedule that did not finish all of these seeds.
    for folder in list((tmp_path / "final").glob("t5-staged*"))[1:]:
        (folder / "result.json").unlink()
    assert [arm.name for arm, *_ in main(found(tmp_path)).pair.overruled] == ["random-staged"]
