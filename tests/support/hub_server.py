"""A hub of our own on 127.0.0.1: the few addresses that pulling asks, and every fault that a network can have."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
CARD = """---
license: openrail++
tags: [test]
---
# A model

## Uses
### Direct Use
Research.
### Out-of-Scope Use
Not for facts.\x1b[2J
#### Details
Nor for people.
## Limitations
Many.
"""


def weights(seed: int, size: int) -> bytes:
    """Bytes that stand for a file of weights."""
    return hashlib.shake_128(str(seed).encode()).digest(size)


def model(size: int = 300_000) -> dict[str, bytes]:
    """A repository in diffusers' layout: two networks of `size` bytes with a variant, and much that no one needs."""
    unet = "unet/diffusion_pytorch_model"
    index = {
        "_class_name": "TestPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
    }
    unneeded = (f"{unet}.bin", f"{unet}.fp16.bin", f"{unet}.non_ema.safetensors", "whole.ckpt", "whole.safetensors",
                "unet/model.onnx", "unet/flax_model.msgpack", "vae_1_0/config.json", "picture.png",
                "vae_1_0/diffusion_pytorch_model.safetensors")  # fmt: skip
    return {
        "README.md": CARD.encode(),
        "model_index.json": json.dumps(index).encode(),
        "unet/config.json": b'{"kind": "unet"}',
        f"{unet}.safetensors": weights(1, size),
        f"{unet}.fp16.safetensors": weights(2, size // 2),
        "text_encoder/config.json": b'{"kind": "text"}',
        "text_encoder/model.safetensors": weights(3, size),
        "tokenizer/vocab.json": b'{"a": 0}',
        "tokenizer/merges.txt": b"#version: 0.2\n",
        "scheduler/scheduler_config.json": b"{}",
        **{name: weights(4, 1000) for name in unneeded},
    }


NEEDED = {
    "README.md", "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
}  # fmt: skip


@dataclass
class Hub:
    """What the server holds, how it misbehaves, and what it was asked."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = COMMIT
    url: str = ""
    refusals: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)  # repository: status, headers
    cut_after: list[int] = field(
        default_factory=list
    )  # bytes of large answers after which the connection breaks, in turn
    statuses: list[int] = field(default_factory=list)  # of the next large answers, instead of the file
    ranges: bool = True  # whether parts are sent
    parts: list[str] = field(default_factory=list)  # what is wrong with the next parts
    etag: Callable[[str], str] = '"{}"'.format
    damage: list[int] = field(default_factory=list)  # in so many large answers one bit is wrong
    cdn_url: Callable[[str], str] = "/cdn/{}".format  # digest: where large files are
    digest: str | None = None  # that is listed for large files, instead of theirs
    lists_no_digest: bool = False  # as a mirror that lists large files without any, and one commit for all
    api_redirect: str | None = None
    pause: float = 0.0  # seconds after every 16 kB
    sent: int = 0  # bytes of all bodies
    requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def file(self, digest: str) -> bytes:
        """A large file by its sha256."""
        return next(d for files in self.models.values() for d in files.values() if sha256(d) == digest)

    def large(self) -> list[Mapping[str, str]]:
        """The headers of all questions for large files."""
        return [headers for path, headers in self.requests if path.startswith("/cdn/")]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".ckpt", ".onnx", ".msgpack"))


def listing(hub: Hub, files: Mapping[str, bytes]) -> bytes:
    """The hub's description of a repository with `blobs=true`."""
    siblings = []
    for path, data in files.items():
        entry = {
            "rfilename": path,
            "size": len(data),
            "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
        }
        if is_large(path) and not hub.lists_no_digest:
            entry |= {
                "blobId": "0" * 40,
                "lfs": {"sha256": hub.digest or sha256(data), "size": len(data), "pointerSize": 134},
            }
        siblings.append(entry)
    about = {"_id": "1", "id": "test", "modelId": "test", "private": False, "gated": False, "disabled": False}
    about |= {"downloads": 0, "likes": 0, "tags": [], "sha": hub.commit, "cardData": {"license": "openrail++"}}
    return json.dumps(about | {"siblings": siblings}).encode()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append((self.path, dict(self.headers)))
        words = path.strip("/").split("/")
        if words[:2] == ["api", "models"]:
            self.api("/".join(words[2:4]), words[-1])
        elif words[0] == "cdn":
            self.large(words[1])
        elif len(words) > 4 and words[2] == "resolve":
            self.resolve("/".join(words[:2]), "/".join(words[4:]))
        else:
            self.answer(404)

    def api(self, name: str, revision: str) -> None:
        hub = self.hub
        if hub.api_redirect is not None:
            self.answer(307, Location=hub.api_redirect)
        elif name in hub.refusals:
            status, headers = hub.refusals[name]
            self.answer(status, **headers)
        elif name not in hub.models:
            self.answer(404, **{"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", hub.commit) and not hub.lists_no_digest:
            self.answer(404, **{"X-Error-Code": "RevisionNotFound"})
        else:
            self.answer(200, listing(hub, hub.models[name]))

    def resolve(self, name: str, path: str) -> None:
        data = self.hub.models.get(name, {}).get(path)
        if data is None:
            self.answer(404, **{"X-Error-Code": "EntryNotFound"})
        elif is_large(path):
            self.answer(302, Location=self.hub.cdn_url(sha256(data)), **{"X-Linked-Etag": f'"{sha256(data)}"'})
        else:
            self.answer(200, data, ETag='"small"')

    def large(self, digest: str) -> None:
        """A large file, or the part of it that is asked for, or the next fault."""
        hub = self.hub
        data, etag = hub.file(digest), hub.etag(digest)
        if hub.statuses:
            self.answer(hub.statuses.pop(0))
            return
        start = 0
        requested_range = self.headers.get("Range") if hub.ranges else None
        if requested_range is not None and self.headers.get("If-Range", etag) == etag:
            start = int(requested_range.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self.answer(416, **{"Content-Range": f"bytes */{len(data)}"})
                return
        failure = hub.parts.pop(0) if start and hub.parts else ""
        if failure == "416":
            self.answer(416)
            return
        if hub.damage:
            where = hub.damage.pop() + start
            data = data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :]
        first, total = start - (failure == "shifted"), len(data) + (failure == "longer")
        span = {"Content-Range": f"bytes {first}-{len(data) - 1}/{total}"} if start and failure != "unnamed" else {}
        etag = '"another"' if failure == "etag" else etag
        cut = hub.cut_after.pop(0) if hub.cut_after else None
        self.answer(206 if start else 200, data[start:], cut, ETag=etag, **span)

    def answer(self, status: int, body: bytes = b"", cut: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body if cut is None else body[:cut]
        try:
            for start in range(0, len(body), 1 << 14):
                block = body[start : start + (1 << 14)]
                self.wfile.write(block)
                with self.hub.lock:
                    self.hub.sent += len(block)
                time.sleep(self.hub.pause)
        except OSError:
            pass  # the other side has gone


@contextmanager
def serve(models: dict[str, dict[str, bytes]] | None = None) -> Iterator[Hub]:
    """A hub for the length of the block."""
    hub = Hub(models or {})
    handler = type("Bound", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
