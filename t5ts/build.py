"""From a checked config to the objects of a run; nothing here trains or writes."""

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from t5ts import distributed
from t5ts.arm import build_encoder, build_patch, patch_files, weight_files
from t5ts.config import Config
from t5ts.data.series import Series
from t5ts.datasets import Dataset, build_dataset, build_ood, load_once
from t5ts.devices import device_and_precision, set_tf32
from t5ts.draws import component_generator, component_seed
from t5ts.errors import ConfigError
from t5ts.evaluation import autocast_to
from t5ts.model.encoders import component_of
from t5ts.model.forecaster import Forecaster
from t5ts.model.hf_encoder import HFEncoder
from t5ts.model.normalize import build_normalize
from t5ts.model.patching import PatchEmbedding
from t5ts.model.tensors import state_digest
from t5ts.model.weights import LoadReport
from t5ts.optim import PlannedOptimizer
from t5ts.schedule import forecaster_plan, start_step, within_run
from t5ts.schema import CsvData, ReconstructTask
from t5ts.tasks import Forecast, Reconstruct, Task

#: Windows of a dry run's epoch and evaluation, in batches.
DRY_RUN_BATCHES = 2


@dataclass(kw_only=True, eq=False)
class Setup:
    """Everything a run consists of."""

    device: torch.device
    autocast: torch.dtype | None  # of the forward pass; None for float32
    task: Task
    data: Dataset  # to train, select and test on
    ood: Dataset | None  # whose test windows the selected checkpoint is tested on too
    model: Forecaster
    report: LoadReport | None  # of the encoder's weights; None without a published encoder
    optimizer: PlannedOptimizer
    epochs: int
    windows_per_epoch: int
    steps_per_epoch: int
    eval_limit: int | None  # windows of an evaluation in a dry run; None for all

    @property
    def frozen_in_encoder(self) -> set[str]:
        """The encoder's names of its parameters that no step changes."""
        prefix, frozen = "encoder.", self.optimizer.never_trains
        return {name.removeprefix(prefix) for name in frozen if name.startswith(prefix)}


def build(config: Config) -> Setup:
    """Load the data and the weights, and build model and optimizer.

    Raises:
        UserError: if data or weights are unavailable or invalid.
    """
    device, autocast = device_and_precision(config)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    set_tf32(on=config.train.tf32 and device.type == "cuda")
    task = build_task(config)
    data = build_dataset(config.data, task, device)
    ood = None if config.ood is None else build_ood(config, task, data.series, device)
    if config.debug.overfit_windows is not None:
        train = data.splits.train
        count = min(config.debug.overfit_windows, len(train))
        few = [train.first(count, name=name) for name in ("train", "val", "test")]
        data.splits = replace(data.splits, train=few[0], val=few[1], test=few[2])
    model, report = build_model(config, num_channels=len(data.series.channels))
    model.to(device)
    if autocast is not None and isinstance(model.encoder, HFEncoder):
        with autocast_to(device, autocast):  # in float32 it has been tried out
            model.encoder.try_out()
    is_dry = config.debug.fast_dev_run
    batch_size, num_windows = config.train.batch_size, len(data.splits.train)
    limit = DRY_RUN_BATCHES * batch_size if is_dry else config.data.windows_per_epoch
    windows_per_epoch = min(num_windows, limit or num_windows)
    together, processes = min(windows_per_epoch, batch_size), distributed.world_size()
    if processes > together:  # some would have no windows
        raise ConfigError(
            f"{processes} processes share a batch of {together} windows: train.batch_size counts"
            " those of all processes together; raise it (and data.windows_per_epoch), or start at"
            f" most {together} processes (torchrun --nproc-per-node)."
        )
    steps_per_epoch = -(-windows_per_epoch // batch_size)
    epochs = 1 if is_dry else config.train.epochs
    return Setup(
        device=device,
        autocast=autocast,
        task=task,
        data=data,
        ood=ood,
        model=model,
        report=report,
        optimizer=build_optimizer(
            config, model, steps_per_epoch=steps_per_epoch, total_steps=epochs * steps_per_epoch
        ),
        epochs=epochs,
        windows_per_epoch=windows_per_epoch,
        steps_per_epoch=steps_per_epoch,
        eval_limit=config.train.eval_batch_size if is_dry else None,
    )


def precision_name(setup: Setup) -> str:
    """The precision of a run, as recorded in provenance.json."""
    tf32 = torch.get_float32_matmul_precision() == "high"
    return f"{setup.autocast or torch.float32}{' with TF32 products' if tf32 else ''}"


def build_task(config: Config) -> Task:
    """The task; the only place where it is chosen."""
    if isinstance(config.task, ReconstructTask):
        spans = {key: value for key, value in asdict(config.task).items() if key != "name"}
        return Reconstruct(
            seq_len=config.seq_len, seed=component_seed(config.seed, "mask"), **spans
        )
    assert config.horizon is not None
    return Forecast(seq_len=config.seq_len, horizon=config.horizon)


def build_model(config: Config, *, num_channels: int) -> tuple[Forecaster, LoadReport | None]:
    """The forecaster of any arm, and the source of its encoder's weights.

    All init arms of a backbone go through this one constructor and differ only in the state dict
    that is loaded into the encoder. Patch and head draw from separate generators, so the same
    seed gives bit-identical patch and head weights around every encoder of one width.

    Raises:
        WeightsError: if the weights are unavailable or fail verification.
    """
    task = build_task(config)
    encoder, report = build_encoder(config)
    # What replaces hidden steps: the task's choice, or 0 if only gaps are hidden.
    tables = [data for data in (config.data, config.ood) if isinstance(data, CsvData)]
    has_gaps = any(table.missing == "mask" for table in tables)
    hidden = "value" if task.hides == "none" and has_gaps else task.hides
    model = Forecaster(
        normalize=build_normalize(config.normalize.name, has_hidden=hidden != "none"),
        patch=build_patch(config, encoder, report, num_channels=num_channels, hidden=hidden),
        encoder=encoder,
        num_channels=num_channels,
        output_len=task.target_len,
        per_patch=config.head == "per_patch",
        generator=component_generator(config.seed, "head"),
    )
    return model, report


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
    names = [name for name, _ in model.encoder.named_parameters()]
    if freeze.exempt and not any(re.search(p, name) for p in freeze.exempt for name in names):
        raise ConfigError(
            f"freeze.always={freeze.exempt} matches no parameter of backbone={config.backbone.name}"
            f" (whose first is {next(iter(names), 'none')}): choose other patterns, or freeze=all."
        )
    return PlannedOptimizer(
        model.named_parameters(),
        rules=rules,
        settings=config.optim,
        rewarmup_epochs=freeze.rewarmup_epochs,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def setup_inputs(config: Config, setup: Setup) -> dict[str, Any]:
    """Everything but configuration and code that a run's numbers depend on, JSON-able."""
    ood = None if setup.ood is None else setup.ood.series
    files = {} if setup.report is None else setup.report.files
    return _inputs(config, setup.data.series, ood, files | patch_files(config))


def present_inputs(config: Config) -> dict[str, Any]:
    """The inputs a run would have now; its weights are hashed, not loaded.

    The weights' entry is absent if they are not in the cache, or a donor is gone.

    Raises:
        UserError: as for `build`.
    """
    weights = weight_files(config)
    ood = None if config.ood is None else load_once(config.ood)
    found = _inputs(config, load_once(config.data), ood, weights or {})
    if weights is None:
        del found["weights"]
    return found


def _inputs(
    config: Config, data: Series, ood: Series | None, weights: dict[str, str]
) -> dict[str, Any]:
    device, autocast = device_and_precision(config)
    names = ("rows", "channels", "borders", "season", "gap_share", "sha256")

    def facts(series: Series) -> dict[str, Any]:
        return {name: series.fingerprint()[name] for name in names}

    return {
        "data": facts(data),
        "ood": None if ood is None else facts(ood),
        "weights": weights or None,
        "device": device.type,
        "precision": str(autocast or torch.float32),
    }


def plan_table(setup: Setup, *, lr: float) -> list[dict[str, Any]]:
    """What trains when and how fast: a line per component and rule, in the model's order."""
    lines: dict[tuple[str, float | None, float], dict[str, Any]] = {}
    for name, rule in setup.optimizer.plan.items():
        line = lines.setdefault(
            (component_of(name), rule.start_epoch, rule.lr_scale),
            {
                "component": component_of(name),
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

    `initial_sha256` has one digest per part: arms are paired if patch and head agree.
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
