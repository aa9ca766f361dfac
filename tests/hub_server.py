"""A local stand-in for the Hugging Face hub, and T5-shaped checkpoints for it to serve.

The server speaks as much of the hub's protocol as huggingface_hub asks for, keeps a record of the
requests, and fails on demand. The checkpoints are synthetic: their values look trained (spreads off
the init law, uneven rows and columns, norms that vary), and no text was read to make them.
"""

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

import torch
from safetensors.torch import save_file
from torch import Tensor

from t5ts.model.architecture import T5Architecture
from t5ts.model.tensors import encoder_shapes, init_law

T5_SMALL = T5Architecture(d_model=512, d_ff=2048, d_kv=64, num_layers=6, num_heads=8)
TINY = T5Architecture(d_model=64, d_ff=128, d_kv=16, num_layers=2, num_heads=4, vocab_size=100)
COMMIT = "df1b051c49625cf57a3d0d8d3863ed4d13564fe4"
LARGE = 100_000  # bytes from which a file is stored as LFS: named by SHA-256, served by redirect


def config_json(arch: T5Architecture, **changes: Any) -> dict[str, Any]:
    """A `config.json` as published T5 checkpoints have it; a change to None leaves the key out."""
    config = {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": arch.d_ff,
        "d_kv": arch.d_kv,
        "d_model": arch.d_model,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": arch.feed_forward_proj,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": arch.layer_norm_epsilon,
        "model_type": "t5",
        "num_heads": arch.num_heads,
        "num_layers": arch.num_layers,
        "pad_token_id": 0,
        "relative_attention_num_buckets": arch.relative_attention_num_buckets,
        "relative_attention_max_distance": arch.relative_attention_max_distance,
        "vocab_size": arch.vocab_size,
    } | changes
    return {key: value for key, value in config.items() if value is not None}


def trained_looking_encoder(arch: T5Architecture, *, seed: int = 0) -> dict[str, Tensor]:
    """Encoder tensors that no initialiser draws: spreads, rows, columns and norms all uneven."""
    generator = torch.Generator().manual_seed(seed)
    law = init_law(arch)
    state = {}
    for name, shape in encoder_shapes(arch).items():
        if name not in law:
            state[name] = torch.randn(shape, generator=generator).mul_(0.3).exp_().mul_(0.15)
            continue
        matrix = torch.empty(shape).normal_(generator=generator)
        for axis_shape in ((shape[0], 1), (1, shape[1])):
            matrix *= torch.randn(axis_shape, generator=generator).mul_(0.4).exp_()
        spread = 2.0 ** (3 * torch.rand((), generator=generator).item())
        state[name] = matrix.mul_(law[name] * spread)
    return state


def full_model(arch: T5Architecture, *, seed: int = 0, decoder: bool = True) -> dict[str, Tensor]:
    """All tensors of a T5 with tied embeddings, by transformers' names, stale key included."""
    encoder = trained_looking_encoder(arch, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    embedding = torch.empty(arch.vocab_size, arch.d_model).normal_(0, 8.0, generator=generator)
    tensors = {"shared.weight": embedding} | {f"encoder.{n}": t for n, t in encoder.items()}
    if decoder:
        for name, tensor in trained_looking_encoder(arch, seed=seed + 2).items():
            tensors["decoder." + name.replace("layer.1.", "layer.2.")] = tensor
            if ".SelfAttention." in name and "relative" not in name:
                crossed = name.replace("layer.0.SelfAttention", "layer.1.EncDecAttention")
                tensors[f"decoder.{crossed}"] = tensor.flip(0).clone()
            if name.endswith("layer.0.layer_norm.weight"):
                tensors["decoder." + name.replace("layer.0.", "layer.1.")] = tensor.flip(0).clone()
        stale = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        tensors[stale] = torch.randn(
            arch.relative_attention_num_buckets, arch.num_heads, generator=generator
        )
    return tensors


def write_checkpoint(
    folder: Path, arch: T5Architecture, tensors: Mapping[str, Tensor], **config_changes: Any
) -> Path:
    """Write `config.json` and `model.safetensors`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(arch, **config_changes)))
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@dataclass
class Fault:
    """How a request goes wrong.

    Attributes:
        where: Part of the path that the fault applies to.
        status: Answer this instead of the file.
        headers: Headers to add to the answer.
        drop_after: Send the true headers, then close the connection after this many body bytes.
        stall_after: Send the true headers and so many body bytes, then nothing until the client
            has hung up.
        short: Answer as if the file ended after this many bytes, its length included.
        flip: Flip one bit of the body's byte at this offset.
        hang_s: Wait before answering.
        body: Answer this text with status 200.
        times: How often it applies; None is always.
    """

    where: str = ""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    stall_after: int | None = None
    short: int | None = None
    flip: int | None = None
    hang_s: float = 0.0
    body: str | None = None
    times: int | None = None


class HubServer:
    """The server's contents and behaviour; see `serve`."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes | Path]] = {}
        self.faults: list[Fault] = []
        self.token: str | None = None
        self.is_plain_mirror = False  # it then names no commits
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.endpoint = ""
        self._etags: dict[tuple[str, str], str] = {}

    def add(self, hub_id: str, source: Path | Mapping[str, bytes | Path]) -> None:
        """Publish a folder's files, or named contents, as a repository."""
        if isinstance(source, Path):
            source = {p.name: p for p in source.iterdir()}
        self.repos[hub_id] = dict(source)
        self._etags = {key: tag for key, tag in self._etags.items() if key[0] != hub_id}

    def asked(self, method: str, part: str) -> list[dict[str, str]]:
        """Headers of the requests whose path contains `part`."""
        return [headers for verb, path, headers in self.requests if verb == method and part in path]

    def etag(self, hub_id: str, name: str) -> str:
        """The content hash that the hub names a file by."""
        key = (hub_id, name)
        if key not in self._etags:
            data = self.read(hub_id, name)
            if len(data) >= LARGE:
                self._etags[key] = hashlib.sha256(data).hexdigest()
            else:
                self._etags[key] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return self._etags[key]

    def read(self, hub_id: str, name: str) -> bytes:
        """A published file's bytes."""
        held = self.repos[hub_id][name]
        return held.read_bytes() if isinstance(held, Path) else held

    def fault_for(self, path: str, *, first_byte: bool) -> Fault:
        """The first fault that applies to a request, counted down; a harmless one otherwise.

        A request for a file's first byte alone is spared faults of the body.
        """
        for fault in self.faults:
            of_body = (fault.drop_after, fault.stall_after, fault.short, fault.flip)
            if first_byte and any(of_body):
                continue
            if fault.where in path and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return Fault()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_CONNECT(self) -> None:  # asked of a proxy
        self.hub.requests.append(("CONNECT", self.path, dict(self.headers)))
        self._send("CONNECT", 403, b"")

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((method, path, {k.lower(): v for k, v in self.headers.items()}))
        first_byte = self.headers.get("Range") == "bytes=0-0"
        fault = self.hub.fault_for(path, first_byte=first_byte)
        time.sleep(fault.hang_s)
        if fault.body is not None:
            return self._send(method, 200, fault.body.encode(), {"Content-Type": "text/html"})
        if fault.status is not None:
            return self._send(method, fault.status, b'{"error": "injected"}', fault.headers)
        if path.startswith("/cdn/"):
            hub_id, _, name = path.removeprefix("/cdn/").partition("//")
            return self._send_file(method, hub_id, name, fault, {})
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._send(
                method, 401, b"", {"X-Error-Message": "Invalid username or password."}
            )
        if path.startswith("/api/models/"):
            return self._send_info(method, path.removeprefix("/api/models/"), fault)
        hub_id, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if hub_id not in self.hub.repos:
            return self._send(method, 404, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self._send(method, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        if name not in self.hub.repos[hub_id]:
            missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            return self._send(method, 404, b"", missing)
        return self._send_entry(method, hub_id, name, fault)

    def _send_info(self, method: str, rest: str, fault: Fault) -> None:
        hub_id, _, revision = rest.partition("/revision/")
        if hub_id not in self.hub.repos:
            return self._send(method, 404, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("", "main", COMMIT):
            return self._send(method, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        info = {
            "id": hub_id,
            "modelId": hub_id,
            "sha": COMMIT,
            "siblings": [{"rfilename": name} for name in sorted(self.hub.repos[hub_id])],
        }
        return self._send(method, 200, json.dumps(info).encode(), {}, fault.drop_after)

    def _send_entry(self, method: str, hub_id: str, name: str, fault: Fault) -> None:
        etag = self.hub.etag(hub_id, name)
        headers = {} if self.hub.is_plain_mirror else {"X-Repo-Commit": COMMIT}
        if len(etag) == 40:
            return self._send_file(method, hub_id, name, fault, headers | {"ETag": f'"{etag}"'})
        headers["X-Linked-Etag"] = f'"{etag}"'
        headers["X-Linked-Size"] = str(len(self.hub.read(hub_id, name)))
        # Another host, as the hub's CDN is: the client must not send it the token.
        elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")
        headers["Location"] = f"{elsewhere}/cdn/{hub_id}//{name}"
        return self._send(method, 302, b"", headers)

    def _send_file(
        self, method: str, hub_id: str, name: str, fault: Fault, headers: dict[str, str]
    ) -> None:
        data = self.hub.read(hub_id, name)
        if fault.flip is not None:
            flipped = bytes([data[fault.flip] ^ 1])
            data = data[: fault.flip] + flipped + data[fault.flip + 1 :]
        if fault.short is not None:
            data = data[: fault.short]
        start, status = 0, 200
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and method == "GET":
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first)
            if start >= len(data):
                return self._send(method, 416, b"", {"Content-Range": f"bytes */{len(data)}"})
            status = 206
            total, data = len(data), data[: int(last) + 1] if last else data
            headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{total}"}
        if fault.stall_after is not None and method == "GET":
            return self._stall(status, data[start:], headers, fault.stall_after)
        return self._send(method, status, data[start:], headers, fault.drop_after)

    def _stall(self, status: int, body: bytes, headers: dict[str, str], after: int) -> None:
        self.close_connection = True
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[:after])
        self.wfile.flush()
        with suppress(ConnectionResetError):
            self.connection.recv(1)  # returns when the client is gone

    def _send(
        self,
        method: str,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        drop_after: int | None = None,
    ) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            if method == "GET":
                self.wfile.write(body if drop_after is None else body[:drop_after])
            if drop_after is not None and method == "GET":
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


@contextmanager
def at(
    endpoint: str, cache: Path, *, offline: bool = False, token: str | None = None
) -> Iterator[None]:
    """The client's settings inside, as its environment variables would set them at import."""
    from huggingface_hub import constants

    settings = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": offline,
    }
    with (
        mock.patch.multiple(constants, **settings),
        mock.patch.dict(os.environ, {"HF_TOKEN": token} if token else {}),
    ):
        yield


@contextmanager
def serve() -> Iterator[HubServer]:
    """Run a hub on a free port of 127.0.0.1 for the length of a `with` block."""
    hub = HubServer()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
