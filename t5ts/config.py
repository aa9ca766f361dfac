"""The configuration's types and checks: YAML holds the values, these classes hold what may be.

`conf/config.yaml` is the table of contents. Hydra composes it over these dataclasses, so that a
typo or a wrong type is refused before any work starts; `t5ts.checks` refuses impossible pairs.
Below `t5ts.build` nothing sees a config: functions take plain values.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from t5ts.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent
#: The YAML tree: beside the package in a checkout, inside it in an installed wheel.
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
    "claims",
    "tracker",
    "train.resume",
    "train.resume_on_other_code",
    "train.checkpoint_every_s",
    "train.progress",
    "train.reuse_dir",
    "train.reuse_max_gb",
)
#: What else the selected checkpoint is measured on, and the value that means: on nothing. It moves
#: no other number, so an identity has it only where it is on: those of runs without it stay.
MEASURED_BESIDES: dict[str, Any] = {"ood": None, "train.shuffled_test": False}


@dataclass(kw_only=True)
class BackboneConfig:
    """Which encoder. Subclasses say what an architecture of that kind needs."""

    name: str = MISSING
    dropout: float = 0.1


@dataclass(kw_only=True)
class T5Backbone(BackboneConfig):
    """A T5 encoder; sizes in the words of T5's `config.json`, null = read `path`'s config.json."""

    hub_id: str | None = None
    revision: str = "main"
    path: str | None = None  # a folder, or packaged:NAME for a checkpoint that comes with t5ts
    sha256: str | None = None  # of the weight file, where it is fixed
    licence: str = ""
    full_params: list[int] | None = None  # [least, most] parameters of the full checkpoint
    embedding_rms: float | None = None  # RMS of the checkpoint's token embeddings, when known
    d_model: int | None = None
    d_ff: int | None = None
    d_kv: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    vocab_size: int = 32128
    feed_forward_proj: str = "relu"


@dataclass(kw_only=True)
class SharedBackbone(BackboneConfig):
    """The lab log's light baseline: a depthwise-convolution stem and post-norm layers."""

    d_model: int = 128
    d_ff: int = 512
    num_layers: int = 4
    num_heads: int = 4
    stem: bool = True
    norm_first: bool = False  # pre-norm layers, without a norm between tokens and head


@dataclass(kw_only=True)
class LinearBackbone(BackboneConfig):
    """No encoder at all: one linear map from the context to the horizon."""


@dataclass(kw_only=True)
class InitConfig:
    """Where the encoder's weights come from."""

    name: str = MISSING
    factor: float = 1.0  # of T5's init law: 1.0 is transformers' default, 0.05 Chronos's
    scale_norms: bool = False  # whether `factor` also scales the LayerNorm weights (HF does)


@dataclass(kw_only=True)
class FreezeConfig:
    """When which part of the encoder trains."""

    name: str = MISSING
    unfreeze_epoch: float | None = 0.0  # 0 = from the start, null = never; fractions allowed
    order: str = "all_at_once"
    blocks_per_stage: int = 1
    epochs_per_stage: float = 1.0
    rewarmup_epochs: float = 0.0  # what a stage unfreezes warms up over so many epochs
    always: list[str] = field(default_factory=list)  # regexes that train from the first step
    eval_mode: bool = False  # dropout off in what is wholly frozen


@dataclass(kw_only=True)
class PatchConfig:
    """How a window becomes tokens."""

    name: str = MISSING
    patch_len: int = 32
    stride: int | None = None  # null = patch_len
    channels: str = "independent"
    norm: bool = True
    scale: str = "mul_sqrt_d"


@dataclass(kw_only=True)
class TaskConfig:
    """What is predicted from what. Subclasses say what a task of that kind needs."""

    name: str = MISSING


@dataclass(kw_only=True)
class ForecastTask(TaskConfig):
    """The next `horizon` steps."""


@dataclass(kw_only=True)
class ReconstructTask(TaskConfig):
    """Masked spans of the window."""

    ratio: float = 0.15
    min_len: int = 3
    max_len: int = 10
    mask: str = "token"


@dataclass(kw_only=True)
class DataConfig:
    """Which series. Every field that a subclass adds is a keyword argument of its loader.

    `fraction` and `windows_per_epoch` are about training, and refused for `ood`.
    """

    _target_: str = MISSING
    name: str = MISSING
    fraction: float = 1.0
    windows_per_epoch: int | None = None


@dataclass(kw_only=True)
class NycWeatherData(DataConfig):
    """Hourly weather at New York's airports, 2013 (packaged)."""

    stations: list[str] = field(default_factory=lambda: ["JFK"])
    channels: list[str] | None = None


@dataclass(kw_only=True)
class EttData(DataConfig):
    """Electricity transformer temperature (Zhou et al. 2021)."""

    dataset: str = MISSING
    dir: str | None = None
    sha256: str | None = None  # of a copy of your own, instead of the published checksum


@dataclass(kw_only=True)
class CsvData(DataConfig):
    """The user's own table."""

    path: str = MISSING
    time: str | None = None
    channels: list[str] | None = None
    id: str | None = None
    value: str | None = None
    missing: str = "error"
    splits: list[Any] = field(default_factory=lambda: [0.7, 0.1, 0.2])
    season: int | None = None


@dataclass(kw_only=True)
class SyntheticData(DataConfig):
    """Seeded mixtures whose best achievable loss is known."""

    num_rows: int = 4000
    num_channels: int = 2
    season: int = 24
    season_amplitude: float = 1.0
    trend: float = 0.0
    ar: list[float] = field(default_factory=lambda: [0.7])
    noise_std: float = 0.5
    walk_std: float = 0.0
    seed: int = 0
    horizon: int | None = MISSING
    splits: list[float] = field(default_factory=lambda: [0.7, 0.1, 0.2])


@dataclass(kw_only=True)
class OptimConfig:
    """The update rule and the learning rate, a pure function of the step."""

    name: str = MISSING
    algorithm: str = "adamw"
    lr: float = 1e-3
    encoder_lr_scale: float = 0.1
    layer_decay: float = 1.0  # a block's rate over that of the block above it
    warmup_epochs: float = 0.5
    schedule: str = "cosine"
    min_lr_ratio: float = 0.01
    weight_decay: float = 0.01
    clip_norm: float | None = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


@dataclass(kw_only=True)
class TrainConfig:
    """The loop."""

    epochs: int = 10
    batch_size: int = 64  # windows of a step, over all processes; each has C channels
    eval_batch_size: int = 256
    grad_accumulation: int = 1
    precision: str = "auto"
    device: str = "auto"
    compile: bool = False
    threads: int | None = None  # of each process
    eval_every_epochs: int = 1
    shuffled_test: bool = False  # test also with each context's steps in a random order
    log_every: int = 10
    probe_every: int = 100
    checkpoint_every_s: float = 600.0
    resume: str = "auto"
    resume_on_other_code: bool = False  # also where t5ts, torch or numpy changed meanwhile
    progress: bool = True
    reuse_dir: str | None = None  # frozen epochs are shared there (see t5ts.reuse); null = off
    reuse_max_gb: float = 4.0  # bound of that folder in GiB; the least recently used goes first


@dataclass(kw_only=True)
class NormalizeConfig:
    """What is taken off each window before the model and put back after it."""

    name: str = MISSING


@dataclass(kw_only=True)
class TrackerConfig:
    """Where the metrics go besides the run directory."""

    name: str = MISSING
    mode: str = "auto"
    project: str = "t5ts"
    entity: str | None = None
    group: str | None = None  # null = the sweep's directory, or the data's name
    tags: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class DebugConfig:
    """Short cuts for finding faults; their results are marked as such."""

    name: str = MISSING
    fast_dev_run: bool = False  # two steps, one evaluation batch
    overfit_windows: int | None = None  # train and evaluate on these few train windows


@dataclass(kw_only=True)
class Config:
    """The whole configuration; each group is explained by its own class."""

    seed: int = 0
    seq_len: int = 128
    horizon: int | None = None  # the task's default; null where it has none
    objective: str = "val_loss"
    #: `group=pattern` (as file names are matched): what a named arm says that it is.
    claims: list[str] = field(default_factory=list)
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


def register() -> None:
    """Give Hydra the schemas that `conf/` extends, and the resolvers that it uses."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, schemas in {
        "backbone": {"t5": T5Backbone, "shared": SharedBackbone, "linear": LinearBackbone},
        "data": {
            "nyc_weather": NycWeatherData,
            "ett": EttData,
            "csv": CsvData,
            "synthetic": SyntheticData,
        },
        "task": {"forecast": ForecastTask, "reconstruct": ReconstructTask},
    }.items():
        for name, node in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=node)
    OmegaConf.register_new_resolver("t5ts_identity", lambda _root_: identity(_root_), replace=True)
    OmegaConf.register_new_resolver(
        "t5ts_sweep", lambda now, _root_: sweep_name(now, _root_), replace=True
    )


def identity(config: DictConfig | Config) -> str:
    """Ten hex digits of a SHA-256 over the resolved config, less what cannot change a number."""
    values = values_without(config, NOT_IDENTITY)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def values_without(config: DictConfig | Config, keys: Sequence[str]) -> dict[str, Any]:
    """The resolved config as nested dicts, less some dotted keys and what is off."""
    off = [key for key, value in MEASURED_BESIDES.items() if attrgetter(key)(config) == value]
    if isinstance(config, Config):
        values: Any = asdict(config)
    else:
        root = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        values = OmegaConf.to_container(root, resolve=True)
    for dotted in (*keys, *off):
        *parents, last = dotted.split(".")
        node = values
        for key in parents:
            node = node[key]
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
    name = sweeper.study_name or root.hydra.runtime.choices.get("experiment") or "sweep"
    return f"{name}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


def from_hydra(cfg: DictConfig) -> Config:
    """Turn Hydra's composition into plain objects; `t5ts.checks.check` comes next.

    Raises:
        ConfigError: naming every key that must be given and is not.
    """
    missing = sorted(str(key) for key in OmegaConf.missing_keys(cfg))
    if missing:
        key = missing[0]
        raise ConfigError(f"{', '.join(missing)} must be given: add {key}=VALUE to the command.")
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    return config
