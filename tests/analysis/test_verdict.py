"""One condition whose truth is known, and the answer that a hostile reader would accept."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
    rewritten,
    runs,
    shown,
    write,
)

from benchmarks.simulated_runs import Arm, write_run
from t5ts.analysis.judgement import ALIKE, HIGHER, LOWER
from t5ts.analysis.sections import markdown, sections
from t5ts.analysis.words import arm_label
from t5ts.schema import UNNAMED

WITH_CONTROL: Arms = GAIN | {"matched-none": 0}
EQUAL: Arms = {"t5-none": (0, 0.0005), "random-none": (0, 0.0005)}


def best_at_0(pattern: str) -> list[Change]:
    """Runs whose best epoch is the one before training."""
    later = r'("epoch": [1-9].*"val_loss": )[\d.]+'
    worse = rewritten(f"{pattern}/metrics.jsonl", later, r"\g<1>9.0")
    return [worse, results(pattern, lambda r: r.update(best_epoch=0))]


def unlike_elsewhere(root: Path) -> None:
    """Forecasts that are equal on average, but not in each stretch of the series."""
    for path in root.glob("t5-*/test_losses.npy"):
        losses = np.load(path)
        slow = 1 + 0.4 * np.sin(2 * np.pi * np.arange(len(losses)) / len(losses))
        np.save(path, losses * slow * losses.mean() / (losses * slow).mean())


BETTER_NAIVE = results("*", lambda r: r["baselines"]["val"]["last_value"].update(loss=0.2))


@pytest.mark.parametrize(
    ("outcome", "arms", "changes"),
    [
        ("lower", GAIN, []),
        ("helps", GAIN | {"matched-none": 0, "shuffled-none": 0.01}, []),
        ("scale", GAIN | {"matched-none": -0.06, "shuffled-none": 0}, []),
        ("scale", GAIN | {"matched-none": 0, "shuffled-none": -0.09}, []),
        ("text_or_scale", GAIN | {"matched-none": (-0.05, 0.06)}, []),
        ("higher", {"t5-none": 0.08, "random-none": 0}, []),
        ("alike", EQUAL, []),
        ("alike", EQUAL, [unlike_elsewhere]),
        ("wide", {"t5-none": (-0.005, 0.04), "random-none": (0, 0.04)}, []),
        ("frozen", {"t5-none": (-0.02, 0.001), "random-none": (0, 0.001),
                    "random-all": (-0.02, 0.001)}, []),
        ("frozen", {"t5-none": -0.02, "random-none": 0, "random-all": -0.08}, []),
        ("higher", {"t5-none": -0.02, "t5-all": 0, "random-none": 0, "random-all": -0.08}, []),
        ("no_arm", {"t5-staged": -0.2, "random-none": 0}, []),
        ("no_pretrained", {"random-none": 0}, []),
        # Each at its own best plan: random weights, and the controls too.
        ("higher", {"t5-staged": -0.06, "random-staged": 0, "t5-none": -0.03, "random-none": -0.1},
         []),
        ("scale", {"t5-staged": -0.06, "t5-none": 0, "random-staged": 0, "random-none": 0,
                   "matched-staged": 0, "matched-none": -0.08}, []),
        # A winning plan must have been run with both.
        ("broken", {"t5-staged": -0.1, "t5-none": 0, "random-none": 0}, []),
        ("lower", {"t5-staged": 0, "t5-none": -0.1, "random-none": 0}, []),
        ("broken", {"t5-none": -0.1, "random-none": 0, "random-staged": -0.2}, []),
        # A control under another plan tells nothing, nor does one without the same chance.
        ("lower", GAIN | {"matched-staged": 0}, []),
        ("unfair_control", WITH_CONTROL,
         [runs({"t5-none": 0, "random-none": 0}, seeds=[0], optim__lr=3e-3)]),
        ("unfair_control", WITH_CONTROL,
         [about("matched-none-1", "weights", checkpoint_sha256=ZEROS)]),
        ("unfair_control", WITH_CONTROL,
         [about("matched-none-1", "initial_sha256", encoder=ZEROS)]),
        # Nothing is learned that a linear map or a naive forecast does not know, or that stays.
        ("not_learned", GAIN | {"linear-random-none": -0.2}, []),
        ("lower", GAIN | {"linear-random-none": 0.1}, []),
        ("not_learned", GAIN, [BETTER_NAIVE]),
        ("not_learned", GAIN, best_at_0("*-[012]")),  # at half of the seeds or more
        ("higher", {"t5-none": 0.06, "random-none": 0}, best_at_0("t5-*")),  # the better arm did
    ],
)  # fmt: skip
def test_outcomes(tmp_path, outcome, arms, changes):
    study = judged(tmp_path, arms, *changes)
    assert_shows(study, outcome=outcome)
    assert ((study.main.seeds_needed or 0) > 5) == (outcome in ("wide", "text_or_scale"))
    assert bool(study.main.broken) == (outcome == "broken")
    if outcome == "unfair_control":
        assert main(study).kind == LOWER  # against random weights
    if arms is EQUAL:
        assert bool(study.main.facts["elsewhere"]) == bool(changes)


def test_the_headlines_pair_and_numbers(tmp_path):
    """t5-staged beats random-staged by 6 %, and is 4 % worse than random weights can be."""
    arms: Arms = {"t5-staged": -0.06, "random-staged": 0, "t5-none": -0.03, "random-none": -0.1}
    study = judged(tmp_path, arms)
    assert_shows(study, pair="t5-staged vs. random-none", seeds=[*range(5)])
    assert main(study).effect.value == pytest.approx(0.04, abs=0.01)
    # The comparison under one plan, which says the opposite, is in the headline and in a table.
    assert "(t5-staged) vs. T5 (random), gradual unfreezing (random-staged)" in study.headline
    assert shown(study)["weights", "t5-staged vs. random-staged"] == LOWER
    assert shown(study)["best", "t5-staged vs. random-none"] == HIGHER


#: An encoder's cosines at step 0 and selected, and the log-ratio of the loss without its blocks:
#: an identity, one in use, one without effect, one near an identity whose little counts, one that
#: does harm; and one whose interval over the seeds has 0 in it.
IDENTITY, USED, FLAT = (0.994, 0.993, 0.002), (0.46, 0.46, 0.3), (0.86, 0.93, 0.004)
LITTLE, HARMFUL = (0.994, 0.993, 0.2), (0.3, 0.3, -0.04)
UNSURE = (0.46, 0.46, (0.12, -0.06, 0.05, 0.11, -0.07))


def seen_in_play(pattern: str, initial: float, selected: float, cost: Any) -> Change:
    def record(result: Any) -> None:
        log_ratio = cost[result["seed"]] if isinstance(cost, tuple) else cost
        metrics = result["metrics"]
        metrics |= {"encoder_cosine_initial": initial, "encoder_cosine": selected}
        metrics["bypassed_val_loss"] = metrics["val_loss"] * math.exp(log_ratio)

    return results(pattern, record)


def moved_by(init: str, factor: float) -> Change:
    return rewritten(f"{init}-*/metrics.jsonl", r'("distance_from_init/block_\d": )([\d.]+)',
                     lambda m: f"{m[1]}{factor * float(m[2])}")  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "effect", "seen", "moved"),
    [
        ("alike", 0, (USED, USED), {}),
        ("not_asked", 0, (IDENTITY, IDENTITY), {}),
        ("not_asked", 0.05, (IDENTITY, IDENTITY), {}),
        ("not_asked", 0, (FLAT, IDENTITY), {}),
        # What is lower has been in play, or another arm has.
        ("lower", -0.05, (IDENTITY, IDENTITY), {}),
        ("alike", 0, (USED, IDENTITY), {}),
        ("higher", 0.05, (IDENTITY, USED), {}),
        ("alike", 0, (LITTLE, LITTLE), {}),
        ("alike", 0, (HARMFUL, HARMFUL), {}),
        # Trained, and frozen in all but name.
        ("not_asked", 0, (USED, USED), {"t5": 1e-4}),
        ("lower", -0.05, (USED, USED), {"t5": 1e-4, "random": 1e-4}),
        # An answer against the weights needs an encoder shown to be in play; "cannot tell" stays.
        ("not_asked", 0, (UNSURE, UNSURE), {}),
        ("not_asked", 0.05, (UNSURE, IDENTITY), {}),
        ("lower", -0.05, (UNSURE, UNSURE), {}),
        ("alike", 0, (UNSURE, USED), {}),
        ("wide", (0, 0.04), (UNSURE, UNSURE), {}),
        ("not_asked", (0, 0.04), (IDENTITY, IDENTITY), {}),
        # Only one arm was recorded: nothing is known of both.
        ("alike", 0, (IDENTITY,), {}),
    ],
)
@pytest.mark.parametrize("freeze", ["none", "all"])
def test_whether_the_encoders_were_in_play(tmp_path, freeze, outcome, effect, seen, moved):
    effect, sd = effect if isinstance(effect, tuple) else (effect, 0.0005)
    by_init = dict(zip(("t5", "random"), seen, strict=False))
    changes = [seen_in_play(f"{init}-*", *values) for init, values in by_init.items()]
    changes += [moved_by(*item) for item in moved.items()]
    if freeze == "all" and moved and outcome == "not_asked":
        outcome = "alike"  # nothing was to move
    arms: Arms = {f"t5-{freeze}": (effect, sd), f"random-{freeze}": (0, sd)}
    study = judged(tmp_path, arms, *changes)
    assert_shows(study, outcome=outcome)
    said = [reason for reason in study.reasons if "use its encoder?" in reason]
    for (init, values), reason in zip(by_init.items(), said, strict=True):
        idle = values in (IDENTITY, FLAT) or (init in moved and freeze == "none")
        assert ("encoder? No:" in reason) == idle
        assert ("encoder? Yes:" in reason) == (not idle and values is not UNSURE)


@pytest.mark.parametrize(("values", "answer"), [(IDENTITY, "no"), (USED, "yes")])
def test_one_run_decides_alone_whether_its_encoder_was_in_play(tmp_path, values, answer):
    study = judged(tmp_path, runs({"t5-none": 0}, seeds=[0]), seen_in_play("*", *values))
    table: Any = sections(study)[7].blocks[-2]
    assert table.rows[0][-1] == answer
    assert "no interval from 1 seed" in table.rows[0][-2]
    assert ("+35" in table.rows[0][-2]) == (answer == "yes")  # without its blocks: e^0.3


# Seeds: unpaired, failed, run twice.


@pytest.mark.parametrize(
    ("t5", "random", "paired", "outcome"),
    [
        (range(7), range(1, 6), [1, 2, 3, 4, 5], "lower"),
        (range(2), range(5, 7), [], "no_seed"),
        (range(1), range(1), [0], "one_seed"),
    ],
)
def test_unpaired_seeds_are_left_out(tmp_path, t5, random, paired, outcome):
    arms = runs({"t5-none": -0.06}, seeds=t5), runs({"random-none": 0}, seeds=random)
    study = judged(tmp_path, *arms)
    assert_shows(study, seeds=paired, outcome=outcome, **{"paired seeds": "note"})
    assert any("6 of T5 (text)" in reason for reason in study.reasons) == (outcome == "lower")


def test_extra_seeds_do_not_choose_a_plan(tmp_path):
    arms: Arms = {"t5-staged": -0.1, "random-staged": 0, "t5-none": 0, "random-none": 0}
    study = judged(tmp_path, arms, runs({"t5-none": 0}, seeds=range(5, 8)))
    assert main(study).pair.treatment.name == "t5-staged"


@pytest.mark.parametrize(
    ("init", "failed", "outcome"),
    [
        ("t5", 2, "broken"),
        ("random", 2, "broken"),
        ("t5", 1, "helps"),
        ("t5", 5, "no_seed"),
        ("matched", 1, "helps"),
        ("matched", 5, "lower"),
    ],
)
def test_failed_seeds_come_first(tmp_path, init, failed, outcome):
    for arm, effect in WITH_CONTROL.items():
        write(tmp_path, {arm: effect}, seeds=range(failed * arm.startswith(init), 5))
    trial = {"state": "failed", "reason": "diverged"}
    write(tmp_path / "failed", {f"{init}-none": 0}, seeds=range(failed), stop_after=2, trial=trial)
    headline = rf"^T5 \(.*\({init}-none\) .* {failed} of 5"
    assert_shows(found(tmp_path), outcome=outcome, headline=headline)


def test_a_loss_that_is_not_finite_is_a_failed_seed(tmp_path):
    lost = results("t5-none-[13]", lambda r: r["metrics"].update(test_loss=math.nan))
    study = judged(tmp_path, GAIN, lost)
    assert_shows(study, outcome="broken", headline=r"^T5 \(text\).* 2 of 5")


@pytest.mark.parametrize("again_first", [False, True])
@pytest.mark.parametrize("changes", [{"train__device": "cpu"}, {"train__threads": 2}])
def test_of_two_runs_of_one_seed_the_first_counts(tmp_path, again_first, changes):
    write(tmp_path, GAIN)
    arm = Arm(init="t5", freeze="none", effect=0.5)
    first, again = tmp_path / "t5-none-2", write_run(tmp_path / "again", arm, 2, **changes)
    edit(tmp_path, "again", "provenance.json", lambda p: p.update(identity="another"))
    for folder, at in ((again, 100 if again_first else 200), (first, 150)):
        os.utime(folder / "result.json", (at, at))
    study = found(tmp_path)
    used = main(study).pair.treatment.finished[2].path
    assert used == (again if again_first else first)
    (check,) = [c for c in study.main.checks if c.name == "paired seeds"]
    assert str(again) in check.detail
    assert str(first) in check.detail


# What the loader says of the weights.


def noted(note: str) -> Callable[[str], Change]:
    return lambda pattern: about(pattern, "weights", checks=["all values finite", note])


def loaded(**report: Any) -> Callable[[str], Change]:
    return lambda pattern: about(pattern, "weights", **report)


@pytest.mark.parametrize(
    ("init", "change", "outcome"),
    [
        ("t5", noted("no tensor is constant"), "helps"),
        ("t5", noted("control, not pretrained: entries permuted inside each tensor"), "broken"),
        ("t5", noted("note: control, not pretrained: redrawn from normals"), "broken"),
        ("t5", noted("note: block_1 looks fresh"), "noted"),
        ("t5", noted("note: looks freshly initialised, accepted"), "noted"),
        ("t5", noted("note: pretrained on time series and not on text"), "noted"),
        ("t5", noted("note: 2 tensors are no T5's"), "helps"),
        ("t5", loaded(origin="pretrained"), "helps"),
        ("t5", loaded(origin="control", is_control=True), "broken"),
        ("t5", loaded(origin="time series"), "noted"),
        ("t5", loaded(origin="barely trained"), "noted"),
        ("t5", loaded(fresh_tensors=["block_1.wo"]), "noted"),
        ("run", loaded(origin="time series"), "helps"),
        ("run", loaded(origin="barely trained"), "noted"),
        ("run", loaded(origin="control"), "broken"),
        # That a donor was trained is known from its run.
        ("run", loaded(origin="time series", fresh_tensors=["block_1.wo"]), "helps"),
        ("chronos", loaded(origin="time series"), "helps"),
        ("chronos", loaded(origin="pretrained"), "noted"),
    ],
)
def test_what_the_loader_says_reaches_the_verdict(tmp_path, init, change, outcome):
    keys = {"run": "init__path", "chronos": "init__checkpoint"}
    donor = {keys[init]: "donor"} if init in keys else {}
    arms = runs({f"{init}-none": -0.06, "random-none": 0, "matched-none": 0}, **donor)
    study = judged(tmp_path, arms, change(f"{init}-*"), loaded(origin="random")("random-*"))
    assert_shows(study, outcome=outcome)


# Words of particular studies.


@pytest.mark.parametrize(
    ("title", "kind", "name"),
    [
        ("GPT-2", None, "GPT-2"),  # old records
        ("MiniLM-L6", "bert", "MiniLM-L6"),
        (UNNAMED, "gpt2", "GPT-2"),
        (UNNAMED, "xlm-roberta", "XLM-RoBERTa"),
        (UNNAMED, "llama", "Llama"),
        (UNNAMED, None, UNNAMED),
    ],
)
def test_a_language_model_has_its_own_name(tmp_path, title, kind, name):
    arms: Arms = {"hf-pretrained-none": -0.06, "hf-matched-none": 0, "hf-random-none": 0}
    built = {} if kind is None else {"model_type": kind}
    change = about("*", "weights", architecture=built)
    findings = judged(tmp_path, runs(arms, backbone__title=title), change)
    assert_shows(findings, outcome="helps")
    assert name in markdown(findings).splitlines()[0]
    assert all(arm_label(arm).startswith(f"{name} (") for arm in findings.main.condition.arms)


def test_arms_are_in_words_after_the_first_reason(tmp_path):
    arms: Arms = {"t5-staged": -0.06, "t5-none": -0.01, "random-staged": 0.01, "random-none": 0}
    study = judged(tmp_path, arms | {"matched-staged": -0.02, "matched-none": 0})
    text = " ".join(study.reasons[1:])
    assert not re.search(r"\w-(none|staged)", text)
    assert "T5 (text) vs. T5 (random), gradual unfreezing" in text  # which both share


def test_masked_windows_share_the_steps_of_their_whole_length(tmp_path):
    c = main(judged(tmp_path, runs(GAIN, horizon=None)))
    assert c.over_time.degrees == 3  # with a horizon of 1 it would be 8


@pytest.mark.parametrize("newer", ["t5-none-*", "*-none-[012]"])
def test_runs_of_an_older_t5ts_without_newer_keys_are_compared(tmp_path, newer):
    write(tmp_path, GAIN)
    for path in tmp_path.glob(f"{newer}/config.yaml"):
        config = yaml.safe_load(path.read_text())
        config["train"] |= {"tf32": True, "resume_on_other_code": False}
        config["data"] |= dict.fromkeys(["separator", "decimal", "nulls"])
        path.write_text(yaml.safe_dump(config))
    for path in tmp_path.glob("*/provenance.json"):
        path.unlink()  # then the data is known by its keys alone
    assert_shows(found(tmp_path), outcome="lower", seeds=[*range(5)])


def test_a_small_sure_difference_of_plans_does_not_matter(tmp_path):
    arms: Arms = {"random-staged": (0.006, 0.0003), "random-none": (0, 0.0003)}
    (c,) = judged(tmp_path, arms).main.comparisons
    assert c.effect.low > 0
    assert c.kind == ALIKE


def test_pairs_name_their_question(tmp_path):
    study = judged(tmp_path, runs(WITH_CONTROL | {"random-all": 0.1}, seeds=[0]))
    assert [*shown(study)] == [
        ("best", "t5-none vs. random-none"),
        ("control", "t5-none vs. matched-none"),
        ("frozen_random", "t5-none vs. random-all"),
        ("freezing", "random-all vs. random-none"),
    ]
