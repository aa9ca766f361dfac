"""What went wrong with the hub, in one sentence, and what the user can do about it."""

import difflib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from t5ts.errors import WeightsError

# The T5 checkpoints pretrained on text whose encoder can be used here; for "did you mean".
KNOWN_IDS = (
    *(f"t5-{size}" for size in ("small", "base", "large", "3b", "11b")),
    *(f"google-t5/t5-{size}" for size in ("small", "base", "large", "3b", "11b")),
    *(f"google/t5-v1_1-{size}" for size in ("small", "base", "large", "xl", "xxl")),
    *(f"google/flan-t5-{size}" for size in ("small", "base", "large", "xl", "xxl")),
    *(f"google/t5-efficient-{size}" for size in ("tiny", "mini", "small", "base", "large")),
)
_WRONG_ID = (
    "The hub has no model {id!r}.{meant} Allowed are ids of T5 checkpoints such as t5-small or "
    "google/flan-t5-small; if the model is private, set HF_TOKEN or run `hf auth login`."
)
_TOKEN = (
    "Access to {id} needs a valid token: {endpoint} answered {status}{via}.{meant} Set HF_TOKEN to "
    "a valid token with read access, or run `hf auth login`; if the model needs none, unset "
    "HF_TOKEN."
)
_PROXY = (
    "The proxy {proxy} refused the connection to {endpoint} ({why}). Check HTTPS_PROXY/HTTP_PROXY "
    "and its credentials, add {host} to NO_PROXY to go around it, or {remedy}"
)
_BROKE_OFF = (
    "The download of {file} of {id} from {endpoint} broke off ({why}). Nothing was kept: run the "
    "same command again (HF_HUB_DOWNLOAD_TIMEOUT=60 waits longer for a slow line)."
)
_NO_NETWORK = (
    "No network: {endpoint} cannot be reached{via} ({why}), and {id} is not in the cache {cache}."
    "{meant} Check the network, HF_ENDPOINT and the proxy variables (HF_HUB_ETAG_TIMEOUT=30 waits "
    "longer), or {remedy}"
)
#: What an error is (a class among its causes' bases, HTTP statuses, lower-case text of its message)
#: and the message; the first that applies is used. The client's classes are told apart by name,
#: since the HTTP library under huggingface_hub has changed twice.
_TABLE: tuple[tuple[str | range, str], ...] = (
    ("HFValidationError", _WRONG_ID),
    (
        "GatedRepoError",
        "{id} is gated: accept its licence at {endpoint}/{id}, then set HF_TOKEN to a token of "
        "that account or run `hf auth login`.",
    ),
    (
        "RevisionNotFoundError",
        "{id} has no revision {revision!r}. Use main, or a branch, tag or full commit listed at "
        "{endpoint}/{id}/commits/main.",
    ),
    ("RepositoryNotFoundError", _WRONG_ID),
    (
        "RemoteEntryNotFoundError",
        "{id} names a file that the hub does not have ({why}). Choose a T5 checkpoint such as "
        "t5-small, google/flan-t5-small or t5-base.",
    ),
    (
        "FileMetadataError",
        "{endpoint} is no complete mirror of the hub ({why}). Set HF_ENDPOINT to one that is, or "
        "unset it.",
    ),
    ("ProxyError", _PROXY),
    (range(407, 408), _PROXY),
    (range(401, 404, 2), _TOKEN),
    (
        range(429, 430),
        "{endpoint} answered 429 for {id}: too many requests from here. Wait some minutes, set "
        "HF_TOKEN (known users have higher limits), or {remedy}",
    ),
    (
        range(500, 600),
        "{endpoint} answered {status} for {id}: the hub has a fault of its own (see "
        "status.huggingface.co). Run again later, or {remedy}",
    ),
    (
        range(100, 600),
        "{endpoint} answered {status} for {id} ({why}). Check HF_ENDPOINT and the id, or {remedy}",
    ),
    *(
        (
            kind,
            "{endpoint!r} is no address of a hub ({why}). Set HF_ENDPOINT to one such as "
            "https://huggingface.co, or unset it; check the proxy variables too.",
        )
        for kind in ("UnsupportedProtocol", "InvalidURL", "LocalProtocolError")
    ),
    (
        "certificate verify failed",
        "The certificate of {endpoint} is not trusted ({why}). If your network replaces "
        "certificates, set SSL_CERT_FILE to its authority's file; otherwise {remedy}",
    ),
    ("consistency check failed", _BROKE_OFF),
    ("TransportError", _NO_NETWORK),
    ("TimeoutError", _NO_NETWORK),
    ("ConnectionError", _NO_NETWORK),
    (
        "proxy",
        "The proxy setting {proxy} cannot be used ({why}). Fix HTTPS_PROXY/HTTP_PROXY/ALL_PROXY "
        "or unset them.",
    ),
    (
        "",
        "{endpoint} did not answer as a hub does when asked for {id} ({kind}: {why}). Check "
        "HF_ENDPOINT, proxies and log-in pages of the network, or {remedy}",
    ),
)


@dataclass(frozen=True)
class Request:
    """What is asked of whom, for messages."""

    hub_id: str
    revision: str
    endpoint: str
    cache_dir: Path

    @property
    def remedy(self) -> str:
        """The ways to get weights onto a machine that cannot reach the hub, and to do without."""
        name = self.hub_id.split("/")[-1].replace("-", "_")
        return (
            f"run `python -m t5ts.download backbone={name}` on a machine with network and point "
            "HF_HOME at a copy of its cache, give a checkpoint folder with backbone=local "
            "backbone.path=DIR, or use backbone=t5_tiny_en, a small T5 pretrained on English that "
            "comes with t5ts and needs no network."
        )

    @property
    def meant(self) -> str:
        """The known ids that may be meant, as a question; empty where the id is a known one."""
        near = [] if self.hub_id in KNOWN_IDS else suggestions(self.hub_id)
        return f" Did you mean {' or '.join(near)}?" if near else ""

    @property
    def proxy(self) -> str | None:
        """`VARIABLE (host)` of the proxy that a request to the endpoint goes through, if any."""
        parts = urlsplit(self.endpoint)
        proxies = getproxies()
        host = parts.hostname or ""
        if not host or proxy_bypass(host):
            return None
        for scheme in (parts.scheme, "all"):
            if url := proxies.get(scheme):
                names = [f"{scheme}_proxy", f"{scheme.upper()}_PROXY"]
                variable = next((n for n in names if os.environ.get(n)), names[1])
                # Without the credentials that may stand before the host.
                return f"{variable} ({url.split('//')[-1].split('@')[-1].rstrip('/')})"
        return None


def suggestions(hub_id: str) -> list[str]:
    """Known ids that the user may have meant, best first, at most three."""
    base = hub_id.split("/")[-1].lower()
    same = [known for known in KNOWN_IDS if known.split("/")[-1] == base]
    if same:
        return [known for known in same if known != hub_id]
    near = difflib.get_close_matches(hub_id.lower(), KNOWN_IDS, n=3, cutoff=0.6)
    bases = {known.split("/")[-1]: known for known in reversed(KNOWN_IDS)}
    near += [bases[b] for b in difflib.get_close_matches(base, list(bases), n=3, cutoff=0.7)]
    return [known for known in dict.fromkeys(near) if known != hub_id][:3]


def is_outage(error: BaseException) -> bool:
    """Whether the hub could not be asked at all, as opposed to having said no."""
    status = _status(error)
    return status >= 500 if status else bool(_kinds(error) & {"TransportError", "TimeoutError"})


def explain(error: BaseException, request: Request, *, file: str | None = None) -> WeightsError:
    """Turn whatever the hub client raised into one message with its remedy.

    Args:
        error: As caught.
        request: What was asked.
        file: The file whose content was being downloaded, if one was.

    Returns:
        The error to raise.
    """
    kinds, status = _kinds(error), _status(error)
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    # The client's errors are OSErrors too, and a connection that a firewall forbids carries EPERM.
    if (
        isinstance(error, OSError)
        and error.errno
        and not kinds & {"HTTPError", "TransportError", "ConnectionError", "TimeoutError"}
    ):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return WeightsError(
            f"The cache {request.cache_dir} cannot be {'filled' if full else 'used'} ({why}). "
            + ("Free some disk space" if full else "Fix its permissions")
            + ", or set HF_HOME to another folder."
        )
    # Without a valid token the hub answers 401 to ids that do not exist as to private ones.
    if status == 401 and request.hub_id in KNOWN_IDS:
        kinds -= {"RepositoryNotFoundError"}
    text = " ".join(str(link) for link in _chain(error)).lower()
    message = next(
        message
        for key, message in _TABLE
        if (status in key if isinstance(key, range) else key in kinds or key in text)
    )
    if message is _NO_NETWORK and file is not None:
        message = _BROKE_OFF
    return WeightsError(
        message.format(
            id=request.hub_id,
            revision=request.revision,
            endpoint=request.endpoint,
            host=urlsplit(request.endpoint).hostname,
            cache=request.cache_dir,
            remedy=request.remedy,
            meant=request.meant,
            proxy=request.proxy or "in your environment",
            via=f" through the proxy {request.proxy}" if request.proxy else "",
            status=status,
            kind=type(error).__name__,
            why=why,
            file=file,
        )
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(10):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__


def _kinds(error: BaseException) -> set[str]:
    return {cls.__name__ for link in _chain(error) for cls in type(link).__mro__}


def _status(error: BaseException) -> int:
    """The HTTP status that an error carries; 0 without one."""
    statuses = (getattr(getattr(e, "response", None), "status_code", 0) for e in _chain(error))
    return next((status for status in statuses if status), 0)
