"""The configuration's groups: YAML holds the values, these classes what is allowed.

Each number has a finite range in its field, each word its choices or its form; `t5ts.checks`
applies them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


def _field(default: Any, holds: Callable[[Any], bool], words: str) -> Any:
    """A field and what it (of a list: each element) may hold, as a test and in words."""
    metadata = {"holds": holds, "words": words}
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
    card: str = ""  # what to know about its weights
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


#: The title of a backbone without one.
UNNAMED = "the language model"


@dataclass(kw_only=True)
class HFBackbone(CheckpointBackbone):
    """Any other Transformer that transformers builds."""

    title: str = text(UNNAMED)  # in reports; unless set, its checkpoint's model type
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
    allow_untrained: bool = False  # accept a checkpoint that looks freshly initialised, with a note
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
    eval_mode: bool = False  # dropout off in what is wholly frozen

    @property
    def exempt(self) -> list[str]:
        """Regular expressions of what trains from the first step."""
        return getattr(self, "always", [])


@dataclass(kw_only=True)
class PartialFreeze(FreezeConfig):
    """Freezing with exceptions."""

    always: list[str] = pattern([])  # regexes that train from the first step


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
    """What is predicted from what: the next `horizon` steps, or what a subclass says."""

    name: str = named()


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
    time_format: str | None = text(None)  # strptime's, or s, ms, us, ns, excel, mjd
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
    """How each window is normalised before the model; undone on its output."""

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
    """Shortcuts for debugging; their results are marked as such."""

    name: str = named()
    fast_dev_run: bool = False  # two steps, one evaluation batch
    overfit_windows: int | None = number(None, "[1, 1e12]")  # train and test on these
