"""Reading run directories, the only source of everything that is reported."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t5ts.errors import DataError
from t5ts.provenance import content_crc32, file_crc32

#: Why a run failed, until it is started again: an outcome of its arm, like a result.
FAILURE = "failure.json"


@dataclass(kw_only=True)
class Result:
    """The contents of a run's `result.json`.

    Attributes:
        objective: The configured objective at the best epoch, on the validation windows.
        metrics: Every val_ metric at the best epoch, every test_ metric of the same weights; if
            requested, ood_ (another series) and shuffled_ (contexts in random order) metrics.
        initial: Every val_ metric before the first step.
        baselines: By split (val, test, ood) and forecast (seasonal naive, last value, mean).
        best_achievable_loss: For synthetic data, else None.
        seconds: Training and evaluation, over all processes of a resumed run; reused epochs count
            as long as they took where they were trained.
        peak_memory_bytes: Of the GPU's allocator, or resident in the process on a CPU, during this
            run. NaN where the system does not report it (CPU runs outside Linux).
        reused_epochs: Epochs that this run took from another one instead of training them.
        stopped_epoch: At which early stopping ended the run; None if it trained all its epochs.
        files: CRC-32 by name of the run's other files, those without a checksum of their own.
    """

    identity: str
    arm: str
    data: str
    seed: int
    objective_name: str
    objective: float
    best_epoch: int
    metrics: dict[str, float]
    initial: dict[str, float]
    baselines: dict[str, dict[str, dict[str, float]]]
    baseline_season: int
    best_achievable_loss: float | None
    scale_audit: dict[str, float]
    seconds: float
    peak_memory_bytes: float
    skipped_steps: int
    debug: str
    reused_epochs: int = 0
    stopped_epoch: int | None = None
    files: dict[str, str] = field(default_factory=dict)


def read_metrics(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of one kind (eval, step or probe) from `metrics.jsonl`; others are skipped.

    Raises:
        DataError: if the file is missing, or a line other than an unfinished last one is not a row.
    """
    path = run_dir / "metrics.jsonl"
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: {run_dir} is not a run directory.") from error
    wanted = f'{{"kind": "{kind}"'.encode()
    rows = []
    for number, line in enumerate(lines, start=1):
        is_other = line.startswith(b'{"kind": "') and not line.startswith(wanted)
        if is_other or not line.strip():
            continue
        try:
            row = json.loads(line)
            if row.get("kind") == kind:
                rows.append(row)
        except (ValueError, AttributeError) as error:
            # An unfinished last line: the run is still writing, or was killed while writing.
            if number < len(lines) or isinstance(error, AttributeError):
                raise DataError(f"{path}, line {number}: not a JSON object ({error}).") from error
    return rows


def read_result(path: Path) -> Result:
    """A run's `result.json`; what is not defined there (null) is NaN here.

    Raises:
        DataError: if it is missing, corrupted, or not a result of this version.
    """
    values = read_json(path)
    try:
        for key in ("metrics", "initial", "scale_audit", "baselines", "peak_memory_bytes"):
            values[key] = _nan_for_null(values[key])
        return Result(**values)
    except (AttributeError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not a result.json of this version ({error}).") from error


def check_files(run_dir: Path, result: Result) -> None:
    """Verify that a finished run's files are unchanged; a DataError names the first that is not."""
    for name, crc32 in result.files.items():
        path = run_dir / name
        try:
            found = file_crc32(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error}).") from error
        if found != crc32:
            raise DataError(f"{path} is corrupted: its checksum differs from result.json's.")


def _nan_for_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_for_null(item) for key, item in value.items()}
    return math.nan if value is None else value


def read_json(path: Path) -> dict[str, Any]:
    """One of a run directory's JSON files.

    Raises:
        DataError: if it cannot be read, is not a JSON object, or its checksum differs or has lost
            its key (an older t5ts wrote none).
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise DataError(f"{path} is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} contains a JSON {type(value).__name__}, not an object.")
    crc32 = value.pop("crc32", None)
    is_whole = crc32 == content_crc32(value)
    if crc32 is None:  # from an older t5ts, unless the key before the last value was crc32
        rest = dict(value)
        last = rest.popitem()[1] if rest else None
        is_whole = last != content_crc32(rest)
    if not is_whole:
        raise DataError(f"{path} is corrupted: its checksum differs.")
    return value
