"""Every composition is valid, or refused by name before any work starts."""

import math
import random
from dataclasses import asdict, fields, is_dataclass
from itertools import combinations
from operator import attrgetter
from typing import Any, get_args

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from t5ts.config import (
    CONF,
    SCHEMAS,
    SEARCHED,
    Config,
    from_hydra,
    identity,
    register,
    searched_folder,
    stored_config,
    sweep_name,
)
from t5ts.errors import ConfigError
from t5ts.overrides import check_overrides

GROUPS = {
    folder.name: sorted(p.stem for p in folder.glob("*.yaml"))
    for folder in CONF.iterdir()
    if folder.is_dir() and folder.name not in ("hydra", "experiment")
}
#: Of groups with many options one or two of each schema: they are alike in what they go with.
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


def is_possible(row: dict[str, str]) -> bool:
    backbone, init = row["backbone"], row["init"]
    has_encoder = backbone != "linear"
    has_checkpoint = backbone not in ("linear", "shared", "patchtst")
    is_t5 = has_checkpoint and backbone != "gpt2"
    return (
        (has_checkpoint or init == "random")
        and (is_t5 or init not in ("t5", "chronos"))
        and (has_encoder or (row["freeze"] == "none" and row["task"] != "reconstruct"))
        and ((has_checkpoint and init != "run") or row["patch"] != "prototypes")
    )


def test_any_choice_of_options_composes_or_is_refused_by_name(composed):
    chance = random.Random(0)
    groups = sorted(PAIRED.keys() - {"arm"})  # a named arm is a choice of the others
    drawn = [{name: chance.choice(PAIRED[name]) for name in groups} for _ in range(2000)]
    possible = {frozenset(combinations(row.items(), 2)): row for row in drawn if is_possible(row)}
    rows, seen = [row for row in drawn if not is_possible(row)][:6], frozenset[Any]()
    for _ in range(37):  # each has as many new pairs of options as can be
        pairs = max(possible, key=lambda pairs: len(pairs - seen))
        seen |= pairs
        rows.append(possible[pairs])
    assert len(seen) > 0.95 * len(frozenset().union(*possible))
    for row in rows:
        overrides = [f"{k}={v}" for k, v in row.items()]
        overrides += [NEEDS[item] for item in row.items() if item in NEEDS]
        if is_possible(row):
            config = composed(*overrides)
            assert {config.backbone.name, config.init.name} == {row["backbone"], row["init"]}
        else:
            with pytest.raises(ConfigError, match=f"backbone={row['backbone']}|init.path"):
                composed(*overrides)


def test_every_data_set_composes(composed):
    """As every backbone does for `download --list`."""
    for option in GROUPS["data"]:
        needs = [NEEDS["data", option]] if ("data", option) in NEEDS else []
        assert composed(f"data={option}", *needs).data.name


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_composes_and_states_its_question(path, composed):
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
    # a named arm is what its name says
    ("arm=log_shared backbone=t5_small", "backbone=t5_small"),
    ("arm=log_fair backbone=shared", "backbone=shared"),
    ("arm=log_fair init=t5", "init=t5"),
    ("arm=log_staged freeze=none", "freeze=none"),
]


@pytest.mark.parametrize(("overrides", "named"), IMPOSSIBLE)
def test_impossible_values_name_their_keys_and_a_way_out(overrides, named, composed):
    with pytest.raises(ConfigError) as error:
        composed(*overrides.split())
    for word in named.split():
        assert word in str(error.value)


#: Overrides, and the values of some keys after them.
COMPOSED = [
    ("", {"seq_len": 128, "horizon": 24, "patch.patch_len": 32, "patch.scale": "native"}),
    ("init=t5 freeze=staged", {"arm": "t5_small-t5-staged", "backbone.hub_id": "t5-small"}),
    ("optim.weight_decay=0 horizon=96", {"optim.weight_decay": 0.0, "horizon": 96}),
    ("task=reconstruct data=synthetic", {"horizon": None}),
    ("task=reconstruct backbone=linear task.mask=value", {"task.max_len": 10}),
    ("arm=log_staged backbone=t5_small", {"arm": "t5_small-t5-staged"}),
    # Arms of the lab log keep its token scale.
    *((f"arm={arm.stem}", {"patch.scale": "mul_sqrt_d"}) for arm in CONF.glob("arm/log_*.yaml")),
    ("patch=sqrt_d patch.scale=div_sqrt_d", {"patch.scale": "div_sqrt_d"}),
    ("data=etth1 data@ood=etth2 ood.dir=there", {"data.name": "etth1", "ood.name": "etth2"}),
    ("experiment=transfer_ood data@ood=etth2", {"ood.dataset": "etth2"}),
    ("experiment=transfer_ood ~data@ood", {"ood": None}),
    # A table is called after its file.
    ("data=csv data.path=sales.parquet", {"data.name": "sales"}),
    ("data@ood=csv ood.path=a..b.csv", {"ood.name": "a_b"}),
    ("data=csv data.path=.csv", {"data.name": "csv"}),
    ("data=csv data.path='my(1).csv'", {"data.name": "my_1_"}),
    ("data=csv data.path=x data.name=mine", {"data.name": "mine"}),
]


@pytest.mark.parametrize(("overrides", "expected"), COMPOSED)
def test_what_is_composed(overrides, expected, composed):
    config = composed(*overrides.split())
    assert {key: attrgetter(key)(config) for key in expected} == expected


def test_another_series_is_an_option_of_data():
    check_overrides(["data@ood=etth1,etth2", "~data@ood"])
    for chosen in ("data@ood=csv", "experiment=transfer_ood", "experiment=glob(*)"):
        check_overrides(["ood.path=x.csv", chosen])
    for wrong in ("nope", "null"):  # Hydra meets null with a traceback
        with pytest.raises(ConfigError, match=rf"data@ood={wrong} .*csv, etth1.*~data@ood"):
            check_overrides([f"data@ood={wrong}"])


def _types(hint: Any) -> set[Any]:
    """The types that a hint is made of: int and None for `int | None` or `list[int] | None`."""
    parts = get_args(hint)
    return {hint} if not parts else {t for part in parts for t in _types(part)}


def test_every_number_has_a_finite_range_beside_it():
    schemas = [Config, *(schema for options in SCHEMAS.values() for schema in options.values())]
    schemas += [f.type for f in fields(Config) if is_dataclass(f.type)]
    numbers = [f for schema in schemas for f in fields(schema) if {int, float} & _types(f.type)]
    assert len(numbers) > 60
    for f in numbers:
        holds = f.metadata["holds"]
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
def test_identities_of_earlier_runs_stay(overrides, expected, composed):
    assert identity(composed(*overrides, *EARLIER)) == expected


def test_identity_is_the_same_from_hydra_and_from_objects(composed):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("config", overrides=["seed=3"])
    assert identity(node) == identity(composed("seed=3"))
    assert OmegaConf.is_config(node)


CSV = "data=csv data.path=x"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("", "tracker=none train.resume=never"),
        (CSV, f"{CSV} data.name=csv"),
        ("arm=log_fair backbone=t5_small", "init=random freeze=none patch=sqrt_d"),
    ],
)
def test_identity_is_that_of_the_numbers(one, other, composed):
    assert identity(composed(*one.split())) == identity(composed(*other.split()))


@pytest.mark.parametrize(
    "more",
    [
        "seed=1", "optim.lr=0.002", "init=t5", "data.fraction=0.5", "train.precision=bf16",
        "data@ood=nyc_lga", "train.shuffled_test=true", "train.early_stopping_epochs=2",
        "train.tf32=false", "patch.bank_size=7",
        "init.allow_untrained=true",
        *(f"{CSV} data.{key}" for key in ("separator=tab", "decimal=','", "time_format=s",
                                          "nulls=[-9999]", "encoding=latin-1")),
    ],
)  # fmt: skip
def test_identity_changes_with_whatever_changes_numbers(more, composed):
    plain = CSV.split() if CSV in more else []
    assert identity(composed(*plain)) != identity(composed(*more.split()))


def test_a_named_arm_of_ones_own_may_name_groups_only():
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config")
    arm = {"init": "random", "no_group": "x"}
    hydra = {"callbacks": {"check": {"arm": arm}}, "runtime": {"choices": {"arm": "mine"}}}
    with pytest.raises(ConfigError, match=r"^arm=mine has no_group=x[^\n]*$"):
        from_hydra(cfg, OmegaConf.create(hydra))


def test_a_jobs_directory_ends_with_what_was_searched():
    def ending(keys: str) -> str:
        overrides = ["seed=1", "optim.lr=0.00036728194", "data.path=../a b/c.csv", "horizon=${x}"]
        job = {"env_set": {SEARCHED: keys} if keys else {}}
        return searched_folder(OmegaConf.create(
            {"hydra": {"job": job, "overrides": {"task": overrides}}}
        ))  # fmt: skip

    assert ending("") == ending("seed") == ""
    assert ending("seed optim.lr") == "-lr=0.0003673"
    assert ending("data.path") == "-path=__a_b_c.csv"
    assert ending("horizon") == "-horizon=_x_"  # as typed: nothing is looked up


def test_a_study_is_found_again_by_its_command_and_purpose():
    def name(*task: str, kind: str = "T5tsSweeper", **sweeper: str) -> str:
        node = {"_target_": f"a.{kind}", "best_of": None, "study_name": None} | sweeper
        runtime = {"choices": {"experiment": None}}
        hydra = {"sweeper": node, "overrides": {"task": list(task)}, "runtime": runtime}
        return sweep_name("now", OmegaConf.create({"hydra": hydra}))

    first = name("a=1", "b=2")
    assert first == name("b=2", "a=1")
    assert first.startswith("sweep-")
    others = [name("a=1"), name("a=1", "b=2", best_of="x"), name("a=1", "b=2", study_name="mine")]
    assert len({first, *others}) == 4
    assert name("a=1", kind="BasicSweeper") == "now"


@pytest.mark.parametrize(
    "overrides",
    [
        *(f"backbone={b} data@ood=nyc_lga" for b in ("linear", "shared", "t5_micro", "minilm_l6")),
        *(f"data={d} backbone=shared task=reconstruct"
          for d in ("nyc_weather", "synthetic", "etth1", "text_in_disguise")),
    ],
)  # fmt: skip
def test_a_stored_configuration_is_the_composed_one(overrides, composed):
    config = composed(*overrides.split())
    assert stored_config(asdict(config)) == config
    values = asdict(config) | {"arm_requires": []}  # as an older t5ts wrote it
    values["freeze"] |= {"always": []}
    assert identity(stored_config(values)) == identity(config)
