"""Impossible configurations, refused before any work starts: keys, ranges, choices and pairs."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from t5ts import distributed
from t5ts.config import CONF, SCHEMAS, Config, from_hydra, register
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

#: What a command may remove from the configuration (`~arm`): groups that need no option.
REMOVABLE = ("arm", "experiment", "data@ood", "ood")
#: Hydra's directories, without which a run would write into the working directory.
DIRECTORIES = ("hydra.run.dir", "hydra.sweep.dir")
#: OmegaConf's message on a key that the chosen option lacks, as it is or in one of Hydra's.
_ABSENT = re.compile(r"(?s)(?P<where>In '[^']*': )?[^\n]*\n?Key '.*full_key: (?P<key>\S+)")
GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"hydra"}


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse everything that the command line alone shows to be wrong.

    An unknown key is refused even with `+`: Hydra would add it, but nothing would read it.

    Args:
        arguments: The command line; flags are left to Hydra, as are its own keys.

    Raises:
        ConfigError: naming the key and what is allowed.
    """
    if {"-sc", "--shell-completion"}.intersection(arguments):
        return  # its words (install=bash) are not overrides
    flags = [part for argument in arguments for part in argument.split("=", 1)]
    trees = [CONF]
    trees += [Path(value) for flag, value in pairwise(flags) if flag in ("--config-dir", "-cd")]
    of_ood = [line for line in arguments if line.lstrip("+").startswith("ood.")]
    may_have_ood = "--config-name" in flags or "-cn" in flags
    for line in arguments:
        if line.startswith("-") or not ("=" in line or line.startswith("~")):
            continue  # a flag or its value; Hydra refuses any other word
        override = _parsed(line)
        key = override.get_key_element().lstrip("+~")
        group = key.partition("@")[0]  # data@ood=…: an option of data, at the place of ood
        if f"{key}.".startswith("hydra.callbacks.check.") or key == "hydra.callbacks":
            raise ConfigError(f"{line}: the configuration check cannot be switched off.")
        if override.is_delete() and not key.startswith("hydra.") and key not in REMOVABLE:
            known = key == "hydra" or is_key(key)
            needed = (
                f"{line}: a run needs {key}; leave it out for its default, or set another value."
            )
            raise ConfigError(needed if known else _unknown(key))
        if group in GROUPS:
            files = {p.stem: p for tree in trees for p in (tree / group).glob("*.yaml")}
            options = _options(override)
            if unknown := [option for option in options if option not in files]:
                none = f", or ~{key} for none" if "@" in key else ""
                allowed = f"allowed: {', '.join(sorted(files))}{none}"
                raise ConfigError(f"{key}={','.join(unknown)} does not exist; {allowed}.")
            presets = [files[option].read_text() for option in options]
            may_have_ood |= key == "data@ood" or not options or "data@ood" in "".join(presets)
        elif not key.startswith(("hydra.", "hydra/")) and key not in _keys():
            raise ConfigError(_unknown(key or line))
        elif key in DIRECTORIES and override.value() in (None, ""):
            raise ConfigError(f"{line}: allowed: a directory's path.")
    if of_ood and ("~data@ood" in arguments or not may_have_ood):
        raise ConfigError(f"{of_ood[0]} needs another series to test on: choose data@ood=OPTION.")


def compose_config(overrides: Sequence[str]) -> tuple[Config, Path]:
    """The configuration of a command line, and the run directory that it would have.

    Raises:
        ConfigError: as `check_overrides`, or if Hydra cannot compose it.
    """
    register()
    check_overrides(overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", overrides=list(overrides), return_hydra_config=True)
        return from_hydra(composed), Path(composed.hydra.run.dir)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(composition_message(error)) from error


def composition_message(error: BaseException | None) -> str:
    """Why Hydra could not compose: an error and its causes, each line once.

    Without OmegaConf's notes on its own types, and without Hydra's advice to add an unknown key.
    """
    lines: list[str] = []
    while error is not None:
        if (found := _ABSENT.search(str(error))) and found["key"] in _keys():
            return (found["where"] or "") + _elsewhere(found["key"])
        lines += (str(error) or type(error).__name__).splitlines()
        error = error.__cause__
    shown = (line.strip() for line in lines if "_type=" not in line and "use +" not in line)
    return "\n".join(dict.fromkeys(filter(None, shown)))


def _parsed(line: str) -> Override:
    try:
        return OverridesParser.create().parse_overrides([line])[0]
    except HydraException as error:
        key, _, value = line.partition("=")
        hint = f"quote its text, as in \"{key}='{value}'\"" if value else "write KEY=VALUE"
        if value.startswith("~"):
            hint += ", or write the whole path"
        cause = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(f"{line} does not fit Hydra's grammar ({cause}): {hint}.") from error


def _options(override: Override) -> list[str]:
    """The options in an override; none if Hydra has to find them (`glob(*)`, `${…}`)."""
    value = override.value()
    named: list[Any] = [] if override.is_delete() or override.is_sweep_override() else [value]
    if isinstance(value, ChoiceSweep):
        named = [x.text if isinstance(x, QuotedString) else x for x in value.list]
    texts = ["null" if option is None else str(option) for option in named]
    return [text for text in texts if "${" not in text]


@cache
def _keys() -> frozenset[str]:
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
    return key in GROUPS or key in _keys()


def _elsewhere(key: str) -> str:
    """The message for a key that the chosen option lacks, with the options that have it."""
    group, _, last = key.partition(".")
    of = "data" if group == "ood" else group
    nodes = SCHEMAS[of].items()
    marks = [f"schema/{of}/{name}@" for name, node in nodes if hasattr(node(), last)]
    files = sorted((CONF / of).glob("*.yaml"))
    having = [p.stem for p in files if any(mark in p.read_text() for mark in marks)]
    return f"{key} is a setting of {group}={', '.join(having)}, not of the option chosen here."


def _unknown(key: str) -> str:
    """The message for a key that no schema has, with the keys that may have been meant."""
    group, _, last = key.rpartition(".")
    known = sorted({*_keys(), *GROUPS})
    initials = "".join(word[:1] for word in last.split("_")) if "_" in last else last  # lr
    matches = [k for k in known if k.rpartition(".")[2] in (last, initials)]
    near = [k for k in matches if k.startswith(f"{group}.")] or matches
    near = near or get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return f"{key} is not a setting.{hint} See --help for all settings."


class CheckFirst(Callback):
    """Hydra's callback: an impossible configuration is refused before it gets a directory.

    Args:
        arm: The options that the chosen named arm consists of, by group; `from_hydra` reads them.
    """

    def __init__(self, arm: Mapping[str, str] | None = None) -> None:
        pass

    def on_run_start(self, config: DictConfig, **_kwargs: Any) -> None:
        """Check the one run."""
        with _exit_if_refused():
            check(from_hydra(config))

    def on_multirun_start(self, config: DictConfig, **_kwargs: Any) -> None:
        """Refuse intervals in Hydra's own grid search, and values that no job could have."""
        with _exit_if_refused():
            if distributed.world_size() > 1:
                raise ConfigError(
                    "--multirun under torchrun, which trains one run in several processes: for"
                    " several runs use a launcher (hydra/launcher=joblib) without torchrun."
                )
            _check_subdir(config)
            if "PlainSweeper" not in str(config.hydra.sweeper.get("_target_")):
                return
            for line in config.hydra.overrides.task:
                if _parsed(line).is_interval_sweep():
                    raise ConfigError(
                        f"{line}: Hydra's grid search cannot take an interval; add"
                        " hydra/sweeper=t5ts, or list values (A,B,C or range(A,B,STEP))."
                    )
            try:
                common = from_hydra(config)
            except ConfigError:
                return  # incomplete without the swept values; each job is checked before it starts
            _refuse_any(list(_structure_problems(common)) or list(field_problems(common)))


def _check_subdir(config: DictConfig) -> None:
    """Refuse directories of jobs that are not below the sweep's."""
    composed = config.copy()
    with read_write(composed.hydra), open_dict(composed.hydra):
        composed.hydra.job.num = composed.hydra.job.id = 0
    try:
        subdir = composed.hydra.sweep.subdir
    except OmegaConfBaseException:
        return  # it needs a swept value
    path = PurePath(str(subdir or ""))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ConfigError(
            f"hydra.sweep.subdir={subdir}: allowed: a path below the sweep's directory, without"
            " '..'; to move the sweep, set hydra.sweep.dir=DIR."
        )


@contextmanager
def _exit_if_refused() -> Iterator[None]:
    """Exit with the message: Hydra would turn a callback's exceptions into warnings."""
    try:
        yield
    except ConfigError as error:
        distributed.print_once(f"t5ts: {error}")
        sys.exit(2)


def _refuse_any(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def check(config: Config) -> None:
    """Refuse impossible values and pairs, all of them in one message.

    Raises:
        ConfigError: one line per problem, naming the keys and the fix.
    """
    _refuse_any(list(_structure_problems(config)))  # without these the pairs cannot be checked
    pairs = (_run_problems, _encoder_problems, _patch_problems, _freeze_problems, _task_problems)
    problems = [*field_problems(config), *(line for rules in pairs for line in rules(config))]
    _refuse_any(problems)


def _structure_problems(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys not in the schema, added by YAML or by a `+` on the command line."""
    for key in vars(node).keys() - {f.name for f in fields(node)}:
        name = f"{prefix}{key}"
        yield _elsewhere(name) if name in _keys() else _unknown(name)
    for f in fields(node):
        value = getattr(node, f.name)
        is_group = is_dataclass(f.type) or (isinstance(value, dict) and f.name != "sizes")
        if is_dataclass(value):
            yield from _structure_problems(value, f"{f.name}.")
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
