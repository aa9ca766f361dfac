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
    def hint(self) -> str:
        """The known ids that may be meant, as a question; empty where the id is a known one."""
        meant = [] if self.hub_id in KNOWN_IDS else suggestions(self.hub_id)
        return f" Did you mean {' or '.join(meant)}?" if meant else ""

    @property
    def choose(self) -> str:
        """What to choose instead."""
        return "Choose a T5 checkpoint such as t5-small, google/flan-t5-small or t5-base."

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
                location = urlsplit(url if "//" in url else f"//{url}")
                try:
                    port = f":{location.port}" if location.port else ""
                except ValueError:
                    port = ""
                return f"{variable} ({location.hostname or url}{port})"
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


def wrong_id(hub_id: str) -> WeightsError:
    """The error for an id that names no repository, with the likely ones."""
    meant = suggestions(hub_id)
    hint = f" Did you mean {' or '.join(meant)}?" if meant else ""
    return WeightsError(
        f"The hub has no model {hub_id!r}.{hint} Allowed are ids of T5 checkpoints such as "
        "t5-small or google/flan-t5-small; if the model is private, set HF_TOKEN or run "
        "`hf auth login`."
    )


def is_network_failure(error: BaseException) -> bool:
    """Whether the connection failed or broke (as opposed to the hub saying no)."""
    names = _class_names(error)
    return "ProxyError" not in names and bool(
        names & {"NetworkError", "TimeoutException", "RemoteProtocolError", "TimeoutError"}
    )


def is_timeout(error: BaseException | None) -> bool:
    """Whether nothing came in time."""
    return error is not None and bool(_class_names(error) & {"TimeoutException", "TimeoutError"})


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error carries, if one does."""
    for link in _chain(error):
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def explain(error: BaseException, request: Request) -> WeightsError:
    """Turn whatever the hub client raised into one message with its remedy.

    Args:
        error: As caught. The client's classes are told apart by name along the chain of causes,
            since the HTTP library under huggingface_hub has changed twice.
        request: What was asked.

    Returns:
        The error to raise.
    """
    names = _class_names(error)
    hub_id, endpoint = request.hub_id, request.endpoint
    status = status_of(error)
    # The client's errors are OSErrors too, and a connection that a firewall forbids carries EPERM.
    if (
        isinstance(error, OSError)
        and error.errno
        and not names & {"HTTPError", "TransportError", "ConnectionError", "TimeoutError"}
    ):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return WeightsError(
                f"No disk space left while writing {hub_id} to the cache {request.cache_dir}. "
                "Free some, or set HF_HOME to a larger disk; the download resumes where it stopped."
            )
        return WeightsError(
            f"The cache {request.cache_dir} cannot be used ({error}). Mend its permissions or set "
            "HF_HOME to a folder that you can write."
        )
    if "OfflineModeIsEnabled" in names:
        return WeightsError(
            f"Offline mode forbids asking the hub for {hub_id}. Unset HF_HUB_OFFLINE, or "
            + request.remedy
        )
    if "HFValidationError" in names:
        return wrong_id(hub_id)
    if "GatedRepoError" in names:
        return WeightsError(
            f"{hub_id} is gated: accept its licence at {endpoint}/{hub_id}, then set HF_TOKEN to a "
            "token of that account or run `hf auth login`."
        )
    if "RevisionNotFoundError" in names:
        return WeightsError(
            f"{hub_id} has no revision {request.revision!r}. Use main, or a branch, tag or full "
            f"commit listed at {endpoint}/{hub_id}/commits/main."
        )
    # Without a valid token the hub answers 401 to ids that do not exist as to private ones.
    if "RepositoryNotFoundError" in names and not (status == 401 and hub_id in KNOWN_IDS):
        return wrong_id(hub_id)
    if "EntryNotFoundError" in names:
        return WeightsError(
            f"{hub_id} names a file that the hub does not have ({_first_line(error)}). "
            f"{request.choose}"
        )
    if "ProxyError" in names or status == 407:
        return WeightsError(
            f"The proxy {request.proxy or 'in your environment'} refused the connection to "
            f"{endpoint} ({_first_line(error)}). Check HTTPS_PROXY/HTTP_PROXY and its credentials, "
            f"add {urlsplit(endpoint).hostname} to NO_PROXY to go around it, or {request.remedy}"
        )
    if status in (401, 403):
        via = f" (answered through the proxy {request.proxy})" if request.proxy else ""
        why = "Access needs a valid token" if status == 401 else "Access is forbidden"
        # Ids that do not exist get a 401 too, hence the hint.
        return WeightsError(
            f"{why}: {endpoint} answered {status} for {hub_id}{via}.{request.hint} Set HF_TOKEN to "
            "a valid token with read access, or run `hf auth login`; if the model needs none, "
            "unset HF_TOKEN."
        )
    if status == 429:
        return WeightsError(
            f"{endpoint} answered 429 for {hub_id}: too many requests from here. Wait some "
            "minutes, set HF_TOKEN (known users have higher limits), or " + request.remedy
        )
    if status is not None and status >= 500:
        return WeightsError(
            f"{endpoint} answered {status} for {hub_id}: the hub has a fault of its own (see "
            f"status.huggingface.co). Run again later, or {request.remedy}"
        )
    if status is not None:
        return WeightsError(
            f"{endpoint} answered {status} for {hub_id} ({_first_line(error)}). Check HF_ENDPOINT "
            f"and the id, or {request.remedy}"
        )
    if names & {"UnsupportedProtocol", "InvalidURL", "LocalProtocolError"}:
        return WeightsError(
            f"{endpoint!r} is no address of a hub ({_first_line(error)}). Set HF_ENDPOINT to one "
            "such as https://huggingface.co, or unset it; check the proxy variables too."
        )
    if "TransportError" in names or isinstance(error, TimeoutError | ConnectionError):
        return _no_network(error, request)
    if names & {"ImportError"} or "proxy" in str(error).lower():
        return WeightsError(
            f"The proxy setting {request.proxy or 'in your environment'} cannot be used "
            f"({_first_line(error)}). Mend HTTPS_PROXY/HTTP_PROXY/ALL_PROXY or unset them."
        )
    return WeightsError(
        f"{endpoint} did not answer as a hub does when asked for {hub_id} "
        f"({type(error).__name__}: {_first_line(error)}). Check HF_ENDPOINT, proxies and log-in "
        f"pages of the network, or {request.remedy}"
    )


def _no_network(error: BaseException, request: Request) -> WeightsError:
    text = " ".join(str(link) for link in _chain(error))
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        return WeightsError(
            f"The certificate of {request.endpoint} is not trusted ({_first_line(error)}). If your "
            "network replaces certificates, set SSL_CERT_FILE to its authority's file; "
            f"otherwise {request.remedy}"
        )
    via = f" through the proxy {request.proxy}" if request.proxy else ""
    check = "Check the network, HF_ENDPOINT and the proxy variables"
    check += " (HF_HUB_ETAG_TIMEOUT=30 waits longer), or " if is_timeout(error) else ", or "
    return WeightsError(
        f"No network: {request.endpoint} cannot be reached{via} ({_first_line(error)}), and "
        f"{request.hub_id} is not in the cache {request.cache_dir}.{request.hint} {check}"
        f"{request.remedy}"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(10):
        if link is None:
            return
        yield link
        link = link.__cause__ or link.__context__


def _class_names(error: BaseException) -> set[str]:
    return {cls.__name__ for link in _chain(error) for cls in type(link).__mro__}


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
