"""Every composition is possible or refused by name, before any work starts."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any, get_args

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from t5ts.checks import check_overrides
from t5ts.config import CONF, SCHEMAS, SEARCHED, Config, identity, register, searched_folder
from t5ts.errors import ConfigError

GROUPS = {
    folder.name: sorted(p.stem for p in folder.glob("*.yaml"))
    for folder in CONF.iterdir()
    if folder.is_dir() and folder.name not in ("hydra", "experiment")
}
#: Options of one schema are alike in what they go with: of these groups, one or two of each.
PAIRED = GROUPS | {
    "backbone": ["t5_small", "local", "gpt2", "shared", "patchtst", "linear"],
    "data": ["nyc_weather", "csv", "etth1", "synthetic", "text_in_disguise"],
}
#: What options cannot do without.
NEEDS = {
    ("init", "run"): "init.path=there",
    ("backbone", "local"): "backbone.path=some/dir",
    ("backbone", "hf"): "backbone.path=some/dir",
    ("data", "csv"): "data.path=some.csv",
}


def covering_rows() -> list[dict[str, str]]:
    """Compositions in which every pair of options of two groups stands at least once (greedy)."""
    names = sorted(set(GROUPS) - {"arm"})  # a named arm is a choice of the others, not beside them
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in PAIRED[a]
        for y in PAIRED[b]
    }
    rows = []
    while missing:
        row = dict(min(missing))
        for name in names:
            if name not in row:
                row[name] = max(
                    PAIRED[name],
                    key=lambda option, name=name, row=row: sum(
                        tuple(sorted([(name, option), other])) in missing for other in row.items()
                    ),
                )
        covered = set(itertools.combinations(sorted(row.items()), 2))
        assert covered & missing
        missing -= covered
        rows.append(row)
    return rows


def is_possible(row: dict[str, str]) -> bool:
    backbone, init = row["backbone"], row["init"]
    has_encoder = backbone != "linear"
    has_checkpoint = backbone not in ("linear", "shared", "patchtst")
    is_t5 = has_checkpoint and backbone != "gpt2"
    return (
        (has_checkpoint or init == "random")
        and (is_t5 or init not in ("t5", "chronos"))
        and (has_encoder or (row["freeze"] == "none" and row["task"] != "reconstruct"))
        and ((is_t5 and init != "run") or row["patch"] != "prototypes")
    )


def test_every_pair_of_options_composes_or_is_refused_by_name(
    composed: Callable[..., Config],
) -> None:
    rows = covering_rows()
    assert {is_possible(row) for row in rows} == {True, False}
    for row in rows:
        overrides = [f"{k}={v}" for k, v in row.items()]
        overrides += [NEEDS[item] for item in row.items() if item in NEEDS]
        if is_possible(row):
            config = composed(*overrides)
            assert {config.backbone.name, config.init.name} == {row["backbone"], row["init"]}
        else:
            with pytest.raises(ConfigError, match=f"backbone={row['backbone']}|init.path"):
                composed(*overrides)


@pytest.mark.parametrize("group", ["backbone", "data"])
def test_every_option_composes(group: str, composed: Callable[..., Config]) -> None:
    for option in GROUPS[group]:
        needs = [NEEDS[group, option]] if (group, option) in NEEDS else []
        assert getattr(composed(f"{group}={option}", *needs), group).name


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_composes_and_states_its_question(path, composed) -> None:
    assert isinstance(composed(f"experiment={path.stem}"), Config)
    head = path.read_text().split("\n\n")[0]
    for word in ("Question:", "Command:", "Minutes:", "Expected:"):
        assert word in head, f"{path} does not state its {word}"


#: Overrides, and what the message must name.
IMPOSSIBLE = [
    ("backbone=shared init=t5", "backbone=shared init=t5 init=random"),
    ("backbone=linear freeze=all", "backbone=linear freeze=all"),
    ("patch.patch_len=200", "patch.patch_len=200 seq_len=128"),
    ("patch.stride=40", "patch.stride=40 patch.patch_len=32"),
    ("freeze=staged freeze.unfreeze_epoch=10", "unfreeze_epoch=10 train.epochs=10"),
    ("freeze=none freeze.unfreeze_epoch=2", "freeze=none freeze.unfreeze_epoch"),
    ("freeze=all freeze.unfreeze_epoch=2", "freeze=all freeze=staged"),
    ("freeze=staged freeze.unfreeze_epoch=null", "freeze=staged freeze=all"),
    ("train.precision=fp16 train.device=cpu", "train.precision=fp16 train.device"),
    ("train.precision=bf16 train.device=mps", "train.precision=bf16 train.device=mps"),
    ("patch=plain patch.scale=mul_sqrt_d", "patch.scale patch.norm"),
    ("patch=plain patch.scale=native", "patch.scale=native patch.norm"),
    ("init=run", "init=run init.path=RUN_DIR"),
    ("init=t5 init.path=there", "init=t5 init.path=there"),
    ("init=run init.path=there backbone=shared", "init=run backbone=shared"),
    ("patch.init=run", "patch.init=run patch.path"),
    ("patch.path=there", "patch.init=fresh patch.path=there"),
    ("head=per_patch", "head=per_patch task=reconstruct head=flatten"),
    ("head=per_patch task=reconstruct task.mask=value backbone=linear", "head backbone=linear"),
    ("head=per_patch task=reconstruct patch.stride=8", "head=per_patch patch.stride=8"),
    ("patch.scale=match_embedding", "patch.scale init=random backbone.embedding_rms"),
    ("patch.scale=match_embedding backbone=shared", "patch.scale backbone=shared"),
    ("patch=prototypes backbone=shared", "patch.num_prototypes backbone=shared patch=norm"),
    ("patch=prototypes init=run init.path=there", "num_prototypes init.path=there patch=norm"),
    ("backbone=local backbone.path=null", "backbone=local backbone.path=DIR"),
    ("train.batch_size=4 train.grad_accumulation=8", "accumulation=8 batch_size=4"),
    ("freeze=all freeze.always=[layer_norm]", "freeze=all freeze.always"),
    ("freeze=norms freeze.always=[]", "freeze=norms freeze=all"),
    ("task=reconstruct horizon=12", "horizon=12 task=reconstruct horizon=null"),
    ("task=reconstruct data=synthetic data.horizon=24", "data.horizon=24 horizon=None"),
    ("data=synthetic data.horizon=12", "data.horizon=12 horizon=24"),
    ("horizon=null", "task=forecast horizon=NUMBER"),
    ("task=reconstruct objective=val_mase", "val_mase reconstruct val_skill"),
    ("task=reconstruct train.shuffled_test=true", "train.shuffled_test=true task=reconstruct"),
    ("task=reconstruct backbone=linear", "task.mask=token task.mask=value"),
    ("task=reconstruct task.mask=zero", "task.mask=zero token value"),
    ("task=reconstruct task.ratio=1", "task.ratio=1 below"),
    ("task=reconstruct task.max_len=128", "task.max_len=128 seq_len"),
    ("task=reconstruct task.min_len=11", "task.max_len=10 task.min_len=11"),
    ("data@ood=csv", "ood.path"),
    ("data@ood=nyc_lga ood.fraction=0.5", "ood.fraction data.fraction"),
    ("data@ood=nyc_lga ood.windows_per_epoch=9", "ood.windows_per_epoch"),
    ("optim.lr=0 train.epochs=0 backbone=shared init=t5", "optim.lr train.epochs backbone=shared"),
]


@pytest.mark.parametrize(("overrides", "named"), IMPOSSIBLE)
def test_impossible_values_name_their_keys_and_a_way_out(overrides, named, composed) -> None:
    with pytest.raises(ConfigError) as error:
        composed(*overrides.split())
    for word in named.split():
        assert word in str(error.value)


def test_what_is_measured_besides_is_no_part_of_the_identity_where_it_is_off(composed) -> None:
    """Runs from before there were such settings keep their directories."""
    values = asdict(composed("tracker=none"))
    for key in ("arm_requires", "tracker", "ood", "head"):
        del values[key]
    for key in ("resume", "resume_on_other_code", "checkpoint_every_s", "progress"):
        del values["train"][key]
    del values["train"]["reuse_dir"], values["train"]["reuse_max_gb"]
    del values["train"]["shuffled_test"], values["train"]["tf32"]
    del values["train"]["early_stopping_epochs"]
    del values["init"]["path"], values["init"]["checkpoint"], values["init"]["keep"]
    del values["patch"]["init"], values["patch"]["path"]
    del values["patch"]["num_prototypes"], values["patch"]["bank_size"]
    values["backbone"]["full_params"] = [59_000_000, 62_000_000]  # a setting until 2026-11-26
    text = json.dumps(values, sort_keys=True)
    assert identity(composed()) == hashlib.sha256(text.encode()).hexdigest()[:10]


def test_the_other_series_is_an_option_of_data_in_another_place(composed) -> None:
    config = composed("data=etth1", "data@ood=etth2", "ood.dir=there")
    assert (config.data.name, config.ood.name, config.ood.dir) == ("etth1", "etth2", "there")
    assert composed("experiment=transfer_ood", "data@ood=etth2").ood.dataset == "etth2"
    assert composed("experiment=transfer_ood", "~data@ood").ood is None
    check_overrides(["data@ood=etth1,etth2", "~data@ood"])
    for wrong in ("nope", "null"):  # Hydra meets null with a traceback
        with pytest.raises(ConfigError, match=rf"data@ood={wrong} .*csv, etth1.*~data@ood"):
            check_overrides([f"data@ood={wrong}"])


def _types(hint: Any) -> set[Any]:
    """The types that a hint is made of: int and None for `int | None` or `list[int] | None`."""
    parts = get_args(hint)
    return {hint} if not parts else {t for part in parts for t in _types(part)}


def test_every_number_has_a_finite_range_beside_it() -> None:
    schemas = [Config, *(schema for options in SCHEMAS.values() for schema in options.values())]
    schemas += [f.type for f in fields(Config) if is_dataclass(f.type)]
    numbers = [f for schema in schemas for f in fields(schema) if {int, float} & _types(f.type)]
    assert len(numbers) > 60
    for f in numbers:
        holds = f.metadata["allowed"].holds
        assert not any(map(holds, (math.nan, math.inf, -math.inf, 1e36))), f.name


#: What were the defaults of earlier runs.
EARLIER = ["patch=sqrt_d", "optim.lr=1e-3", "optim.encoder_lr_scale=0.1"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "fbf1ef6500"),
        (["init=t5", "freeze=staged"], "7628d439ac"),
        (["data=csv", "data.path=x"], "f9d508177c"),
    ],
)
def test_identities_of_earlier_runs_stay(overrides: list[str], expected: str, composed) -> None:
    assert identity(composed(*overrides, *EARLIER)) == expected


def test_named_arms_of_the_lab_log_keep_its_token_scale(composed: Callable[..., Config]) -> None:
    assert composed().patch.scale == "native"
    arms = sorted(path.stem for path in (CONF / "arm").glob("log_*.yaml"))
    assert {composed(f"arm={arm}").patch.scale for arm in arms} == {"mul_sqrt_d"}
    assert composed("patch=sqrt_d", "patch.scale=div_sqrt_d").patch.scale == "div_sqrt_d"


def test_identity_is_the_same_from_hydra_and_from_objects_and_ignores_the_tracker(composed) -> None:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("config", overrides=["seed=3"])
    assert identity(node) == identity(composed("seed=3"))
    assert identity(composed()) == identity(composed("tracker=none", "train.resume=never"))
    assert OmegaConf.is_config(node)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "optim.lr=0.002", "init=t5", "data.fraction=0.5", "train.precision=bf16",
        "data@ood=nyc_lga", "train.shuffled_test=true",
    ],
)  # fmt: skip
def test_identity_changes_with_whatever_changes_numbers(override, composed) -> None:
    assert identity(composed()) != identity(composed(override))


def test_the_task_sets_the_horizon_and_may_be_overruled(composed) -> None:
    assert composed().horizon == 24
    assert composed("horizon=96").horizon == 96
    assert composed("task=reconstruct", "data=synthetic").horizon is None
    assert composed("task=reconstruct", "backbone=linear", "task.mask=value").task.max_len == 10


def test_mission_spelling(composed) -> None:
    config = composed("init=t5", "freeze=staged", "optim.weight_decay=0")
    assert config.arm == "t5_small-t5-staged"
    assert (config.seq_len, config.horizon, config.patch.patch_len) == (128, 24, 32)
    assert (config.backbone.hub_id, config.optim.weight_decay) == ("t5-small", 0.0)


@pytest.mark.parametrize(
    "overrides",
    [
        ["arm=log_shared", "backbone=t5_small"],
        ["arm=log_fair", "backbone=shared"],
        ["arm=log_fair", "init=t5"],
        ["arm=log_staged", "freeze=none"],
    ],
)
def test_a_named_arm_is_what_its_name_says_or_refused(
    composed: Callable[..., Config], overrides: list[str]
) -> None:
    composed(overrides[0])
    with pytest.raises(ConfigError, match=overrides[1]):
        composed(*overrides)


def test_a_named_arm_is_the_run_that_its_groups_give(composed: Callable[..., Config]) -> None:
    named = composed("arm=log_fair", "backbone=t5_small")
    groups = ["backbone=t5_small", "init=random", "freeze=none", "patch=sqrt_d"]
    assert identity(named) == identity(composed(*groups))
    assert composed("arm=log_staged", "backbone=t5_small").arm == "t5_small-t5-staged"


def test_keys_of_a_table_are_in_an_identity_only_where_they_are_set(
    composed: Callable[..., Config],
) -> None:
    table = ["data=csv", "data.path=x"]
    values = ["separator=tab", "decimal=','", "time_format=s", "nulls=[-9999]", "encoding=latin-1"]
    keys = [[f"data.{value}"] for value in values]
    assert len({identity(composed(*table, *key)) for key in [[], *keys]}) == 1 + len(keys)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("sales.parquet", "sales"),
        ("'/x/my data (1).csv'", "my_data_1_"),
        ("a..b.csv", "a_b"),
        (".csv", "csv"),
    ],
)
def test_a_table_is_called_after_its_file_and_keeps_its_identity(path, name, composed) -> None:
    table = ("data=csv", f"data.path={path}")
    assert composed(*table).data.name == name
    assert composed("data@ood=csv", f"ood.path={path}").ood.name == name
    assert composed(*table, "data.name=mine").data.name == "mine"
    assert identity(composed(*table)) == identity(composed(*table, "data.name=csv"))


def test_a_jobs_directory_ends_with_what_was_searched() -> None:
    def ending(keys: str) -> str:
        overrides = [
            "seed=1",
            "optim.lr=0.00036728194",
            "data.path=../a b/c.csv",
            "train.epochs=${x}",
        ]
        job = {"env_set": {SEARCHED: keys} if keys else {}}
        return searched_folder(OmegaConf.create(
            {"hydra": {"job": job, "overrides": {"task": overrides}}}
        ))  # fmt: skip

    assert ending("") == ending("seed") == ""
    assert ending("seed optim.lr") == "-lr=0.0003673"
    assert ending("data.path") == "-path=__a_b_c.csv"
    assert ending("train.epochs") == "-epochs=_x_"  # as typed: nothing is looked up
