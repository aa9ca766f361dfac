"""From a checked config to the objects of a run; nothing here trains or writes."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_method
from torch import Tensor

from t5ts import distributed
from t5ts.config import (
    Config,
    CsvData,
    DataConfig,
    LinearBackbone,
    ReconstructTask,
    SharedBackbone,
    T5Backbone,
)
from t5ts.data.series import Series
from t5ts.data.windows import Windows, WindowSplits, build_windows, mase_denominator
from t5ts.donor import best_checkpoint, load_donor, load_patch, norm_rms
from t5ts.errors import ConfigError, DataError
from t5ts.model import hub
from t5ts.model.architecture import T5Architecture
from t5ts.model.checkpoint_file import file_sha256, open_checkpoint, read_architecture
from t5ts.model.encoders import Encoder, NoEncoder, component_of
from t5ts.model.forecaster import Forecaster, build_forecaster
from t5ts.model.patching import PatchEmbedding
from t5ts.model.shared_encoder import SharedEncoder
from t5ts.model.t5_encoder import T5Encoder
from t5ts.model.tensors import state_digest
from t5ts.model.weights import (
    LoadReport,
    chronos_source,
    encoder_state,
    load_checkpoint,
    load_chronos,
)
from t5ts.optim import OptimSettings, PlannedOptimizer
from t5ts.reconstruct import Reconstruct
from t5ts.schedule import forecaster_plan, start_step, within_run
from t5ts.task import Forecast, Task

#: Windows of a dry run's epoch and evaluation, in batches.
DRY_RUN_BATCHES = 2


@dataclass(kw_only=True, eq=False)
class Shift:
    """Another series, which nothing is trained on: the selected checkpoint is tested on it too.

    Attributes:
        splits: Its windows, standardised by its own train rows.
        test: Those that are read, under the name "ood".
        denominator_C, baseline_season: As in `Setup`, of this series.
    """

    series: Series
    splits: WindowSplits
    test: Windows
    denominator_C: Tensor | None
    baseline_season: int


@dataclass(kw_only=True, eq=False)
class Setup:
    """Everything that a run is made of.

    Attributes:
        train, val, test: The windows in use (`debug=overfit` puts one set in all three places).
        ood: The other series; None where none is asked for.
        report: Where the encoder's weights came from; None without a T5 encoder.
        denominator_C: Seasonal-naive MAE of the train rows, for MASE; None where the task has none.
        baseline_season: The season that the naive baselines repeat.
        autocast: Precision of the forward pass; None for float32.
    """

    device: torch.device
    autocast: torch.dtype | None
    task: Task
    series: Series
    splits: WindowSplits
    train: Windows
    val: Windows
    test: Windows
    ood: Shift | None
    model: Forecaster
    report: LoadReport | None
    optimizer: PlannedOptimizer
    epochs: int
    windows_per_epoch: int
    steps_per_epoch: int
    eval_limit: int | None
    denominator_C: Tensor | None
    baseline_season: int


def build(config: Config) -> Setup:
    """Load the data and the weights, and build model and optimizer.

    Raises:
        UserError: for data or weights that cannot be had or are not what they should be.
    """
    device, autocast = device_and_precision(config)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    _set_tf32(on=config.train.tf32 and device.type == "cuda")
    task = build_task(config)
    series = load_once(config.data)
    splits = _windows(
        series,
        context_len=task.context_len,
        target_len=task.target_len,
        fraction=config.data.fraction,
        device=device,
    )
    train, val, test = _windows_in_use(config, splits)
    model, report = build_model(config, num_channels=len(series.channels))
    model.to(device)
    dry = config.debug.fast_dev_run
    limit = DRY_RUN_BATCHES * config.train.batch_size if dry else config.data.windows_per_epoch
    windows_per_epoch = min(len(train), limit or len(train))
    _check_share(min(windows_per_epoch, config.train.batch_size))
    steps_per_epoch = -(-windows_per_epoch // config.train.batch_size)
    epochs = 1 if dry else config.train.epochs
    return Setup(
        device=device,
        autocast=autocast,
        task=task,
        series=series,
        splits=splits,
        train=train,
        val=val,
        test=test,
        ood=_build_shift(config, task, series, device),
        model=model,
        report=report,
        optimizer=build_optimizer(
            config, model, steps_per_epoch=steps_per_epoch, total_steps=epochs * steps_per_epoch
        ),
        epochs=epochs,
        windows_per_epoch=windows_per_epoch,
        steps_per_epoch=steps_per_epoch,
        eval_limit=config.train.eval_batch_size if dry else None,
        denominator_C=_denominator(task, series, splits),
        baseline_season=task.baseline_season(series.season),
    )


def _denominator(task: Task, series: Series, splits: WindowSplits) -> Tensor | None:
    if not task.uses_season:
        return None
    rows_TC = splits.train.series_TC[slice(*splits.scaler_rows)]
    return mase_denominator(rows_TC, season=series.season)


def _build_shift(
    config: Config, task: Task, trained_on: Series, device: torch.device
) -> Shift | None:
    """The series of `ood`, laid out like the one that is trained on.

    Its own train rows standardise it, as where a model meets a data set that it was not trained on
    (zero-shot): its units are its own, and only what is left of its shape is the shift.

    Raises:
        DataError: if it cannot be had, or is too short.
        ConfigError: if it has another number of channels.
    """
    if config.ood is None:
        return None
    try:
        series = load_once(config.ood)
        theirs, ours = series.channels, trained_on.channels
        if len(theirs) != len(ours):
            raise ConfigError(
                f"ood={config.ood.name} has {len(theirs)} channels ({', '.join(theirs)}), and"
                f" data={config.data.name} has {len(ours)} ({', '.join(ours)}): one model takes"
                " both, channel by channel, so take as many of each (channels; also stations of"
                " nyc_weather, num_channels of synthetic), or another series."
            )
        splits = _windows(
            series, context_len=task.context_len, target_len=task.target_len, device=device
        )
        denominator_C = _denominator(task, series, splits)
    except DataError as error:
        raise DataError(
            f"ood={config.ood.name}: {error} (What is called data.… here is ood.….)"
        ) from error
    return Shift(
        series=series,
        splits=splits,
        test=splits.test.first(len(splits.test), name="ood"),
        denominator_C=denominator_C,
        baseline_season=task.baseline_season(series.season),
    )


def _check_share(windows_per_step: int) -> None:
    """Refuse more processes than windows in a batch: some would never train.

    Raises:
        ConfigError: naming both numbers.
    """
    processes = distributed.world_size()
    if processes > windows_per_step:
        raise ConfigError(
            f"{processes} processes share a batch of {windows_per_step} windows: train.batch_size"
            " is that of all processes together; raise it (and data.windows_per_epoch), or use"
            f" torchrun --nproc-per-node with at most {windows_per_step} processes in all."
        )


def build_task(config: Config) -> Task:
    """The task: the one place where it is chosen."""
    if isinstance(config.task, ReconstructTask):
        return Reconstruct(
            seq_len=config.seq_len,
            ratio=config.task.ratio,
            min_len=config.task.min_len,
            max_len=config.task.max_len,
            mask=config.task.mask,
            seed=component_seed(config.seed, "mask"),
        )
    assert config.horizon is not None
    return Forecast(seq_len=config.seq_len, horizon=config.horizon)


def device_and_precision(config: Config) -> tuple[torch.device, torch.dtype | None]:
    """The device, and the autocast type (None: float32 without autocast).

    Raises:
        ConfigError: if a GPU, or a precision that needs one, is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if config.train.device == "cuda" and not has_gpu:
        raise ConfigError(
            "train.device=cuda, but torch sees no GPU: use train.device=cpu, or mend the driver"
            " (python -c 'import torch; print(torch.version.cuda)')."
        )
    device = torch.device("cuda" if has_gpu and config.train.device != "cpu" else "cpu")
    if device.type == "cuda" and distributed.world_size() > 1:
        if distributed.local_rank() >= torch.cuda.device_count():
            raise ConfigError(
                f"more processes than GPUs: this machine has {torch.cuda.device_count()}; use"
                f" torchrun --nproc-per-node={torch.cuda.device_count()}, or train.device=cpu."
            )
        device = torch.device("cuda", distributed.local_rank())
        torch.cuda.set_device(device)
    if config.train.precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "train.precision=fp16, but there is no GPU: fp16 trains on a GPU only;"
            " use train.precision=fp32 (or auto)."
        )
    chosen = config.train.precision
    if chosen == "auto":
        # T5 was trained in bf16; its feed-forward overflows fp16, so that is never chosen here.
        # Emulated bf16 (T4, V100) is slower than float32.
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        chosen = "bf16" if has_bf16 else "fp32"
    return device, {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[chosen]


def _set_tf32(*, on: bool) -> None:
    """Let float32 products be rounded to TF32 (10 bits of 23), or not; on a GPU only.

    On a CPU torch's "high" would allow rounded products too, and golden losses would move.
    """
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def precision_name(setup: Setup) -> str:
    """The precision of a run as provenance.json has it."""
    tf32 = torch.get_float32_matmul_precision() == "high"
    return f"{setup.autocast or torch.float32}{' with TF32 products' if tf32 else ''}"


def load_series(data: DataConfig) -> Series:
    """Call the data's loader with every field that its schema adds to the common ones."""
    common = {field.name for field in fields(DataConfig)}
    arguments = {f.name: getattr(data, f.name) for f in fields(data) if f.name not in common}
    series = get_method(data._target_)(**arguments)
    assert isinstance(series, Series)
    return series


#: The last two series that were loaded, by what they were loaded from: a run's data and its ood.
_loaded: dict[str, Series] = {}


def load_once(data: DataConfig) -> Series:
    """Load a series, or take the one that this process has loaded, if its file is unchanged.

    Nothing may write to it but `build_windows`, which standardises it once.
    """
    text = [asdict(data)[name] for name in ("path", "dir") if hasattr(data, name)]
    files = [Path(value).expanduser() for value in text if value]
    files += [path for folder in files if folder.is_dir() for path in sorted(folder.iterdir())]
    stats = [path.stat() for path in files if path.exists()]
    stamps = [[stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino] for stat in stats]
    values = {k: v for k, v in asdict(data).items() if k not in ("fraction", "windows_per_epoch")}
    key = json.dumps([values, str(Path.cwd()), stamps])
    series = _loaded.pop(key, None)
    if series is None:
        while len(_loaded) > 1:
            del _loaded[next(iter(_loaded))]
        series = load_series(data)
    _loaded[key] = series
    return series


def _windows(series: Series, **how: Any) -> WindowSplits:
    try:
        return build_windows(series, **how)
    except DataError:
        _loaded.clear()  # it may have failed halfway through standardising
        raise


def _windows_in_use(config: Config, splits: WindowSplits) -> tuple[Windows, Windows, Windows]:
    count = config.debug.overfit_windows
    if count is None:
        return splits.train, splits.val, splits.test
    few = splits.train.first(min(count, len(splits.train)), name="train")
    return few, few, few


def component_seed(seed: int, component: str) -> int:
    """A seed of its own for each component, so that none consumes another's randomness."""
    digest = hashlib.sha256(f"{seed}/{component}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def component_generator(seed: int, component: str) -> torch.Generator:
    """A CPU generator of a component's own."""
    return torch.Generator().manual_seed(component_seed(seed, component))


def build_model(config: Config, *, num_channels: int) -> tuple[Forecaster, LoadReport | None]:
    """The forecaster of any arm, and where its encoder's weights came from.

    All init arms of a backbone go through this one constructor and differ only by the state dict
    that is loaded into the encoder.

    Raises:
        WeightsError: if the weights cannot be had or do not verify.
    """
    task = build_task(config)
    encoder, report = _build_encoder(config)
    # Without an encoder there are no tokens: one linear map, whatever the patch group says.
    has_tokens = not isinstance(encoder, NoEncoder)
    embedding_rms = None if report is None else report.embedding_rms
    if config.patch.scale == "native":
        embedding_rms = 1.0 if embedding_rms is None else embedding_rms
    elif isinstance(config.backbone, T5Backbone) and config.backbone.embedding_rms is not None:
        embedding_rms = config.backbone.embedding_rms
    model = build_forecaster(
        encoder=encoder,
        num_channels=num_channels,
        seq_len=config.seq_len,
        output_len=task.output_len,
        patch_len=config.patch.patch_len,
        stride=config.patch.stride,
        channels=config.patch.channels,
        norm=config.patch.norm and has_tokens,
        scale=config.patch.scale if has_tokens else "none",
        embedding_rms=embedding_rms,
        hidden=_hidden(config, task),
        normalize=config.normalize.name,
        head=config.head,
        patch_generator=component_generator(config.seed, "patch"),
        head_generator=component_generator(config.seed, "head"),
    )
    if isinstance(model.patch, PatchEmbedding) and config.patch.path is not None:
        load_patch(model.patch, config.patch.path)
        if config.patch.scale == "native":  # the arm's RMS, whatever the donor's norm puts out
            model.patch.scale /= norm_rms(model.patch.state_dict())
    return model, report


def _hidden(config: Config, task: Task) -> str:
    """What stands for steps that the model does not see: the task's choice, or 0 for mere gaps."""
    tables = [data for data in (config.data, config.ood) if isinstance(data, CsvData)]
    has_gaps = any(table.missing == "mask" for table in tables)
    return "value" if task.hides == "none" and has_gaps else task.hides


def _build_encoder(config: Config) -> tuple[Encoder, LoadReport | None]:
    backbone = config.backbone
    generator = component_generator(config.seed, "encoder")
    if isinstance(backbone, LinearBackbone):
        return NoEncoder(), None
    if isinstance(backbone, SharedBackbone):
        shared = SharedEncoder(
            d_model=backbone.d_model,
            num_layers=backbone.num_layers,
            num_heads=backbone.num_heads,
            d_ff=backbone.d_ff,
            dropout=backbone.dropout,
            stem=backbone.stem,
            norm_first=backbone.norm_first,
        )
        shared.init_parameters(generator)
        return shared, None
    assert isinstance(backbone, T5Backbone)
    arch = t5_architecture(backbone)
    init = config.init.name
    if init != "random":  # a stream of its own: matched noise is not random's
        generator = component_generator(config.seed, f"encoder/{init}")
    state, report = encoder_state(
        init=init,
        arch=arch,
        generator=generator,
        factor=config.init.factor,
        scale_norms=config.init.scale_norms,
        load=partial(load_encoder, config, arch),
    )
    encoder = T5Encoder(arch, dropout=backbone.dropout)
    encoder.load_state_dict(state)
    return encoder, report


def load_encoder(
    config: Config, arch: T5Architecture, **options: Any
) -> tuple[dict[str, Tensor], LoadReport]:
    """Load and verify the checkpoint of an arm; `options` are fields of `HubRequest`.

    Raises:
        WeightsError: as `load_donor`, `load_chronos` and `load_checkpoint`.
    """
    if config.init.path:
        return load_donor(config.init.path, arch=arch)
    if is_chronos(config):
        return load_chronos(config.init.checkpoint, arch=arch, **options)
    assert isinstance(config.backbone, T5Backbone)
    return load_backbone(config.backbone, arch=arch, **options)


def is_chronos(config: Config) -> bool:
    """Whether the encoder's checkpoint, its own or that of its control, is a Chronos-T5."""
    return config.init.name == "chronos" or config.init.checkpoint is not None


def load_backbone(
    backbone: T5Backbone, *, arch: T5Architecture, **options: Any
) -> tuple[dict[str, Tensor], LoadReport]:
    """Load and verify a backbone's checkpoint; `options` go to `load_checkpoint`.

    Raises:
        WeightsError: as `load_checkpoint`.
    """
    full = backbone.full_params
    return load_checkpoint(
        hub_id=None if backbone.path else backbone.hub_id,
        path=backbone.path,
        arch=arch,
        revision=backbone.revision,
        expected_full_params=None if full is None else (full[0], full[1]),
        expected_sha256=backbone.sha256,
        **options,
    )


def t5_architecture(backbone: T5Backbone) -> T5Architecture:
    """The backbone's shape: its own values, or those of the config.json in its directory."""
    if backbone.d_model is None:
        assert backbone.path is not None
        return read_architecture(backbone.path)
    sizes = {
        key: getattr(backbone, key)
        for key in ("d_model", "d_ff", "d_kv", "num_layers", "num_heads")
    }
    absent = [f"backbone.{key}" for key, value in sizes.items() if value is None]
    if absent:
        raise ConfigError(
            f"{', '.join(absent)} must be given beside backbone.d_model={backbone.d_model}."
        )
    return T5Architecture(
        vocab_size=backbone.vocab_size, feed_forward_proj=backbone.feed_forward_proj, **sizes
    )


def build_optimizer(
    config: Config, model: Forecaster, *, steps_per_epoch: int, total_steps: int
) -> PlannedOptimizer:
    """The optimizer that follows the freezing plan.

    Raises:
        ConfigError: if the encoder is to train later, and the run ends before.
    """
    optim, freeze = config.optim, config.freeze
    planned = forecaster_plan(
        num_blocks=model.encoder.num_blocks,
        unfreeze_epoch=freeze.unfreeze_epoch,
        order=freeze.order,
        blocks_per_stage=freeze.blocks_per_stage,
        epochs_per_stage=freeze.epochs_per_stage,
        always=freeze.always,
        encoder_lr_scale=optim.encoder_lr_scale,
        layer_decay=optim.layer_decay,
    )
    rules = within_run(planned, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
    is_staged = any(rule.start_epoch for rule in planned)
    if is_staged and not (config.debug.fast_dev_run or any(rule.start_epoch for rule in rules)):
        raise ConfigError(
            f"freeze.unfreeze_epoch={freeze.unfreeze_epoch} rounds to the end of the run (step"
            f" {total_steps} of {total_steps}): unfreeze earlier, train longer, or use freeze=all."
        )
    return PlannedOptimizer(
        model.named_parameters(),
        rules=rules,
        settings=OptimSettings(
            algorithm=optim.algorithm,
            lr=optim.lr,
            warmup_steps=round(optim.warmup_epochs * steps_per_epoch),
            rewarmup_steps=round(freeze.rewarmup_epochs * steps_per_epoch),
            schedule=optim.schedule,
            min_lr_ratio=optim.min_lr_ratio,
            weight_decay=optim.weight_decay,
            clip_norm=optim.clip_norm,
            beta1=optim.beta1,
            beta2=optim.beta2,
            eps=optim.eps,
        ),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def inputs(
    *,
    series: Series,
    ood: Series | None,
    weights: dict[str, str] | None,
    device: torch.device,
    autocast: torch.dtype | None,
) -> dict[str, Any]:
    """What a run's numbers come from besides its configuration and code, JSON-able.

    Args:
        series: Its data.
        ood: The other series, where it has one.
        weights: SHA-256 of each file that weights were read from, by name; None without one.
        device: Where it trains.
        autocast: In which precision.
    """

    def facts(of: Series) -> dict[str, Any]:
        known = of.fingerprint()
        return {
            name: known[name]
            for name in ("rows", "channels", "borders", "season", "gap_share", "sha256")
        }

    return {
        "data": facts(series),
        "ood": None if ood is None else facts(ood),
        "weights": weights or None,
        "device": device.type,
        "precision": str(autocast or torch.float32),
    }


def setup_inputs(config: Config, setup: Setup) -> dict[str, Any]:
    """The `inputs` of a run that is built."""
    files = {} if setup.report is None else setup.report.files
    return inputs(
        series=setup.series,
        ood=None if setup.ood is None else setup.ood.series,
        weights=files | _patch_files(config),
        device=setup.device,
        autocast=setup.autocast,
    )


def _patch_files(config: Config) -> dict[str, str]:
    """Name and SHA-256 of the file that `patch.init=run` reads; nothing without it."""
    if config.patch.path is None:
        return {}
    return {"patch": file_sha256(best_checkpoint(config.patch.path))}


def present_inputs(config: Config) -> dict[str, Any]:
    """The `inputs` that a run would have now; its weights are hashed, and not loaded.

    Without the weights' entry if they would have to be downloaded first, or a donor is gone.

    Raises:
        UserError: as for `build`.
    """
    device, autocast = device_and_precision(config)
    weights: dict[str, str] = {}
    backbone = config.backbone
    donors = [config.patch.path, None if config.init.name == "random" else config.init.path]
    is_cached = all(best_checkpoint(path).is_file() for path in donors if path is not None)
    if not is_cached:
        pass
    elif config.init.name != "random" and config.init.path is not None:
        best = best_checkpoint(config.init.path)
        weights = {best.name: file_sha256(best)}
    elif isinstance(backbone, T5Backbone) and config.init.name != "random":
        hub_id, folder, revision = backbone.hub_id, backbone.path, backbone.revision
        if is_chronos(config):
            revision = "main"
            hub_id, folder = chronos_source(config.init.checkpoint, t5_architecture(backbone))
        cached: str | Path | None = folder
        if folder is None:
            assert hub_id is not None
            cached = hub.cached_snapshot(hub_id, revision=revision)
        is_cached = cached is not None
        if cached is not None:
            weights = {path.name: file_sha256(path) for path in open_checkpoint(cached).files}
    found = inputs(
        series=load_once(config.data),
        ood=None if config.ood is None else load_once(config.ood),
        weights=weights | _patch_files(config) if is_cached else None,
        device=device,
        autocast=autocast,
    )
    return found if is_cached else {k: v for k, v in found.items() if k != "weights"}


def plan_table(setup: Setup, *, lr: float) -> list[dict[str, Any]]:
    """What trains when and how fast: a line per component and rule, in the model's order.

    Args:
        setup: The run's objects.
        lr: Base learning rate.
    """
    lines: dict[tuple[str, float | None, float], dict[str, Any]] = {}
    for name, rule in setup.optimizer.plan.items():
        key = (component_of(name), rule.start_epoch, rule.lr_scale)
        line = lines.setdefault(
            key,
            {
                "component": key[0],
                "start_epoch": rule.start_epoch,
                "start_step": start_step(rule.start_epoch, setup.steps_per_epoch),
                "peak_lr": lr * rule.lr_scale,
                "parameters": 0,
            },
        )
        line["parameters"] += setup.optimizer.parameters[name].numel()
    return list(lines.values())


def token_scale(model: Forecaster) -> float | None:
    """What tokens are multiplied by after their norm: `patch.scale` as a number; None without."""
    return model.patch.scale if isinstance(model.patch, PatchEmbedding) else None


def initial_digests(model: Forecaster) -> dict[str, str]:
    """SHA-256 of each part's tensors before training: arms are paired if patch and head agree."""
    return {
        part: state_digest(module.state_dict())
        for part, module in (
            ("patch", model.patch),
            ("encoder", model.encoder),
            ("head", model.head),
        )
    }


def setup_summary(setup: Setup) -> dict[str, Any]:
    """The part of `provenance.json` that comes from data and weights."""
    ood = setup.ood
    tested = (setup.test,) if ood is None else (setup.test, ood.test)
    counts = {w.name: len(w) for w in (setup.train, setup.val, *tested)}
    return {
        "data": setup.series.fingerprint(),
        "ood": None if ood is None else ood.series.fingerprint(),
        "windows": counts,
        "weights": None if setup.report is None else asdict(setup.report),
        "initial_sha256": initial_digests(setup.model),
        "steps_per_epoch": setup.steps_per_epoch,
        "token_scale": token_scale(setup.model),
    }
