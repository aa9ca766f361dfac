"""Checkpoints from the Hugging Face hub, into the hub's own cache, or a plain reason why not.

huggingface_hub downloads, resumes dropped connections, locks and shows progress. Two things are
added: quick probes decide whether the hub and its file server answer at all (the client alone
retries a dead network for 23 s), and content is compared with the hash that the hub names it by.
`HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE` and the proxy variables work as usual.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from t5ts.errors import Interrupted, WeightsError
from t5ts.interruption import interrupt_on_signals
from t5ts.model.checkpoint_file import (
    CorruptError,
    checkpoint_files,
    choose_weight_file,
    file_sha256,
)
from t5ts.model.hub_errors import Request, explain, is_outage

PROBE_TIMEOUT_S = 3.0  # for one small request, unless HF_HUB_ETAG_TIMEOUT says otherwise

log = logging.getLogger("t5ts")
T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository in the local cache, complete enough to load.

    Attributes:
        folder: Where its files are (or links to them).
        downloaded: Whether it has just been downloaded.
    """

    folder: Path
    downloaded: bool = False

    @property
    def commit(self) -> str:
        """The commit on the hub."""
        return self.folder.name

    @property
    def repository(self) -> Path:
        """The cache's folder of the whole repository: deleting it always heals the cache."""
        return self.folder.parents[1]

    def check(self, hashes: dict[str, str]) -> None:
        """Compare files with the content hashes that the cache names its blobs by.

        A cache that was copied with its links followed is checked too: each file must be one of
        the blobs. Without blobs there is nothing to compare with.

        Args:
            hashes: SHA-256 by file name.

        Raises:
            WeightsError: if a file is not what the hub sent; one just downloaded is removed.
        """
        blobs = self.repository / "blobs"
        known = {blob.name for blob in blobs.iterdir()} if blobs.is_dir() else set()
        for name, sha256 in hashes.items():
            path = self.folder / name
            expected = {path.resolve().name} if path.is_symlink() else known
            # Mirrors name blobs as they like: only hashes can be compared with.
            expected = {n for n in expected if len(n) in (40, 64) and set(n) <= _HEX}
            if not expected or expected & {sha256, _git_sha1(path, expected)}:
                continue
            if self.downloaded:
                path.resolve().unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                raise WeightsError(
                    f"{name} arrived corrupted: its content hash is not the hub's. It was removed. "
                    "Run again; if it happens twice, a proxy or mirror (HF_ENDPOINT) is altering "
                    "the file."
                )
            raise CorruptError(
                f"The cached file {path} is corrupted: it does not have the content hash that the "
                "hub gave it."
            )


_HEX = set("0123456789abcdef")


def _git_sha1(path: Path, expected: set[str]) -> str | None:
    """Git's hash of a file, by which the hub names small files; None if none is expected."""
    if all(len(name) == 64 for name in expected) or path.stat().st_size > 100_000_000:
        return None
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def cached_snapshot(
    hub_id: str, *, revision: str = "main", cache_dir: str | Path | None = None
) -> Snapshot | None:
    """The cached commit that `revision` names, if config and all weight files are there.

    Never touches the network and does not verify: `weights.verify_cached` does.

    Raises:
        WeightsError: if the id is none, or the cache cannot be read.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    request = _request(hub_id, revision, None, cache_dir or constants.HF_HUB_CACHE)
    try:
        config = try_to_load_from_cache(
            hub_id, "config.json", cache_dir=request.cache_dir, revision=revision
        )
        if not isinstance(config, str):
            return None
        snapshot = Snapshot(Path(config).parent)
        names = {path.name for path in snapshot.folder.iterdir() if path.exists()}
        main = choose_weight_file(names, where=hub_id)
        if main.endswith(".index.json"):
            snapshot.check({main: file_sha256(snapshot.folder / main)})
        complete = names.issuperset(checkpoint_files(snapshot.folder, main))
    except CorruptError as error:
        raise error.in_cache(snapshot.repository) from error
    except WeightsError:
        return None
    except Exception as error:
        raise explain(error, request) from error
    return snapshot if complete else None


def fetch_snapshot(
    hub_id: str,
    *,
    revision: str = "main",
    token: str | bool | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    refresh: bool = False,
) -> Snapshot:
    """A checkpoint's folder in the cache, downloaded first if it is not there.

    A complete cached checkpoint is used without asking the hub, so that all trials of a sweep see
    the same commit and need no network.

    Args:
        hub_id: Repository on the hub, for instance "t5-small".
        revision: Branch, tag or commit.
        token: Access token; None is `HF_TOKEN` or the stored login, False is none.
        endpoint: The hub's address; None is `HF_ENDPOINT` or huggingface.co.
        cache_dir: The cache; None is `HF_HUB_CACHE` or `HF_HOME`/hub.
        offline: Use the cache only; None is `HF_HUB_OFFLINE`.
        refresh: Ask the hub for the revision's newest commit even if one is cached.

    Raises:
        WeightsError: if it is not available, saying why and what to do.
        Interrupted: after SIGINT or SIGTERM; nothing of an unfinished file is kept.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE if offline is None else offline
    request = _request(hub_id, revision, endpoint, cache_dir)
    cached = cached_snapshot(hub_id, revision=revision, cache_dir=request.cache_dir)
    if cached is not None and (offline or not refresh):
        return cached
    if offline:
        raise WeightsError(
            f"{hub_id} (revision {revision}) is not complete in the cache {request.cache_dir}, and "
            f"offline mode forbids asking the hub.{request.meant} Unset HF_HUB_OFFLINE, or "
            f"{request.remedy}"
        )
    try:
        commit, names = _within(partial(_list_files, request, token))
    except WeightsError:
        raise
    except Exception as error:
        # Whatever the client raises is the user's to fix: it stops the run with one message.
        if cached is not None and is_outage(error):
            log.warning(
                "%s cannot be asked for newer files (%s); the cached commit %s is used.",
                request.endpoint,
                type(error).__name__,
                cached.commit,
            )
            return cached
        raise explain(error, request) from error
    if cached is not None and cached.commit == commit:
        return cached
    return _download(request, token, commit, names)


def _request(
    hub_id: str, revision: str, endpoint: str | None, cache_dir: str | Path | None
) -> Request:
    from huggingface_hub import constants

    return Request(
        hub_id=hub_id,
        revision=revision,
        endpoint=(endpoint or constants.ENDPOINT).rstrip("/"),
        cache_dir=Path(cache_dir or constants.HF_HUB_CACHE).expanduser(),
    )


def _list_files(request: Request, token: str | bool | None) -> tuple[str, list[str]]:
    """The commit that the revision names and its file names: the one request that decides."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=request.endpoint, token=token)
    info = api.model_info(request.hub_id, revision=request.revision, timeout=_probe_timeout_s())
    names = [sibling.rfilename for sibling in info.siblings or []]
    if not info.sha:
        raise ValueError("the answer names no commit")
    if "config.json" not in names:
        raise WeightsError(
            f"{request.hub_id} has no config.json, so it is no transformers checkpoint. Choose a "
            "T5 checkpoint such as t5-small, google/flan-t5-small or t5-base."
        )
    choose_weight_file(names, where=f"The repository {request.hub_id}")
    return info.sha, names


def _download(
    request: Request, token: str | bool | None, commit: str, names: list[str]
) -> Snapshot:
    """Fetch config and weights, file by file, in this thread: a signal ends it at once.

    (`snapshot_download` waits for its threads, until the file is there or its time-outs are over.)
    """
    from huggingface_hub import hf_hub_download

    main = choose_weight_file(names, where=request.hub_id)
    wanted = [main, "config.json"]  # a snapshot with a config always has its weights beside it
    log.info("Fetching %s from %s; a first Ctrl-C stops it.", request.hub_id, request.endpoint)
    name = main
    try:
        with interrupt_on_signals():
            while wanted:
                name = wanted.pop(0)
                _within(partial(_probe_file, request, token, commit, name))
                path = hf_hub_download(
                    request.hub_id,
                    name,
                    # The branch leads to the commit in the cache only when all is there.
                    revision=commit if wanted else request.revision,
                    endpoint=request.endpoint,
                    cache_dir=request.cache_dir,
                    token=token,
                    etag_timeout=_probe_timeout_s(),
                )
                if name.endswith(".index.json"):
                    wanted[:0] = checkpoint_files(Path(path).parent, name)[2:]
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped while downloading {name} of {request.hub_id}; nothing of it was kept"
        ) from None
    except CorruptError as error:
        raise error.in_cache(Path(path).parents[2]) from error
    except WeightsError:
        raise
    except Exception as error:
        raise explain(error, request, file=name) from error
    folder = Path(path).parent
    if folder.name != commit:
        raise WeightsError(
            f"{request.hub_id} changed on the hub while it was downloaded ({request.revision} is "
            "another commit now): run the same command again."
        )
    return Snapshot(folder, downloaded=True)


def _probe_file(request: Request, token: str | bool | None, commit: str, name: str) -> None:
    """Ask for a file's first byte, redirects to the file server included."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(request.hub_id, name, revision=commit, endpoint=request.endpoint)
    headers = build_hf_headers(token=token) | {"Range": "bytes=0-0"}
    with get_session().stream("GET", url, headers=headers, timeout=_probe_timeout_s()) as response:
        if response.status_code != 416:  # an empty file has no first byte
            hf_raise_for_status(response)
        next(response.iter_raw(), None)


def _probe_timeout_s() -> float:
    from huggingface_hub import constants

    chosen = "HF_HUB_ETAG_TIMEOUT" in os.environ
    return constants.HF_HUB_ETAG_TIMEOUT if chosen else PROBE_TIMEOUT_S


def _within(work: Callable[[], T]) -> T:
    """Run `work` in a daemon thread and stop waiting soon after its own time-out.

    A name look-up has no time-out that a client could set, and a host with several addresses is
    tried with the full time-out on each.

    Raises:
        TimeoutError: if it has not ended by then.
    """
    seconds = _probe_timeout_s() + 0.5
    results: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]
