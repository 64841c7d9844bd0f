"""How much a request may send and how long it may take, decided as early as can be."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enlarger.service.edge.asgi import NO_BODY, WORK, Head
from enlarger.service.faults import Fault, Refused, refuse
from enlarger.service.settings import MIB, Bounds, Settings

TEXT_WORK = "/v1/images/generations"  # of the routes that make pictures, the one that is given none
FORM = "multipart/form-data"
HELD = 1 * MIB  # bytes of a body that memory may hold while the rest is under way
PIECE = 64 << 10
LINGER_BYTES = 8 * MIB  # of a body that nobody wants, read on so that its sender sees the answer
LINGER_SECONDS = 1.0
CLOSE = (b"connection", b"close")


@dataclass(frozen=True)
class Plan:
    """How a body is received."""

    limit: int  # bytes
    idle_seconds: float  # between two pieces
    seconds: float  # for all of it
    spool: Path | None = None  # where it is kept until it is whole; None: handed on as it comes


def plan_of(head: Head, settings: Settings) -> Plan:
    """How a request's body is received; Refused 413 or 415 if its head says that it must not be."""
    encodings = {part.strip().lower() for value in head.all("content-encoding") for part in value.split(",")}
    if encodings - {"identity", ""}:
        named = ", ".join(sorted(encodings))[:100]
        raise refuse(415, "unsupported_content_encoding", f"the body is encoded with {named}; send it as it is")
    limit, length = limit_of(head, settings.bounds), head.length
    if length is not None and length > limit:
        raise _too_large(limit)
    bounds = settings.bounds
    spool = settings.data / "spool" if _piles_up(head) else None
    return Plan(limit, bounds.idle_seconds, bounds.body_seconds, spool)


def limit_of(head: Head, bounds: Bounds) -> int:
    """The bytes a body may have: few where there is only text in it, many where there may be pictures."""
    pictures = head.kind == FORM or (head.path in WORK and head.path != TEXT_WORK)
    return bounds.body if pictures else bounds.json_body


def _piles_up(head: Head) -> bool:
    """Whether memory would hold much of a body that is still under way: the routes read all but forms in one piece,
    and that of unknown length may turn out to be too long at any time. Such a body waits on disk until it is whole, so
    that those who send slowly, or too much, hold 1 MiB each at most."""
    length = head.length
    return length is None or (length > HELD and head.kind != FORM)


def _unheard() -> None:
    """Nobody waits for the end of a body."""


class Intake:
    """A body as it comes in, counted and timed. After a fault, which it raises and keeps, nothing more is read."""

    def __init__(self, receive: Receive, plan: Plan, received: Callable[[], None] = _unheard) -> None:
        self.receive, self.plan, self.received = receive, plan, received
        self.fault: Fault | None = None
        self.whole = False
        self._bytes = 0
        self._end: float | None = None

    async def __call__(self) -> Message:
        if self.whole:
            return await self.receive()
        if self.fault is not None:
            raise Refused(self.fault)
        message = await self._in_time()
        self._bytes += len(message.get("body", b""))
        self.whole = message["type"] != "http.request" or not message.get("more_body", False)
        if self._bytes > self.plan.limit:
            raise self._failed(_too_large(self.plan.limit))
        if self.whole:
            self.received()
        return message

    async def _in_time(self) -> Message:
        now = asyncio.get_running_loop().time()
        if self._end is None:
            self._end = now + self.plan.seconds
        left = self._end - now
        try:
            return await asyncio.wait_for(self.receive(), min(max(left, 0.0), self.plan.idle_seconds))
        except TimeoutError:
            slow = left <= self.plan.idle_seconds
            found = (
                f"was not whole after {self.plan.seconds:g} s" if slow else f"stood still {self.plan.idle_seconds:g} s"
            )
            raise self._failed(refuse(408, "request_timeout", f"the body {found}; send it faster")) from None

    def _failed(self, refused: Refused) -> Refused:
        self.fault, self.whole = refused.fault, False
        return refused


async def with_body(
    app: ASGIApp, plan: Plan, scope: Scope, receive: Receive, send: Send, received: Callable[[], None] = _unheard
) -> None:
    """Run an application on a body that keeps to its plan. If the body does not, Refused says so, whatever the
    application makes of the broken body. `received` is called when it has come whole."""
    intake, started = Intake(receive, plan, received), False

    async def pass_on(message: Message) -> None:
        nonlocal started
        if intake.fault is None or started:
            started = True
            await send(message)

    try:
        if plan.spool is None:
            await app(scope, intake, pass_on)
        else:
            await _spooled(app, intake, plan.spool, scope, pass_on)
    except Exception:
        if intake.fault is None or started:
            raise
    if intake.fault is not None and not started:
        raise Refused(intake.fault)


async def _spooled(app: ASGIApp, intake: Intake, folder: Path, scope: Scope, send: Send) -> None:
    """Run an application on a body that is received to its end first: into memory to begin with, then into a file
    that has no name. A client that leaves before the end is not heard."""
    folder.mkdir(parents=True, exist_ok=True)
    with SpooledTemporaryFile(HELD, dir=str(folder)) as file:
        while not intake.whole:
            message = await intake()
            if message["type"] != "http.request":
                return
            await _write(file, message.get("body", b""))
        await app(scope, Replay(file, intake), send)


async def _write(file: SpooledTemporaryFile[bytes], piece: bytes) -> None:
    if file.tell() + len(piece) > HELD:
        await asyncio.to_thread(file.write, piece)
    else:
        file.write(piece)


class Replay:
    """A body out of a file, then what the client does after it."""

    def __init__(self, file: SpooledTemporaryFile[bytes], after: Receive) -> None:
        self.file, self.after = file, after
        self.size = file.tell()
        self.over = False
        file.seek(0)

    async def __call__(self) -> Message:
        if self.over:
            return await self.after()
        piece = self.file.read(PIECE)
        self.over = self.file.tell() >= self.size
        return {"type": "http.request", "body": piece, "more_body": not self.over}


def lingering(app: ASGIApp) -> ASGIApp:
    """Closes the connection after an answer that came before the end of the body, but not at once: a sender who is cut
    off while sending may never see the answer. So a little more is read, and dropped."""

    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        head = Head.of(scope)
        whole, hurry = head.length == 0, head.first("expect") is not None

        async def watched() -> Message:
            nonlocal whole
            message = await receive()
            whole = whole or message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def drop() -> None:
            dropped = 0
            while not whole and dropped < LINGER_BYTES:
                dropped += len((await watched()).get("body", b""))

        async def closing(message: Message) -> None:
            nonlocal hurry
            if message["type"] == "http.response.start" and not whole:
                hurry = hurry or message["status"] == 408
                kept = [header for header in message.get("headers", ()) if header[0].lower() != b"connection"]
                message = {**message, "headers": [*kept, CLOSE]}
            elif _is_end(message) and not (whole or hurry):
                await send({**message, "more_body": True})
                await _at_most(LINGER_SECONDS, drop())
                message = NO_BODY
            await send(message)

        await app(scope, watched, closing)

    return layer


def _is_end(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


async def _at_most(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(work, seconds)


def _too_large(limit: int) -> Refused:
    return refuse(413, "payload_too_large", f"the body is larger than {limit} bytes, the most that is taken here")
