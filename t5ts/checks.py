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

from t5ts.config import (
    CONF,
    SCHEMAS,
    Config,
    ForecastTask,
    LinearBackbone,
    ReconstructTask,
    SharedBackbone,
    SyntheticData,
    T5Backbone,
    from_hydra,
)
from t5ts.errors import ConfigError

#: What a command may take out of the configuration (`~arm`): groups that need no option.
REMOVABLE = ("arm", "experiment", "data@ood", "ood")
#: Hydra's directories, without which a run would write into the working directory.
DIRECTORIES = ("hydra.run.dir", "hydra.sweep.dir")


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse what can be refused by looking at the command line alone.

    A key that no schema has is refused with `+` too, which Hydra would add and nothing would read.

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
            continue  # a flag or its value; a word that is neither is Hydra's to refuse
        override = _parsed(line)
        key = override.get_key_element().lstrip("+~")
        group = key.partition("@")[0]  # data@ood=…: an option of data, in the place of ood
        if override.is_delete() and not key.startswith("hydra.") and key not in REMOVABLE:
            if key not in (*groups, "hydra"):
                _check_key(key, groups)
            raise ConfigError(
                f"{line}: a run cannot do without {key}, so it cannot be removed; leave it out of"
                " the command for its default, or give it another value."
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
        hint = f"quote the text in it, as in \"{key}='{value}'\"" if value else "write KEY=VALUE"
        cause = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(
            f"{line} does not fit Hydra's grammar ({cause}): {hint}"
            f"{', or give the whole path instead of ~' if value.startswith('~') else ''}."
        ) from error


def _options(override: Override) -> list[str]:
    """The options that an override names; none where Hydra is to find them (`glob(*)`, `${…}`)."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        named: list[Any] = [x.text if isinstance(x, QuotedString) else x for x in value.list]
    else:
        named = [] if override.is_delete() or override.is_sweep_override() else [value]
    texts = ["null" if option is None else str(option) for option in named]
    return [text for text in texts if "${" not in text]


def _check_key(key: str, groups: Iterable[str]) -> None:
    """Refuse a key that no schema has, and name the nearest one that there is."""
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
    raise ConfigError(f"{key} is not a setting.{hint} --help explains what there is.")


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
        """Refuse intervals on Hydra's own grid, and values that no job could have."""
        if "PlainSweeper" not in str(config.hydra.sweeper.get("_target_")):
            return
        for line in config.hydra.overrides.task:
            if _parsed(line).is_interval_sweep():
                _refuse(
                    f"{line}: Hydra's grid has no values for an interval; sample it with the"
                    " sweeper (add hydra/sweeper=t5ts), or name values (A,B,C or range(A,B,STEP))."
                )
        try:
            common = _own(config)
        except ConfigError:
            return  # not complete without what is swept; each job is checked before it starts
        if problems := list(_structure_problems(common)) or list(_field_problems(common)):
            _refuse("\n".join(problems))


def _own(config: DictConfig) -> Config:
    own = config.copy()
    with open_dict(own):
        del own["hydra"]
    return from_hydra(own)


def _refuse(why: object) -> None:
    # Hydra turns a callback's exceptions into warnings.
    print(f"t5ts: {why}", file=sys.stderr)
    sys.exit(2)


def check(config: Config) -> None:
    """Refuse impossible values and pairs, all of them in one message.

    Raises:
        ConfigError: one line for each problem, naming the keys and the way out.
    """
    problems = list(_structure_problems(config))
    if not problems:  # else the pairs could not be read
        problems = [*_field_problems(config), *_pair_problems(config), *_claim_problems(config)]
    if problems:
        raise ConfigError("\n".join(problems))


def _structure_problems(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys that the schema lacks: YAML or a `+` on the command line has added them."""
    for key in vars(node).keys() - {f.name for f in fields(node)}:
        try:
            _check_key(f"{prefix}{key}", ())
        except ConfigError as error:
            yield str(error)
        else:
            yield f"{prefix}{key} is not a setting of this option."
    for f in fields(node):
        value = getattr(node, f.name)
        if (is_dataclass(f.type) or isinstance(value, dict)) and not is_dataclass(value):
            yield f"{f.name}={value}: choose an option of this group ({f.name}=NAME)."
        if is_dataclass(value):
            yield from _structure_problems(value, f"{f.name}.")


def _field_problems(node: Any, prefix: str = "") -> Iterator[str]:
    """Values outside what stands beside their fields."""
    for f in fields(node):
        value, allowed = getattr(node, f.name), f.metadata.get("allowed")
        if is_dataclass(value):
            yield from _field_problems(value, f"{f.name}.")
        elif isinstance(value, list) and any(isinstance(x, list | dict) for x in value):
            yield f"{prefix}{f.name}={value} is not allowed; allowed: a list of single values."
        elif allowed is not None and value is not None:
            elements = value if isinstance(value, list) else [value]
            if not all(allowed.holds(element) for element in elements):
                shown = value if value != "" else "''"
                yield f"{prefix}{f.name}={shown} is not allowed; allowed: {allowed.words}."


def _pair_problems(config: Config) -> list[str]:
    """Pairs of settings that cannot both be meant."""
    backbone, freeze, patch, train = config.backbone, config.freeze, config.patch, config.train
    t5 = backbone if isinstance(backbone, T5Backbone) else None
    has_checkpoint = t5 is not None and bool(t5.hub_id or t5.path)
    reconstruct = config.task if isinstance(config.task, ReconstructTask) else None
    ood = config.ood
    stride = patch.patch_len if patch.stride is None else patch.stride
    unfreezes_late = freeze.unfreeze_epoch is not None and freeze.unfreeze_epoch > 0
    full = None if t5 is None else t5.full_params
    rules: list[tuple[bool, str]] = [
        (
            full is not None and (len(full) != 2 or full[0] > full[1]),
            f"backbone.full_params={full} must be [LEAST, MOST], in that order.",
        ),
        (
            isinstance(backbone, SharedBackbone)
            and bool(backbone.d_model % 2 or backbone.d_model % max(1, backbone.num_heads)),
            f"backbone.d_model={getattr(backbone, 'd_model', None)} must be even and a multiple of"
            f" backbone.num_heads={getattr(backbone, 'num_heads', None)}.",
        ),
        (
            reconstruct is not None
            and not reconstruct.min_len <= reconstruct.max_len < config.seq_len,
            f"task.max_len={getattr(reconstruct, 'max_len', None)} is not allowed; allowed: from"
            f" task.min_len={getattr(reconstruct, 'min_len', None)} to seq_len − 1 ="
            f" {config.seq_len - 1}.",
        ),
        *(
            (
                epochs > train.epochs,
                f"{key}={epochs} is longer than the run (train.epochs={train.epochs}): shorten it,"
                " or train longer.",
            )
            for key, epochs in (
                ("optim.warmup_epochs", config.optim.warmup_epochs),
                ("freeze.rewarmup_epochs", freeze.rewarmup_epochs),
            )
        ),
        (
            config.init.name != "random" and t5 is None,
            f"init={config.init.name} needs a T5 checkpoint, and backbone={backbone.name} has none:"
            " use init=random, or a T5 backbone such as backbone=t5_small.",
        ),
        (
            config.init.name == "run" and config.init.path is None,
            "init=run needs init.path=RUN_DIR (a finished run, whose encoder is to be used).",
        ),
        (
            config.init.name in ("t5", "chronos") and config.init.path is not None,
            f"init={config.init.name} is a checkpoint, and init.path={config.init.path} is a run:"
            " use init=run (or random, matched, shuffled), or leave init.path out.",
        ),
        (
            config.init.checkpoint is not None
            and (config.init.name in ("t5", "run") or config.init.path is not None),
            f"init.checkpoint={config.init.checkpoint} goes with init=chronos, random, matched or"
            f" shuffled and without init.path, not with init={config.init.name}.",
        ),
        (
            (patch.init == "run") != (patch.path is not None),
            f"patch.init={patch.init} with patch.path={patch.path}: patch.init=run needs"
            " patch.path=RUN_DIR (a finished run), and patch.init=fresh has none.",
        ),
        (
            config.init.name not in ("random", "run", "chronos")
            and config.init.path is None
            and config.init.checkpoint is None
            and t5 is not None
            and not has_checkpoint,
            f"init={config.init.name} with backbone={backbone.name} needs a checkpoint:"
            " give backbone.path=DIR (a T5 checkpoint's directory).",
        ),
        (
            t5 is not None and t5.d_model is None and t5.path is None,
            f"backbone={backbone.name} does not say its size:"
            " give backbone.path=DIR (a directory with T5's config.json).",
        ),
        (
            patch.patch_len > config.seq_len,
            f"patch.patch_len={patch.patch_len} is above seq_len={config.seq_len}:"
            " shorten the patch or lengthen the window.",
        ),
        (
            stride > patch.patch_len,
            f"patch.stride={patch.stride} is above patch.patch_len={patch.patch_len} and would"
            " skip observations: use a stride of at most the patch length.",
        ),
        (
            not patch.norm and patch.scale != "none",
            f"patch.scale={patch.scale} needs patch.norm=true (the scale is set after the"
            " LayerNorm): use patch=norm, or patch.scale=none.",
        ),
        (
            patch.scale == "match_embedding" and t5 is None,
            f"patch.scale=match_embedding needs token embeddings, and backbone={backbone.name} has"
            " none: use patch.scale=none, div_sqrt_d or mul_sqrt_d.",
        ),
        (
            patch.scale == "match_embedding"
            and t5 is not None
            and config.init.name == "random"
            and t5.embedding_rms is None,
            "patch.scale=match_embedding with init=random needs backbone.embedding_rms=VALUE, so"
            " that every arm has the same scale (a run with init=t5 reports the value in its"
            " provenance.json).",
        ),
        (
            config.head == "per_patch"
            and (
                reconstruct is None
                or isinstance(backbone, LinearBackbone)
                or stride != patch.patch_len
            ),
            "head=per_patch gives each token its own patch back: it needs task=reconstruct (here"
            f" {config.task.name}), an encoder (here backbone={backbone.name}) and patches that do"
            f" not overlap (here patch.stride={stride} with patch.patch_len={patch.patch_len});"
            " use head=flatten, or change these.",
        ),
        (
            isinstance(backbone, LinearBackbone) and freeze.name != "none",
            f"freeze={freeze.name} with backbone=linear: there is no encoder to freeze;"
            " use freeze=none.",
        ),
        (
            freeze.name == "none" and freeze.unfreeze_epoch != 0,
            f"freeze=none means trained from the start, but freeze.unfreeze_epoch="
            f"{freeze.unfreeze_epoch}: use freeze=staged for a later epoch, freeze=all for never.",
        ),
        (
            freeze.name in ("all", "norms") and freeze.unfreeze_epoch is not None,
            f"freeze={freeze.name} never unfreezes, but freeze.unfreeze_epoch="
            f"{freeze.unfreeze_epoch}: use freeze=staged.",
        ),
        (
            freeze.name in ("all", "none") and bool(freeze.always),
            f"freeze={freeze.name} with freeze.always={freeze.always} would be another freezing"
            " under that name: use freeze=norms or freeze=staged.",
        ),
        (
            freeze.name == "norms" and not freeze.always,
            "freeze=norms with an empty freeze.always would train nothing of the encoder:"
            " use freeze=all.",
        ),
        (
            isinstance(config.task, ForecastTask) and config.horizon is None,
            f"task={config.task.name} needs horizon=NUMBER (steps to predict).",
        ),
        (
            reconstruct is not None and config.horizon is not None,
            f"horizon={config.horizon} means nothing to task={config.task.name}, which predicts"
            " masked steps inside the window: leave it out, or use horizon=null.",
        ),
        (
            isinstance(config.data, SyntheticData) and config.data.horizon != config.horizon,
            f"data.horizon={getattr(config.data, 'horizon', None)} is not horizon={config.horizon}:"
            " the best achievable loss is that of forecasts over these steps, so leave data.horizon"
            " out, and it follows (no bound is known of reconstruction, whose horizon is null).",
        ),
        (
            reconstruct is not None and train.shuffled_test,
            f"train.shuffled_test=true with task={config.task.name}: masked steps belong to their"
            " places, so only a forecast's context can be shuffled; use task=forecast, or"
            " train.shuffled_test=false.",
        ),
        (
            ood is not None and (ood.fraction != 1 or ood.windows_per_epoch is not None),
            "ood.fraction and ood.windows_per_epoch are about training, and ood is only tested on,"
            " on all of its test windows: leave them out (data.fraction and data.windows_per_epoch"
            " are those of the series that is trained on).",
        ),
        (
            reconstruct is not None and config.objective == "val_mase",
            f"objective=val_mase is not defined for task={config.task.name}: MASE measures"
            " forecasts against seasonal naive ones; use val_loss, val_mae or val_skill (against"
            " linear interpolation).",
        ),
        (
            reconstruct is not None
            and reconstruct.mask == "token"
            and isinstance(backbone, LinearBackbone),
            f"task.mask=token needs tokens, and backbone={backbone.name} has none:"
            " use task.mask=value.",
        ),
        (
            freeze.name == "staged" and freeze.unfreeze_epoch is None,
            "freeze=staged needs freeze.unfreeze_epoch=NUMBER; for never use freeze=all.",
        ),
        (
            unfreezes_late and (freeze.unfreeze_epoch or 0) >= train.epochs,
            f"freeze.unfreeze_epoch={freeze.unfreeze_epoch} is beyond the last epoch"
            f" (train.epochs={train.epochs}): unfreeze earlier, train longer, or use freeze=all.",
        ),
        (
            train.precision == "fp16" and train.device == "cpu",
            "train.precision=fp16 with train.device=cpu: fp16 trains on a GPU only;"
            " use train.precision=fp32 (or bf16).",
        ),
        (
            train.grad_accumulation > train.batch_size,
            f"train.grad_accumulation={train.grad_accumulation} is above"
            f" train.batch_size={train.batch_size}: a part would be empty.",
        ),
    ]
    return [message for broken, message in rules if broken]


def _claim_problems(config: Config) -> list[str]:
    """Groups that were chosen over what the named arm says: it would be another under its name."""
    problems = []
    for claim in config.claims:
        group, _, pattern = claim.partition("=")
        name = getattr(getattr(config, group, None), "name", None)
        if name is None:
            problems.append(f"claims={claim}: {group!r} is no group; write GROUP=OPTION.")
        elif not fnmatchcase(name, pattern):
            problems.append(
                f"the chosen arm says {claim}, but {group}={name}: leave {group} out of the"
                " command, or choose the groups themselves instead of arm=NAME."
            )
    return problems
