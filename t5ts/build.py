"""From a checked config to the objects of a run; nothing here trains or writes."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_method
from torch import Tensor

from t5ts import distributed
from t5ts.config import Config
from t5ts.data.series import Series
from t5ts.data.windows import WindowSplits, build_windows, mase_denominator
from t5ts.donor import best_checkpoint, load_donor, load_patch, norm_rms
from t5ts.errors import ConfigError, DataError
from t5ts.model import hub
from t5ts.model.architecture import Architecture, HFArchitecture, T5Architecture
from t5ts.model.checkpoint_file import (
    checkpoint_folder,
    file_sha256,
    open_checkpoint,
    read_architecture,
    read_config,
)
from t5ts.model.encoders import Encoder, NoEncoder, SharedEncoder, component_of
from t5ts.model.forecaster import Forecaster
from t5ts.model.hf_encoder import HFEncoder, hf_architecture
from t5ts.model.normalize import build_normalize
from t5ts.model.patching import PatchEmbedding, WholeContext, token_bank
from t5ts.model.tensors import empty_encoder, state_digest
from t5ts.model.weights import (
    LoadReport,
    chronos_source,
    encoder_state,
    load_checkpoint,
)
from t5ts.optim import PlannedOptimizer
from t5ts.schedule import forecaster_plan, start_step, within_run
from t5ts.schema import (
    CheckpointBackbone,
    CsvData,
    DataConfig,
    HFBackbone,
    LinearBackbone,
    ReconstructTask,
    SharedBackbone,
    T5Backbone,
)
from t5ts.tasks import Forecast, Reconstruct, Task

#: Windows of a dry run's epoch and evaluation, in batches.
DRY_RUN_BATCHES = 2


@dataclass(kw_only=True, eq=False)
class Dataset:
    """A series in windows, and what its metrics need.

    Attributes:
        splits: The windows in use (`debug=overfit` puts one set in all three places).
        mase_denominator_C: Seasonal-naive MAE of the train rows; None if the task has no MASE.
        baseline_season: The season that the naive baselines repeat.
    """

    series: Series
    splits: WindowSplits
    mase_denominator_C: Tensor | None
    baseline_season: int


@dataclass(kw_only=True, eq=False)
class Setup:
    """Everything a run consists of.

    Attributes:
        autocast: Precision of the forward pass; None for float32.
        data: The series to train, select and test on.
        ood: The selected checkpoint is also tested on its test windows; None if none is chosen.
        report: Where the encoder's weights came from; None without a published encoder.
        eval_limit: Windows of an evaluation in a dry run; None for all.
    """

    device: torch.device
    autocast: torch.dtype | None
    task: Task
    data: Dataset
    ood: Dataset | None
    model: Forecaster
    report: LoadReport | None
    optimizer: PlannedOptimizer
    epochs: int
    windows_per_epoch: int
    steps_per_epoch: int
    eval_limit: int | None


def build(config: Config) -> Setup:
    """Load the data and the weights, and build model and optimizer.

    Raises:
        UserError: if data or weights are unavailable or invalid.
    """
    device, autocast = device_and_precision(config)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    _set_tf32(on=config.train.tf32 and device.type == "cuda")
    task = build_task(config)
    data = _build_dataset(config.data, task, device)
    ood = None if config.ood is None else _build_ood(config, task, data.series, device)
    if config.debug.overfit_windows is not None:
        train = data.splits.train
        count = min(config.debug.overfit_windows, len(train))
        few = [train.first(count, name=name) for name in ("train", "val", "test")]
        data.splits = replace(data.splits, train=few[0], val=few[1], test=few[2])
    model, report = build_model(config, num_channels=len(data.series.channels))
    model.to(device)
    is_dry = config.debug.fast_dev_run
    batch_size, num_windows = config.train.batch_size, len(data.splits.train)
    limit = DRY_RUN_BATCHES * batch_size if is_dry else config.data.windows_per_epoch
    windows_per_epoch = min(num_windows, limit or num_windows)
    _check_share(min(windows_per_epoch, batch_size))
    steps_per_epoch = -(-windows_per_epoch // batch_size)
    epochs = 1 if is_dry else config.train.epochs
    optimizer = build_optimizer(
        config, model, steps_per_epoch=steps_per_epoch, total_steps=epochs * steps_per_epoch
    )
    return Setup(
        device=device,
        autocast=autocast,
        task=task,
        data=data,
        ood=ood,
        model=model,
        report=report,
        optimizer=optimizer,
        epochs=epochs,
        windows_per_epoch=windows_per_epoch,
        steps_per_epoch=steps_per_epoch,
        eval_limit=config.train.eval_batch_size if is_dry else None,
    )


def _build_dataset(config: DataConfig, task: Task, device: torch.device) -> Dataset:
    series = load_once(config)
    try:
        splits = build_windows(
            series,
            context_len=task.context_len,
            target_len=task.target_len,
            fraction=config.fraction,
            device=device,
        )
    except DataError:
        _loaded.clear()  # it may have failed halfway through standardising
        raise
    denominator_C = None
    if task.uses_season:
        rows_TC = splits.train.series_TC[slice(*splits.scaler_rows)]
        denominator_C = mase_denominator(rows_TC, season=series.season)
    return Dataset(
        series=series,
        splits=splits,
        mase_denominator_C=denominator_C,
        baseline_season=task.baseline_season(series.season),
    )


def _build_ood(config: Config, task: Task, trained_on: Series, device: torch.device) -> Dataset:
    """The test-only series, windowed like the training series.

    It is standardised by its own train rows, as when a model is applied zero-shot to new data:
    only differences beyond level and scale count as shift.

    Raises:
        DataError: if it is unavailable or too short.
        ConfigError: if it has a different number of channels.
    """
    assert config.ood is not None
    try:
        ood = _build_dataset(config.ood, task, device)
    except DataError as error:
        raise DataError(f"ood ({config.ood.name}): {error} (Read data.… as ood.… here.)") from error
    channels, trained_channels = ood.series.channels, trained_on.channels
    if len(channels) != len(trained_channels):
        raise ConfigError(
            f"ood ({config.ood.name}) has {len(channels)} channels ({', '.join(channels)}), and"
            f" data ({config.data.name}) {len(trained_channels)} ({', '.join(trained_channels)}):"
            " one model reads both, channel by channel, so choose equally many (channels; also"
            " stations of nyc_weather, num_channels of synthetic), or another series."
        )
    test = ood.splits.test
    ood.splits = replace(ood.splits, test=test.first(len(test), name="ood"))
    return ood


def _check_share(windows_per_step: int) -> None:
    """Refuse more processes than windows in a batch: some would have no windows."""
    processes = distributed.world_size()
    if processes > windows_per_step:
        raise ConfigError(
            f"{processes} processes share a batch of {windows_per_step} windows: train.batch_size"
            " counts those of all processes together; raise it (and data.windows_per_epoch), or use"
            f" torchrun --nproc-per-node with at most {windows_per_step} processes in all."
        )


def build_task(config: Config) -> Task:
    """The task; the only place where it is chosen."""
    task = config.task
    if isinstance(task, ReconstructTask):
        return Reconstruct(
            seq_len=config.seq_len,
            ratio=task.ratio,
            min_len=task.min_len,
            max_len=task.max_len,
            mask=task.mask,
            seed=component_seed(config.seed, "mask"),
        )
    assert config.horizon is not None
    return Forecast(seq_len=config.seq_len, horizon=config.horizon)


def device_and_precision(config: Config) -> tuple[torch.device, torch.dtype | None]:
    """The device, and the autocast type (None: float32 without autocast).

    Raises:
        ConfigError: if the config needs a GPU and there is none.
    """
    has_gpu, precision = torch.cuda.is_available(), config.train.precision
    if config.train.device == "cuda" and not has_gpu:
        raise ConfigError(
            "train.device=cuda, but torch sees no GPU: use train.device=cpu, or fix the driver"
            " (python -c 'import torch; print(torch.version.cuda)')."
        )
    if config.train.device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            "train.device=mps, but torch sees no Apple GPU (a Mac with Apple silicon has one):"
            " use train.device=auto, cpu or cuda."
        )
    if config.train.device == "mps" and distributed.world_size() > 1:
        raise ConfigError("train.device=mps trains in one process: leave torchrun out.")
    if config.train.device in ("cpu", "mps"):  # auto never chooses mps
        device = torch.device(config.train.device)
    else:
        device = torch.device("cuda" if has_gpu else "cpu")
    if device.type == "cuda" and distributed.world_size() > 1:
        if distributed.local_world_size() > torch.cuda.device_count():
            raise ConfigError(
                f"more processes than GPUs: this machine has {torch.cuda.device_count()}; use"
                f" torchrun --nproc-per-node={torch.cuda.device_count()}, or train.device=cpu."
            )
        device = torch.device("cuda", distributed.local_rank())
        torch.cuda.set_device(device)
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "train.precision=fp16, but there is no GPU: fp16 trains on a GPU only;"
            " use train.precision=fp32 (or auto)."
        )
    if precision == "auto":
        # T5 was trained in bf16; its feed-forward overflows fp16, so fp16 is never chosen here.
        # Emulated bf16 (T4, V100) is slower than float32.
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp32"
    return device, {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _set_tf32(*, on: bool) -> None:
    """Let float32 products be rounded to TF32 (10 bits of 23), or not; on a GPU only.

    On a CPU torch's "high" would allow rounded products too, and golden losses would move.
    """
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def precision_name(setup: Setup) -> str:
    """The precision of a run, as recorded in provenance.json."""
    tf32 = torch.get_float32_matmul_precision() == "high"
    return f"{setup.autocast or torch.float32}{' with TF32 products' if tf32 else ''}"


def load_series(data: DataConfig) -> Series:
    """Call the data's loader with every field its schema adds to the common ones."""
    common = {field.name for field in fields(DataConfig)}
    arguments = {f.name: getattr(data, f.name) for f in fields(data) if f.name not in common}
    series = get_method(data._target_)(**arguments)
    assert isinstance(series, Series)
    return series


#: The last two loaded series (a run's data and its ood), by their source.
_loaded: dict[str, Series] = {}


def load_once(data: DataConfig) -> Series:
    """Load a series, or reuse the one this process already loaded if its file is unchanged.

    Only `build_windows` may write to it: it standardises the series once.
    """
    values = asdict(data)
    del values["fraction"], values["windows_per_epoch"]
    files = [Path(values[key]).expanduser() for key in ("path", "dir") if values.get(key)]
    files += [path for folder in files if folder.is_dir() for path in sorted(folder.iterdir())]
    stats = [path.stat() for path in files if path.exists()]
    stamps = [[stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino] for stat in stats]
    key = json.dumps([values, str(Path.cwd()), stamps])
    series = _loaded.pop(key, None)
    if series is None:
        while len(_loaded) > 1:
            del _loaded[next(iter(_loaded))]
        series = load_series(data)
    _loaded[key] = series
    return series


def component_seed(seed: int, component: str) -> int:
    """A separate seed for each component, so that none consumes another's randomness."""
    digest = hashlib.sha256(f"{seed}/{component}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def component_generator(seed: int, component: str) -> torch.Generator:
    """A CPU generator for one component."""
    return torch.Generator().manual_seed(component_seed(seed, component))


def build_model(config: Config, *, num_channels: int) -> tuple[Forecaster, LoadReport | None]:
    """The forecaster of any arm, and the source of its encoder's weights.

    All init arms of a backbone go through this one constructor and differ only in the state dict
    that is loaded into the encoder. Patch and head draw from separate generators, so the same
    seed gives bit-identical patch and head weights around every encoder of one width.

    Raises:
        WeightsError: if the weights are unavailable or fail verification.
    """
    task = build_task(config)
    encoder, report = _build_encoder(config)
    hidden = _hidden(config, task)
    model = Forecaster(
        normalize=build_normalize(config.normalize.name, has_hidden=hidden != "none"),
        patch=_build_patch(config, encoder, report, num_channels=num_channels, hidden=hidden),
        encoder=encoder,
        num_channels=num_channels,
        output_len=task.target_len,
        per_patch=config.head == "per_patch",
        generator=component_generator(config.seed, "head"),
    )
    return model, report


def _build_patch(
    config: Config, encoder: Encoder, report: LoadReport | None, *, num_channels: int, hidden: str
) -> PatchEmbedding | WholeContext:
    """From windows to tokens; without an encoder one token, and the patch group is ignored."""
    patch = config.patch
    if isinstance(encoder, NoEncoder):
        return WholeContext(
            seq_len=config.seq_len,
            num_channels=num_channels,
            channels=patch.channels,
            hidden=hidden,
        )
    embedding = PatchEmbedding(
        seq_len=config.seq_len,
        num_channels=num_channels,
        d_model=encoder.d_model,
        patch_len=patch.patch_len,
        stride=patch.stride,
        channels=patch.channels,
        norm=patch.norm,
        scale=_token_factor(config, encoder.d_model, report),
        hidden=hidden,
        num_prototypes=patch.num_prototypes,
        bank_SD=_bank(config, encoder.d_model, report),
        generator=component_generator(config.seed, "patch"),
    )
    most = getattr(encoder, "max_tokens", None)
    if most is not None and embedding.num_patches > most:
        raise ConfigError(
            f"{embedding.num_patches} patches, but backbone={config.backbone.name} has positions"
            f" for {most}: raise patch.patch_len or patch.stride, or shorten seq_len."
        )
    if patch.path is not None:
        load_patch(embedding, patch.path)
        if patch.scale == "native":  # the arm's RMS, not the donor norm's
            embedding.scale /= norm_rms(embedding.state_dict())
    return embedding


def _bank(config: Config, d_model: int, report: LoadReport | None) -> Tensor | None:
    """Token embeddings for prototypes, of the arm's own weights; a donor's comes with its patch."""
    patch = config.patch
    if patch.num_prototypes is None:
        return None
    if patch.path is not None:
        return torch.empty(patch.bank_size, d_model)
    assert report is not None
    return token_bank(
        report,
        num_rows=patch.bank_size,
        sample=component_generator(config.seed, "bank"),
        own=component_generator(config.seed, f"bank/{report.init}"),
    )


def _token_factor(config: Config, d_model: int, report: LoadReport | None) -> float:
    """`patch.scale` as a number.

    "match_embedding" is the RMS of the checkpoint's token embedding, equal in every arm; "native"
    is the RMS that the arm's own weights expect, 1 if there are none.
    """
    scale = config.patch.scale
    if scale not in ("match_embedding", "native"):
        return {"none": 1.0, "div_sqrt_d": d_model**-0.5, "mul_sqrt_d": d_model**0.5}[scale]
    rms = 1.0 if report is None else report.embedding_rms
    fixed = getattr(config.backbone, "embedding_rms", None)
    if scale == "match_embedding" and fixed is not None:
        rms = fixed
    if not 0 < rms < math.inf:
        raise ConfigError(
            f"patch.scale={scale}: the RMS of the checkpoint's token embedding is {rms}, and must"
            " be finite and positive; choose another scale or checkpoint."
        )
    return rms


def _hidden(config: Config, task: Task) -> str:
    """What replaces steps that the model does not see: the task's choice, or 0 if only gaps."""
    tables = [data for data in (config.data, config.ood) if isinstance(data, CsvData)]
    has_gaps = any(table.missing == "mask" for table in tables)
    return "value" if task.hides == "none" and has_gaps else task.hides


def _build_encoder(config: Config) -> tuple[Encoder, LoadReport | None]:
    backbone, init = config.backbone, config.init
    if isinstance(backbone, LinearBackbone):
        return NoEncoder(), None
    if isinstance(backbone, SharedBackbone):
        sizes = {k: v for k, v in asdict(backbone).items() if k != "name"}
        shared = SharedEncoder(**sizes)
        shared.init_parameters(component_generator(config.seed, "encoder"))
        return shared, None
    assert isinstance(backbone, CheckpointBackbone)
    arch = architecture(backbone)
    # Each arm has its own stream: matched noise is not random's.
    stream = "encoder" if init.name == "random" else f"encoder/{init.name}"
    state, report = encoder_state(
        init=init.name,
        arch=arch,
        generator=component_generator(config.seed, stream),
        factor=init.factor,
        scale_norms=init.scale_norms,
        keep=init.keep,
        load=partial(load_encoder, config, arch),
    )
    encoder = empty_encoder(arch, dropout=backbone.dropout, device="cpu")
    encoder.load_state_dict(state)
    if isinstance(arch, HFArchitecture) and isinstance(encoder, HFEncoder):
        encoder.try_out(arch.model_type)
    return encoder, report


def load_encoder(config: Config, arch: Architecture) -> tuple[dict[str, Tensor], LoadReport]:
    """Load and verify the checkpoint of an arm.

    Raises:
        WeightsError: as `load_donor`, `chronos_source` and `load_checkpoint`.
    """
    if config.init.path:
        return load_donor(config.init.path, arch=arch)
    return load_checkpoint(arch=arch, **_checkpoint(config))


def _checkpoint(config: Config) -> dict[str, Any]:
    """What `load_checkpoint` loads for an arm, or for its control."""
    backbone, init = config.backbone, config.init
    assert isinstance(backbone, CheckpointBackbone)
    if init.name == "chronos" or init.checkpoint is not None:
        hub_id, path = chronos_source(init.checkpoint, architecture(backbone).d_model)
        return {"hub_id": hub_id, "path": path, "must_be_chronos": True}
    return {
        "hub_id": None if backbone.path else backbone.hub_id,
        "path": backbone.path,
        "revision": backbone.revision,
        "expected_sha256": backbone.sha256,
    }


def architecture(backbone: CheckpointBackbone) -> Architecture:
    """The backbone's shape, from its own values or from its checkpoint's config.json.

    Raises:
        UserError: if they are incomplete or describe no encoder.
    """
    if isinstance(backbone, HFBackbone):
        return _hf_architecture(backbone)
    assert isinstance(backbone, T5Backbone)
    if backbone.d_model is None:
        assert backbone.path is not None
        return read_architecture(backbone.path)
    names = [f.name for f in fields(T5Architecture) if hasattr(backbone, f.name)]
    sizes = {name: getattr(backbone, name) for name in names}
    absent = [f"backbone.{name}" for name, value in sizes.items() if value is None]
    if absent:
        raise ConfigError(
            f"backbone.d_model={backbone.d_model} needs the other sizes too: {', '.join(absent)}."
        )
    return T5Architecture(**sizes)


def _hf_architecture(backbone: HFBackbone) -> HFArchitecture:
    values, where = backbone.sizes, f"backbone={backbone.name}"
    if not values:
        if backbone.path is not None:
            folder = checkpoint_folder(backbone.path)
        else:
            assert backbone.hub_id is not None
            folder = hub.fetch_snapshot(backbone.hub_id, backbone.revision)
        values, where = read_config(folder, model_types=None), str(folder / "config.json")
    return hf_architecture(values, num_layers=backbone.num_layers, where=where)


def build_optimizer(
    config: Config, model: Forecaster, *, steps_per_epoch: int, total_steps: int
) -> PlannedOptimizer:
    """The optimizer that follows the freezing schedule.

    Raises:
        ConfigError: if the encoder should train later, but the run ends first.
    """
    freeze = config.freeze
    planned = forecaster_plan(freeze, config.optim, num_blocks=model.encoder.num_blocks)
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
        settings=config.optim,
        rewarmup_epochs=freeze.rewarmup_epochs,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def _inputs(
    data: Series,
    ood: Series | None,
    weights: dict[str, str],
    device: torch.device,
    autocast: torch.dtype | None,
) -> dict[str, Any]:
    """What a run's numbers depend on in addition to its configuration and code, JSON-able.

    `weights` has the SHA-256 of each file that weights were read from, by name.
    """
    names = ("rows", "channels", "borders", "season", "gap_share", "sha256")
    facts = [
        None if series is None else {name: series.fingerprint()[name] for name in names}
        for series in (data, ood)
    ]
    return {
        "data": facts[0],
        "ood": facts[1],
        "weights": weights or None,
        "device": device.type,
        "precision": str(autocast or torch.float32),
    }


def setup_inputs(config: Config, setup: Setup) -> dict[str, Any]:
    """The inputs of a run after `build`."""
    files = {} if setup.report is None else setup.report.files
    ood = None if setup.ood is None else setup.ood.series
    weights = files | _patch_files(config)
    return _inputs(setup.data.series, ood, weights, setup.device, setup.autocast)


def _patch_files(config: Config) -> dict[str, str]:
    """Name and SHA-256 of the file that `patch.init=run` reads; nothing without it."""
    if config.patch.path is None:
        return {}
    return {"patch": file_sha256(best_checkpoint(config.patch.path))}


def present_inputs(config: Config) -> dict[str, Any]:
    """The inputs a run would have now; its weights are hashed, not loaded.

    The weights' entry is absent if they are not in the cache, or a donor is gone.

    Raises:
        UserError: as for `build`.
    """
    device, autocast = device_and_precision(config)
    ood = None if config.ood is None else load_once(config.ood)
    weights = _present_weights(config)
    found = _inputs(load_once(config.data), ood, weights or {}, device, autocast)
    if weights is None:
        del found["weights"]
    return found


def _present_weights(config: Config) -> dict[str, str] | None:
    """SHA-256 of each file that weights would be read from now; None if one is absent."""
    init, backbone = config.init, config.backbone
    reads_checkpoint = init.name != "random" or bool(init.keep)
    donor = init.path if reads_checkpoint else None
    donors = [best_checkpoint(path) for path in (config.patch.path, donor) if path is not None]
    if not all(path.is_file() for path in donors):
        return None
    files: list[Path] = []
    if donor is not None:
        files = [best_checkpoint(donor)]
    elif isinstance(backbone, CheckpointBackbone) and reads_checkpoint:
        source = _checkpoint(config)
        cached = source["path"] or hub.cached_snapshot(
            source["hub_id"], source.get("revision", "main")
        )
        if cached is None:
            return None
        files = list(open_checkpoint(cached, model_types=None).files)
    return {path.name: file_sha256(path) for path in files} | _patch_files(config)


def plan_table(setup: Setup, *, lr: float) -> list[dict[str, Any]]:
    """What trains when and how fast: a line per component and rule, in the model's order."""
    lines: dict[tuple[str, float | None, float], dict[str, Any]] = {}
    for name, rule in setup.optimizer.plan.items():
        component = component_of(name)
        line = lines.setdefault(
            (component, rule.start_epoch, rule.lr_scale),
            {
                "component": component,
                "start_epoch": rule.start_epoch,
                "start_step": start_step(rule.start_epoch, setup.steps_per_epoch),
                "peak_lr": lr * rule.lr_scale,
                "parameters": 0,
            },
        )
        line["parameters"] += setup.optimizer.parameters[name].numel()
    return list(lines.values())


def token_scale(model: Forecaster) -> float | None:
    """The factor for tokens after their norm: `patch.scale` as a number; None without one."""
    return model.patch.scale if isinstance(model.patch, PatchEmbedding) else None


def setup_summary(setup: Setup) -> dict[str, Any]:
    """The part of `provenance.json` that comes from data and weights.

    `initial_sha256` is of each part's tensors: arms are paired if patch and head agree.
    """
    splits, ood, model = setup.data.splits, setup.ood, setup.model
    windows = [splits.train, splits.val, splits.test, *([] if ood is None else [ood.splits.test])]
    # What prediction with the run needs to know about its data.
    scaler = {"mean": splits.mean_C.tolist(), "std": splits.std_C.tolist()}
    parts = {
        "patch": dict(model.patch.named_parameters()),
        "encoder": model.encoder.state_dict(),
        "head": model.head.state_dict(),
    }
    if bank := dict(model.patch.named_buffers()):  # the arm's own, like its encoder
        parts["bank"] = bank
    return {
        "data": setup.data.series.fingerprint() | {"scaler": scaler},
        "ood": None if ood is None else ood.series.fingerprint(),
        "windows": {part.name: len(part) for part in windows},
        "weights": None if setup.report is None else asdict(setup.report),
        "initial_sha256": {name: state_digest(part) for name, part in parts.items()},
        "steps_per_epoch": setup.steps_per_epoch,
        "token_scale": token_scale(model),
    }
