"""The device of a run, and the precision of its products."""

import torch

from t5ts import distributed
from t5ts.config import Config
from t5ts.errors import ConfigError


def device_and_precision(config: Config) -> tuple[torch.device, torch.dtype | None]:
    """The device, and the autocast type (None: float32 without autocast).

    Raises:
        ConfigError: if the config needs a GPU and there is none.
    """
    asked, precision = config.train.device, config.train.precision
    has_gpu, processes = torch.cuda.is_available(), distributed.world_size()
    if asked == "cuda" and not has_gpu:
        raise ConfigError(
            "train.device=cuda, but torch sees no GPU: use train.device=cpu, or fix the driver"
            " (python -c 'import torch; print(torch.version.cuda)')."
        )
    if asked == "mps" and (processes > 1 or not torch.backends.mps.is_available()):
        raise ConfigError(
            "train.device=mps needs an Apple GPU that torch sees, and trains in one process: use"
            " train.device=auto, cpu or cuda, or leave torchrun out."
        )
    chosen = "cuda" if has_gpu else "cpu"  # auto never chooses mps
    device = torch.device(asked if asked in ("cpu", "mps") else chosen)
    if device.type == "cuda" and processes > 1:
        if distributed.local_world_size() > (gpus := torch.cuda.device_count()):
            raise ConfigError(
                f"more processes than GPUs: this machine has {gpus}; use"
                f" torchrun --nproc-per-node={gpus}, or train.device=cpu."
            )
        device = torch.device("cuda", distributed.local_rank())
        torch.cuda.set_device(device)
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision=fp16 trains on a GPU only: use fp32 (or auto).")
    if precision == "auto":
        # T5 was trained in bf16; its feed-forward overflows fp16, so fp16 is never chosen here.
        # Emulated bf16 (T4, V100) is slower than float32.
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp32"
    return device, {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def set_tf32(*, on: bool) -> None:
    """Let float32 products be rounded to TF32 (10 bits of 23), or not; on a GPU only.

    On a CPU torch's "high" would allow rounded products too, and golden losses would move.
    """
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
