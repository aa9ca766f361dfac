"""Where metrics go: always `metrics.jsonl`, and W&B, which never costs a run when it fails."""

import hashlib
import html
import json
import logging
import netrc
import os
import socket
import threading
import uuid
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from t5ts.config import searched
from t5ts.errors import UserError
from t5ts.provenance import json_ready
from t5ts.schema import TrackerConfig

log = logging.getLogger("t5ts")

#: Seconds after which a W&B server that does not answer counts as out of reach.
REACH_TIMEOUT_S = 2.0
#: Seconds that an online start may take before the run continues offline.
INIT_TIMEOUT_S = 20.0
#: Length of a W&B run's name.
MOST_CHARACTERS = 128
#: Why W&B is offline where nobody asked for it.
NOT_LOGGED_IN = "not logged in"
#: In a run directory: the id of its W&B run.
RUN_ID_FILE = "wandb-run-id"
#: W&B's key of the step, as Lightning has it; `step` in metrics.jsonl.
GLOBAL_STEP = "trainer/global_step"
#: How many channels a correlation leaves out: of interest where there are any.
CONSTANT_CHANNELS = "_constant_channels"
#: What each logged key is drawn against. A key has one meaning: a step's loss and gradient norms
#: are `step/…`, those without it are an epoch's means.
STEP_METRICS = {
    **dict.fromkeys(("step/*", "update_ratio/*", "lr/*", "amp/*", "nonfinite_steps"), GLOBAL_STEP),
    **dict.fromkeys(("train_loss", "grad_norm/*", "grad_norm_max/*", "val_*"), "epoch"),
    **dict.fromkeys(("distance_from_init/*", "perf/elapsed_s", "perf/eval_s"), "epoch"),
    "perf/windows_per_s": GLOBAL_STEP,
}


def run_name(
    arm: str, seed: int, overrides: Sequence[str], keys: Collection[str] | None = None
) -> str:
    """What a run of a sweep is called: arm, seed, and what was searched of its overrides.

    `keys` are those that were searched; None if that is unknown.
    """
    return " ".join([f"{arm}-s{seed}", *searched(overrides, keys)])[:MOST_CHARACTERS]


class MetricsFile:
    """`metrics.jsonl`: a row per evaluation and per logged step; NaN and inf are null.

    Args:
        path: The file. None in the other processes of a run: process 0 writes the rows of all.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file = None if path is None else path.open("a", encoding="utf-8")
        self._crc32 = 0

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row and hand it to the operating system."""
        if self._file is not None:
            line = json.dumps(json_ready(dict(row))) + "\n"
            self._file.write(line)
            self._file.flush()
            self._crc32 = zlib.crc32(line.encode(), self._crc32)

    def sync(self) -> tuple[int, int]:
        """Force the rows to the disk; returns the file's length and CRC-32, for the checkpoint."""
        assert self._file is not None
        assert self._path is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        # By its path: the directory may have been removed, which the open file does not notice.
        return self._path.stat().st_size, self._crc32

    def cut(self, length: int) -> int:
        """Drop the rows after `length` bytes, which a resumed run repeats; returns how many."""
        if self._path is None or self._file is None:
            return 0
        rows = self._path.read_bytes()
        self._file.truncate(length)
        self._file.seek(0, os.SEEK_END)
        self._crc32 = zlib.crc32(rows[:length])
        return rows[length:].count(b"\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class Tracker:
    """What a run tells the world while it trains; this one tells nothing.

    Attributes:
        resumed: Whether an earlier process of this run directory has sent rows to the same place.
    """

    resumed = False

    def log(self, row: Mapping[str, Any]) -> None:
        """Send one row of metrics.jsonl."""

    def finish(self, summary: Mapping[str, Any], images: Sequence[Path]) -> None:
        """Send the result and its pictures, and end."""

    def abandon(self) -> None:
        """End without a result: the run failed, was stopped, or was pruned."""


class WandbTracker(Tracker):
    """The real W&B client, online or offline; after a failure it logs one warning and is silent.

    A run directory is one W&B run, whose id is kept in it with W&B's own files: a resumed run finds
    it there, and the same command in another directory gets another. Its group is the sweep or the
    data, its job type the arm.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        config: Mapping[str, Any],
        settings: TrackerConfig,
        group: str,
        job_type: str,
        name: str,
    ) -> None:
        self._run: Any = None
        self._run_dir, self._artifacts = run_dir, settings.artifacts
        mode, why = choose_mode(settings.mode)
        if mode == "disabled":
            log.info("W&B: off (%s)", why)
            return
        id_file = run_dir / RUN_ID_FILE
        try:
            self.resumed = id_file.is_file()
            run_id = id_file.read_text().strip() if self.resumed else uuid.uuid4().hex[:10]
            arguments = {
                "project": settings.project,
                "entity": settings.entity,
                "group": group,
                "job_type": job_type,
                "name": name,
                "tags": list(settings.tags),
                "config": dict(config),
                "id": run_id,
                # A trial before this one, in the same process, may have lost its run.
                "reinit": "finish_previous",
            }
            import wandb

            try:
                self._run = _start(run_dir, mode, arguments)
            except wandb.errors.Error as error:
                if mode == "offline":
                    raise
                mode, why = "offline", f"online failed: {first_line(error)}"
                wandb.teardown()  # else the id counts as in use by the start that failed
                self._run = _start(run_dir, mode, arguments)
            id_file.write_text(run_id + "\n")
            for pattern, step in STEP_METRICS.items():
                self._run.define_metric(pattern, step_metric=step)
            self._run.define_metric("val_loss", step_metric="epoch", summary="min")
            self._run.define_metric("val_corr", step_metric="epoch", summary="max")
            expected = mode == "offline" and why == NOT_LOGGED_IN  # nothing to act on
            log.log(logging.DEBUG if expected else logging.INFO, _where(self._run, mode, why))
        except Exception as error:  # a tracker may fail in any way, and never costs a run
            self._fail(error)

    def log(self, row: Mapping[str, Any]) -> None:
        """Send one row, less what says nothing there."""
        names = {"step": GLOBAL_STEP}
        sent = {names.get(k, k): v for k, v in _without_clutter(row).items() if k != "kind"}
        self._attempt(lambda run: run.log(sent))

    def finish(self, summary: Mapping[str, Any], images: Sequence[Path]) -> None:
        """Send the result and the pictures, and end W&B's run."""

        def send(run: Any) -> None:
            import wandb

            run.log({f"plots/{path.stem}": wandb.Image(str(path)) for path in images})
            run.summary.update(_without_clutter(summary))
            if self._artifacts:
                artifact = wandb.Artifact(f"model-{run.id}", type="model")
                for name in ("checkpoint/best.safetensors", "config.yaml"):
                    artifact.add_file(str(self._run_dir / name), name=name)
                run.log_artifact(artifact, aliases=["best"])
            run.finish()

        self._attempt(send)

    def abandon(self) -> None:
        """End W&B's run as failed; in a sweep the next trial begins in this process."""
        self._attempt(lambda run: run.finish(exit_code=1))

    def _attempt(self, send: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            send(self._run)
        except Exception as error:  # see __init__
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._run = None
        log.warning(
            "W&B failed and is left out of this run; metrics.jsonl has everything: %s: %s",
            type(error).__name__,
            first_line(error),
        )


def _without_clutter(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if v or not k.endswith(CONSTANT_CHANNELS)}


def _start(folder: Path, mode: str, arguments: Mapping[str, Any]) -> Any:
    """W&B's run."""
    import wandb

    return wandb.init(
        dir=str(folder),
        resume="allow" if mode == "online" else None,
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(init_timeout=INIT_TIMEOUT_S, silent=True, console="off"),
        **arguments,
    )


def _where(run: Any, mode: str, why: str) -> str:
    """Where W&B has a run."""
    if mode == "online":
        return f"W&B: online ({why}): {run.url}"
    return f"W&B: offline ({why}); to upload later: wandb sync {Path(run.dir).parent}"


def log_report(
    folder: Path,
    *,
    project: str,
    entity: str | None,
    group: str,
    summary: Mapping[str, Any],
    text: str,
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]],
    images: Sequence[Path],
    page: Path | None = None,
) -> str:
    """Log a study's report as one W&B run of job type `report`; returns where it is.

    Unlike a run's tracker this is what was asked for, so a failure is raised.

    Args:
        folder: Where W&B's files go.
        project: The runs' own shows both together.
        entity: Its owner; None is the account's own.
        group: Name of the study; the same one renews its run, where it is online.
        summary: Figures by name.
        text: The verdict in Markdown.
        tables: Columns and rows by name.
        images: Logged under their stems.
        page: The report's page, to be an artifact.

    Raises:
        UserError: if W&B does not take it.
    """
    import wandb

    mode, why = choose_mode("auto")
    if mode == "disabled":
        raise UserError(f"W&B is switched off ({why}): unset WANDB_MODE, or leave out --wandb.")
    arguments = {
        "project": project,
        "entity": entity,
        "group": group,
        "job_type": "report",
        "name": f"report of {group}",
        "id": "report-" + hashlib.sha256(group.encode()).hexdigest()[:10],
    }
    try:
        run = _start(folder, mode, arguments)
        for name, (columns, lines) in tables.items():
            table = wandb.Table(list(columns), [list(row) for row in lines], allow_mixed_types=True)
            run.log({f"report/{name}": table})
        run.log({f"report/{path.stem}": wandb.Image(str(path)) for path in images})
        as_page = f'<pre style="white-space: pre-wrap; font: inherit">{html.escape(text)}</pre>'
        run.log({"report/verdict": wandb.Html(as_page)})
        run.summary.update(dict(summary))
        run.notes = text
        if page is not None:
            artifact = wandb.Artifact(f"report-{run.id}", type="report")
            artifact.add_file(str(page))
            run.log_artifact(artifact)
        where = _where(run, mode, why)
        run.finish()
    except Exception as error:  # the client raises whatever its parts do
        raise UserError(
            f"W&B did not take the report for project {project}: {first_line(error)}. Check the"
            " project's name and the login (wandb login), or set WANDB_MODE=offline."
        ) from error
    return where


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [""])[0]


def choose_mode(asked: str) -> tuple[str, str]:
    """Online, offline or disabled, and why; decided at once, without W&B's own long waits.

    Args:
        asked: online and offline are obeyed; auto looks at WANDB_MODE, then for a login and at
            whether the server (or the proxy before it) takes a connection.
    """
    if asked != "auto":
        return asked, f"tracker.mode={asked}"
    environment = os.environ.get("WANDB_MODE", "")
    if environment in ("online", "offline", "disabled"):
        return environment, f"WANDB_MODE={environment}"
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    host = server.hostname or "api.wandb.ai"
    if not (os.environ.get("WANDB_API_KEY") or _in_netrc(host)):
        return "offline", NOT_LOGGED_IN
    port = server.port or (443 if server.scheme == "https" else 80)
    if proxy := getproxies().get(server.scheme):
        gate = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        host, port = gate.hostname or host, gate.port or 80
    if not _takes_connection(host, port):
        return "offline", f"{host}:{port} is out of reach"
    return "online", "logged in"


def _in_netrc(host: str) -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _takes_connection(host: str, port: int) -> bool:
    """Whether a TCP connection succeeds in time, name look-up included."""
    reached = threading.Event()

    def knock() -> None:
        try:
            with socket.create_connection((host, port), timeout=REACH_TIMEOUT_S):
                reached.set()
        except OSError:
            pass  # out of reach: the event stays unset

    # A look-up without a network can hang longer than any timeout given to it.
    threading.Thread(target=knock, daemon=True).start()
    return reached.wait(REACH_TIMEOUT_S)
