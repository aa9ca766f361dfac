"""Checkpoints from the Hugging Face hub, into the hub's own cache, or one clear error.

huggingface_hub downloads, resumes dropped connections, locks and shows progress. Two things are
added: short probes that find out whether the hub and its file server answer at all (the client
alone retries a dead network for 23 s), and a check of the content against the hash the hub
names it by. `HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE` and the proxy variables apply.
"""

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from t5ts.errors import Interrupted, WeightsError
from t5ts.interruption import interrupt_on_signals, within
from t5ts.model.checkpoint_file import CorruptError, choose_weight_file, file_sha256, shard_names

_REMEDY = (
    "run `python -m t5ts.download backbone={name}` on a machine with network and set HF_HOME to a"
    " copy of its cache, or use a folder (backbone=local or hf, backbone.path=DIR) or"
    " backbone=t5_tiny_en, a small T5 that comes with t5ts."
)
#: Facts of an error (see `_facts`) and the message; the first matching row is used. The
#: client's classes are matched by name, since the HTTP library under huggingface_hub changed twice.
_TABLE = {
    "offline": "{what} (revision {revision}) is incomplete in the cache {cache_dir}, and offline"
    " mode forbids contacting the hub. Unset HF_HUB_OFFLINE, or {remedy}",
    "local-file": "The cache {cache_dir} cannot be used ({why}). Free disk space or fix its"
    " permissions, or set HF_HOME to another folder.",
    "GatedRepoError": "{what} is gated: accept its licence at {endpoint}, then set HF_TOKEN to a"
    " token of that account, or run `hf auth login`.",
    "RevisionNotFoundError": "{what} has no revision {revision!r}. Use main, or a branch, tag or"
    " full commit of it.",
    # Without a valid token the hub answers 401 both for missing ids and for private ones.
    "401 403 HFValidationError RepositoryNotFoundError": "The hub has no {what!r} for you to read"
    " ({why}). Use the id of a checkpoint such as t5-small or openai-community/gpt2; if it is"
    " private, set HF_TOKEN to a token with read access or run `hf auth login`; if it needs none,"
    " unset HF_TOKEN.",
    "ProxyError 407 bad-proxy": "The proxy cannot be used for {endpoint} ({why}). Check"
    " HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and their credentials, bypass it with NO_PROXY, or"
    " {remedy}",
    "certificate": "The certificate of {endpoint} is not trusted ({why}). Set SSL_CERT_FILE to your"
    " network's authority, or {remedy}",
    "consistency interrupted": "The download of {what} from {endpoint} failed ({why}). Nothing was"
    " kept: run the same command again (HF_HUB_DOWNLOAD_TIMEOUT=60 waits longer on a slow"
    " connection).",
    "no-network": "No network: {endpoint} cannot be reached ({why}), and {what} is not in the cache"
    " {cache_dir}. Check the network, HF_ENDPOINT and the proxy variables HTTPS_PROXY, HTTP_PROXY,"
    " ALL_PROXY (HF_HUB_ETAG_TIMEOUT=30 waits longer), or {remedy}",
    "Exception": "{endpoint} did not answer the request for {what} as the hub does ({why}). Check"
    " HF_ENDPOINT, the id, proxies and the network's login page, try again in a few minutes, or"
    " {remedy}",
}
_PHRASES = {
    "offline": "offline mode",
    "certificate": "certificate verify failed",
    "consistency": "consistency check failed",
}
_NETWORK_ERRORS = {"TransportError", "TimeoutError", "ConnectionError"}

#: Seconds without a byte after which a partial file belongs to no living download.
LEFT_AFTER_S = 60.0

log = logging.getLogger("t5ts")


def _settings() -> Any:
    """huggingface_hub's settings, which it reads from the environment when it is imported.

    Raises:
        WeightsError: if one of them is not a number, or no address.
    """
    try:
        from huggingface_hub import constants, file_download  # noqa: F401 - both read some
    except ValueError as error:
        raise WeightsError(
            f"An environment variable of the hub is not valid ({error}): check HF_ENDPOINT,"
            " HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT (seconds, whole numbers)."
        ) from error
    return constants


def _probe_timeout_s() -> float:
    """For one small request."""
    return float(os.environ.get("HF_HUB_ETAG_TIMEOUT", "3"))


def _probe_limit_s() -> float:
    """For that request, its name lookup and further addresses of the host included."""
    return _probe_timeout_s() + 0.5


def cached_snapshot(hub_id: str, revision: str = "main") -> Path | None:
    """The cached commit's folder, if config and all weight files are there; nothing is verified.

    Raises:
        WeightsError: if the id is invalid, or the cache cannot be read.
    """
    _settings()
    from huggingface_hub import try_to_load_from_cache

    with _explaining(hub_id, revision):
        config = try_to_load_from_cache(hub_id, "config.json", revision=revision)
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
        try:
            return folder if all((folder / name).exists() for name in _names(folder)) else None
        except CorruptError as error:
            raise in_cache(error, folder) from error
        except WeightsError:
            return None


def fetch_snapshot(hub_id: str, revision: str = "main") -> Path:
    """A checkpoint's folder in the cache, downloaded first if missing; content verified.

    A complete cached checkpoint is used without contacting the hub, so all trials of a sweep see
    the same commit and need no network. The folder is named by the commit; for a newer one, delete
    it or set another revision (branch, tag or commit).

    Raises:
        WeightsError: if it is unavailable or corrupted, with the reason and what to do.
        Interrupted: after SIGINT or SIGTERM; unfinished files are not kept.
    """
    folder = cached_snapshot(hub_id, revision)
    with _explaining(hub_id, revision):
        if folder is None and _settings().HF_HUB_OFFLINE:
            raise OSError("offline mode")
        if folder is None:
            found = within(_probe_limit_s(), partial(_find, hub_id, revision))
            folder = _download(hub_id, revision, *found)
            _remove_leftovers(folder.parents[1])
        try:
            _check_content(folder, _names(folder))
        except CorruptError as error:
            raise in_cache(error, folder) from error
    return folder


def in_cache(error: CorruptError, folder: Path) -> CorruptError:
    """The error with the one fix for the hub's cache: a new download."""
    return CorruptError(
        f"{error} It is in the hub's cache: delete that copy (rm -r '{folder.parents[1]}') and run"
        " the same command again to download it."
    )


def _find(hub_id: str, revision: str) -> tuple[str, str]:
    """The commit of the revision, and its weight file or index: one small request."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(hub_id, revision=revision, timeout=_probe_timeout_s())
    names = [sibling.rfilename for sibling in info.siblings or []]
    if not info.sha:
        raise ValueError("the answer names no commit")
    if "config.json" not in names:
        raise WeightsError(f"{hub_id} has no config.json: choose a checkpoint such as t5-small.")
    return info.sha, choose_weight_file(names, where=f"The repository {hub_id}")


def _download(hub_id: str, revision: str, commit: str, main: str) -> Path:
    """Fetch weights and config, file by file, in this thread: a signal ends it immediately.

    (`snapshot_download` waits for its threads until they finish or time out.)
    """
    from huggingface_hub import hf_hub_download

    wanted = [main, "config.json"]  # a snapshot with a config always has its weights too
    log.info("Downloading %s from %s; press Ctrl-C once to stop.", hub_id, _settings().ENDPOINT)
    while wanted:
        name = wanted.pop(0)
        # The branch points to the cached commit only when everything is there.
        pinned = commit if wanted else revision
        try:
            with interrupt_on_signals(), _explaining(hub_id, revision, file=name):
                within(_probe_limit_s(), partial(_ask_first_byte, hub_id, commit, name))
                path = hf_hub_download(
                    hub_id, name, revision=pinned, etag_timeout=_probe_timeout_s()
                )
                folder = Path(path).parent
                if folder.name != commit:  # its config would belong to other weights
                    raise WeightsError(
                        f"{hub_id} moved from {commit} to {folder.name} during the download: run"
                        " the same command again."
                    )
                _check_content(folder, [name])
                if name.endswith(".index.json"):
                    wanted[:0] = shard_names(folder, name)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped while downloading {name} of {hub_id}; nothing was kept"
            ) from None
        except CorruptError as error:
            for file in (Path(path).resolve(), Path(path)):
                file.unlink(missing_ok=True)
            raise WeightsError(
                f"{name} arrived corrupted and was removed ({error}) Run again; if it happens"
                " twice, a proxy or mirror (HF_ENDPOINT) is altering the file."
            ) from error
    return folder


def _ask_first_byte(hub_id: str, commit: str, name: str) -> None:
    """Request a file's first byte, following redirects to the file server."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(hub_id, name, revision=commit)
    headers = build_hf_headers() | {"Range": "bytes=0-0"}
    with get_session().stream("GET", url, headers=headers, timeout=_probe_timeout_s()) as response:
        if response.status_code != 416:  # an empty file has no first byte
            hf_raise_for_status(response)
        next(response.iter_raw(), None)


def _names(folder: Path) -> list[str]:
    """Names of a cached checkpoint's files; a shard index is verified before it is read."""
    main = choose_weight_file((path.name for path in folder.iterdir()), where=str(folder))
    if main.endswith(".index.json") and (folder / main).exists():
        _check_content(folder, [main])
    return ["config.json", main, *shard_names(folder, main)]


def _check_content(folder: Path, names: Iterable[str]) -> None:
    """Compare files with the content hashes that the cache names its blobs by.

    In a cache that was copied with its links followed, each file must be one of the blobs. Without
    blobs there is nothing to compare with; mirrors may not name them by hash.

    Raises:
        CorruptError: if a file differs from the hub's.
    """
    from huggingface_hub.utils.sha import git_hash

    blobs = folder.parents[1] / "blobs"
    known = {blob.name for blob in blobs.iterdir()} if blobs.is_dir() else set()
    for name in names:
        path = folder / name
        named = {path.resolve().name} if path.is_symlink() else known
        expected = {n for n in named if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", n)}
        if not expected or file_sha256(path) in expected:
            continue
        is_small = path.stat().st_size < 100_000_000  # the hub names small files by git's hash
        if not is_small or git_hash(path.read_bytes()) not in expected:
            raise CorruptError(f"{path} is corrupted: it does not have the hub's content hash.")


def _remove_leftovers(repo: Path) -> None:
    """Remove the partial files of downloads that were killed, which the client never resumes.

    Another process may be writing to one: then its lock is held, or, on file systems whose locks
    hold nobody back, it has been written to lately.
    """
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    for left in (repo / "blobs").glob("*.????????.incomplete"):
        lock = repo.parent / ".locks" / repo.name / f"{left.name.split('.')[0]}.lock"
        with suppress(Timeout, OSError), WeakFileLock(lock, timeout=0.01):
            if time.time() - left.stat().st_mtime > LEFT_AFTER_S:
                left.unlink()


@contextmanager
def _explaining(hub_id: str, revision: str, *, file: str | None = None) -> Iterator[None]:
    """Turn any error of the client, the network or the disk into one message.

    `file` is what is being downloaded.
    """
    try:
        yield
    except (WeightsError, Interrupted):
        raise
    except Exception as error:
        facts = _facts(error, file)
        message = next(text for row, text in _TABLE.items() if facts.intersection(row.split()))
        settings = _settings()
        why = (str(error).strip().splitlines() or [""])[0][:200]
        raise WeightsError(
            message.format(
                what=hub_id if file is None else f"{file} of {hub_id}",
                revision=revision,
                endpoint=settings.ENDPOINT,
                cache_dir=settings.HF_HUB_CACHE,
                remedy=_REMEDY.format(name=hub_id.split("/")[-1].replace("-", "_")),
                why=f"{type(error).__name__}: {why}",
            )
        ) from error


def _facts(error: BaseException, file: str | None) -> set[str]:
    """Facts about an error: its and its causes' classes, HTTP status, what it is about."""
    chain = [error]
    while len(chain) < 10 and (cause := chain[-1].__cause__ or chain[-1].__context__):
        chain.append(cause)
    facts = {cls.__name__ for link in chain for cls in type(link).__mro__}
    text = " ".join(map(str, chain)).lower()
    facts |= {fact for fact, phrase in _PHRASES.items() if phrase in text}
    # The client's errors are also OSErrors, and a connection blocked by a firewall carries EPERM.
    if isinstance(error, OSError) and error.errno and not facts & {"HTTPError", *_NETWORK_ERRORS}:
        facts.add("local-file")
    statuses = [getattr(getattr(link, "response", None), "status_code", None) for link in chain]
    if status := next(filter(None, statuses), None):
        facts.add(str(status))
    elif facts & _NETWORK_ERRORS:
        facts.add("no-network" if file is None else "interrupted")
    elif "proxy" in text and "FileMetadataError" not in facts:  # that one advises on proxies
        facts.add("bad-proxy")
    return facts
