"""Impossible configurations, refused before any work starts: keys, ranges, choices and pairs.

`t5ts.overrides` checks the command line before there is a configuration.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from t5ts.config import CONF, SCHEMAS, Config
from t5ts.errors import ConfigError
from t5ts.schema import (
    CheckpointBackbone,
    HFBackbone,
    LinearBackbone,
    ReconstructTask,
    SharedBackbone,
    SyntheticData,
    T5Backbone,
)

#: The configuration's groups: folders of `conf/`.
GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"hydra"}


@cache
def setting_keys() -> frozenset[str]:
    """Every key of every schema."""
    keys = {f.name for f in fields(Config)}
    for top in fields(Config):
        schemas = SCHEMAS.get("data" if top.name == "ood" else top.name, {"": top.type})
        for schema in schemas.values():
            if is_dataclass(schema):
                keys |= {f"{top.name}.{f.name}" for f in fields(schema)}
    return frozenset(keys)


def is_key(key: str) -> bool:
    """Whether a schema has this key, or it is a group."""
    return key in GROUPS or key in setting_keys()


def key_of_others(key: str) -> str:
    """The message for a key that the chosen option lacks, with the options that have it."""
    group, _, last = key.partition(".")
    of = "data" if group == "ood" else group
    nodes = SCHEMAS[of].items()
    marks = [f"schema/{of}/{name}@" for name, node in nodes if hasattr(node(), last)]
    files = sorted((CONF / of).glob("*.yaml"))
    having = [p.stem for p in files if any(mark in p.read_text() for mark in marks)]
    return f"{key} is a setting of {group}={', '.join(having)}, not of the option chosen here."


def unknown_key(key: str) -> str:
    """The message for a key that no schema has, with the keys that may have been meant."""
    group, _, last = key.rpartition(".")
    known = sorted({*setting_keys(), *GROUPS})
    initials = "".join(word[:1] for word in last.split("_")) if "_" in last else last  # lr
    matches = [k for k in known if k.rpartition(".")[2] in (last, initials)]
    near = [k for k in matches if k.startswith(f"{group}.")] or matches
    near = near or get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return f"{key} is not a setting.{hint} See --help for all settings."


def refuse_any(problems: Sequence[str]) -> None:
    """Raise a ConfigError that lists the problems, if there are any."""
    if problems:
        raise ConfigError("\n".join(problems))


def check(config: Config) -> None:
    """Refuse impossible values and pairs, all of them in one message.

    Raises:
        ConfigError: one line per problem, naming the keys and the fix.
    """
    refuse_any(list(structure_problems(config)))  # without these the pairs cannot be checked
    pairs = (_run_problems, _encoder_problems, _patch_problems, _freeze_problems, _task_problems)
    problems = [*field_problems(config), *(line for rules in pairs for line in rules(config))]
    refuse_any(problems)


def structure_problems(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys not in the schema, added by YAML or by a `+` on the command line."""
    for key in vars(node).keys() - {f.name for f in fields(node)}:
        name = f"{prefix}{key}"
        yield key_of_others(name) if name in setting_keys() else unknown_key(name)
    for f in fields(node):
        value = getattr(node, f.name)
        is_group = is_dataclass(f.type) or (isinstance(value, dict) and f.name != "sizes")
        if is_dataclass(value):
            yield from structure_problems(value, f"{f.name}.")
        elif is_group:
            yield f"{f.name}={value}: choose an option of this group ({f.name}=NAME)."


def field_problems(node: Any, prefix: str = "") -> Iterator[str]:
    """Values outside their fields' ranges."""
    for f in fields(node):
        value, holds = getattr(node, f.name), f.metadata.get("holds")
        if is_dataclass(value):
            yield from field_problems(value, f"{f.name}.")
        elif isinstance(value, list) and any(isinstance(x, list | dict) for x in value):
            yield f"{prefix}{f.name}={value} is not allowed; allowed: a list of single values."
        elif holds is not None and value is not None:
            elements = value if isinstance(value, list) else [value]
            shown, words = value if value != "" else "''", f.metadata["words"]
            if not all(map(holds, elements)):
                yield f"{prefix}{f.name}={shown} is not allowed; allowed: {words}."


# Contradictory pairs of settings; each line names the keys and a way out.


def _run_problems(config: Config) -> Iterator[str]:
    """The loop and the second series."""
    train, ood, optim, freeze = config.train, config.ood, config.optim, config.freeze
    for key, length in (
        ("optim.warmup_epochs", optim.warmup_epochs),
        ("freeze.rewarmup_epochs", freeze.rewarmup_epochs),
    ):
        if length > train.epochs:
            yield f"{key}={length} is longer than the run (train.epochs={train.epochs})."
    precision = f"train.precision={train.precision} with train.device={train.device}"
    if train.precision == "fp16" and train.device == "cpu":
        yield f"{precision}: it needs a GPU; use fp32 (or bf16)."
    if train.precision in ("bf16", "fp16") and train.device == "mps":
        yield f"{precision}: use fp32 (or auto)."
    if (parts := train.grad_accumulation) > train.batch_size:
        yield f"train.grad_accumulation={parts} is above train.batch_size={train.batch_size}."
    if ood is not None and (ood.fraction != 1 or ood.windows_per_epoch is not None):
        keys = (
            "data.fraction and data.windows_per_epoch, not ood.fraction and ood.windows_per_epoch"
        )
        yield f"ood is only tested on: set {keys}."


def _encoder_problems(config: Config) -> Iterator[str]:
    """The encoder's sizes, and where its weights come from."""
    backbone, init = config.backbone, config.init
    chosen = f"init={init.name} with backbone={backbone.name}"
    if isinstance(backbone, SharedBackbone):
        width, heads = backbone.d_model, max(1, backbone.num_heads)
        if width % 2 or width % heads:
            must = f"must be even and a multiple of backbone.num_heads={heads}"
            yield f"backbone.d_model={width} {must}."
    if init.name == "run" and init.path is None:
        yield "init=run needs init.path=RUN_DIR (a finished run, whose encoder will be used)."
    if init.name in ("t5", "pretrained", "chronos") and init.path is not None:
        yield f"init={init.name} is a checkpoint, and init.path={init.path} is a run: use init=run."
    is_other = init.name in ("t5", "pretrained", "run") or init.path is not None
    if init.checkpoint is not None and is_other:
        allowed = "init=chronos, random, matched or shuffled, without init.path"
        yield f"init.checkpoint={init.checkpoint} with init={init.name}; allowed: {allowed}."
    if not isinstance(backbone, CheckpointBackbone):
        if init.name != "random" or init.path or init.checkpoint:
            alone = "init=random without init.path and init.checkpoint"
            yield f"{chosen}, which has no checkpoint: use {alone}, or backbone=t5_small."
        return
    if isinstance(backbone, HFBackbone):
        if init.name == "t5":
            yield f"{chosen}, which is not a T5: use init=pretrained for {backbone.title}."
        if init.name == "chronos" or init.checkpoint is not None:
            yield f"{chosen}: Chronos-T5's weights fit a T5, such as backbone=t5_small."
    reads = init.name not in ("random", "run", "chronos") or bool(init.keep)
    if reads and not (init.path or init.checkpoint or backbone.hub_id or backbone.path):
        yield f"{chosen} needs a checkpoint: set backbone.path=DIR (a checkpoint's directory)."
    has_sizes = isinstance(backbone, T5Backbone) and backbone.d_model is not None
    if isinstance(backbone, HFBackbone):
        has_sizes = backbone.hub_id is not None or bool(backbone.sizes)
    if not has_sizes and backbone.path is None:
        yield f"backbone={backbone.name} has no size: set backbone.path=DIR (with a config.json)."


def _patch_problems(config: Config) -> Iterator[str]:
    """Settings that turn a window into tokens, and tokens back into a window."""
    backbone, patch, init = config.backbone, config.patch, config.init
    length, scale = f"patch.patch_len={patch.patch_len}", f"patch.scale={patch.scale}"
    stride = patch.patch_len if patch.stride is None else patch.stride
    if (patch.init == "run") != (patch.path is not None):
        needs = "patch.init=run needs patch.path=RUN_DIR (a finished run), and fresh takes none"
        yield f"patch.init={patch.init} with patch.path={patch.path}: {needs}."
    if patch.patch_len > config.seq_len:
        yield f"{length} is above seq_len={config.seq_len}: shorten it, or lengthen the window."
    if stride > patch.patch_len:
        yield f"patch.stride={stride} is above {length}: steps between patches would be skipped."
    if not patch.norm and patch.scale != "none":
        yield f"{scale} needs patch.norm=true: use patch=norm, or patch.scale=none."
    if patch.num_prototypes is not None:
        lacks = None if isinstance(backbone, CheckpointBackbone) else f"backbone={backbone.name}"
        if init.path is not None and init.name != "random" and patch.path is None:
            lacks = f"init.path={init.path} (a run)"
        if lacks is not None:
            prototypes = f"patch.num_prototypes={patch.num_prototypes}"
            why = f"mixes a checkpoint's token embeddings, and {lacks} has none"
            yield f"{prototypes} {why}: use patch=norm, or a backbone with a checkpoint."
    if patch.scale == "match_embedding":
        if not isinstance(backbone, CheckpointBackbone):
            yield f"{scale}: backbone={backbone.name} has no token embeddings; use another scale."
        elif init.name == "random" and backbone.embedding_rms is None:
            where = "provenance.json of a run with init=t5 has it"
            yield f"{scale} with init=random needs backbone.embedding_rms=VALUE ({where})."
    fits = isinstance(config.task, ReconstructTask) and not isinstance(backbone, LinearBackbone)
    if config.head == "per_patch" and not (fits and stride == patch.patch_len):
        needs = "needs task=reconstruct, an encoder, and patches that do not overlap"
        here = f"task={config.task.name}, backbone={backbone.name}, patch.stride={stride}, {length}"
        yield f"head=per_patch {needs}, not {here}: use head=flatten."


def _freeze_problems(config: Config) -> Iterator[str]:
    """Settings that contradict the name of the freezing."""
    freeze, epochs = config.freeze, config.train.epochs
    name, start = f"freeze={freeze.name}", f"freeze.unfreeze_epoch={freeze.unfreeze_epoch}"
    if isinstance(config.backbone, LinearBackbone) and freeze.name != "none":
        yield f"{name} with backbone=linear: there is no encoder; use freeze=none."
    if freeze.name == "none" and freeze.unfreeze_epoch != 0:
        yield f"{name} trains from the start, not from {start}: use freeze=staged or freeze=all."
    if freeze.name in ("all", "norms") and freeze.unfreeze_epoch is not None:
        yield f"{name} never unfreezes, but {start}: use freeze=staged."
    if freeze.name == "staged" and freeze.unfreeze_epoch is None:
        yield f"{name} needs freeze.unfreeze_epoch=NUMBER; to never unfreeze, use freeze=all."
    if freeze.name == "norms" and not freeze.exempt:
        yield f"{name} with an empty freeze.always trains nothing: use freeze=all."
    if freeze.unfreeze_epoch is not None and 0 < freeze.unfreeze_epoch >= epochs:
        end = f"is beyond the last epoch (train.epochs={epochs})"
        yield f"{start} {end}: unfreeze earlier, train longer, or use freeze=all."


def _task_problems(config: Config) -> Iterator[str]:
    """Settings of the task and the objective."""
    task, horizon, name = config.task, config.horizon, f"task={config.task.name}"
    if isinstance(config.data, SyntheticData) and config.data.horizon != horizon:
        yield f"data.horizon={config.data.horizon} is not horizon={horizon}: leave the first out."
    if not isinstance(task, ReconstructTask):
        if horizon is None:
            yield f"{name} needs horizon=NUMBER (steps to predict)."
        return
    if not task.min_len <= task.max_len < config.seq_len:
        allowed = f"from task.min_len={task.min_len} to seq_len − 1 = {config.seq_len - 1}"
        yield f"task.max_len={task.max_len} is not allowed; allowed: {allowed}."
    if horizon is not None:
        yield f"horizon={horizon} has no meaning for {name}: leave it out, or use horizon=null."
    if config.train.shuffled_test:
        yield f"train.shuffled_test=true with {name}: only a forecast's context can be shuffled."
    if config.objective == "val_mase":
        yield f"objective=val_mase is not defined for {name}: use val_loss, val_mae or val_skill."
    if task.mask == "token" and isinstance(config.backbone, LinearBackbone):
        yield f"task.mask=token with backbone={config.backbone.name}: use task.mask=value."
