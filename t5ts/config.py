"""The whole configuration: composed by Hydra, turned into plain objects, and its identity.

`conf/config.yaml` is the table of contents. Hydra composes it over the classes of `t5ts.schema`, so
that a typo or a wrong type is refused before any work starts; `t5ts.checks` applies their ranges
and refuses impossible pairs. Below `from_hydra` there are plain dataclasses, no DictConfig.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from t5ts import schema
from t5ts.command import console_level
from t5ts.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent
#: The YAML tree: next to the package in a checkout, inside it in an installed wheel.
CONF = next(p for p in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if p.is_dir())
#: Metrics that may select a run's epoch and be returned to Hydra, and their direction.
OBJECTIVES = {
    "val_loss": "min",
    "val_mae": "min",
    "val_mase": "min",
    "val_corr": "max",
    "val_corr_delta": "max",
    "val_skill": "max",
}
#: Settings that cannot change a number of the run, and so are not part of its identity.
NOT_IDENTITY = (
    "tracker",
    "train.resume",
    "train.resume_on_other_code",
    "train.checkpoint_every_s",
    "train.progress",
    "train.reuse_dir",
    "train.reuse_max_gb",
)
#: In Hydra's `hydra.job.env_set` of a multirun's job: the keys that differ from job to job.
SEARCHED = "T5TS_SEARCHED"
#: Overrides that a run's name already contains, or that cannot change a number.
_NOT_IN_NAME = ("arm", "backbone", "experiment", "freeze", "init", "objective", "seed")
#: Longest list of searched settings in a directory's name, in characters.
_MOST_IN_FOLDER = 80
#: Settings newer than some runs, each with the value that changes nothing. They are part of an
#: identity only at other values, so that runs from before such a setting keep their identity.
MEASURED_BESIDES: dict[str, Any] = {
    "ood": None,
    "train.shuffled_test": False,
    "train.tf32": True,  # changes no number on a CPU
    "train.early_stopping_epochs": None,
    "head": "flatten",
    "init.path": None,
    "init.checkpoint": None,
    "init.keep": [],
    "init.allow_untrained": False,
    "patch.init": "fresh",
    "patch.path": None,
    "patch.num_prototypes": None,
    "patch.bank_size": 1024,
} | {
    f"{data}.{key}": None
    for data in ("data", "ood")
    for key in ("separator", "decimal", "time_format", "nulls", "encoding")
}

#: Top-level settings of an older t5ts, which cannot change a number.
_NO_LONGER = ("claims", "arm_requires")
#: Parameter counts of the presets' whole checkpoints, [least, most]. They were a setting until
#: 2026-11-26, and identities still include them.
FULL_PARAMS = {
    "bert_base": [108_891_648, 108_891_648],
    "distilbert": [66_362_880, 66_362_880],
    "flan_t5_small": [76_000_000, 78_000_000],
    "gpt2": [124_439_808, 124_439_808],
    "llama3_2_1b": [1_235_814_400, 1_235_814_400],
    "minilm_l6": [22_565_376, 22_565_376],
    "modernbert_base": [149_014_272, 149_014_272],
    "mt5_small": [299_000_000, 301_000_000],
    "opt_125m": [125_239_296, 125_239_296],
    "qwen2_5_0_5b": [494_032_768, 494_032_768],
    "roberta_base": [124_055_040, 124_055_040],
    "smollm2_135m": [134_515_008, 134_515_008],
    "t5_base": [222_000_000, 224_000_000],
    "t5_efficient_mini": [30_000_000, 32_500_000],
    "t5_efficient_small": [59_000_000, 62_000_000],
    "t5_efficient_tiny": [15_000_000, 16_500_000],
    "t5_large": [737_000_000, 739_000_000],
    "t5_small": [59_000_000, 62_000_000],
    "t5_tiny_en": [5_245_312, 5_245_312],
    "t5_v1_1_small": [76_000_000, 78_000_000],
}


@dataclass(kw_only=True)
class Config:
    """The whole configuration; each group is explained by its own class."""

    seed: int = schema.number(0, "[0, 1e15]")
    seq_len: int = schema.number(128, "[1, 1e6]")
    #: The task's default; null where it has none.
    horizon: int | None = schema.number(None, "[1, 1e6]")
    head: str = schema.choice("flatten", "flatten", "per_patch")
    objective: str = schema.choice("val_loss", *OBJECTIVES)
    data: schema.DataConfig = MISSING
    #: Another series, whose test windows the selected checkpoint is measured on too.
    ood: schema.DataConfig | None = None
    task: schema.TaskConfig = MISSING
    backbone: schema.BackboneConfig = MISSING
    init: schema.InitConfig = MISSING
    freeze: schema.FreezeConfig = MISSING
    patch: schema.PatchConfig = MISSING
    normalize: schema.NormalizeConfig = MISSING
    optim: schema.OptimConfig = MISSING
    train: schema.TrainConfig = MISSING
    tracker: schema.TrackerConfig = MISSING
    debug: schema.DebugConfig = MISSING

    @property
    def arm(self) -> str:
        """What is compared: the encoder, its weights' origin and its freezing."""
        return f"{self.backbone.name}-{self.init.name}-{self.freeze.name}"


#: Groups whose options have keys of their own.
SCHEMAS: dict[str, dict[str, type]] = {
    "backbone": {
        "t5": schema.T5Backbone,
        "hf": schema.HFBackbone,
        "shared": schema.SharedBackbone,
        "linear": schema.LinearBackbone,
    },
    "data": {
        "nyc_weather": schema.NycWeatherData,
        "ett": schema.EttData,
        "csv": schema.CsvData,
        "synthetic": schema.SyntheticData,
        "text_in_disguise": schema.TextInDisguiseData,
        "process": schema.ProcessData,
    },
    "task": {"forecast": schema.TaskConfig, "reconstruct": schema.ReconstructTask},
    "freeze": {"whole": schema.FreezeConfig, "partial": schema.PartialFreeze},
}


def register() -> None:
    """Give Hydra the schemas that `conf/` extends, and the resolvers that it uses."""
    store = ConfigStore.instance()
    # Hydra copies all of it for each composition and, for --help, each group (50 ms a time). There
    # is one store in a process, and what it returns are copies.
    ConfigStore.__deepcopy__ = lambda self, _memo: self  # type: ignore[attr-defined]
    store.store(name="schema", node=Config)
    for group, schemas in SCHEMAS.items():
        for option, node in schemas.items():
            # Below hydra, where neither --help nor tab completion offers them as options.
            store.store(group=f"hydra/schema/{group}", name=option, node=node)
    resolvers: dict[str, Callable[..., Any]] = {
        "t5ts_identity": lambda _root_: identity(_root_),
        "t5ts_csv_name": lambda _parent_: csv_name(
            None if OmegaConf.is_missing(_parent_, "path") else _parent_.path
        ),
        "t5ts_searched": lambda _root_: searched_folder(_root_),
        "t5ts_console": console_level,
        "t5ts_sweep": lambda now, _root_: sweep_name(now, _root_),
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def from_hydra(cfg: DictConfig, hydra: Any = None) -> Config:
    """Turn Hydra's composition into plain objects; `t5ts.checks.check` comes next.

    Args:
        cfg: With or without its hydra node.
        hydra: That node, if `cfg` lacks it.

    Raises:
        ConfigError: naming every key that must be given and is not, or that cannot be resolved, or
            every group whose option is not the chosen named arm's.
    """
    hydra, cfg = cfg.get("hydra", hydra), _without_hydra(cfg)
    try:
        if missing := sorted(str(key) for key in OmegaConf.missing_keys(cfg)):
            named = ", ".join(missing)
            raise ConfigError(f"{named} must be given: add {missing[0]}=VALUE to the command.")
        config = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from error
    assert isinstance(config, Config)
    arm = {} if hydra is None else hydra.callbacks.check.get("arm", {})
    if wrong := [
        f"arm={hydra.runtime.choices.arm} has {group}={pattern}, but {group}={name}: leave {group}"
        " out, or choose all groups instead of a named arm."
        for group, pattern in arm.items()
        if not fnmatchcase(name := str(getattr(getattr(config, group, ""), "name", None)), pattern)
    ]:
        raise ConfigError("\n".join(wrong))
    return config


def _without_hydra(cfg: DictConfig) -> DictConfig:
    own = cfg.copy()
    with open_dict(own):
        own.pop("hydra", None)
    return own


def stored_config(values: Mapping[str, Any]) -> Config:
    """The configuration that a run directory's config.yaml holds.

    Args:
        values: Nested dicts, resolved. Keys that an older t5ts did not have take their defaults.

    Raises:
        ConfigError: if it has a key or a value that this t5ts does not know.
    """
    values = {key: value for key, value in values.items() if key not in _NO_LONGER}
    if backbone := values.get("backbone"):
        values["backbone"] = {k: v for k, v in backbone.items() if k != "full_params"}
    try:
        node = OmegaConf.structured(Config)
        for group in (*SCHEMAS, "ood"):
            if found := values.get(group):
                node[group] = OmegaConf.structured(_schema_of(group, found))
        config = OmegaConf.to_object(OmegaConf.merge(node, values))
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(config, Config)
    return config


def _schema_of(group: str, found: Mapping[str, Any]) -> type:
    """The smallest schema of a group that has these keys, and the loader."""
    fits = []
    for option in SCHEMAS["data" if group == "ood" else group].values():
        known = {f.name: f.metadata for f in fields(option)}
        if found.keys() <= known.keys() and (
            "_target_" not in known or known["_target_"]["holds"](found["_target_"])
        ):
            fits.append(option)
    if not fits:
        raise ConfigError(f"no {group} has the keys {', '.join(sorted(found))}")
    return min(fits, key=lambda option: len(fields(option)))


def identity(config: DictConfig | Config) -> str:
    """Ten hex digits of a SHA-256 over the resolved config, less what cannot change a number."""
    values = values_without(config, NOT_IDENTITY)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def values_without(config: DictConfig | Config, keys: Sequence[str]) -> dict[str, Any]:
    """The resolved config as nested dicts, less some dotted keys and what is off."""
    if isinstance(config, Config):
        values: Any = asdict(config)
    else:
        values = OmegaConf.to_container(_without_hydra(config), resolve=True)
    backbone = values.get("backbone", {})
    if "hub_id" in backbone:
        backbone["full_params"] = FULL_PARAMS.get(backbone["name"])
    if "sizes" not in backbone:  # a T5 had no card until 2026-11-26
        backbone.pop("card", None)
    if "freeze" in values:  # every option of it had `always` until 2026-11-26
        values["freeze"].setdefault("always", [])
    for data in (values.get("data"), values.get("ood")):
        # All tables were once named csv: their runs keep their identity.
        if isinstance(data, dict) and "path" in data and data.get("name") == csv_name(data["path"]):
            data["name"] = "csv"
    for dotted in (*keys, *MEASURED_BESIDES):
        *parents, last = dotted.split(".")
        node = values
        for key in parents:
            child = node.get(key)
            node = child if isinstance(child, dict) else {}
        if last in node and (dotted in keys or node[last] == MEASURED_BESIDES[dotted]):
            del node[last]
    return dict(values)


def csv_name(path: str | None) -> str:
    """A table's name in directories and reports: its file's name, in letters `named` allows."""
    stem = re.sub(r"[^\w.+@-]+|\.\.+", "_", Path(path or "").stem)
    return stem[:100] if re.match(r"\w", stem) else "csv"


def searched(overrides: Sequence[str], keys: Collection[str] | None = None) -> list[str]:
    """What a job's overrides (`key=value`) say beyond its arm and its seed: `lr=0.001`.

    Args:
        overrides: As Hydra has them.
        keys: The keys to include; None for all that can change a number.
    """
    unnamed = tuple(f"{key}." for key in (*NOT_IDENTITY, "hydra"))
    found = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        is_named = key not in _NOT_IN_NAME and not f"{key}.".startswith(unnamed)
        if is_named and (keys is None or key in keys):
            with suppress(ValueError):
                value = f"{float(value):.4g}"
            found.append(f"{key.rpartition('.')[2]}={value}")
    return found


def task_overrides(hydra: Any) -> list[str]:
    """The job's own overrides as they were typed; reading the list itself would resolve `${…}`."""
    lines: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return lines


def searched_folder(root: DictConfig) -> str:
    """The end of a job's directory: `-lr=0.001`; empty where nothing but arm and seed differ."""
    keys = root.hydra.job.env_set.get(SEARCHED, "").split()
    name = ",".join(searched(task_overrides(root.hydra), keys))[:_MOST_IN_FOLDER]
    return "-" + re.sub(r"[^\w.,+=-]+|\.\.+", "_", name) if name else ""


def sweep_name(now: str, root: DictConfig) -> str:
    """Name of a multirun's directory: the time, or for a study one that its command finds again."""
    sweeper = root.hydra.sweeper
    if "T5tsSweeper" not in str(sweeper.get("_target_")):
        return now
    overrides = json.dumps([sorted(root.hydra.overrides.task), str(sweeper.get("best_of"))])
    study = sweeper.study_name or root.hydra.runtime.choices.get("experiment") or "sweep"
    return f"{study}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"
