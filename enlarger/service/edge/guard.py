"""What every request passes on its way to the routes, and every answer on its way back."""

import errno
import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from typing import Any, Protocol

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enlarger.service.edge.asgi import WORK, Head, answer, encoded, header_in, start, state_of
from enlarger.service.edge.bodies import lingering, plan_of, with_body
from enlarger.service.edge.keys import owner_of_head
from enlarger.service.edge.log import say
from enlarger.service.edge.metrics import OTHER, Metrics
from enlarger.service.edge.origins import CONTENT, PREFLIGHT, SAFE, Origins, asks_leave, check_leave, host_check
from enlarger.service.faults import Fault, Refused, fault_of, refuse
from enlarger.service.settings import Settings


class Claim(Protocol):
    """A place in the queue, held for a request."""

    def received(self) -> None:
        """Its body has come whole."""

    def release(self) -> bool: ...


Room = Callable[[str, float | None], Claim]  # owner, seconds that the client waits; raises Refused where there is none

HEAD_BYTES = 32 << 10
OPEN = frozenset({"/", "/favicon.ico", "/healthz", "/readyz", "/health", "/v1/"})  # to be read without a key
PROBES = frozenset({"/healthz", "/readyz", "/health", "/metrics"})  # asked every few seconds
REJECTIONS = frozenset({401, 403, 408, 413, 415, 429, 431, 503})  # statuses of what is refused to protect the service
FULL = (errno.ENOSPC, errno.EDQUOT)
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; connect-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
SECURITY = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def guarded(app: ASGIApp, settings: Settings, metrics: Metrics, room: Room) -> ASGIApp:
    """An application behind all checks, the cheapest first. `room(owner, patience)` refuses work before its body is
    read, or holds a place for it. The routes find `owner`, `request_id` and that `claim` in the request's state. Raises
    InputError for settings that would let anybody in."""
    check_host, origins = host_check(settings), Origins.of(settings)

    async def admit(scope: Scope, receive: Receive, send: Send) -> None:
        head = Head.of(scope)
        check_size(head)
        check_host(head)
        if asks_leave(head):
            check_leave(head, origins)
            await _allow(send)
            return
        origins.check(head)
        owner = "" if is_open(head) else owner_of_head(head, settings.keys)
        state_of(scope)["owner"] = owner
        plan = plan_of(head, settings)
        if not head.work:
            await with_body(app, plan, scope, receive, send)
            return
        claim = room(owner, patience_of(head))
        state_of(scope)["claim"] = claim
        try:
            await with_body(app, plan, scope, receive, send, claim.received)
        finally:
            claim.release()

    return only_http(lingering(dressed(watched(answering(admit), metrics), origins)), app)


def check_size(head: Head) -> None:
    """Refuses with 431 what the protocol let through because it came in one piece."""
    if head.size > HEAD_BYTES:
        raise refuse(431, "headers_too_large", f"the headers have {head.size} bytes; expected {HEAD_BYTES} at most")


def is_open(head: Head) -> bool:
    """Whether a request needs no key: the page, whether the service lives, and results, whose names are secrets."""
    path = head.path
    public = path in OPEN or path.startswith("/page/") or CONTENT.fullmatch(path) is not None
    return head.method in SAFE and public


def patience_of(head: Head) -> float | None:
    """Seconds after which the client gives up, as OpenAI's clients say it; None where it does not say."""
    try:
        seconds = float(head.first("x-stainless-read-timeout") or "nan")
    except ValueError:
        return None
    return seconds if isfinite(seconds) and seconds > 0 else None


async def _allow(send: Send) -> None:
    await send(start(204, PREFLIGHT))
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def only_http(app: ASGIApp, bare: ASGIApp) -> ASGIApp:
    """The start and stop of the application pass by the guard; a WebSocket is closed, there are none here."""

    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
        else:
            await (app if scope["type"] == "http" else bare)(scope, receive, send)

    return layer


def dressed(app: ASGIApp, origins: Origins) -> ASGIApp:
    """Gives each request an id, and each answer that id, the headers that tell browsers to be strict, and leave for
    the origins of the settings to read it."""

    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        head = Head.of(scope)
        given = head.first("x-request-id") or ""
        identity = given if _ID.fullmatch(given) else secrets.token_hex(16)
        state_of(scope)["request_id"] = identity
        ours = SECURITY | {"X-Request-Id": identity} | origins.answers(head)

        async def dress(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = _with_headers(message, ours, head)
            await send(message)

        await app(scope, receive, dress)

    return layer


def _with_headers(message: Message, ours: dict[str, str], head: Head) -> Message:
    names = {name.lower().encode("latin-1") for name in ours}
    kept = [header for header in message.get("headers", ()) if header[0].lower() not in names - {b"vary"}]
    stored = header_in(message, "cache-control") is not None or not head.path.startswith("/v1/")
    private = {} if stored else {"Cache-Control": "no-store"}
    return {**message, "headers": [*kept, *encoded((ours | private).items())]}


def watched(app: ASGIApp, metrics: Metrics) -> ASGIApp:
    """Counts and logs each request once its answer is over, whatever became of it."""

    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        begun, seen = time.perf_counter(), Seen()

        async def listen() -> Message:
            message = await receive()
            seen.gone = seen.gone or (message["type"] == "http.disconnect" and not seen.over)
            return message

        async def note(message: Message) -> None:
            seen.note(message)
            await send(message)

        try:
            await app(scope, listen, note)
        finally:
            seconds = (seen.end or time.perf_counter()) - begun
            route, (status, code) = route_of(scope), seen.outcome()
            metrics.request(route, status, seconds, code)
            if status in REJECTIONS and route not in PROBES:
                metrics.rejected(OTHER if code is None else code)
            _log(scope, route, status, seconds, code)

    return layer


class Seen:
    """What went back to a client."""

    def __init__(self) -> None:
        self.status = 0
        self.code: str | None = None
        self.over = False
        self.end: float | None = None  # when the answer was whole; what is read after it does not count
        self.gone = False

    def note(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            if self.status >= 400 and self.code is None:
                self.code = code_in(message.get("body", b""))
            self.over = not message.get("more_body", False)
            self.end = time.perf_counter() if self.over else None

    def outcome(self) -> tuple[int, str | None]:
        """Status and code; 499 where the client did not wait for the end."""
        if self.gone:
            return 499, "client_closed"
        return (self.status, self.code) if self.over else (500, "internal")


def code_in(body: bytes) -> str | None:
    """The code of an error body; None if it is something else."""
    try:
        code: Any = json.loads(body)["error"]["code"]
    except (ValueError, LookupError, TypeError):
        return None
    return code if isinstance(code, str) else None


def route_of(scope: Scope) -> str:
    """The template of the route that a request went to; never the path itself."""
    template = getattr(scope.get("route"), "path", None)
    if isinstance(template, str):
        return template
    return scope["path"] if scope["path"] in WORK else OTHER


def _log(scope: Scope, route: str, status: int, seconds: float, code: str | None) -> None:
    level = logging.DEBUG if route in PROBES else logging.INFO
    fields: dict[str, Any] = {"id": state_of(scope).get("request_id"), "method": scope["method"], "route": route}
    fields |= {"status": status, "seconds": round(seconds, 4)}
    say("request", level, None, **fields, **({} if code is None else {"code": code}))


def answering(app: ASGIApp) -> ASGIApp:
    """Turns what is raised below into our error body; the log keeps what was not foreseen."""

    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        started = withheld = False

        async def pass_on(message: Message) -> None:
            nonlocal started, withheld
            withheld = withheld or _is_framework_error(message)
            if not withheld:
                started = True
                await send(message)

        try:
            await app(scope, receive, pass_on)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001  whatever it is, the client gets an answer
            fault = _fault(error, scope)
            if not started:
                await answer(send, fault)

    return layer


def _is_framework_error(message: Message) -> bool:
    """Whether it begins the plain text that Starlette sends before it raises on what no handler took."""
    failed = message["type"] == "http.response.start" and message["status"] == 500
    return failed and (header_in(message, "content-type") or "").startswith("text/plain")


def _fault(error: Exception, scope: Scope) -> Fault:
    if isinstance(error, Refused):
        return error.fault
    identity = state_of(scope).get("request_id")
    say("request failed", logging.ERROR, error, id=identity)
    if isinstance(error, OSError) and error.errno in FULL:
        return Fault(500, "storage_full", "the disk of the service is full; try again when there is room")
    fault = fault_of(error)
    return replace(fault, message=f"{fault.message} (request {identity})")
