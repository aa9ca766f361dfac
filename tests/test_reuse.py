"""A run that starts from another's frozen epochs equals one that trained them, bit for bit."""

import ast
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SMALL, TINY_T5
from runs import Compose, Killed, assert_same_run, changed, flip, read, rows, run, run_until

import t5ts
from t5ts import reuse
from t5ts.analysis.results import read_metrics
from t5ts.build import build
from t5ts.checks import check
from t5ts.config import MEASURED_BESIDES, NOT_IDENTITY, Config
from t5ts.errors import ConfigError
from t5ts.reuse import Reuse, lasting_settings
from t5ts.schedule import ACTS_LATER

EPOCHS = 4  # of the small setting


@pytest.fixture(scope="module")
def base(composed: Compose) -> Config:
    """The small setting with 3 steps an epoch, composed once for all examples."""
    return composed(*SMALL, *TINY_T5, "freeze=staged_norms", "train.batch_size=128")


@pytest.fixture
def staged(tiny: Compose, tmp_path: Path) -> Compose:
    """A staged run with the store of this test."""
    store = f"train.reuse_dir={tmp_path / 'store'}"
    return lambda *overrides: tiny("freeze=staged", "freeze.blocks_per_stage=1", store, *overrides)


def cold(config: Config) -> Config:
    return changed(config, {"train.reuse_dir": None})


# --- bitwise ---


def late(name: str, first: float | None = None, **others: Any) -> dict[str, Any]:
    """What trains when and how fast: all that trials of a sweep over unfreezing differ in."""
    plan = {"name": name, "unfreeze_epoch": first, "blocks_per_stage": 1} | others
    plan["always"] = ["layer_norm", "relative_attention_bias"] if name == "norms" else []
    return {f"freeze.{key}": value for key, value in plan.items()}


RATES = {"optim.encoder_lr_scale": 1.0, "optim.layer_decay": 0.8}
#: What acts from the start, in both runs; what each trains when; the epochs that the second reuses.
PAIRS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]] = [
    ({}, late("staged", 2.0, order="all_at_once"), late("staged", 3.25, order="top_down"), 2),
    (
        {"freeze.eval_mode": True, "optim.schedule": "constant", "optim.algorithm": "adamw_rms"},
        late("all"),
        late("staged", 1.5, order="bottom_up", epochs_per_stage=0.4),
        1,
    ),
    (
        {"backbone.dropout": 0.0, "optim.clip_norm": 0.3, "train.log_every": 4},
        late("staged", 3.0),
        late("staged", 3.0, rewarmup_epochs=0.5) | RATES,
        3,
    ),
    (
        {"objective": "val_corr", "train.eval_every_epochs": 3},
        late("staged", 2.9),
        late("all") | RATES,
        3,
    ),
    ({"train.early_stopping_epochs": 2}, late("staged", 3.0), late("staged", 2.9), 3),
    ({}, late("staged", 0.05), late("staged", 2.0), 0),  # one trains from the first step on
    ({}, late("staged", 0.5), late("all"), 0),  # unfrozen within the first epoch
    ({}, late("norms"), late("all"), 0),
]


@pytest.mark.parametrize(("common", "one", "other", "shared"), PAIRS)
def test_reused_equals_cold_bit_for_bit(common, one, other, shared, base, tmp_path):
    both = changed(base, common | {"train.reuse_dir": str(tmp_path / "store")})
    first, second = changed(both, one), changed(both, other)
    check(first)
    check(second)
    run(first, run_dir=tmp_path / "first")
    key = read(tmp_path / "first" / "provenance.json")["reuse"]["key"]
    assert list((tmp_path / "store").glob(f"{key}.*"))
    warm = run(second, run_dir=tmp_path / "warm")
    run(cold(second), run_dir=tmp_path / "cold")
    assert_same_run(tmp_path / "warm", tmp_path / "cold")
    about = read(tmp_path / "warm" / "provenance.json")["reuse"]
    assert warm.reused_epochs == about["epochs"] == shared
    # Epoch 0 at least: before the first step all plans are one.
    assert about["trained_by"]["run_dir"] == str((tmp_path / "first").resolve())


@pytest.mark.parametrize(
    ("starts", "settled", "patience", "frozen"),
    [
        ([0.0], 0, None, 0),
        ([0.0, 3.0], 30, None, 3),
        ([0.0, 5.99, 2.5], 60, None, 2),
        ([0.0, 0.04], 0, None, 0),  # at step 0
        ([0.0, None], 0, None, 8),
        # It may end with the first epoch that is not better.
        ([0.0, None], 0, 1, 0),
        ([0.0, None], 21, 2, 4),
        ([0.0, 5.0], 60, 2, 5),
    ],
)
def test_whole_epochs_before_anything_unfreezes(starts, settled, patience, frozen):
    plan = {str(number): SimpleNamespace(start_epoch=start) for number, start in enumerate(starts)}
    optimizer = SimpleNamespace(plan=plan, settled_step=settled)
    setup: Any = SimpleNamespace(steps_per_epoch=10, epochs=8, optimizer=optimizer)
    assert reuse.frozen_epochs(setup, patience) == frozen


def test_a_prefix_grows_from_run_to_run(staged, tmp_path):
    others = [f"freeze.unfreeze_epoch={epoch}" for epoch in (1, 3, 2)]
    others += ["seed=1", "train.epochs=5", "freeze=all", "freeze=all optim=adamw"]
    reused = [
        run(staged(*overrides.split()), run_dir=tmp_path / overrides).reused_epochs
        for overrides in others
    ]
    # At last nothing is left to train: only the test is read.
    assert reused == [0, 1, 2, 0, 0, 3, EPOCHS]
    run(cold(staged("freeze=all")), run_dir=tmp_path / "cold")
    assert_same_run(tmp_path / "freeze=all", tmp_path / "cold")
    assert rows(tmp_path / "freeze=all optim=adamw") == rows(tmp_path / "cold")


def test_what_trains_from_the_start_is_in_the_key(staged, tmp_path):
    """With norms that train at once, the encoder's rate acts at once too."""
    norms = staged("freeze=norms")
    run(norms, run_dir=tmp_path / "first")
    for key, value, shared in (
        ("freeze.rewarmup_epochs", 1.0, EPOCHS),
        ("optim.encoder_lr_scale", 0.5, 0),
    ):
        assert run(changed(norms, {key: value}), run_dir=tmp_path / key).reused_epochs == shared


# --- the key ---


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(node, dict):
        yield prefix
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else key)


@pytest.mark.parametrize(
    "overrides",
    [
        TINY_T5,
        ["backbone=shared", "data=nyc_weather"],
        ["backbone=local", "backbone.path=DIR", "data=csv", "data.path=a.csv", "debug=overfit"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_setting_is_in_the_key_or_on_the_list(overrides, composed):
    config = composed(*SMALL[2:], "freeze=staged_norms", *overrides)
    listed = (*ACTS_LATER, *NOT_IDENTITY)
    in_key, found = set(leaves(lasting_settings(config))), set()
    for key in leaves(asdict(config)):
        on_list = next((name for name in listed if f"{key}.".startswith(f"{name}.")), None)
        # A newer setting counts where it is not at the value that changes nothing.
        is_newer = key in MEASURED_BESIDES or key == "backbone.card"
        assert (key in in_key) == (on_list is None) or is_newer, key
        found.add(on_list)
    assert found - {None} == set(listed)  # no stale name on the lists


def test_code_data_weights_and_machine_are_in_the_key(base, tmp_path, monkeypatch):
    config = changed(base, {"train.reuse_dir": str(tmp_path / "store")})

    def key() -> str:
        about = Reuse(config, setup, tmp_path / "run", None, {}).about
        assert about is not None
        return about["key"]

    setup = build(config)
    keys = [key()]
    assert key() == keys[0]
    for target, name, value in (
        (reuse, "LOADED_CODE", "other"),
        (torch, "__version__", "0.0"),
        (reuse, "processor", lambda: "another"),
        (torch, "get_num_threads", lambda: 2),
        (setup, "autocast", torch.bfloat16),
        (setup.data.series, "sha256", "other"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(target, name, value)
            keys.append(key())
    with monkeypatch.context() as patched:
        patched.setenv("MKL_CBWR", "COMPATIBLE")
        keys.append(key())
    assert key() == keys[0]
    with torch.no_grad():
        next(setup.model.encoder.parameters()).view(-1)[0] += 1e-6
    keys.append(key())
    assert len(set(keys)) == len(keys) == 9


def test_source_files_that_changed_since_the_start_are_not_what_ran(
    staged, tmp_path, monkeypatch, caplog
):
    config = staged("freeze.unfreeze_epoch=2")
    run(config, run_dir=tmp_path / "first")
    with monkeypatch.context() as patched:
        patched.setattr(reuse, "code_digest", lambda: "edited")
        assert run(config, run_dir=tmp_path / "edited").reused_epochs == 0
    assert caplog.text.count("source files have changed") == 1
    assert run(config, run_dir=tmp_path / "second").reused_epochs == 2


# --- stopping, resuming, failing ---


@pytest.mark.parametrize(("step", "politely"), [(1, True), (6, False), (8, True)])
def test_a_run_that_began_from_a_prefix_resumes_bit_for_bit(step, politely, staged, tmp_path):
    config = staged("freeze.unfreeze_epoch=2")
    run(changed(config, {"freeze.order": "bottom_up"}), run_dir=tmp_path / "first")
    run_until(step, config, tmp_path / "warm", politely=politely)
    # Neither the store nor the switch matters any more: the run has its own checkpoint.
    result = run(cold(config) if step == 6 else config, run_dir=tmp_path / "warm")
    assert result.reused_epochs == 2
    assert read(tmp_path / "warm" / "provenance.json")["reuse"]["trained_by"]["run_dir"] == str(
        tmp_path / "first"
    )
    run(cold(config), run_dir=tmp_path / "cold")
    assert_same_run(tmp_path / "warm", tmp_path / "cold")


def test_killed_before_the_prefix_stands_it_is_taken_again(staged, tmp_path, monkeypatch):
    config = staged("freeze.unfreeze_epoch=2")
    run(config, run_dir=tmp_path / "first")
    real = reuse.save_checkpoint

    def die_at_last(path: Path, *rest: Any) -> None:
        if path.name == "last.safetensors":
            raise Killed
        real(path, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(reuse, "save_checkpoint", die_at_last)
        with pytest.raises(Killed):
            run(config, run_dir=tmp_path / "warm")
    assert run(config, run_dir=tmp_path / "warm").reused_epochs == 2
    assert rows(tmp_path / "warm") == rows(tmp_path / "first")


def test_a_resumed_run_shares_its_epochs_unless_other_code_began_it(staged, tmp_path, monkeypatch):
    config = staged("freeze.unfreeze_epoch=3")
    for name, edits in (("same", False), ("other", True)):
        here = changed(config, {"train.reuse_dir": str(tmp_path / f"{name}-store")})
        with monkeypatch.context() as patched:
            if edits:
                patched.setattr(reuse, "LOADED_CODE", "before")
                patched.setattr(reuse, "code_digest", lambda: "before")
            run_until(8, here, tmp_path / name)
        run(here, run_dir=tmp_path / name)
        later = run(changed(here, {"freeze.order": "bottom_up"}), run_dir=tmp_path / f"{name}-2")
        # What the edited code began is shared by neither: of its second part nothing is known.
        assert later.reused_epochs == (0 if edits else 3)


def test_starting_anew_and_elsewhere(staged, tmp_path):
    config = staged("freeze.unfreeze_epoch=2")
    first = run(config, run_dir=tmp_path / "a")
    anew = run(changed(config, {"train.resume": "never"}), run_dir=tmp_path / "a")
    assert (first.reused_epochs, anew.reused_epochs) == (0, 2)
    assert anew.metrics == first.metrics
    run_until(3, config, tmp_path / "b")
    moved = run(changed(config, {"train.resume": str(tmp_path / "b")}), run_dir=tmp_path / "c")
    assert moved.reused_epochs == 2
    assert rows(tmp_path / "c") == rows(tmp_path / "a")


def test_a_damaged_entry_costs_an_epoch_and_no_more(staged, tmp_path, caplog):
    config = staged("freeze.unfreeze_epoch=3")
    run(config, run_dir=tmp_path / "first")
    (path,) = (tmp_path / "store").glob("*.00003.*")
    flip(path, path.stat().st_size // 2)
    assert run(config, run_dir=tmp_path / "warm").reused_epochs == 2
    assert str(path) in caplog.text
    assert rows(tmp_path / "warm") == rows(tmp_path / "first")
    assert run(config, run_dir=tmp_path / "again").reused_epochs == 3  # it was shared anew


def test_a_store_that_fails_later_costs_the_run_nothing(staged, tmp_path, monkeypatch, caplog):
    def full(*_: Any) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("t5ts.reuse.PrefixStore.publish", full)
    run(staged("freeze.unfreeze_epoch=2"), run_dir=tmp_path / "run")
    assert caplog.text.count("No space left on device") == 1


def test_a_folder_that_cannot_be_written_is_refused_before_training(staged, tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(ConfigError, match=r"train\.reuse_dir=.*store cannot be written"):
        run(staged(), run_dir=tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock"}
    with pytest.raises(ConfigError, match=r"train\.reuse_max_gb"):
        staged("train.reuse_max_gb=0")


def test_reused_epochs_are_the_runs_own(staged, tmp_path, monkeypatch):
    """A sweep receives them, their seconds count, and the best epoch may be among them."""
    # At such a rate the first step ruins the model.
    config = staged("freeze.unfreeze_epoch=3", "optim.lr=3", "optim.schedule=constant")
    heard: list[tuple[int, float]] = []
    pause_s = 0.2

    def hear(row: Any) -> None:
        heard.append((row["epoch"], row["val_loss"]))
        time.sleep(pause_s if len(heard) <= EPOCHS else 0)

    with monkeypatch.context() as patched:
        patched.setattr("t5ts.train.peak_memory", lambda _device: 1e18)
        first = run(config, run_dir=tmp_path / "first", after_epoch=hear)
    warm = run(config, run_dir=tmp_path / "warm", after_epoch=hear)
    assert (warm.reused_epochs, warm.best_epoch, first.best_epoch) == (3, 0, 0)
    assert_same_run(tmp_path / "warm", tmp_path / "first")
    assert heard[: EPOCHS + 1] == heard[EPOCHS + 1 :]
    assert first.peak_memory_bytes == 1e18 > warm.peak_memory_bytes
    assert warm.seconds > 3 * pause_s  # the other's pauses before the end of epoch 3
    lines = read_metrics(tmp_path / "warm", "eval")
    assert ["perf/elapsed_s" in row for row in lines] == [False] * 4 + [True]
    assert lines[-1]["perf/elapsed_s"] <= warm.seconds

    def prune(_row: Any) -> None:
        raise Killed

    with pytest.raises(Killed):
        run(config, run_dir=tmp_path / "pruned", after_epoch=prune)


def test_what_acts_later_is_read_by_the_plan_alone():
    """A new reader of such a setting could make it act earlier: it must be looked at here."""
    package = Path(t5ts.__file__).parent
    # Options without `always` have it as an empty `exempt`, which is what everything reads.
    keys = {*ACTS_LATER, "freeze.exempt"} - {"freeze.always"}
    readers: dict[str, set[str]] = {key: set() for key in keys}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                key = ".".join(ast.unparse(node).split(".")[-2:])
                readers.get(key, set()).add(path.relative_to(package).as_posix())
    # `schedule` and `build` make the plan of them, `checks` refuses impossible ones, and a sweep's
    # worker reads the unfreeze epoch to know from when a trial may be pruned, which changes no
    # number of it.
    assert readers["freeze.unfreeze_epoch"] >= {"sweep/trial.py"}
    readers["freeze.unfreeze_epoch"].discard("sweep/trial.py")
    plan = {"build.py", "schedule.py"}
    for key, files in readers.items():
        assert files <= {*plan, "checks.py"} or key == "freeze.name", key
        assert files & plan or key == "freeze.name", key
    # Only a label: a part of the arm's name, and of its name in words.
    assert readers["freeze.name"] == {"config.py", "checks.py", "analysis/words.py"}
