"""Impossible configurations, refused before any work starts: keys, ranges, choices and pairs."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from t5ts import distributed
from t5ts.config import (
    CONF,
    SCHEMAS,
    CheckpointBackbone,
    Config,
    HFBackbone,
    LinearBackbone,
    ReconstructTask,
    SharedBackbone,
    SyntheticData,
    T5Backbone,
    from_hydra,
)
from t5ts.errors import ConfigError

#: What a command may remove from the configuration (`~arm`): groups that need no option.
REMOVABLE = ("arm", "experiment", "data@ood", "ood")
#: Hydra's directories, without which a run would write into the working directory.
DIRECTORIES = ("hydra.run.dir", "hydra.sweep.dir")


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse everything that the command line alone shows to be wrong.

    An unknown key is refused even with `+`: Hydra would add it, but nothing would read it.

    Args:
        arguments: The command line; flags are left to Hydra, as are its own keys.

    Raises:
        ConfigError: naming the key and what is allowed.
    """
    flags = [part for argument in arguments for part in argument.split("=", 1)]
    own = [Path(value) for flag, value in pairwise(flags) if flag in ("--config-dir", "-cd")]
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"hydra"}
    for line in arguments:
        if line.startswith("-") or not ("=" in line or line.startswith("~")):
            continue  # a flag or its value; Hydra refuses any other word
        override = _parsed(line)
        key = override.get_key_element().lstrip("+~")
        if f"{key}.".startswith("hydra.callbacks.check.") or key == "hydra.callbacks":
            raise ConfigError(f"{line}: the configuration check cannot be switched off.")
        group = key.partition("@")[0]  # data@ood=…: an option of data, at the place of ood
        if override.is_delete() and not key.startswith("hydra.") and key not in REMOVABLE:
            if key not in (*groups, "hydra"):
                _check_key(key, groups)
            raise ConfigError(
                f"{line}: a run needs {key}, so it cannot be removed; leave it out of"
                " the command for its default, or set another value."
            )
        if group in groups:
            options = sorted(p.stem for tree in (CONF, *own) for p in (tree / group).glob("*.yaml"))
            unknown = [option for option in _options(override) if option not in options]
            if unknown:
                raise ConfigError(
                    f"{key}={','.join(unknown)} does not exist; allowed: {', '.join(options)}"
                    f"{f', or ~{key} for none' if '@' in key else ''}."
                )
        elif not key.startswith(("hydra.", "hydra/")):
            _check_key(key or line, groups)
        elif key in DIRECTORIES and override.value() in (None, ""):
            raise ConfigError(f"{line}: allowed: a directory's path.")


def _parsed(line: str) -> Override:
    try:
        return OverridesParser.create().parse_overrides([line])[0]
    except HydraException as error:
        key, _, value = line.partition("=")
        hint = f"quote its text, as in \"{key}='{value}'\"" if value else "write KEY=VALUE"
        cause = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(
            f"{line} does not fit Hydra's grammar ({cause}): {hint}"
            f"{', or write the whole path instead of ~' if value.startswith('~') else ''}."
        ) from error


def _options(override: Override) -> list[str]:
    """The options in an override; none if Hydra has to find them (`glob(*)`, `${…}`)."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        named: list[Any] = [x.text if isinstance(x, QuotedString) else x for x in value.list]
    else:
        named = [] if override.is_delete() or override.is_sweep_override() else [value]
    texts = ["null" if option is None else str(option) for option in named]
    return [text for text in texts if "${" not in text]


def _check_key(key: str, groups: Iterable[str]) -> None:
    """Refuse a key that no schema has, and suggest the nearest existing one."""
    known = {*groups, *(f.name for f in fields(Config))}
    for top in fields(Config):
        schemas = SCHEMAS.get("data" if top.name == "ood" else top.name, {"": top.type})
        for schema in schemas.values():
            if is_dataclass(schema):
                known |= {f"{top.name}.{f.name}" for f in fields(schema)}
    if key in known:
        return
    near = max(sorted(known), key=lambda other: _likeness(key, other))
    hint = f" Did you mean {near}?" if _likeness(key, near) >= 0.6 else ""
    raise ConfigError(f"{key} is not a setting.{hint} See --help for all settings.")


def _likeness(key: str, other: str) -> float:
    """From 0 to 1; 1 for initials (lr for learning_rate). A key without a group fits any."""

    def alike(a: str, b: str) -> float:
        for long, short in ((a, b), (b, a)):
            if "_" in long and short == "".join(word[:1] for word in long.split("_")):
                return 1.0
        return SequenceMatcher(None, a, b).ratio()

    parts, others = key.split(".")[::-1], other.split(".")[::-1]
    levels = [alike(a, b) for a, b in zip(parts, others, strict=False)]
    levels += [0.0] * max(0, len(parts) - len(others))
    return max(sum(levels) / len(levels), alike(key, other))


class CheckFirst(Callback):
    """Hydra's callback: an impossible configuration is refused before it gets a directory."""

    def on_run_start(self, config: DictConfig, **_kwargs: Any) -> None:
        """Check the one run."""
        try:
            check(_own(config))
        except ConfigError as error:
            _refuse(error)

    def on_multirun_start(self, config: DictConfig, **_kwargs: Any) -> None:
        """Refuse intervals in Hydra's own grid search, and values that no job could have."""
        if distributed.world_size() > 1:
            _refuse(
                "--multirun under torchrun: torchrun trains one run in several processes; to train"
                " several runs on several GPUs use a launcher (hydra/launcher=joblib or a"
                " cluster's) without torchrun."
            )
        if "PlainSweeper" not in str(config.hydra.sweeper.get("_target_")):
            return
        for line in config.hydra.overrides.task:
            if _parsed(line).is_interval_sweep():
                _refuse(
                    f"{line}: Hydra's grid search cannot take an interval; sample it with the"
                    " sweeper (add hydra/sweeper=t5ts), or list values (A,B,C or range(A,B,STEP))."
                )
        try:
            common = _own(config)
        except ConfigError:
            return  # incomplete without the swept values; each job is checked before it starts
        if problems := list(_structure_problems(common)) or list(field_problems(common)):
            _refuse("\n".join(problems))


def _own(config: DictConfig) -> Config:
    own = config.copy()
    with open_dict(own):
        del own["hydra"]
    return from_hydra(own)


def _refuse(why: object) -> None:
    # Hydra turns a callback's exceptions into warnings.
    distributed.print_once(f"t5ts: {why}")
    sys.exit(2)


def check(config: Config) -> None:
    """Refuse impossible values and pairs, all of them in one message.

    Raises:
        ConfigError: one line per problem, naming the keys and the fix.
    """
    problems = list(_structure_problems(config))
    if not problems:  # otherwise the pairs could not be read
        problems = [*field_problems(config), *_pair_problems(config), *_arm_problems(config)]
    if problems:
        raise ConfigError("\n".join(problems))


def _structure_problems(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys not in the schema, added by YAML or by a `+` on the command line."""
    for key in vars(node).keys() - {f.name for f in fields(node)}:
        try:
            _check_key(f"{prefix}{key}", ())
        except ConfigError as error:
            yield str(error)
        else:
            yield f"{prefix}{key} is not a setting of this option."
    for f in fields(node):
        value = getattr(node, f.name)
        is_group = is_dataclass(f.type) or (isinstance(value, dict) and f.name != "sizes")
        if is_group and not is_dataclass(value):
            yield f"{f.name}={value}: choose an option of this group ({f.name}=NAME)."
        if is_dataclass(value):
            yield from _structure_problems(value, f"{f.name}.")


def field_problems(node: Any, prefix: str = "") -> Iterator[str]:
    """Values outside their fields' ranges."""
    for f in fields(node):
        value, allowed = getattr(node, f.name), f.metadata.get("allowed")
        if is_dataclass(value):
            yield from field_problems(value, f"{f.name}.")
        elif isinstance(value, list) and any(isinstance(x, list | dict) for x in value):
            yield f"{prefix}{f.name}={value} is not allowed; allowed: a list of single values."
        elif allowed is not None and value is not None:
            elements = value if isinstance(value, list) else [value]
            if not all(allowed.holds(element) for element in elements):
                shown = value if value != "" else "''"
                yield f"{prefix}{f.name}={shown} is not allowed; allowed: {allowed.words}."


def _pair_problems(config: Config) -> Iterator[str]:
    """Contradictory pairs of settings."""
    yield from _encoder_problems(config)
    yield from _patch_problems(config)
    yield from _freeze_problems(config)
    yield from _task_problems(config)
    train, ood = config.train, config.ood
    lengths = {
        "optim.warmup_epochs": config.optim.warmup_epochs,
        "freeze.rewarmup_epochs": config.freeze.rewarmup_epochs,
    }
    for key, epochs in lengths.items():
        if epochs > train.epochs:
            yield f"{key}={epochs} is longer than the run (train.epochs={train.epochs})."
    if train.precision == "fp16" and train.device == "cpu":
        yield "train.precision=fp16 needs a GPU, not train.device=cpu: use fp32 (or bf16)."
    if train.precision in ("bf16", "fp16") and train.device == "mps":
        yield f"train.precision={train.precision} with train.device=mps: use fp32 (or auto)."
    parts, batch_size = train.grad_accumulation, train.batch_size
    if parts > batch_size:
        yield f"train.grad_accumulation={parts} is above train.batch_size={batch_size}."
    if ood is not None and (ood.fraction != 1 or ood.windows_per_epoch is not None):
        yield (
            "ood.fraction and ood.windows_per_epoch are about training, but ood is only tested on:"
            " leave them out, or set data.fraction and data.windows_per_epoch."
        )


def _encoder_problems(config: Config) -> Iterator[str]:
    """The encoder's sizes, and where its weights come from."""
    backbone, init = config.backbone, config.init
    chosen = f"init={init.name} with backbone={backbone.name}"
    if isinstance(backbone, SharedBackbone):
        width, heads = backbone.d_model, max(1, backbone.num_heads)
        if width % 2 or width % heads:
            yield (
                f"backbone.d_model={width} must be even and a multiple of"
                f" backbone.num_heads={heads}."
            )
    if init.name == "run" and init.path is None:
        yield "init=run needs init.path=RUN_DIR (a finished run, whose encoder will be used)."
    if init.name in ("t5", "pretrained", "chronos") and init.path is not None:
        yield (
            f"init={init.name} is a checkpoint, and init.path={init.path} is a run: use init=run"
            " (or random, matched, shuffled), or leave init.path out."
        )
    is_own = init.name in ("t5", "pretrained", "run") or init.path is not None
    if init.checkpoint is not None and is_own:
        yield (
            f"init.checkpoint={init.checkpoint} goes with init=chronos, random, matched or shuffled"
            f" and without init.path, not with init={init.name}."
        )
    if not isinstance(backbone, CheckpointBackbone):
        if init.name != "random":
            yield (
                f"{chosen}, which has no checkpoint: use init=random, or a backbone with one, such"
                " as t5_small."
            )
        return
    if isinstance(backbone, HFBackbone):
        if init.name == "t5":
            yield f"{chosen}, which is no T5: init=pretrained is the word for {backbone.title}."
        if init.name == "chronos" or init.checkpoint is not None:
            yield f"{chosen}: Chronos-T5's weights fit a T5, such as backbone=t5_small."
    is_backbones = init.name not in ("random", "run", "chronos") or bool(init.keep)
    needs_checkpoint = is_backbones and init.path is None and init.checkpoint is None
    if needs_checkpoint and not (backbone.hub_id or backbone.path):
        yield f"{chosen} needs a checkpoint: set backbone.path=DIR (a checkpoint's directory)."
    sources: list[Any] = [backbone.path]
    if isinstance(backbone, HFBackbone):
        sources += [backbone.hub_id, backbone.sizes or None]
    elif isinstance(backbone, T5Backbone):
        sources.append(backbone.d_model)
    if not any(source is not None for source in sources):
        yield (
            f"backbone={backbone.name} has no size:"
            " set backbone.path=DIR (a directory with the model's config.json)."
        )


def _patch_problems(config: Config) -> Iterator[str]:
    """Settings that turn a window into tokens, and tokens back into a window."""
    backbone, patch = config.backbone, config.patch
    length = f"patch.patch_len={patch.patch_len}"
    stride = patch.patch_len if patch.stride is None else patch.stride
    if (patch.init == "run") != (patch.path is not None):
        yield (
            f"patch.init={patch.init} with patch.path={patch.path}: patch.init=run needs"
            " patch.path=RUN_DIR (a finished run), and patch.init=fresh has none."
        )
    if patch.patch_len > config.seq_len:
        yield f"{length} is above seq_len={config.seq_len}: shorten it, or lengthen the window."
    if stride > patch.patch_len:
        yield f"patch.stride={stride} is above {length}: steps between patches would be skipped."
    if not patch.norm and patch.scale != "none":
        yield (
            f"patch.scale={patch.scale} needs patch.norm=true (the scale is set after the"
            " LayerNorm): use patch=norm, or patch.scale=none."
        )
    if patch.num_prototypes is not None:
        lacks = None if isinstance(backbone, T5Backbone) else f"backbone={backbone.name}"
        if config.init.path is not None and config.init.name != "random" and patch.path is None:
            lacks = f"init.path={config.init.path} (a run)"
        if lacks is not None:
            yield (
                f"patch.num_prototypes={patch.num_prototypes} mixes a T5's token embeddings, and"
                f" {lacks} has none: use patch=norm, or the T5 checkpoint itself."
            )
    if patch.scale == "match_embedding":
        if not isinstance(backbone, CheckpointBackbone):
            yield (
                f"patch.scale=match_embedding needs token embeddings, and backbone={backbone.name}"
                " has none: use patch.scale=none, div_sqrt_d or mul_sqrt_d."
            )
        elif config.init.name == "random" and backbone.embedding_rms is None:
            yield (
                "patch.scale=match_embedding with init=random needs backbone.embedding_rms=VALUE,"
                " so that every arm has the same scale (a run with init=t5 reports the value in"
                " its provenance.json)."
            )
    has_tokens = not isinstance(backbone, LinearBackbone)
    per_token = isinstance(config.task, ReconstructTask) and stride == patch.patch_len
    if config.head == "per_patch" and not (has_tokens and per_token):
        yield (
            "head=per_patch maps each token back to its own patch: it needs task=reconstruct (here"
            f" {config.task.name}), an encoder (here backbone={backbone.name}) and patches that do"
            f" not overlap (here patch.stride={stride} with {length}); otherwise use head=flatten."
        )


def _freeze_problems(config: Config) -> Iterator[str]:
    """Settings that contradict the name of the freezing."""
    freeze, epochs = config.freeze, config.train.epochs
    name, start = f"freeze={config.freeze.name}", f"freeze.unfreeze_epoch={freeze.unfreeze_epoch}"
    if isinstance(config.backbone, LinearBackbone) and freeze.name != "none":
        yield f"{name} with backbone=linear: there is no encoder; use freeze=none."
    if freeze.name == "none" and freeze.unfreeze_epoch != 0:
        yield f"{name} trains from the start, not from {start}: use freeze=staged or freeze=all."
    if freeze.name in ("all", "norms") and freeze.unfreeze_epoch is not None:
        yield f"{name} never unfreezes, but {start}: use freeze=staged."
    if freeze.name in ("all", "none") and freeze.always:
        yield f"{name} with freeze.always={freeze.always}: use freeze=norms or freeze=staged."
    if freeze.name == "norms" and not freeze.always:
        yield f"{name} with an empty freeze.always trains nothing: use freeze=all."
    if freeze.name == "staged" and freeze.unfreeze_epoch is None:
        yield f"{name} needs freeze.unfreeze_epoch=NUMBER; to never unfreeze, use freeze=all."
    if freeze.unfreeze_epoch is not None and 0 < freeze.unfreeze_epoch >= epochs:
        yield (
            f"{start} is beyond the last epoch (train.epochs={epochs}): unfreeze earlier, train"
            " longer, or use freeze=all."
        )


def _task_problems(config: Config) -> Iterator[str]:
    """Settings of the task and the objective."""
    task, horizon, name = config.task, config.horizon, f"task={config.task.name}"
    if isinstance(config.data, SyntheticData) and config.data.horizon != horizon:
        yield (
            f"data.horizon={config.data.horizon} is not horizon={horizon}: it is the horizon of the"
            " best achievable loss; leave data.horizon out, and it is set to horizon."
        )
    if not isinstance(task, ReconstructTask):
        if horizon is None:
            yield f"{name} needs horizon=NUMBER (steps to predict)."
        return
    if not task.min_len <= task.max_len < config.seq_len:
        yield (
            f"task.max_len={task.max_len} is not allowed; allowed: from"
            f" task.min_len={task.min_len} to seq_len − 1 = {config.seq_len - 1}."
        )
    if horizon is not None:
        yield f"horizon={horizon} has no meaning for {name}: leave it out, or use horizon=null."
    if config.train.shuffled_test:
        yield f"train.shuffled_test=true with {name}: only a forecast's context can be shuffled."
    if config.objective == "val_mase":
        yield (
            f"objective=val_mase is not defined for {name}: MASE measures forecasts; use val_loss,"
            " val_mae or val_skill (vs. linear interpolation)."
        )
    if task.mask == "token" and isinstance(config.backbone, LinearBackbone):
        yield f"task.mask=token with backbone={config.backbone.name}: use task.mask=value."


def _arm_problems(config: Config) -> Iterator[str]:
    """Groups that contradict the named arm: it would be a different arm."""
    for requirement in config.arm_requires:
        group, _, pattern = requirement.partition("=")
        name = getattr(getattr(config, group, None), "name", None)
        if name is None:
            yield f"arm_requires={requirement}: {group!r} is not a group; write GROUP=OPTION."
        elif not fnmatchcase(name, pattern):
            yield (
                f"the chosen arm sets {requirement}, but {group}={name}: leave {group} out of the"
                " command, or choose the groups themselves instead of arm=NAME."
            )
