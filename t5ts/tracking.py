"""Where metrics go: always `metrics.jsonl`, and a tracker beside it that may never cost a run."""

import hashlib
import html
import json
import logging
import netrc
import os
import socket
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from t5ts.errors import UserError
from t5ts.provenance import json_ready

log = logging.getLogger("t5ts")

#: Seconds after which a W&B server that does not answer counts as out of reach.
REACH_TIMEOUT_S = 2.0
#: Seconds that an online start may take before the run goes on offline.
INIT_TIMEOUT_S = 20.0


class MetricsFile:
    """`metrics.jsonl`: a row per evaluation and per logged step; NaN and inf are null."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")
        self._crc32 = 0

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row and hand it to the operating system."""
        line = json.dumps(json_ready(dict(row))) + "\n"
        self._file.write(line)
        self._file.flush()
        self._crc32 = zlib.crc32(line.encode(), self._crc32)

    def sync(self) -> tuple[int, int]:
        """Force the rows to the disk; returns the file's length and CRC-32, for the checkpoint."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.path.stat().st_size, self._crc32

    def cut(self, length: int) -> None:
        """Drop the rows after `length` bytes: those that a resumed run writes again."""
        self._file.truncate(length)
        self._file.seek(0, os.SEEK_END)
        self._crc32 = zlib.crc32(self.path.read_bytes())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class NoMetricsFile(MetricsFile):
    """In the processes beside process 0, which writes the rows of all."""

    def __init__(self) -> None:
        """Open nothing."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def cut(self, length: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Tracker(Protocol):
    """What a run tells the world while it goes."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Hand on one row of metrics."""

    def finish(self, summary: Mapping[str, Any], images: Sequence[Path]) -> None:
        """Hand on the result and its pictures, and end."""

    def abandon(self) -> None:
        """End without a result: the run failed, was stopped, or was pruned."""


class NullTracker:
    """No tracker."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Do nothing: the row stands in metrics.jsonl."""

    def finish(self, summary: Mapping[str, Any], images: Sequence[Path]) -> None:
        """Do nothing: the result stands in result.json."""

    def abandon(self) -> None:
        """Do nothing."""


class WandbTracker:
    """The real W&B client, online or offline; after a failure it falls silent and says so once."""

    def __init__(
        self,
        *,
        run_dir: Path,
        config: Mapping[str, Any],
        project: str,
        entity: str | None,
        group: str | None,
        job_type: str,
        name: str,
        tags: Sequence[str],
        mode: str,
        run_id: str,
    ) -> None:
        self._run: Any = None
        chosen, why = choose_mode(mode)
        if chosen == "disabled":
            log.info("W&B: off (%s)", why)
            return
        try:
            import wandb

            def start(as_mode: Any) -> Any:
                return wandb.init(
                    dir=str(run_dir),
                    project=project,
                    entity=entity,
                    group=group,
                    job_type=job_type,
                    name=name,
                    tags=list(tags),
                    config=dict(config),
                    id=run_id,
                    resume="allow" if as_mode == "online" else None,
                    mode=as_mode,
                    settings=wandb.Settings(
                        init_timeout=INIT_TIMEOUT_S, silent=True, console="off"
                    ),
                )

            try:
                self._run = start(chosen)
            except wandb.errors.Error as error:
                if chosen == "offline":
                    raise
                chosen, why = "offline", f"online failed: {_first_line(error)}"
                self._run = start(chosen)
            self._run.define_metric("step")
            self._run.define_metric("epoch")
            for pattern in ("train_loss", "grad_norm/*", "update_ratio/*", "lr/*", "amp/*"):
                self._run.define_metric(pattern, step_metric="step")
            self._run.define_metric("val_*", step_metric="epoch")
            self._run.define_metric("val_loss", step_metric="epoch", summary="min")
            self._run.define_metric("val_corr", step_metric="epoch", summary="max")
            if chosen == "online":
                log.info("W&B: online (%s): %s", why, self._run.url)
            else:
                folder = Path(self._run.dir).parent
                log.info("W&B: offline (%s); to upload later: wandb sync %s", why, folder)
        except Exception as error:  # a tracker may fail in any way, and never costs a run
            self._fail(error)

    def log(self, row: Mapping[str, Any]) -> None:
        """Send one row."""
        if self._run is None:
            return
        try:
            self._run.log(dict(row))
        except Exception as error:  # see __init__
            self._fail(error)

    def finish(self, summary: Mapping[str, Any], images: Sequence[Path]) -> None:
        """Send the result and the pictures, and end W&B's run."""
        if self._run is None:
            return
        try:
            import wandb

            self._run.log({f"plots/{p.stem}": wandb.Image(str(p)) for p in images})
            self._run.summary.update(dict(summary))
            self._run.finish()
        except Exception as error:  # see __init__
            self._fail(error)

    def abandon(self) -> None:
        """End W&B's run as failed; in a sweep the next trial begins in this process."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=1)
        except Exception as error:  # see __init__
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._run = None
        log.warning(
            "W&B failed and is left out of this run; metrics.jsonl has everything: %s: %s",
            type(error).__name__,
            _first_line(error),
        )


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
    mode: str = "auto",
) -> str:
    """Log a study's report as one W&B run of job type `report`; says where it is.

    Unlike a run's tracker this is what was asked for, so a failure is raised.

    Args:
        folder: Where W&B's files go.
        project: Name of the W&B project; the runs' own shows both together.
        entity: Its owner; None is the account's own.
        group: Name of the study; the same one renews its run, where it is online.
        summary: Figures by name.
        text: The verdict in Markdown.
        tables: By name the columns and the rows.
        images: Picture files, logged under their stems.
        mode: As for `choose_mode`.

    Raises:
        UserError: if W&B does not take it.
    """
    import wandb

    chosen, why = choose_mode(mode)
    if chosen == "disabled":
        raise UserError(f"W&B is switched off ({why}): unset WANDB_MODE, or leave out --wandb.")
    try:
        run = wandb.init(
            dir=str(folder),
            project=project,
            entity=entity,
            group=group,
            job_type="report",
            name=f"report of {group}",
            id="report-" + hashlib.sha256(group.encode()).hexdigest()[:10],
            resume="allow" if chosen == "online" else None,
            mode="online" if chosen == "online" else "offline",
            settings=wandb.Settings(init_timeout=INIT_TIMEOUT_S, silent=True, console="off"),
        )
        where = run.url if chosen == "online" else f"wandb sync {Path(run.dir).parent}"
        run.log(
            {f"report/{name}": wandb.Table(list(c), [list(r) for r in rows],
                                          allow_mixed_types=True)
             for name, (c, rows) in tables.items()}
            | {f"report/{path.stem}": wandb.Image(str(path)) for path in images}
            | {"report/verdict": wandb.Html(_as_page(text))}
        )  # fmt: skip
        run.summary.update(dict(summary))
        run.notes = text
        run.finish()
    except Exception as error:  # the client raises whatever its parts do
        raise UserError(
            f"W&B did not take the report for project {project}: {_first_line(error)}. Check the"
            " project's name and the login (wandb login), or set WANDB_MODE=offline."
        ) from error
    if chosen == "online":
        return f"W&B ({why}): {where}"
    return f"W&B: offline ({why}); to upload later: {where}"


def _as_page(text: str) -> str:
    return f'<pre style="white-space: pre-wrap; font: inherit">{html.escape(text)}</pre>'


def _first_line(error: Exception) -> str:
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
        return "offline", "not logged in"
    port = server.port or (443 if server.scheme == "https" else 80)
    variable = f"{server.scheme}_proxy"
    proxy = os.environ.get(variable) or os.environ.get(variable.upper())
    if proxy:
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
    """Whether a TCP connection stands within the time; name look-up counts into it."""
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
