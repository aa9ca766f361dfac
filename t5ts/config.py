"""The configuration's types and ranges: YAML holds the values, these classes what is allowed.

`conf/config.yaml` is the table of contents. Hydra composes it over these dataclasses, so that a
typo or a wrong type is refused before any work starts. Each number has a finite range in its field,
each word its choices or its form; `t5ts.checks` applies them and refuses impossible pairs.
Below `from_hydra` there are plain dataclasses, no DictConfig.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from t5ts.command import console_level
from t5ts.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent
#: The YAML tree: next to the package in a checkout, inside it in an installed wheel.
CONF = next(p for p in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if p.is_dir())
#: What a run may be selected by and return to Hydra, and whether more is better.
OBJECTIVES = {
    "val_loss": "min",
    "val_mae": "min",
    "val_mase": "min",
    "val_corr": "max",
    "val_corr_delta": "max",
    "val_skill": "max",
}
#: Settings that cannot change a number of the run, and so are no part of its identity.
NOT_IDENTITY = (
    "arm_requires",
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
#: Overrides that a run's name has already.
NOT_IN_NAME = ("arm", "backbone", "experiment", "freeze", "init", "objective", "seed")
#: Length of what was searched in a directory's name.
MOST_IN_FOLDER = 80
#: Settings newer than some runs, and their value that changes nothing. They are part of an identity
#: only at other values, so that runs from before such a setting keep their identity.
MEASURED_BESIDES: dict[str, Any] = {
    "ood": None,
    "train.shuffled_test": False,
    "train.tf32": True,  # moves no number on a CPU
    "train.early_stopping_epochs": None,
    "head": "flatten",
    "init.path": None,
    "init.checkpoint": None,
    "init.keep": [],
    "patch.init": "fresh",
    "patch.path": None,
    "patch.num_prototypes": None,
    "patch.bank_size": 1024,
} | {
    f"{data}.{key}": None
    for data in ("data", "ood")
    for key in ("separator", "decimal", "time_format", "nulls", "encoding")
}

#: Parameters of the whole checkpoints of presets, [least, most]: a setting until 2026-11-26, which
#: identities keep.
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


@dataclass(frozen=True)
class Allowed:
    """What a field (of a list: each element) may hold: as a test, and in words for the user."""

    holds: Callable[[Any], bool]
    words: str


def _field(default: Any, holds: Callable[[Any], bool], words: str) -> Any:
    metadata = {"allowed": Allowed(holds, words)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def number(default: Any, interval: str) -> Any:
    """A field for numbers in an interval, written as in mathematics: `(0, 1]` is above 0."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above, below = interval[0] == "(", interval[-1] == ")"
    words = f"{'above' if above else 'at least'} {low:.9g}"
    return _field(
        default,
        lambda x: (low < x if above else low <= x) and (x < high if below else x <= high),
        f"{words}, {'below' if below else 'at most'} {high:.9g}",
    )


def choice(default: str, *options: str) -> Any:
    """A field for one of these words."""
    return _field(default, lambda text: text in options, ", ".join(options))


def named(default: Any = MISSING) -> Any:
    """A field for a name, which becomes a part of paths."""
    form = re.compile(r"(?!.*\.\.)\w[\w .,+@=()-]{0,99}")
    words = "a name of up to 100 letters, digits and any of . , + - @ = ( ), without '..'"
    return _field(default, lambda text: bool(form.fullmatch(text)), words)


def text(default: Any = MISSING) -> Any:
    """A field for a path or another text that must not be empty."""
    return _field(default, lambda text: bool(text.strip()), "text, not empty")


def pattern(default: list[str]) -> Any:
    """A field for regular expressions that do not match everything."""

    def is_pattern(text: str) -> bool:
        try:
            return re.compile(text).search("") is None
        except re.error:
            return False

    return _field(default, is_pattern, "a regular expression that does not match the empty text")


@dataclass(kw_only=True)
class BackboneConfig:
    """Which encoder; subclasses add what an architecture of that kind needs."""

    name: str = named()
    dropout: float = number(0.1, "[0, 1)")


@dataclass(kw_only=True)
class CheckpointBackbone(BackboneConfig):
    """A published encoder, which has a checkpoint on the hub or in a folder."""

    hub_id: str | None = text(None)
    revision: str = text("main")
    path: str | None = text(None)  # a folder, or packaged:NAME
    sha256: str | None = text(None)  # of the weight file, where it is fixed
    licence: str = ""
    embedding_rms: float | None = number(None, "(0, 1e6]")  # of its token embeddings


@dataclass(kw_only=True)
class T5Backbone(CheckpointBackbone):
    """A T5 encoder; sizes in the words of T5's `config.json`, null = read `path`'s config.json."""

    d_model: int | None = number(None, "[1, 1e5]")
    d_ff: int | None = number(None, "[1, 1e6]")
    d_kv: int | None = number(None, "[1, 1e5]")
    num_layers: int | None = number(None, "[1, 1000]")
    num_heads: int | None = number(None, "[1, 1e4]")
    vocab_size: int = number(32128, "[1, 1e7]")
    feed_forward_proj: str = choice("relu", "relu", "gated-gelu")


@dataclass(kw_only=True)
class HFBackbone(CheckpointBackbone):
    """Any other Transformer that transformers builds."""

    title: str = text("the language model")  # in reports
    card: str = ""  # what to know of its weights
    sizes: dict[str, Any] = field(default_factory=dict)  # its config.json; empty = the checkpoint's
    num_layers: int | None = number(None, "[1, 1000]")  # the first blocks; null = all


@dataclass(kw_only=True)
class SharedBackbone(BackboneConfig):
    """The lab log's light baseline: a depthwise-convolution stem and post-norm layers."""

    d_model: int = number(128, "[2, 1e5]")
    d_ff: int = number(512, "[1, 1e6]")
    num_layers: int = number(4, "[1, 1000]")
    num_heads: int = number(4, "[1, 1e4]")
    stem: bool = True
    norm_first: bool = False  # pre-norm layers, without a norm between tokens and head


@dataclass(kw_only=True)
class LinearBackbone(BackboneConfig):
    """No encoder at all: one linear map from the context to the horizon."""


@dataclass(kw_only=True)
class InitConfig:
    """Where the encoder's weights come from."""

    name: str = choice(
        MISSING, "random", "t5", "pretrained", "run", "chronos", "matched", "shuffled"
    )
    path: str | None = text(None)  # a finished run, whose encoder is the checkpoint
    checkpoint: str | None = text(None)  # a Chronos-T5 (hub id or folder) to be the checkpoint
    keep: list[str] = pattern([])  # regexes: tensors that random weights and controls take from it
    factor: float = number(1.0, "(0, 1000]")  # of T5's init law; Chronos has 0.05
    scale_norms: bool = False  # whether `factor` also scales the LayerNorm weights (HF does)


@dataclass(kw_only=True)
class FreezeConfig:
    """When which part of the encoder trains."""

    name: str = choice(MISSING, "none", "all", "norms", "staged")
    unfreeze_epoch: float | None = number(0.0, "[0, 1e5]")  # null = never
    order: str = choice("all_at_once", "all_at_once", "top_down", "bottom_up")
    blocks_per_stage: int = number(1, "[1, 1000]")
    epochs_per_stage: float = number(1.0, "(0, 1e5]")
    rewarmup_epochs: float = number(0.0, "[0, 1e5]")  # of what a stage unfreezes
    always: list[str] = pattern([])  # regexes that train from the first step
    eval_mode: bool = False  # dropout off in what is wholly frozen


@dataclass(kw_only=True)
class PatchConfig:
    """How a window becomes tokens."""

    name: str = named()
    init: str = choice("fresh", "fresh", "run")  # run: the trained embedding of the run at `path`
    path: str | None = text(None)
    patch_len: int = number(32, "[1, 1e6]")
    stride: int | None = number(None, "[1, 1e6]")  # null = patch_len
    channels: str = choice("independent", "independent", "mixing")
    norm: bool = True
    scale: str = choice("native", "none", "div_sqrt_d", "mul_sqrt_d", "match_embedding", "native")
    num_prototypes: int | None = number(None, "[2, 1e5]")  # null = a linear projection
    bank_size: int = number(1024, "[2, 1e7]")  # token embeddings that prototypes are mixed from


@dataclass(kw_only=True)
class TaskConfig:
    """What is predicted from what; subclasses add what a task of that kind needs."""

    name: str = named()


@dataclass(kw_only=True)
class ForecastTask(TaskConfig):
    """The next `horizon` steps."""


@dataclass(kw_only=True)
class ReconstructTask(TaskConfig):
    """Masked spans of the window."""

    ratio: float = number(0.15, "(0, 1)")
    min_len: int = number(3, "[1, 1e6]")
    max_len: int = number(10, "[1, 1e6]")
    mask: str = choice("token", "token", "value")


@dataclass(kw_only=True)
class DataConfig:
    """Which series. Every field that a subclass adds is a keyword argument of its loader.

    `fraction` and `windows_per_epoch` are about training, and refused for `ood`.
    """

    _target_: str = MISSING
    name: str = named()
    fraction: float = number(1.0, "(0, 1]")
    windows_per_epoch: int | None = number(None, "[1, 1e12]")


@dataclass(kw_only=True)
class NycWeatherData(DataConfig):
    """Hourly weather at New York's airports, 2013 (packaged)."""

    _target_: str = choice(MISSING, "t5ts.data.sources.load_nyc_weather")
    stations: list[str] = text(["JFK"])
    channels: list[str] | None = text(None)


@dataclass(kw_only=True)
class EttData(DataConfig):
    """Electricity transformer temperature (Zhou et al. 2021)."""

    _target_: str = choice(MISSING, "t5ts.data.sources.load_ett")
    dataset: str = named()
    dir: str | None = text(None)
    sha256: str | None = text(None)  # of a copy of your own, instead of the published checksum


@dataclass(kw_only=True)
class CsvData(DataConfig):
    """The user's own table."""

    _target_: str = choice(MISSING, "t5ts.data.sources.load_csv")
    path: str = text()
    time: str | None = text(None)
    channels: list[str] | None = text(None)
    id: str | None = text(None)
    value: str | None = text(None)
    missing: str = text("error")
    splits: list[Any] = field(default_factory=lambda: [0.7, 0.1, 0.2])
    season: int | None = number(None, "[1, 1e9]")
    separator: str | None = None  # null = detected, like the four below
    decimal: str | None = None
    time_format: str | None = text(None)  # strptime's, or s, ms, us, ns, excel
    nulls: list[str] | None = None  # more spellings of a missing value than the usual ones
    encoding: str | None = text(None)


@dataclass(kw_only=True)
class SyntheticData(DataConfig):
    """Seeded mixtures whose best achievable loss is known."""

    _target_: str = choice(MISSING, "t5ts.data.sources.load_synthetic")
    num_rows: int = number(4000, "[1, 1e9]")
    num_channels: int = number(2, "[1, 1e5]")
    season: int = number(24, "[1, 1e9]")
    season_amplitude: float = number(1.0, "[-1e6, 1e6]")
    trend: float = number(0.0, "[-1e6, 1e6]")
    ar: list[float] = number([0.7], "[-100, 100]")
    noise_std: float = number(0.5, "[0, 1e6]")
    walk_std: float = number(0.0, "[0, 1e6]")
    seed: int = number(0, "[0, 1e15]")
    horizon: int | None = number(MISSING, "[1, 1e6]")
    splits: list[float] = number([0.7, 0.1, 0.2], "(0, 1)")


@dataclass(kw_only=True)
class TextInDisguiseData(DataConfig):
    """English as a series: a control, in which text pretraining has something to give."""

    _target_: str = choice(MISSING, "t5ts.data.sources.load_text_in_disguise")
    num_rows: int = number(60_000, "[1, 1e9]")  # tokens of the text
    num_channels: int = number(256, "[1, 1e5]")  # directions of the rotated embedding
    noise_std: float = number(0.05, "[0, 1e6]")  # the signal's RMS is 1
    seed: int = number(0, "[0, 1e15]")
    splits: list[float] = number([0.9, 0.05, 0.05], "(0, 1)")


@dataclass(kw_only=True)
class ProcessData(DataConfig):
    """A draw of a random process, for the standing controls."""

    _target_: str = choice(MISSING, "t5ts.data.sources.load_process")
    kind: str = choice("drifting_sine", "drifting_sine", "chirps", "switching_ar", "white_noise")
    num_rows: int = number(12_000, "[1, 1e9]")
    noise_std: float = number(0.1, "[0, 1e6]")  # the signal's is 1
    seed: int = number(0, "[0, 1e15]")
    splits: list[float] = number([0.7, 0.1, 0.2], "(0, 1)")


@dataclass(kw_only=True)
class OptimConfig:
    """The update rule and the learning rate, a pure function of the step."""

    name: str = named()
    algorithm: str = choice("adamw", "adamw", "adamw_rms")
    lr: float = number(3e-3, "(0, 1e35]")
    encoder_lr_scale: float = number(0.3, "(0, 1e6]")
    layer_decay: float = number(1.0, "(0, 1]")  # a block's rate over that of the block above it
    warmup_epochs: float = number(0.5, "[0, 1e5]")
    schedule: str = choice("cosine", "cosine", "constant")
    min_lr_ratio: float = number(0.01, "[0, 1]")
    weight_decay: float = number(0.01, "[0, 1e6]")
    clip_norm: float | None = number(1.0, "(0, 1e12]")
    beta1: float = number(0.9, "[0, 1)")
    beta2: float = number(0.999, "[0, 1)")
    eps: float = number(1e-8, "(0, 1]")


@dataclass(kw_only=True)
class TrainConfig:
    """The loop."""

    epochs: int = number(10, "[1, 1e5]")
    batch_size: int = number(64, "[1, 1e6]")  # windows of a step, all processes
    eval_batch_size: int = number(256, "[1, 1e6]")
    grad_accumulation: int = number(1, "[1, 1e6]")
    precision: str = choice("auto", "auto", "fp32", "bf16", "fp16")
    tf32: bool = True  # on a GPU: float32 matrix products on tensor cores, inputs rounded to TF32
    device: str = choice("auto", "auto", "cpu", "cuda", "mps")
    compile: bool = False
    threads: int | None = number(None, "[1, 1024]")  # of each process
    eval_every_epochs: int = number(1, "[1, 1e5]")
    #: Ends a run whose objective got no better in so many epochs; null = off.
    early_stopping_epochs: int | None = number(None, "[1, 1e5]")
    shuffled_test: bool = False  # test also with each context's steps in a random order
    log_every: int = number(10, "[1, 1e12]")
    probe_every: int = number(100, "[1, 1e12]")
    checkpoint_every_s: float = number(600.0, "(0, 1e9]")
    resume: str = text("auto")
    resume_on_other_code: bool = False  # also where t5ts, torch or numpy changed meanwhile
    progress: bool = True
    reuse_dir: str | None = text(None)  # shares frozen epochs; null = off
    reuse_max_gb: float = number(4.0, "(0, 1e6]")  # bound of that folder, GiB


@dataclass(kw_only=True)
class NormalizeConfig:
    """What is taken off each window before the model and put back after it."""

    name: str = choice(MISSING, "instance", "none")


@dataclass(kw_only=True)
class TrackerConfig:
    """Where the metrics go, in addition to the run directory."""

    name: str = choice(MISSING, "wandb", "none")
    mode: str = choice("auto", "auto", "online", "offline")
    project: str = named("t5ts")
    entity: str | None = named(None)
    group: str | None = named(None)  # null = the sweep's directory, or the data's name
    tags: list[str] = text([])
    artifacts: bool = False  # upload the best checkpoint, and the study's report, too


@dataclass(kw_only=True)
class DebugConfig:
    """Short cuts for finding faults; their results are marked as such."""

    name: str = named()
    fast_dev_run: bool = False  # two steps, one evaluation batch
    overfit_windows: int | None = number(None, "[1, 1e12]")  # train and test on these


@dataclass(kw_only=True)
class Config:
    """The whole configuration; each group is explained by its own class."""

    seed: int = number(0, "[0, 1e15]")
    seq_len: int = number(128, "[1, 1e6]")
    horizon: int | None = number(None, "[1, 1e6]")  # the task's default; null where it has none
    head: str = choice("flatten", "flatten", "per_patch")
    objective: str = choice("val_loss", *OBJECTIVES)
    #: `group=pattern` (as file names are matched): what the chosen arm consists of.
    arm_requires: list[str] = field(default_factory=list)
    data: DataConfig = MISSING
    #: Another series, whose test windows the selected checkpoint is measured on too.
    ood: DataConfig | None = None
    task: TaskConfig = MISSING
    backbone: BackboneConfig = MISSING
    init: InitConfig = MISSING
    freeze: FreezeConfig = MISSING
    patch: PatchConfig = MISSING
    normalize: NormalizeConfig = MISSING
    optim: OptimConfig = MISSING
    train: TrainConfig = MISSING
    tracker: TrackerConfig = MISSING
    debug: DebugConfig = MISSING

    @property
    def arm(self) -> str:
        """What is compared: the encoder, its weights' origin and its freezing."""
        return f"{self.backbone.name}-{self.init.name}-{self.freeze.name}"


#: Groups whose options have keys of their own.
SCHEMAS: dict[str, dict[str, type]] = {
    "backbone": {
        "t5": T5Backbone,
        "hf": HFBackbone,
        "shared": SharedBackbone,
        "linear": LinearBackbone,
    },
    "data": {
        "nyc_weather": NycWeatherData,
        "ett": EttData,
        "csv": CsvData,
        "synthetic": SyntheticData,
        "text_in_disguise": TextInDisguiseData,
        "process": ProcessData,
    },
    "task": {"forecast": ForecastTask, "reconstruct": ReconstructTask},
}


def stored_config(values: Mapping[str, Any]) -> Config:
    """The configuration that a run directory's config.yaml holds.

    Args:
        values: Nested dicts, resolved. Keys that an older t5ts did not have take their defaults.

    Raises:
        ConfigError: if it has a key or a value that this t5ts does not know.
    """
    values = {key: value for key, value in values.items() if key != "claims"}  # an older name
    if backbone := values.get("backbone"):
        values["backbone"] = {k: v for k, v in backbone.items() if k != "full_params"}
    try:
        config = OmegaConf.structured(Config)
        for group, schemas in [*SCHEMAS.items(), ("ood", SCHEMAS["data"])]:
            if (found := values.get(group)) is None:
                continue
            fits = [
                schema
                for schema in schemas.values()
                if set(found) <= (known := {f.name: f for f in fields(schema)}).keys()
                and ("_target_" not in known or _is_loader(known["_target_"], found))
            ]
            if not fits:
                raise ConfigError(f"no {group} has the keys {', '.join(sorted(found))}")
            config[group] = OmegaConf.structured(min(fits, key=lambda s: len(fields(s))))
        config = OmegaConf.to_object(OmegaConf.merge(config, values))
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(config, Config)
    return config


def _is_loader(target: Field[Any], found: Mapping[str, Any]) -> bool:
    return bool(target.metadata["allowed"].holds(found["_target_"]))


def register() -> None:
    """Give Hydra the schemas that `conf/` extends, and the resolvers that it uses."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, schemas in SCHEMAS.items():
        for option, node in schemas.items():
            store.store(group=f"schema/{group}", name=option, node=node)
    OmegaConf.register_new_resolver("t5ts_identity", lambda _root_: identity(_root_), replace=True)
    OmegaConf.register_new_resolver(
        "t5ts_csv_name",
        lambda _parent_: csv_name(
            None if OmegaConf.is_missing(_parent_, "path") else _parent_.path
        ),
        replace=True,
    )
    OmegaConf.register_new_resolver(
        "t5ts_searched", lambda _root_: searched_folder(_root_), replace=True
    )
    OmegaConf.register_new_resolver("t5ts_console", console_level, replace=True)
    OmegaConf.register_new_resolver(
        "t5ts_sweep", lambda now, _root_: sweep_name(now, _root_), replace=True
    )


def identity(config: DictConfig | Config) -> str:
    """Ten hex digits of a SHA-256 over the resolved config, less what cannot change a number."""
    values = values_without(config, NOT_IDENTITY)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def searched(overrides: Sequence[str], keys: Collection[str] | None = None) -> list[str]:
    """What a job's overrides say beyond its arm and its seed: `lr=0.001`.

    Args:
        overrides: As Hydra has them, `key=value`.
        keys: Those that count; None for all that can change a number.
    """
    found = []
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in NOT_IN_NAME or f"{key}.".startswith((*(f"{k}." for k in NOT_IDENTITY), "hydra.")):
            continue
        if keys is not None and key not in keys:
            continue
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
    name = ",".join(searched(task_overrides(root.hydra), keys))[:MOST_IN_FOLDER]
    return "-" + re.sub(r"[^\w.,+=-]+|\.\.+", "_", name) if name else ""


def csv_name(path: str | None) -> str:
    """What a table is called in directories and reports: its file's name, as `named` allows it."""
    stem = re.sub(r"[^\w.+@-]+|\.\.+", "_", Path(path or "").stem)
    return stem[:100] if re.match(r"\w", stem) else "csv"


def values_without(config: DictConfig | Config, keys: Sequence[str]) -> dict[str, Any]:
    """The resolved config as nested dicts, less some dotted keys and what is off."""
    if isinstance(config, Config):
        values: Any = asdict(config)
    else:
        root = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        values = OmegaConf.to_container(root, resolve=True)
    backbone = values.get("backbone", {})
    if "hub_id" in backbone:
        backbone["full_params"] = FULL_PARAMS.get(backbone["name"])
    for data in (values.get("data"), values.get("ood")):
        # Tables were once all called so: a run keeps its identity.
        if isinstance(data, dict) and "path" in data and data.get("name") == csv_name(data["path"]):
            data["name"] = "csv"
    for dotted in (*keys, *MEASURED_BESIDES):
        *parents, last = dotted.split(".")
        node = values
        for key in parents:
            child = node.get(key)
            node = child if isinstance(child, dict) else {}
        if dotted in keys or (last in node and node[last] == MEASURED_BESIDES[dotted]):
            node.pop(last, None)
    return values


def sweep_name(now: str, root: DictConfig) -> str:
    """Name of a multirun's directory: the time, or for a study one that its command finds again.

    Args:
        now: The time, as text.
        root: Hydra's composition.
    """
    if "T5tsSweeper" not in str(root.hydra.sweeper.get("_target_")):
        return now
    sweeper = root.hydra.sweeper
    overrides = json.dumps([sorted(root.hydra.overrides.task), str(sweeper.get("best_of"))])
    study = sweeper.study_name or root.hydra.runtime.choices.get("experiment") or "sweep"
    return f"{study}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


def from_hydra(cfg: DictConfig) -> Config:
    """Turn Hydra's composition into plain objects; `t5ts.checks.check` comes next.

    Raises:
        ConfigError: naming every key that must be given and is not, or that cannot be resolved.
    """
    try:
        missing = sorted(str(key) for key in OmegaConf.missing_keys(cfg))
        if missing:
            named, key = ", ".join(missing), missing[0]
            raise ConfigError(f"{named} must be given: add {key}=VALUE to the command.")
        config = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from error
    assert isinstance(config, Config)
    return config
