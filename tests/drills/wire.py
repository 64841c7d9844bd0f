"""HTTP by hand, for clients that misbehave: requests as bytes, answers read with h11."""

import asyncio
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import h11
from PIL import Image

from tests.support.pictures import texture

UPSCALE, GENERATE, EDIT = "/v1/images/upscale", "/v1/images/generations", "/v1/images/edits"


@dataclass(frozen=True)
class Part:
    """One file of a form."""

    field: str
    content: bytes
    name: str = "picture.png"
    kind: str = "image/png"


@dataclass(frozen=True)
class Answer:
    """What came back: `seconds` until its first byte; status 0 if the connection ended without one."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The code of our error body; None if it is not one."""
        try:
            error = self.json()["error"]
        except (ValueError, KeyError, TypeError):
            return None
        return error.get("code") if set(error) == {"message", "type", "param", "code"} else None


def address(url: str) -> tuple[str, int]:
    """Host and port."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    return parts.hostname, parts.port


def png(width: int, height: int, seed: int = 0) -> bytes:
    """A picture file."""
    file = BytesIO()
    Image.fromarray(texture(width, height, seed=seed)).save(file, "PNG")
    return file.getvalue()


def multipart(fields: Mapping[str, str], files: Sequence[Part] = ()) -> tuple[bytes, str]:
    """A form's body and its content type."""
    mark = secrets.token_hex(16)
    pieces: list[bytes] = []
    for key, value in fields.items():
        pieces += [f'--{mark}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()]
    for part in files:
        name = part.name.replace("\\", "\\\\").replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        head = f'--{mark}\r\nContent-Disposition: form-data; name="{part.field}"; filename="{name}"\r\n'
        pieces += [head.encode(), f"Content-Type: {part.kind}\r\n\r\n".encode(), part.content, b"\r\n"]
    return b"".join([*pieces, f"--{mark}--\r\n".encode()]), f"multipart/form-data; boundary={mark}"


def head(method: str, path: str, host: str, headers: Mapping[str, str]) -> bytes:
    """The first part of a request, up to the empty line."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{key}: {value}" for key, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def request(method: str, path: str, host: str, body: bytes = b"", **headers: str) -> bytes:
    """A whole request on a connection of its own; `_` in a header's name is `-`."""
    named = {key.replace("_", "-"): value for key, value in headers.items()} | {"Connection": "close"}
    if body:
        named["Content-Length"] = str(len(body))
    return head(method, path, host, named) + body


def form(path: str, host: str, fields: Mapping[str, str], files: Sequence[Part] = (), **headers: str) -> bytes:
    """A whole request with a form."""
    body, kind = multipart(fields, files)
    return request("POST", path, host, body, Content_Type=kind, **headers)


def send_json(path: str, host: str, value: Any, **headers: str) -> bytes:
    """A whole request with JSON."""
    return request("POST", path, host, json.dumps(value).encode(), Content_Type="application/json", **headers)


async def exchange(url: str, raw: bytes) -> Answer:
    """Send bytes on a new connection, and read the answer."""
    reader, writer = await asyncio.open_connection(*address(url))
    try:
        return await answer_of(reader, writer, raw)
    finally:
        await closed(writer)


async def answer_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes) -> Answer:
    """Send bytes on an open connection, and read the answer while sending: it may come before all is sent."""
    started = time.perf_counter()
    sending = asyncio.create_task(_send(writer, raw))
    try:
        return await read_answer(reader, started)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _send(writer: asyncio.StreamWriter, raw: bytes) -> None:
    writer.write(raw)
    await writer.drain()


async def read_answer(reader: asyncio.StreamReader, started: float) -> Answer:
    """One answer, or status 0 if the connection ends before."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    parser.send(h11.EndOfMessage())
    status, headers, body, first = 0, dict[str, str](), bytearray(), 0.0
    try:
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(1 << 16)
                first = first or time.perf_counter() - started
                parser.receive_data(data)
            elif isinstance(event, h11.Response):
                status, headers = event.status_code, {k.decode().lower(): v.decode() for k, v in event.headers}
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return Answer(status, headers, bytes(body), first)
    except (OSError, h11.RemoteProtocolError):
        return Answer(0, headers, bytes(body), time.perf_counter() - started)


async def closed(writer: asyncio.StreamWriter) -> None:
    """Close a connection, whatever state it is in."""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def send_request(url: str, raw: bytes) -> Answer:
    """`exchange` for those who do one thing at a time."""
    return asyncio.run(exchange(url, raw))


def pour(url: str, pieces: Iterable[bytes], quiet: float = 30) -> Answer:
    """Send pieces for as long as the other side takes them, while listening; for bodies that may be refused midway."""
    with socket.create_connection(address(url), timeout=quiet) as connection:
        started = time.perf_counter()
        sender = threading.Thread(target=_pour, args=(connection, pieces), daemon=True)
        sender.start()
        raw, first = bytearray(), 0.0
        try:
            while data := connection.recv(1 << 16):
                first = first or time.perf_counter() - started
                raw += data
                if _whole(raw):
                    break
        except OSError:
            pass
        _shut(connection)
        sender.join()
    return parsed(bytes(raw), first or time.perf_counter() - started)


def _pour(connection: socket.socket, pieces: Iterable[bytes]) -> None:
    try:
        for piece in pieces:
            connection.sendall(piece)
    except OSError:
        pass


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _whole(raw: bytes | bytearray) -> bool:
    return parsed(bytes(raw), 0).status != 0


def parsed(raw: bytes, seconds: float) -> Answer:
    """The first answer in some bytes; status 0 if it is not whole."""
    head, empty, rest = raw.partition(b"\r\n\r\n")
    if not empty:
        return Answer(0, {}, b"", seconds)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    status, length = int(first.split()[1]), int(headers.get("content-length", "-1"))
    if status < 200:
        return parsed(rest, seconds)
    return Answer(status if 0 <= length <= len(rest) else 0, headers, rest[: max(length, 0)], seconds)
