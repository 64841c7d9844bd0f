"""How much a request may send and how long it may take, decided as early as can be."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enlarger.service.middleware.asgi import RequestHead
from enlarger.service.problems import Problem, ProblemError, problem_error
from enlarger.service.settings import Bounds, Settings
from enlarger.strict_json import short_repr

TEXT_ONLY_ROUTE = "/v1/images/generations"  # of the routes that make pictures, the one that is given none
MAX_UNREAD_BYTES = 64 << 10  # bytes of a body where none is taken: clients send an empty object, which nobody reads
_CHARSET = re.compile(r";\s*charset[^=;]*=\s*\"?([^\";]*)", re.IGNORECASE)


@dataclass(frozen=True)
class BodyLimits:
    """How a body is received."""

    max_bytes: int  # bytes
    idle_seconds: float  # between two pieces
    total_seconds: float  # for all of it


def body_limits_for(head: RequestHead, settings: Settings) -> BodyLimits:
    """How the body of a request for pictures is received; ProblemError 400, 413 or 415 if its head says that it must
    not be."""
    check_charset(head)
    encodings = {part.strip().lower() for value in head.getlist("content-encoding") for part in value.split(",")}
    if encodings - {"identity", ""}:
        encoding_names = ", ".join(sorted(encodings))[:100]
        raise problem_error(
            415, "unsupported_content_encoding", f"the body is encoded with {encoding_names}; send it as it is"
        )
    max_bytes, length = max_body_size(head, settings.bounds), head.content_length
    if length is not None and length > max_bytes:
        raise _too_large(max_bytes)
    return BodyLimits(max_bytes, settings.bounds.idle_seconds, settings.bounds.body_seconds)


def check_charset(head: RequestHead) -> None:
    """Refuse text that is not said to be UTF-8, by the name alone: that of a codec of Python would be looked up."""
    content_types = head.getlist("content-type")
    if len(content_types) > 1:
        raise problem_error(400, "invalid_request", f"found {len(content_types)} Content-Type headers, expected one")
    for name in _CHARSET.findall("".join(content_types)):
        if name.strip().lower() not in ("utf-8", "utf8"):
            message = f"the charset of the body is {short_repr(name)}, expected utf-8; send it so, or leave charset out"
            raise problem_error(415, "unsupported_media_type", message)


def refuse_body(head: RequestHead) -> None:
    """Raises ProblemError 413 for a body where none is taken, unless it is so small that it may come unread."""
    length = head.content_length
    if length is None:
        message = f"{head.method} takes no body here, found one of unknown length; send the request without"
        raise problem_error(413, "payload_too_large", message)
    if length > MAX_UNREAD_BYTES:
        raise _too_large(MAX_UNREAD_BYTES)


class EmptyBody:
    """The end of a body, whatever comes; then what the client does after it."""

    def __init__(self, receive: Receive) -> None:
        self.receive, self.is_read = receive, False

    async def __call__(self) -> Message:
        if not self.is_read:
            self.is_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while (message := await self.receive())["type"] == "http.request":
            pass
        return message


def max_body_size(head: RequestHead, bounds: Bounds) -> int:
    """The bytes a body may have: few where there is only text in it, many where there may be pictures."""
    return bounds.json_body if head.path == TEXT_ONLY_ROUTE else bounds.body


def _ignore() -> None:
    """Nobody waits for the end of a body."""


class BodyReader:
    """A body as it comes in, counted and timed. After a problem, which it raises, nothing more is read."""

    def __init__(self, receive: Receive, limits: BodyLimits, on_complete: Callable[[], None] = _ignore) -> None:
        self.receive, self.limits, self.on_complete = receive, limits, on_complete
        self.problem: Problem | None = None
        self.is_complete = False
        self._num_bytes = 0
        self._deadline: float | None = None

    async def __call__(self) -> Message:
        if self.is_complete:
            return await self.receive()
        if self.problem is not None:
            raise ProblemError(self.problem)
        message = await self._receive_with_timeout()
        self._num_bytes += len(message.get("body", b""))
        self.is_complete = message["type"] != "http.request" or not message.get("more_body", False)
        if self._num_bytes > self.limits.max_bytes:
            raise self._fail(_too_large(self.limits.max_bytes))
        if self.is_complete and message["type"] == "http.request":
            self._complete()
        return message

    def _complete(self) -> None:
        try:
            self.on_complete()
        except ProblemError as error:
            raise self._fail(error) from None

    async def _receive_with_timeout(self) -> Message:
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + self.limits.total_seconds
        remaining = self._deadline - now
        try:
            return await asyncio.wait_for(self.receive(), min(max(remaining, 0.0), self.limits.idle_seconds))
        except TimeoutError:
            out_of_time = remaining <= self.limits.idle_seconds
            reason = (
                f"was not whole after {self.limits.total_seconds:g} s"
                if out_of_time
                else f"stood still {self.limits.idle_seconds:g} s"
            )
            raise self._fail(problem_error(408, "request_timeout", f"the body {reason}; send it faster")) from None

    def _fail(self, error: ProblemError) -> ProblemError:
        self.problem, self.is_complete = error.problem, False
        return error


async def run_with_body(
    app: ASGIApp,
    limits: BodyLimits,
    scope: Scope,
    receive: Receive,
    send: Send,
    on_complete: Callable[[], None] = _ignore,
) -> None:
    """Run an application on a body within its limits. Raises ProblemError for one that is not, whatever the application
    makes of the broken body. `on_complete` is called when it has come whole, and may raise ProblemError too."""
    reader, started = BodyReader(receive, limits, on_complete), False

    async def send_unless_failed(message: Message) -> None:
        nonlocal started
        if reader.problem is None or started:
            started = True
            await send(message)

    try:
        await app(scope, reader, send_unless_failed)
    except Exception:
        if reader.problem is None or started:
            raise
    if reader.problem is not None and not started:
        raise ProblemError(reader.problem)


def _too_large(max_bytes: int) -> ProblemError:
    return problem_error(
        413, "payload_too_large", f"the body is larger than {max_bytes} bytes, the most that is taken here"
    )
