"""What the middleware shares: the head of a request, and answers that need no route."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Scope, Send

from enlarger.service.problems import Problem

_CONTENT_LENGTH = re.compile(r"[0-9]{1,20}")
Header = tuple[bytes, bytes]
EMPTY_BODY = {"type": "http.response.body", "body": b"", "more_body": False}
IMAGE_ROUTES = frozenset(
    f"/v1/images/{name}" for name in ("upscale", "generations", "edits", "variations", "inpainting")
)

A1111_IMAGE_ROUTES = frozenset(
    f"/sdapi/v1/{name}" for name in ("txt2img", "img2img", "extra-single-image", "extra-batch-images")
)
A1111_BODY_ROUTES = frozenset({"/sdapi/v1/options", "/sdapi/v1/png-info"})  # that take a body and no place in the queue


@dataclass(frozen=True)
class RequestHead:
    """All that is known of a request before its body; names of headers are in lower case."""

    method: str
    path: str
    scheme: str
    headers: Mapping[str, tuple[str, ...]]
    header_bytes: int = 0  # bytes of the headers
    server_host: str = ""  # the address that the connection came to

    @classmethod
    def from_scope(cls, scope: Scope) -> "RequestHead":
        headers: dict[str, tuple[str, ...]] = {}
        raw_headers: list[Header] = list(scope["headers"])
        for name, value in raw_headers:
            key = name.decode("latin-1").lower()
            headers[key] = (*headers.get(key, ()), value.decode("latin-1"))
        server = scope.get("server")
        header_bytes = sum(len(name) + len(value) for name, value in raw_headers)
        server_host = "" if server is None else str(server[0])
        return cls(scope["method"], scope["path"], scope.get("scheme", "http"), headers, header_bytes, server_host)

    def getlist(self, name: str) -> tuple[str, ...]:
        """Every value of a header."""
        return self.headers.get(name, ())

    def get(self, name: str) -> str | None:
        """The first value of a header; None without one."""
        return next(iter(self.getlist(name)), None)

    @property
    def media_type(self) -> str:
        """The media type of the body, without its parameters."""
        return (self.get("content-type") or "").partition(";")[0].strip().lower()

    @property
    def content_length(self) -> int | None:
        """The bytes of the body as announced; None where it does not say, and 0 without a body."""
        if self.get("transfer-encoding") is not None:
            return None
        value = self.get("content-length")
        if value is None:
            return 0
        return int(value) if _CONTENT_LENGTH.fullmatch(value) else None

    @property
    def is_image_request(self) -> bool:
        """Whether pictures are to be made."""
        return self.method == "POST" and self.path in IMAGE_ROUTES | A1111_IMAGE_ROUTES

    @property
    def takes_body(self) -> bool:
        """Whether a body is read though no pictures are to be made."""
        return self.method == "POST" and self.path in A1111_BODY_ROUTES


def request_state(scope: Scope) -> dict[str, Any]:
    """What middleware and routes know of a request: `request_id`, `owner`."""
    return scope.setdefault("state", {})


async def send_problem(send: Send, problem: Problem, extra_headers: Mapping[str, str] | None = None) -> None:
    """Send a problem as a whole answer."""
    headers = problem.headers() | dict(extra_headers or {})
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="enlarger"'
    body = problem.encode()
    await send(
        response_start(problem.status, {"Content-Type": "application/json", "Content-Length": str(len(body))} | headers)
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})


def response_start(status: int, headers: Mapping[str, str]) -> Message:
    """The message that begins an answer."""
    return {"type": "http.response.start", "status": status, "headers": encode_headers(headers.items())}


def encode_headers(headers: Iterable[tuple[str, str]]) -> list[Header]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def get_header(message: Message, name: str) -> str | None:
    """A header of an answer that begins; None without it."""
    lowercase_name = name.encode("latin-1")
    return next(
        (value.decode("latin-1") for key, value in message.get("headers", ()) if key.lower() == lowercase_name), None
    )
