"""Impossible configurations: ranges, choices and pairs, refused before any work starts."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from t5ts.config import (
    CONF,
    OBJECTIVES,
    Config,
    ForecastTask,
    LinearBackbone,
    ReconstructTask,
    SyntheticData,
    T5Backbone,
)
from t5ts.errors import ConfigError

INITS = ("random", "t5", "matched", "shuffled")
ORDERS = ("all_at_once", "top_down", "bottom_up")
CHANNELS = ("independent", "mixing")
SCALES = ("none", "div_sqrt_d", "mul_sqrt_d", "match_embedding")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")
SCHEDULES = ("cosine", "constant")
ALGORITHMS = ("adamw", "adamw_rms")
TRACKERS = ("wandb", "none")
TRACKER_MODES = ("auto", "online", "offline")
NORMALIZERS = ("instance", "none")
MASKS = ("token", "value")


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse a group's option that does not exist, before Hydra meets it.

    Hydra's own message is a traceback where the option looks like a number (`backbone=0`).

    Args:
        arguments: The command line; flags and keys that are no group are left to Hydra.

    Raises:
        ConfigError: naming group, option and the allowed options.
    """
    groups = {folder.name: folder for folder in CONF.iterdir() if folder.name != "hydra"}
    for argument in arguments:
        key, _, value = argument.partition("=")
        group = key.partition("@")[0]  # data@ood=…: an option of data, in the place of ood
        if group not in groups or not groups[group].is_dir():
            continue
        options = sorted(path.stem for path in groups[group].glob("*.yaml"))
        asked = [option.strip(" '\"[]") for option in value.split(",")]
        is_plain = "(" not in value and "$" not in value  # choice(…), glob(…), ${…}: Hydra's own
        unknown = [option for option in asked if option not in options]
        if is_plain and unknown:
            raise ConfigError(
                f"{key}={','.join(unknown)} does not exist; allowed: {', '.join(options)}"
                f"{f', or ~{key} for none' if '@' in key else ''}."
            )


def check(config: Config) -> None:
    """Refuse impossible values and pairs, all of them in one message.

    Raises:
        ConfigError: one line for each problem, naming the keys and the way out.
    """
    problems = [
        *_range_problems(config),
        *_choice_problems(config),
        *_pair_problems(config),
        *_claim_problems(config),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _range_problems(config: Config) -> list[str]:
    """Numbers out of their range: (key, value, holds, what is allowed)."""
    train, optim, patch, freeze, data = (
        config.train,
        config.optim,
        config.patch,
        config.freeze,
        config.data,
    )
    rules: list[tuple[str, Any, bool, str]] = [
        ("seed", config.seed, config.seed >= 0, "a whole number, 0 or more"),
        ("seq_len", config.seq_len, config.seq_len >= 1, "1 or more"),
        ("horizon", config.horizon, config.horizon is None or config.horizon >= 1, "1 or more"),
        ("patch.patch_len", patch.patch_len, patch.patch_len >= 1, "1 or more"),
        ("patch.stride", patch.stride, patch.stride is None or patch.stride >= 1, "1 or more"),
        ("data.fraction", data.fraction, 0 < data.fraction <= 1, "above 0, at most 1"),
        (
            "data.windows_per_epoch",
            data.windows_per_epoch,
            data.windows_per_epoch is None or data.windows_per_epoch >= 1,
            "null or 1 or more",
        ),
        ("backbone.dropout", config.backbone.dropout, 0 <= config.backbone.dropout < 1, "[0, 1)"),
        ("init.factor", config.init.factor, config.init.factor > 0, "above 0"),
        (
            "freeze.unfreeze_epoch",
            freeze.unfreeze_epoch,
            freeze.unfreeze_epoch is None or freeze.unfreeze_epoch >= 0,
            "null (never) or 0 or more",
        ),
        ("freeze.blocks_per_stage", freeze.blocks_per_stage, freeze.blocks_per_stage >= 1, "1…"),
        ("freeze.epochs_per_stage", freeze.epochs_per_stage, freeze.epochs_per_stage > 0, "> 0"),
        ("freeze.rewarmup_epochs", freeze.rewarmup_epochs, freeze.rewarmup_epochs >= 0, "0…"),
        ("optim.lr", optim.lr, optim.lr > 0, "above 0"),
        ("optim.encoder_lr_scale", optim.encoder_lr_scale, optim.encoder_lr_scale > 0, "above 0"),
        ("optim.layer_decay", optim.layer_decay, 0 < optim.layer_decay <= 1, "above 0, at most 1"),
        ("optim.warmup_epochs", optim.warmup_epochs, optim.warmup_epochs >= 0, "0 or more"),
        ("optim.min_lr_ratio", optim.min_lr_ratio, 0 <= optim.min_lr_ratio <= 1, "0 to 1"),
        ("optim.weight_decay", optim.weight_decay, optim.weight_decay >= 0, "0 or more"),
        (
            "optim.clip_norm",
            optim.clip_norm,
            optim.clip_norm is None or optim.clip_norm > 0,
            "null (no clipping) or above 0",
        ),
        ("optim.beta1", optim.beta1, 0 <= optim.beta1 < 1, "[0, 1)"),
        ("optim.beta2", optim.beta2, 0 <= optim.beta2 < 1, "[0, 1)"),
        ("optim.eps", optim.eps, optim.eps > 0, "above 0"),
        *(
            (f"train.{key}", getattr(train, key), getattr(train, key) >= 1, "1 or more")
            for key in (
                "epochs",
                "batch_size",
                "eval_batch_size",
                "grad_accumulation",
                "eval_every_epochs",
                "log_every",
                "probe_every",
            )
        ),
        ("train.threads", train.threads, train.threads is None or train.threads >= 1, "null or 1…"),
        (
            "train.checkpoint_every_s",
            train.checkpoint_every_s,
            train.checkpoint_every_s > 0,
            "above 0 (seconds)",
        ),
        ("train.reuse_max_gb", train.reuse_max_gb, train.reuse_max_gb > 0, "above 0 (GiB)"),
        (
            "train.reuse_dir",
            repr(train.reuse_dir),
            train.reuse_dir != "",
            "a folder, or null (off)",
        ),
        (
            "debug.overfit_windows",
            config.debug.overfit_windows,
            config.debug.overfit_windows is None or config.debug.overfit_windows >= 1,
            "null or 1 or more",
        ),
        *_reconstruct_ranges(config),
    ]
    return [
        f"{key}={value} is out of range; allowed: {allowed}."
        for key, value, holds, allowed in rules
        if not holds
    ]


def _reconstruct_ranges(config: Config) -> list[tuple[str, Any, bool, str]]:
    task = config.task
    if not isinstance(task, ReconstructTask):
        return []
    return [
        ("task.ratio", task.ratio, 0 < task.ratio < 1, "above 0, below 1"),
        ("task.min_len", task.min_len, task.min_len >= 1, "1 or more"),
        (
            "task.max_len",
            task.max_len,
            task.min_len <= task.max_len < config.seq_len,
            f"from task.min_len={task.min_len} to seq_len − 1 = {config.seq_len - 1}",
        ),
    ]


def _choice_problems(config: Config) -> list[str]:
    masks = [config.task.mask] if isinstance(config.task, ReconstructTask) else []
    choices = (
        *(("task.mask", mask, MASKS) for mask in masks),
        ("objective", config.objective, tuple(OBJECTIVES)),
        ("init.name", config.init.name, INITS),
        ("freeze.order", config.freeze.order, ORDERS),
        ("patch.channels", config.patch.channels, CHANNELS),
        ("patch.scale", config.patch.scale, SCALES),
        ("normalize.name", config.normalize.name, NORMALIZERS),
        ("optim.algorithm", config.optim.algorithm, ALGORITHMS),
        ("optim.schedule", config.optim.schedule, SCHEDULES),
        ("train.precision", config.train.precision, PRECISIONS),
        ("train.device", config.train.device, DEVICES),
        ("tracker.name", config.tracker.name, TRACKERS),
        ("tracker.mode", config.tracker.mode, TRACKER_MODES),
    )
    return [
        f"{key}={value} is not known; allowed: {', '.join(allowed)}."
        for key, value, allowed in choices
        if value not in allowed
    ]


def _pair_problems(config: Config) -> list[str]:
    """Pairs of settings that cannot both be meant."""
    backbone, freeze, patch, train = config.backbone, config.freeze, config.patch, config.train
    t5 = backbone if isinstance(backbone, T5Backbone) else None
    has_checkpoint = t5 is not None and bool(t5.hub_id or t5.path)
    reconstruct = config.task if isinstance(config.task, ReconstructTask) else None
    ood = config.ood
    stride = patch.patch_len if patch.stride is None else patch.stride
    unfreezes_late = freeze.unfreeze_epoch is not None and freeze.unfreeze_epoch > 0
    rules: list[tuple[bool, str]] = [
        (
            config.init.name != "random" and t5 is None,
            f"init={config.init.name} needs a T5 checkpoint, and backbone={backbone.name} has none:"
            " use init=random, or a T5 backbone such as backbone=t5_small.",
        ),
        (
            config.init.name != "random" and t5 is not None and not has_checkpoint,
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
