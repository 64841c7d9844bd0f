"""What the layers of the edge share: the head of a request, and answers that need no route."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Scope, Send

from enlarger.service.faults import Fault

_LENGTH = re.compile(r"[0-9]{1,20}")
Header = tuple[bytes, bytes]
NO_BODY = {"type": "http.response.body", "body": b"", "more_body": False}
WORK = frozenset(f"/v1/images/{name}" for name in ("upscale", "generations", "edits", "variations", "inpainting"))


@dataclass(frozen=True)
class Head:
    """All that is known of a request before its body; names of headers are in small letters."""

    method: str
    path: str
    scheme: str
    headers: Mapping[str, tuple[str, ...]]
    size: int = 0  # bytes of the headers
    server: str = ""  # the address that the connection came to

    @classmethod
    def of(cls, scope: Scope) -> "Head":
        headers: dict[str, tuple[str, ...]] = {}
        raw: list[Header] = list(scope["headers"])
        for name, value in raw:
            key = name.decode("latin-1").lower()
            headers[key] = (*headers.get(key, ()), value.decode("latin-1"))
        server = scope.get("server")
        size = sum(len(name) + len(value) for name, value in raw)
        local = "" if server is None else str(server[0])
        return cls(scope["method"], scope["path"], scope.get("scheme", "http"), headers, size, local)

    def all(self, name: str) -> tuple[str, ...]:
        """Every value of a header."""
        return self.headers.get(name, ())

    def first(self, name: str) -> str | None:
        """The first value of a header; None without one."""
        return next(iter(self.all(name)), None)

    @property
    def kind(self) -> str:
        """The media type of the body, without its parameters."""
        return (self.first("content-type") or "").partition(";")[0].strip().lower()

    @property
    def length(self) -> int | None:
        """The bytes of the body as announced; None where it does not say, and 0 without a body."""
        if self.first("transfer-encoding") is not None:
            return None
        given = self.first("content-length")
        if given is None:
            return 0
        return int(given) if _LENGTH.fullmatch(given) else None

    @property
    def work(self) -> bool:
        """Whether it asks for pictures to be made."""
        return self.method == "POST" and self.path in WORK


def state_of(scope: Scope) -> dict[str, Any]:
    """What the layers and the routes tell one another of a request: `request_id`, `owner`."""
    return scope.setdefault("state", {})


async def answer(send: Send, fault: Fault, extra: Mapping[str, str] | None = None) -> None:
    """Send a fault as a whole answer."""
    headers = fault.headers() | dict(extra or {})
    if fault.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="enlarger"'
    body = json.dumps(fault.body()).encode()
    await send(start(fault.status, {"Content-Type": "application/json", "Content-Length": str(len(body))} | headers))
    await send({"type": "http.response.body", "body": body, "more_body": False})


def start(status: int, headers: Mapping[str, str]) -> Message:
    """The message that begins an answer."""
    return {"type": "http.response.start", "status": status, "headers": encoded(headers.items())}


def encoded(headers: Iterable[tuple[str, str]]) -> list[Header]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def header_in(message: Message, name: str) -> str | None:
    """A header of an answer that begins; None without it."""
    wanted = name.encode("latin-1")
    return next((value.decode("latin-1") for key, value in message.get("headers", ()) if key.lower() == wanted), None)
