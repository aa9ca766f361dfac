"""Checkpoints from the Hugging Face hub: into the hub's own cache, or a plain reason why not.

huggingface_hub alone retries a dead network for 23 s, starts an interrupted file from zero and
checks a plain download's size only. Here one quick request decides whether the hub is there, each
file resumes where it stopped, and a file enters the cache only after its content hash matched the
hub's. `HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE` and the proxy variables work as usual.
"""

import os
import re
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from t5ts.errors import WeightsError
from t5ts.model.checkpoint_file import choose_weight_file, file_sha256, weight_files_of
from t5ts.model.hub_errors import (
    Request,
    explain,
    is_network_failure,
    is_timeout,
    status_of,
    wrong_id,
)

ANSWER_TIMEOUT_S = 3.0  # for one small request, unless HF_HUB_ETAG_TIMEOUT says otherwise
STALL_TIMEOUT_S = 3.5  # without a byte of a file, unless HF_HUB_DOWNLOAD_TIMEOUT says otherwise
MAX_ATTEMPTS = 4  # connections per file before the rest is left to the next run

# The hub names large files by SHA-256. Small ones carry git's SHA-1, mirrors' anything: those are
# checked by their length and by what is read from them.
_SHA256 = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository in the local cache, complete enough to load."""

    folder: Path
    commit: str
    downloaded: bool


def cached_snapshot(
    hub_id: str, *, revision: str = "main", cache_dir: str | Path | None = None
) -> Snapshot | None:
    """The cached commit that `revision` names, if config and all weight files are there.

    Never touches the network.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    def find(name: str) -> Path | None:
        found = try_to_load_from_cache(hub_id, name, cache_dir=cache_dir, revision=revision)
        return Path(found) if isinstance(found, str) else None

    try:
        config = find("config.json")
    except HFValidationError as error:
        raise wrong_id(hub_id) from error
    if config is None:
        return None
    folder = config.parent
    try:
        main = choose_weight_file((path.name for path in folder.iterdir()), where=hub_id)
        index = (folder / main).read_text("utf-8") if main.endswith(".index.json") else None
        names = weight_files_of(main, index, where=hub_id)
    except (WeightsError, OSError):
        return None
    if not all((folder / name).is_file() for name in names):
        return None
    return Snapshot(folder, folder.name, downloaded=False)


def cache_status(
    hub_id: str, *, revision: str = "main", cache_dir: str | Path | None = None
) -> tuple[Path | None, int]:
    """Where a checkpoint is cached (None if it is not, or not completely) and its bytes on disk.

    Never touches the network and does not verify: `weights.verify_cached` does.
    """
    snapshot = cached_snapshot(hub_id, revision=revision, cache_dir=cache_dir)
    if snapshot is None:
        return None, 0
    return snapshot.folder, sum(p.stat().st_size for p in snapshot.folder.rglob("*") if p.is_file())


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
        WeightsError: if it cannot be had, saying why and what to do.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE if offline is None else offline
    request = Request(
        hub_id=hub_id,
        revision=revision,
        endpoint=(endpoint or constants.ENDPOINT).rstrip("/"),
        cache_dir=Path(cache_dir or constants.HF_HUB_CACHE).expanduser(),
    )
    if not refresh or offline:
        cached = cached_snapshot(hub_id, revision=revision, cache_dir=request.cache_dir)
        if cached is not None:
            return cached
    if offline:
        raise WeightsError(
            f"{hub_id} (revision {revision}) is not complete in the cache {request.cache_dir}, and "
            f"offline mode forbids asking the hub.{request.hint} Unset HF_HUB_OFFLINE, or "
            f"{request.remedy}"
        )
    try:
        commit, names = _within(partial(_ask_for_files, request, token), request)
        return _download_all(request, token, commit, names)
    except WeightsError:
        raise
    except Exception as error:
        # Whatever the client raises is the user's to mend: it stops the run with one message.
        raise explain(error, request) from error


def check_content(path: Path, sha256: str) -> None:
    """Compare a cached file with the content hash that the cache names its blob by.

    Args:
        path: A file of a snapshot; one that is no link into the cache's blobs has no such name.
        sha256: The file's SHA-256 as just computed.

    Raises:
        WeightsError: if the file is not what the hub sent.
    """
    blob = path.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) and sha256 != blob.name:
        raise WeightsError(
            f"The cached file {path.name} is corrupted: {blob} does not have the content hash that "
            f"the hub gave it. Delete that file and run again to download it anew: rm {blob}"
        )


def _ask_for_files(request: Request, token: str | bool | None) -> tuple[str, list[str]]:
    """The commit that the revision names and its file names: the one request that decides."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=request.endpoint, token=token)
    info = api.model_info(request.hub_id, revision=request.revision, timeout=_answer_timeout_s())
    names = [sibling.rfilename for sibling in info.siblings or []]
    if not info.sha:
        raise ValueError("the answer names no commit")
    if "config.json" not in names:
        raise WeightsError(
            f"{request.hub_id} has no config.json, so it is no transformers checkpoint. "
            f"{request.choose}"
        )
    choose_weight_file(names, where=f"The repository {request.hub_id}")
    return info.sha, names


def _download_all(
    request: Request, token: str | bool | None, commit: str, names: list[str]
) -> Snapshot:
    """Fetch config and weights as verified blobs, then let the client link them in its cache."""
    from huggingface_hub import hf_hub_download

    main = choose_weight_file(names, where=request.hub_id)
    wanted = ["config.json", main]
    _fetch_blob(request, token, commit, "config.json")
    blob = _fetch_blob(request, token, commit, main)
    if main.endswith(".index.json"):
        shards = weight_files_of(main, blob.read_text("utf-8"), where=request.hub_id)
        for shard in shards:
            _fetch_blob(request, token, commit, shard)
        wanted += shards
    # Linked only now: a snapshot whose config stands there always has its weights beside it. The
    # time limit is for the client's own retries, should the hub fail between two requests.
    for name in wanted:
        link = partial(
            hf_hub_download,
            request.hub_id,
            name,
            revision=commit,
            endpoint=request.endpoint,
            cache_dir=request.cache_dir,
            token=token,
            etag_timeout=_answer_timeout_s(),
        )
        linked = _within(link, request)
    folder = Path(linked).parent
    if request.revision != folder.name:
        reference = folder.parents[1] / "refs" / request.revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        fresh = reference.with_name(f"{reference.name}.{os.getpid()}.tmp")
        fresh.write_text(folder.name)
        fresh.replace(reference)
    return Snapshot(folder, folder.name, downloaded=True)


def _fetch_blob(request: Request, token: str | bool | None, commit: str, name: str) -> Path:
    """Bring one file into the cache's blobs under its content hash, resuming a partial one."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import WeakFileLock

    url = hf_hub_url(request.hub_id, name, revision=commit, endpoint=request.endpoint)
    ask = partial(
        get_hf_file_metadata,
        url,
        token=token,
        timeout=_answer_timeout_s(),
        endpoint=request.endpoint,
    )
    meta = _within(ask, request)
    if not meta.etag or "/" in meta.etag:
        raise ValueError(f"the answer for {name} has no ETag")
    storage = request.cache_dir / ("models--" + request.hub_id.replace("/", "--"))
    blob = storage / "blobs" / meta.etag
    if blob.exists():
        return blob
    blob.parent.mkdir(parents=True, exist_ok=True)
    locks = request.cache_dir / ".locks" / storage.name
    locks.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(locks / f"{meta.etag}.lock"):
        if blob.exists():
            return blob
        part = blob.with_name(f"{meta.etag}.t5ts-partial")
        _check_space(request, part, name, meta.size)
        _download(request, token, url, part, name, meta.size)
        if _SHA256.fullmatch(meta.etag) and file_sha256(part) != meta.etag:
            part.unlink()
            raise WeightsError(
                f"{name} of {request.hub_id} arrived corrupted: its content hash is not the hub's "
                f"({meta.etag}). Nothing was kept. Run again; if it happens twice, a proxy or "
                "mirror (HF_ENDPOINT) is altering the file."
            )
        part.replace(blob)
    return blob


def _download(
    request: Request,
    token: str | bool | None,
    url: str,
    part: Path,
    name: str,
    size: int | None,
) -> None:
    """Append to `part` until it has `size` bytes, taking up dropped connections by Range."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, tqdm

    chosen = "HF_HUB_DOWNLOAD_TIMEOUT" in os.environ
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT if chosen else STALL_TIMEOUT_S
    # Signed CDN addresses of a redirect never see the token: the client drops it with the host.
    headers = build_hf_headers(token=token) | {"Accept-Encoding": "identity"}
    if size is None:
        part.unlink(missing_ok=True)  # without a length there is no telling what is missing
    last: Exception | None = None
    fruitless = 0
    bar: Any = (
        tqdm(total=size, unit="B", unit_scale=True, desc=f"{request.hub_id} {name}")
        if sys.stderr.isatty() and (size or 0) > 1e6
        else nullcontext()
    )
    with bar as progress:
        for _ in range(MAX_ATTEMPTS):
            have = part.stat().st_size if part.exists() else 0
            if size is not None and have > size:
                part.unlink()
                have = 0
            if size is not None and have == size and part.exists():
                return
            if progress is not None:
                progress.n = have
            ranged = {"Range": f"bytes={have}-"} if have else {}
            try:
                with get_session().stream(
                    "GET", url, headers=headers | ranged, timeout=timeout
                ) as response:
                    hf_raise_for_status(response)
                    # 200 in answer to a range is the whole file from its start.
                    with part.open("ab" if response.status_code == 206 else "wb") as file:
                        for chunk in response.iter_bytes():
                            file.write(chunk)
                            if progress is not None:
                                progress.update(len(chunk))
                if size is None:
                    return
            except Exception as error:
                # 416: the server's file ends where ours does, short of the promised size.
                if status_of(error) != 416 and not is_network_failure(error):
                    raise
                last = error
            if (part.stat().st_size if part.exists() else 0) <= have:
                fruitless += 1
                if fruitless == 2 or have or is_timeout(last):
                    break
    have = part.stat().st_size if part.exists() else 0
    if have == size:
        return
    raise WeightsError(
        f"The download of {name} of {request.hub_id} from {request.endpoint} broke off at {have:,} "
        f"of {size or 0:,} bytes (truncated). What came is kept apart from the cache's files and "
        "the next run resumes there: run the same command again."
    ) from last


def _check_space(request: Request, part: Path, name: str, size: int | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(part.parent).free
    if size is not None and size - have > free:
        raise WeightsError(
            f"No disk space for {name} of {request.hub_id}: {size - have:,} bytes are needed, "
            f"{free:,} are free in {request.cache_dir}. Free some, or set HF_HOME to a larger disk."
        )


def _answer_timeout_s() -> float:
    from huggingface_hub import constants

    chosen = "HF_HUB_ETAG_TIMEOUT" in os.environ
    return constants.HF_HUB_ETAG_TIMEOUT if chosen else ANSWER_TIMEOUT_S


def _within(work: Callable[[], T], request: Request) -> T:
    """Run `work` in a daemon thread and stop waiting soon after its own timeouts should have come.

    A name look-up has no timeout that a client could set, and a host with several addresses is
    tried with the full timeout on each.
    """
    seconds = _answer_timeout_s() + 0.5
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
        raise explain(TimeoutError(f"no answer within {seconds:g} s"), request)
    return results[0]
