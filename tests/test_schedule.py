"""A plan covers every parameter, and the learning rate is a function of the step."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import read, rows, run

from t5ts.build import build
from t5ts.errors import ConfigError
from t5ts.schedule import Rule, assign, forecaster_plan, lr_factor, start_step, within_run
from t5ts.schema import OptimConfig, PartialFreeze

NAMES = [
    "patch.projection.weight",
    "patch.norm.weight",
    *(
        f"encoder.block.{i}.layer.{part}"
        for i in range(4)
        for part in (
            "0.SelfAttention.q.weight",
            "0.layer_norm.weight",
            "1.DenseReluDense.wi.weight",
        )
    ),
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "encoder.final_layer_norm.weight",
    "encoder.stem.conv.weight",
    "head.weight",
    "head.bias",
]


def plan(*, layer_decay: float = 1.0, unfreeze_epoch: float | None = 3.0, **freeze) -> dict:
    rules = forecaster_plan(
        PartialFreeze(name="staged", unfreeze_epoch=unfreeze_epoch, **freeze),
        OptimConfig(name="test", encoder_lr_scale=0.1, layer_decay=layer_decay),
        num_blocks=4,
    )
    return assign(rules, NAMES)


def starts(assigned: dict[str, Rule]) -> list[float | None]:
    return [
        assigned[f"encoder.block.{i}.layer.0.SelfAttention.q.weight"].start_epoch for i in range(4)
    ]


@pytest.mark.parametrize(
    ("order", "per_stage", "expected", "final"),
    [
        ("all_at_once", 1, [3, 3, 3, 3], 3),
        ("top_down", 1, [6, 5, 4, 3], 3),
        ("bottom_up", 1, [3, 4, 5, 6], 6),
        ("top_down", 2, [4, 4, 3, 3], 3),
        ("bottom_up", 3, [3, 3, 3, 4], 4),
    ],
)
def test_stages(order, per_stage, expected, final):
    assigned = plan(order=order, blocks_per_stage=per_stage)
    for name in ("head.weight", "patch.norm.weight"):
        assert (assigned[name].start_epoch, assigned[name].lr_scale) == (0.0, 1.0)
    assert starts(assigned) == expected
    assert assigned["encoder.final_layer_norm.weight"].start_epoch == final


def test_norms_only():
    assigned = plan(unfreeze_epoch=None, always=["layer_norm", "relative_attention_bias"])
    for name, rule in assigned.items():
        trains = not name.startswith("encoder") or "norm" in name or "relative" in name
        assert (rule.start_epoch == 0.0) == trains, name


def test_layer_decay_falls_from_the_top():
    assigned = plan(layer_decay=0.5, always=["layer_norm"])
    for part in ("0.SelfAttention.q.weight", "0.layer_norm.weight"):
        scales = [assigned[f"encoder.block.{i}.layer.{part}"].lr_scale for i in range(4)]
        assert scales == pytest.approx([0.1 / 8, 0.1 / 4, 0.1 / 2, 0.1])
    assert assigned["encoder.final_layer_norm.weight"].lr_scale == pytest.approx(0.1)
    assert assigned["encoder.stem.conv.weight"].lr_scale == pytest.approx(0.1 / 16)


def test_an_uncovered_parameter_is_an_error_naming_it():
    with pytest.raises(ValueError, match=r"surprise\.weight"):
        assign([Rule(pattern="^head", start_epoch=0.0, lr_scale=1.0)], ["surprise.weight"])


def test_what_starts_when_the_run_is_over_never_trains():
    rules = [Rule(pattern="", start_epoch=s, lr_scale=1.0) for s in (None, 0.0, 1.94, 1.96, 2.0, 9)]
    assert [start_step(rule.start_epoch, 10) for rule in rules] == [None, 0, 19, 20, 20, 90]
    within = within_run(rules, steps_per_epoch=10, total_steps=20)
    assert [rule.start_epoch for rule in within] == [None, 0.0, 1.94, None, None, None]


def test_a_stage_after_the_end_is_never_in_the_plan_and_warned_of(tiny, run_dir, caplog):
    staged = ("freeze=staged", "freeze.blocks_per_stage=1", "train.epochs=2")
    caplog.set_level("WARNING", "t5ts")
    run_dir.mkdir()
    run(tiny(*staged, "freeze.unfreeze_epoch=1"), run_dir=run_dir)
    plan = {line["component"]: line for line in read(run_dir / "provenance.json")["plan"]}
    assert (plan["block_1"]["start_epoch"], plan["block_0"]["start_epoch"]) == (1.0, None)
    steps = [row for row in rows(run_dir) if row["kind"] == "step"]
    assert steps[-1]["step/grad_norm/block_0"] == 0
    assert "block_0" in caplog.text
    assert "block_1" not in caplog.text
    with pytest.raises(ConfigError, match=r"freeze\.unfreeze_epoch=1\.99"):
        build(tiny(*staged, "freeze.unfreeze_epoch=1.99"))
    build(tiny(*staged, "freeze.unfreeze_epoch=1.99", "debug=fast_dev_run"))  # is no result
    always = ["freeze=staged_norms", "freeze.always=[laier_norm]"]
    with pytest.raises(ConfigError, match="laier_norm"):  # it would train nothing more
        build(tiny(*staged, "freeze.unfreeze_epoch=1", *always))


@settings(max_examples=40)
@given(
    total=st.integers(2, 500),
    warmup=st.integers(0, 50),
    least=st.floats(0, 1),
    shape=st.sampled_from(["cosine", "constant"]),
)
def test_lr_factor_warms_up_and_falls(total, warmup, least, shape):
    for step in range(total):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - 1 - warmup)))
        after = 1.0 if shape == "constant" else least + (1 - least) * cosine
        expected = (step + 1) / warmup if step < warmup else after
        got = lr_factor(step, total_steps=total, warmup_steps=warmup, shape=shape, min_ratio=least)
        assert got == pytest.approx(expected)
