"""Where metrics go: always `metrics.jsonl`, and W&B, which never costs a run when it fails."""

import hashlib
import html
import json
import logging
import math
import netrc
import os
import socket
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from t5ts.errors import UserError
from t5ts.interruption import within
from t5ts.provenance import json_ready
from t5ts.schema import TrackerConfig

if TYPE_CHECKING:
    from t5ts.analysis.judgement import Findings
    from t5ts.analysis.page import Written

log = logging.getLogger("t5ts")

#: Seconds after which a W&B server that does not answer counts as out of reach.
REACH_TIMEOUT_S = 2.0
#: Seconds that an online start may take before the run continues offline.
INIT_TIMEOUT_S = 20.0
#: Seconds after which W&B's own process (wandb-core) counts as hanging: when it starts, is sent a
#: row or asked something, and when it uploads what is left at the end.
START_S, ANSWER_S, UPLOAD_S = 90.0, 30.0, 600.0
#: Why W&B is offline when nobody requested it.
NOT_LOGGED_IN = "not logged in"
#: W&B's key of the step, as in Lightning; `step` in metrics.jsonl.
GLOBAL_STEP = "trainer/global_step"
#: What each logged key is drawn against. A key has one meaning: a step's loss and gradient norms
#: are `step/…`, those without it are an epoch's means.
STEP_METRICS = {
    **dict.fromkeys(("step/*", "update_ratio/*", "lr/*", "amp/*", "nonfinite_steps"), GLOBAL_STEP),
    **dict.fromkeys(("train_loss", "grad_norm/*", "grad_norm_max/*", "val_*"), "epoch"),
    **dict.fromkeys(("distance_from_init/*", "perf/elapsed_s", "perf/eval_s"), "epoch"),
    "perf/windows_per_s": GLOBAL_STEP,
}


class MetricsFile:
    """`metrics.jsonl`: a row per evaluation and per logged step; NaN and inf are null.

    In a run's other processes it is /dev/null (None): process 0 writes the rows of all.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path or Path(os.devnull)
        self._file = self._path.open("a", encoding="utf-8")
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
        # By its path: the directory may have been removed, which the open file does not notice.
        return self._path.stat().st_size, self._crc32

    def cut(self, length: int) -> int:
        """Drop the rows after `length` bytes, which a resumed run repeats; returns how many."""
        rows = self._path.read_bytes()
        if len(rows) > length:
            self._file.truncate(length)
        self._crc32 = zlib.crc32(rows[:length])
        return rows[length:].count(b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Tracker:
    """Receives a run's metrics while it trains; this base class ignores them.

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
    it there, and the same command in another directory gets another. Its `group` is the sweep or
    the data, its `job_type` the arm. `config` is nested, as W&B reads dotted keys.
    """

    def __init__(
        self, *, run_dir: Path, settings: TrackerConfig, config: Mapping[str, Any], **about: str
    ) -> None:
        self._run: Any = None
        self._run_dir, self._artifacts = run_dir, settings.artifacts
        id_file = run_dir / "wandb-run-id"
        try:
            mode, why = choose_mode(settings.mode)
            if mode == "disabled":
                log.info("W&B: off (%s)", why)
                return
            import wandb

            self.resumed = id_file.is_file()
            arguments = {
                "project": settings.project,
                "entity": settings.entity,
                "tags": list(settings.tags),
                "config": dict(config),
                "id": id_file.read_text().strip() if self.resumed else uuid.uuid4().hex[:10],
                # A trial before this one, in the same process, may have lost its run.
                "reinit": "finish_previous",
                **about,
            }

            def start() -> tuple[Any, str]:
                try:
                    run, where = _start(run_dir, mode, why, arguments)
                except wandb.errors.Error as error:
                    if mode == "offline":
                        raise
                    wandb.teardown()  # else the id counts as in use by the start that failed
                    failed = f"online failed: {one_line(error)}"
                    run, where = _start(run_dir, "offline", failed, arguments)
                for pattern, step in STEP_METRICS.items():
                    run.define_metric(pattern, step_metric=step)
                for name, best in (("val_loss", "min"), ("val_corr", "max")):
                    run.define_metric(name, step_metric="epoch", summary=best)
                return run, where

            self._run, where = within(START_S, start)
            id_file.write_text(f"{arguments['id']}\n")
            # Nothing to act on, if nobody has asked for it.
            log.log(logging.DEBUG if why == NOT_LOGGED_IN else logging.INFO, where)
        except Exception as error:  # a tracker may fail in any way, and never costs a run
            self._fail(error)

    def log(self, row: Mapping[str, Any]) -> None:
        """Send one row, without the values that are of no use in W&B."""
        names = {"step": GLOBAL_STEP}
        sent = {names.get(k, k): v for k, v in _without_clutter(row).items() if k != "kind"}
        self._attempt(ANSWER_S, lambda run: run.log(sent))

    def finish(self, summary: Mapping[str, Any], images: Sequence[Path]) -> None:
        """Send the result and the pictures, and end W&B's run."""

        def send(run: Any) -> None:
            import wandb

            run.log({f"plots/{path.stem}": wandb.Image(str(path)) for path in images})
            run.summary.update(_without_clutter(summary))
            if self._artifacts:
                names = ("checkpoint/best.safetensors", "config.yaml")
                _log_artifact(run, "model", {name: self._run_dir / name for name in names})
            run.finish()

        self._end(send)

    def abandon(self) -> None:
        """End W&B's run as failed; in a sweep the next trial begins in this process."""
        self._end(lambda run: run.finish(exit_code=1))

    def _end(self, send: Callable[[Any], None]) -> None:
        # Its process answers this at once; rows go into its socket's buffer also if it hangs.
        self._attempt(ANSWER_S, lambda run: run.summary.keys())
        self._attempt(UPLOAD_S, send)
        self._run = None

    def _attempt(self, limit_s: float, send: Callable[[Any], object]) -> None:
        if (run := self._run) is not None:
            try:
                within(limit_s, lambda: send(run))
            except Exception as error:  # see __init__
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._run = None
        if isinstance(error, TimeoutError):
            _kill_service()
        log.warning(
            "W&B failed and is left out of this run; metrics.jsonl has everything: %s: %s",
            type(error).__name__,
            one_line(error),
        )


def _without_clutter(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if v or not k.endswith("_constant_channels")}


def _start(folder: Path, mode: str, why: str, arguments: Mapping[str, Any]) -> tuple[Any, str]:
    """W&B's run, and where it is."""
    import wandb

    run = wandb.init(
        dir=str(folder),
        resume="allow" if mode == "online" else None,
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(init_timeout=INIT_TIMEOUT_S, silent=True, console="off"),
        **arguments,
    )
    later = f"to upload later: wandb sync {Path(run.dir).parent}"
    return run, f"W&B: {mode} ({why})" + (f": {run.url}" if mode == "online" else f"; {later}")


def _kill_service() -> None:
    """End W&B's process, which hangs: this one would wait for it when it exits.

    The next run of this process starts another.
    """
    import wandb
    from wandb.sdk.wandb_setup import singleton

    def kill() -> None:
        service: Any = singleton()._connection
        service._proc._process.kill()
        wandb.teardown()

    with suppress(Exception, SystemExit):  # of a client that has lost its process
        within(ANSWER_S, kill)


def _log_artifact(run: Any, kind: str, files: Mapping[str, Path]) -> None:
    import wandb

    artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind)
    for name, path in files.items():
        artifact.add_file(str(path), name=name)
    run.log_artifact(artifact, aliases=["best"] if kind == "model" else None)


def log_report(findings: "Findings", written: "Written", project: str) -> str:
    """Log a study's verdict, tables and figures as one W&B run of job type `report`.

    Args:
        findings: What the report concludes.
        written: The report's files.
        project: [ENTITY/]PROJECT; the runs' own shows both together. Reporting a study again
            overwrites its run, if W&B is online.

    Returns:
        Where W&B has it.

    Raises:
        UserError: if W&B rejects it: unlike a run's tracking, this was requested.
    """
    from t5ts.analysis.sections import Table, sections

    mode, why = choose_mode("auto")
    if mode == "disabled":
        raise UserError(f"W&B is switched off ({why}): unset WANDB_MODE, or leave out --wandb.")
    study, folder = findings.study, written.page.parent
    group = study.dirs[0].resolve().name
    entity, _, name = project.rpartition("/")
    arguments = {
        "project": name,
        "entity": entity or None,
        "group": group,
        "job_type": "report",
        "name": f"report of {group}",
        "id": "report-" + hashlib.sha256(group.encode()).hexdigest()[:10],
    }
    final = next(b for b in sections(findings)[3].blocks if isinstance(b, Table))
    runs, (notes, summary) = study.table(), _in_words_and_figures(findings)
    tables = {"runs": (runs.columns, runs.rows()), "final_performance": (final.columns, final.rows)}
    as_page = f'<pre style="white-space: pre-wrap; font: inherit">{html.escape(notes)}</pre>'

    def send() -> str:
        import wandb

        run, where = _start(folder, mode, why, arguments)
        parts: dict[str, Any] = {"verdict": wandb.Html(as_page)}
        for picture in written.pictures:
            parts[picture] = wandb.Image(str(folder / "figures" / f"{picture}.png"))
        for key, (columns, lines) in tables.items():
            rows = [list(line) for line in lines]
            parts[key] = wandb.Table(list(columns), rows, allow_mixed_types=True)
        run.log({f"report/{key}": part for key, part in parts.items()})
        run.summary.update(summary)
        run.notes = notes
        if any(one.config.get("tracker.artifacts") for one in study.runs):
            _log_artifact(run, "report", {written.page.name: written.page})
        run.finish()
        return where

    try:
        return within(UPLOAD_S, send)
    except Exception as error:  # the client raises any error of its parts
        if isinstance(error, TimeoutError):
            _kill_service()
        raise UserError(
            f"W&B did not take the report for project {project}: {one_line(error)}. Check the"
            " project's name and the login (wandb login), or set WANDB_MODE=offline."
        ) from error


def _in_words_and_figures(findings: "Findings") -> tuple[str, dict[str, Any]]:
    """The verdict in Markdown, and its figures by name."""
    judged = findings.main
    lines = [findings.headline, "", *(f"- {reason}" for reason in findings.reasons)]
    lines += [f"- BROKEN: {check.name}: {check.detail}" for check in judged.broken]
    figures = {"runs_finished": float(len(findings.study.finished))}
    if judged.main is not None:
        effect = judged.main.effect
        ratios = {"effect": effect.value, "effect_low": effect.low, "effect_high": effect.high}
        figures |= {key: math.expm1(value) for key, value in ratios.items()}
        figures["paired_seeds"] = effect.count
    known = {key: value for key, value in figures.items() if math.isfinite(value)}
    return "\n".join(lines), {"verdict": findings.kind, "headline": findings.headline, **known}


def one_line(error: Exception) -> str:
    """An error's message, whose first line may say nothing ("1 validation error for Settings")."""
    return " ".join(str(error).split())[:200]


def choose_mode(asked: str) -> tuple[str, str]:
    """Online, offline or disabled, and why; decided at once, without W&B's own long waits.

    Only auto has a choice: it looks at WANDB_MODE, then for a login and at whether the server (or
    the proxy before it) accepts a connection.

    Raises:
        UserError: if the address of the server or of the proxy is not valid.
    """
    if asked != "auto":
        return asked, f"tracker.mode={asked}"
    environment = os.environ.get("WANDB_MODE", "")
    if environment in ("online", "offline", "disabled"):
        return environment, f"WANDB_MODE={environment}"
    try:
        server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
        host = gate = server.hostname or "api.wandb.ai"
        port = server.port or (443 if server.scheme == "https" else 80)
        if proxy := getproxies().get(server.scheme):
            first = urlsplit(proxy if "//" in proxy else f"//{proxy}")
            gate, port = first.hostname or host, first.port or 80
    except ValueError as error:
        raise UserError(
            f"the address of W&B or of its proxy is not valid ({error}): check WANDB_BASE_URL,"
            " HTTP_PROXY and HTTPS_PROXY."
        ) from error
    if not (os.environ.get("WANDB_API_KEY") or _in_netrc(host)):
        return "offline", NOT_LOGGED_IN
    if not _takes_connection(gate, port):
        return "offline", f"{gate}:{port} is out of reach"
    return "online", "logged in"


def _in_netrc(host: str) -> bool:
    try:
        path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, ValueError, RuntimeError, netrc.NetrcParseError):  # text or ~ unreadable
        return False


def _takes_connection(host: str, port: int) -> bool:
    """Whether a TCP connection succeeds in time, name look-up included."""

    def connect() -> None:
        socket.create_connection((host, port), timeout=REACH_TIMEOUT_S).close()

    try:
        within(REACH_TIMEOUT_S, connect)
    except OSError:
        return False
    return True
