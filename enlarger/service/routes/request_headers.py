"""How a request wants its answer: now or later, once or as a stream, and whose it is."""

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from enlarger.service.dependencies import get_owner
from enlarger.service.jobs.admission import Reservation
from enlarger.service.jobs.job import Idempotency
from enlarger.service.problems import problem_error
from enlarger.service.routes.request_body import RequestBody
from enlarger.strict_json import short_repr

IDEMPOTENCY_KEY_PATTERN = "^[!-~]{1,255}$"
_IDEMPOTENCY_KEY = re.compile(IDEMPOTENCY_KEY_PATTERN)


@dataclass(frozen=True)
class RequestHeaders:
    """What a request's headers say."""

    owner: str
    idempotency: Idempotency | None = None  # Idempotency-Key, and what came with it
    respond_async: bool = False  # Prefer: respond-async
    stream: bool = False
    reservation: Reservation | None = None  # the place in the queue that the middleware took for it
    is_disconnected: Callable[[], Awaitable[bool]] | None = None  # whether the client has gone away

    @property
    def attached(self) -> bool:
        """Whether the job ends with its connection. One with a key can be asked for again, and so goes on."""
        return not self.respond_async and self.idempotency is None

    async def check_client(self) -> None:
        """Raise ProblemError 499 `client_closed` where the client has gone before it heard of its job, and cannot ask
        for it again."""
        if self.idempotency is None and self.is_disconnected is not None and await self.is_disconnected():
            raise problem_error(499, "client_closed", "the client went away before its job was known to it")


async def read_request_headers(
    request: Request, body: RequestBody, stream: bool = False, session: Mapping[str, Any] | None = None
) -> RequestHeaders:
    """The headers of a request; one for a stream is answered as such, whatever it prefers. What a `session` says beside
    the body is a part of the request. Raises ProblemError for a key that is none."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        expected = "expected 1 to 255 visible ASCII characters"
        raise problem_error(
            400, "invalid_value", f"Idempotency-Key is {short_repr(key)}, {expected}", "Idempotency-Key"
        )
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    respond_async = any(one.partition(";")[0].strip().lower() == "respond-async" for one in preferences)
    reservation = getattr(request.state, "reservation", None)
    idempotency = None
    if key is not None:
        idempotency = Idempotency(key, await asyncio.to_thread(request_fingerprint, request.url.path, body, session))
    respond_async = respond_async and not stream
    return RequestHeaders(get_owner(request), idempotency, respond_async, stream, reservation, request.is_disconnected)


def request_fingerprint(path: str, body: RequestBody, session: Mapping[str, Any] | None = None) -> str:
    """A digest of all that a request asks for: the route, every field and every byte of its files."""
    said = [path, body.values] if session is None else [path, body.values, session]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for name, files in sorted(body.files.items()):
        for file in files:
            with file.open("rb") as stream:
                digest.update(json.dumps([name, hashlib.file_digest(stream, "sha256").hexdigest()]).encode())
    return digest.hexdigest()
