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
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

import torch
from safetensors.torch import load_file, save_file
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
        **asdict(arch),
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "model_type": "t5",
        "pad_token_id": 0,
        **changes,
    }
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


def shard(folder: Path, ending: str = "safetensors") -> None:
    """Split a checkpoint over two files with an index, as transformers does."""
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, save = ("model", save_file) if ending == "safetensors" else ("pytorch_model", torch.save)
    names, weight_map = sorted(held), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-0000{i}-of-00002.{ending}"
        save({name: held[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@dataclass
class Fault:
    """How a request goes wrong."""

    where: str = ""  # part of the path that the fault applies to
    status: int | None = None  # answer this instead of the file
    headers: dict[str, str] = field(default_factory=dict)  # to add to the answer
    drop_after: int | None = None  # close the connection after this many body bytes
    stall_after: int | None = None  # send so many, then nothing until the client has hung up
    short: int | None = None  # answer as if the file ended after this many bytes
    flip: int | None = None  # flip one bit of the body's byte at this offset
    hang_s: float = 0.0  # wait before answering
    body: str | None = None  # answer this text with status 200
    times: int | None = None  # how often it applies; None is always


class HubServer:
    """The server's contents and behaviour; see `serve`."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.faults: list[Fault] = []
        self.token: str | None = None
        self.commits = [COMMIT]  # main's is the last
        self.is_plain_mirror = False  # it then names no commits
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.endpoint = ""

    def add(self, hub_id: str, source: Path | Mapping[str, bytes | Path]) -> None:
        """Publish a folder's files, or named contents, as a repository."""
        files = {p.name: p for p in source.iterdir()} if isinstance(source, Path) else source
        self.repos[hub_id] = {
            name: held.read_bytes() if isinstance(held, Path) else held
            for name, held in files.items()
        }

    def asked(self, method: str, part: str) -> list[dict[str, str]]:
        """Headers of the requests whose path contains `part`."""
        return [headers for verb, path, headers in self.requests if verb == method and part in path]

    def etag(self, hub_id: str, name: str) -> str:
        """The content hash that the hub names a file by."""
        data = self.repos[hub_id][name]
        if len(data) >= LARGE:
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def fault_for(self, path: str, *, first_byte: bool) -> Fault:
        """The first fault that applies to a request, counted down; a harmless one otherwise.

        A request for a file's first byte alone is spared faults of the body.
        """
        for fault in self.faults:
            of_body = any((fault.drop_after, fault.stall_after, fault.short, fault.flip))
            if fault.where in path and fault.times != 0 and not (first_byte and of_body):
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
            return self._send_file(method, self.hub.repos[hub_id][name], fault, {})
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            wrong = {"X-Error-Message": "Invalid username or password."}
            return self._send(method, 401, b"", wrong)
        is_info = path.startswith("/api/models/")
        hub_id, _, rest = path.removeprefix("/api/models/" if is_info else "/").partition(
            "/revision/" if is_info else "/resolve/"
        )
        revision, _, name = rest.partition("/")
        files = self.hub.repos.get(hub_id)
        if files is None:
            return self._send(method, 404, b"", {"X-Error-Code": "RepoNotFound"})
        commits = self.hub.commits
        commit = revision if revision in commits else commits[-1]
        if revision not in ("", "main", *commits):
            return self._send(method, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        if is_info:
            siblings = [{"rfilename": name} for name in sorted(files)]
            info = {"id": hub_id, "modelId": hub_id, "sha": commit, "siblings": siblings}
            return self._send(method, 200, json.dumps(info).encode(), fault=fault)
        if name not in files:
            missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            return self._send(method, 404, b"", missing)
        etag = self.hub.etag(hub_id, name)
        headers = {} if self.hub.is_plain_mirror else {"X-Repo-Commit": commit}
        if len(etag) == 40:
            return self._send_file(method, files[name], fault, headers | {"ETag": f'"{etag}"'})
        # Another host, as the hub's CDN is: the client must not send it the token.
        elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")
        headers |= {
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(files[name])),
            "Location": f"{elsewhere}/cdn/{hub_id}//{name}",
        }
        return self._send(method, 302, b"", headers)

    def _send_file(self, method: str, data: bytes, fault: Fault, headers: dict[str, str]) -> None:
        if fault.flip is not None:
            flipped = bytes([data[fault.flip] ^ 1])
            data = data[: fault.flip] + flipped + data[fault.flip + 1 :]
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
        return self._send(method, status, data[start:], headers, fault)

    def _send(
        self,
        method: str,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        fault: Fault | None = None,
    ) -> None:
        drop, stall = (fault.drop_after, fault.stall_after) if fault else (None, None)
        try:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if method != "GET":
                return
            self.wfile.write(body[: stall if drop is None else drop])
            if drop is not None or stall is not None:
                self.wfile.flush()
                self.close_connection = True
                if stall is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                else:
                    self.connection.recv(1)  # returns when the client is gone
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
