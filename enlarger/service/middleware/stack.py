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

from enlarger.service.middleware.api_keys import authenticate
from enlarger.service.middleware.asgi import (
    IMAGE_ROUTES,
    RequestHead,
    encode_headers,
    get_header,
    request_state,
    response_start,
    send_problem,
)
from enlarger.service.middleware.body_limits import body_limits_for, drain_body, run_with_body
from enlarger.service.middleware.cors import (
    PREFLIGHT_HEADERS,
    RESULT_PATH,
    SAFE_METHODS,
    AllowedOrigins,
    check_preflight,
    is_preflight,
    make_host_check,
)
from enlarger.service.middleware.json_logging import log_event
from enlarger.service.middleware.metrics import OTHER_LABEL, Metrics
from enlarger.service.problems import Problem, ProblemError, problem_error, problem_from_exception
from enlarger.service.settings import Settings


class Reservation(Protocol):
    """A place in the queue, held for a request."""

    def confirm(self) -> None:
        """Its body has come whole."""

    def release(self) -> bool: ...


Reserve = Callable[
    [str, float | None], Reservation
]  # owner, seconds that the client waits; raises Refused where there is none

MAX_HEADER_BYTES = 32 << 10
PUBLIC_PATHS = frozenset({"/", "/favicon.ico", "/healthz", "/readyz", "/health", "/v1/"})  # to be read without a key
PROBE_PATHS = frozenset({"/healthz", "/readyz", "/health", "/metrics"})  # asked every few seconds
REJECTED_STATUSES = frozenset(
    {401, 403, 408, 413, 415, 429, 431, 503}
)  # statuses of what is refused to protect the service
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; connect-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def middleware_stack(app: ASGIApp, settings: Settings, metrics: Metrics, reserve: Reserve) -> ASGIApp:
    """An application behind all checks, the cheapest first. `room(owner, patience)` refuses work before its body is
    read, or holds a place for it. The routes find `owner`, `request_id` and that `claim` in the request's state. Raises
    InputError for settings that would let anybody in."""
    check_host, origins = make_host_check(settings), AllowedOrigins.from_settings(settings)

    async def handle_request(scope: Scope, receive: Receive, send: Send) -> None:
        head = RequestHead.from_scope(scope)
        check_header_size(head)
        check_host(head)
        if is_preflight(head):
            check_preflight(head, origins)
            await _send_preflight(send)
            return
        origins.check(head)
        owner = "" if is_public_request(head) else authenticate(head, settings.keys)
        request_state(scope)["owner"] = owner
        limits = body_limits_for(head, settings)
        if not head.is_image_request:
            await run_with_body(app, limits, scope, receive, send)
            return
        reservation = reserve(owner, client_timeout(head))
        request_state(scope)["reservation"] = reservation
        try:
            await run_with_body(app, limits, scope, receive, send, reservation.confirm)
        finally:
            reservation.release()

    return http_only(drain_body(security_headers(access_log(error_handler(handle_request), metrics), origins)), app)


def check_header_size(head: RequestHead) -> None:
    """Refuses with 431 what the protocol let through because it came in one piece."""
    if head.header_bytes > MAX_HEADER_BYTES:
        raise problem_error(
            431, "headers_too_large", f"the headers have {head.header_bytes} bytes; expected {MAX_HEADER_BYTES} at most"
        )


def is_public_request(head: RequestHead) -> bool:
    """Whether a request needs no key: the page, whether the service lives, and results, whose names are secrets."""
    path = head.path
    public = path in PUBLIC_PATHS or path.startswith("/page/") or RESULT_PATH.fullmatch(path) is not None
    return head.method in SAFE_METHODS and public


def client_timeout(head: RequestHead) -> float | None:
    """Seconds after which the client gives up, as OpenAI's clients say it; None where it does not say."""
    try:
        seconds = float(head.get("x-stainless-read-timeout") or "nan")
    except ValueError:
        return None
    return seconds if isfinite(seconds) and seconds > 0 else None


async def _send_preflight(send: Send) -> None:
    await send(response_start(204, PREFLIGHT_HEADERS))
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def http_only(app: ASGIApp, lifespan_app: ASGIApp) -> ASGIApp:
    """The start and stop of the application pass by the guard; a WebSocket is closed, there are none here."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
        else:
            await (app if scope["type"] == "http" else lifespan_app)(scope, receive, send)

    return middleware


def security_headers(app: ASGIApp, origins: AllowedOrigins) -> ASGIApp:
    """Gives each request an id, and each answer that id, the headers that tell browsers to be strict, and leave for
    the origins of the settings to read it."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        head = RequestHead.from_scope(scope)
        client_request_id = head.get("x-request-id") or ""
        request_id = client_request_id if _REQUEST_ID.fullmatch(client_request_id) else secrets.token_hex(16)
        request_state(scope)["request_id"] = request_id
        extra_headers = SECURITY_HEADERS | {"X-Request-Id": request_id} | origins.response_headers(head)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = _with_headers(message, extra_headers, head)
            await send(message)

        await app(scope, receive, send_with_headers)

    return middleware


def _with_headers(message: Message, extra_headers: dict[str, str], head: RequestHead) -> Message:
    names = {name.lower().encode("latin-1") for name in extra_headers}
    other_headers = [header for header in message.get("headers", ()) if header[0].lower() not in names - {b"vary"}]
    keeps_caching = get_header(message, "cache-control") is not None or not head.path.startswith("/v1/")
    no_store = {} if keeps_caching else {"Cache-Control": "no-store"}
    return {**message, "headers": [*other_headers, *encode_headers((extra_headers | no_store).items())]}


def access_log(app: ASGIApp, metrics: Metrics) -> ASGIApp:
    """Counts and logs each request once its answer is over, whatever became of it."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        started_at, record = time.perf_counter(), ResponseRecord()

        async def receive_and_record() -> Message:
            message = await receive()
            record.client_disconnected = record.client_disconnected or (
                message["type"] == "http.disconnect" and not record.is_complete
            )
            return message

        async def send_and_record(message: Message) -> None:
            record.add(message)
            await send(message)

        try:
            await app(scope, receive_and_record, send_and_record)
        finally:
            seconds = (record.completed_at or time.perf_counter()) - started_at
            route, (status, code) = route_template(scope), record.outcome()
            metrics.request(route, status, seconds, code)
            if status in REJECTED_STATUSES and route not in PROBE_PATHS:
                metrics.rejected(OTHER_LABEL if code is None else code)
            _log_request(scope, route, status, seconds, code)

    return middleware


class ResponseRecord:
    """What went back to a client."""

    def __init__(self) -> None:
        self.status = 0
        self.code: str | None = None
        self.is_complete = False
        self.completed_at: float | None = None  # when the answer was whole; what is read after it does not count
        self.client_disconnected = False

    def add(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            if self.status >= 400 and self.code is None:
                self.code = error_code(message.get("body", b""))
            self.is_complete = not message.get("more_body", False)
            self.completed_at = time.perf_counter() if self.is_complete else None

    def outcome(self) -> tuple[int, str | None]:
        """Status and code; 499 where the client did not wait for the end."""
        if self.client_disconnected:
            return 499, "client_closed"
        return (self.status, self.code) if self.is_complete else (500, "internal")


def error_code(body: bytes) -> str | None:
    """The code of an error body; None if it is something else."""
    try:
        code: Any = json.loads(body)["error"]["code"]
    except (ValueError, LookupError, TypeError):
        return None
    return code if isinstance(code, str) else None


def route_template(scope: Scope) -> str:
    """The template of the route that a request went to; never the path itself."""
    template = getattr(scope.get("route"), "path", None)
    if isinstance(template, str):
        return template
    return scope["path"] if scope["path"] in IMAGE_ROUTES else OTHER_LABEL


def _log_request(scope: Scope, route: str, status: int, seconds: float, code: str | None) -> None:
    level = logging.DEBUG if route in PROBE_PATHS else logging.INFO
    fields: dict[str, Any] = {"id": request_state(scope).get("request_id"), "method": scope["method"], "route": route}
    fields |= {"status": status, "seconds": round(seconds, 4)}
    log_event("request", level, None, **fields, **({} if code is None else {"code": code}))


def error_handler(app: ASGIApp) -> ASGIApp:
    """Turns what is raised below into our error body; the log keeps what was not foreseen."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        started = is_suppressed = False

        async def send_unless_suppressed(message: Message) -> None:
            nonlocal started, is_suppressed
            is_suppressed = is_suppressed or _is_framework_error(message)
            if not is_suppressed:
                started = True
                await send(message)

        try:
            await app(scope, receive, send_unless_suppressed)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001  whatever it is, the client gets an answer
            problem = _log_and_convert(error, scope)
            if not started:
                await send_problem(send, problem)

    return middleware


def _is_framework_error(message: Message) -> bool:
    """Whether it begins the plain text that Starlette sends before it raises on what no handler took."""
    failed = message["type"] == "http.response.start" and message["status"] == 500
    return failed and (get_header(message, "content-type") or "").startswith("text/plain")


def _log_and_convert(error: Exception, scope: Scope) -> Problem:
    if isinstance(error, ProblemError):
        return error.problem
    request_id = request_state(scope).get("request_id")
    log_event("request failed", logging.ERROR, error, id=request_id)
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        return Problem(500, "storage_full", "the disk of the service is full; try again when there is room")
    problem = problem_from_exception(error)
    return replace(problem, message=f"{problem.message} (request {request_id})")
