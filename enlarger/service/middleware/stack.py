"""What every request passes on its way to the routes, and every answer on its way back."""

import asyncio
from collections.abc import Awaitable, Callable
from math import isfinite

from starlette.types import ASGIApp, Receive, Scope, Send

from enlarger.service.jobs.admission import Reservation
from enlarger.service.metrics import Metrics
from enlarger.service.middleware.access_log import access_log
from enlarger.service.middleware.api_keys import authenticate
from enlarger.service.middleware.asgi import (
    RequestHead,
    request_state,
    response_start,
)
from enlarger.service.middleware.body_limits import EmptyBody, body_limits_for, refuse_body, run_with_body
from enlarger.service.middleware.cors import (
    PREFLIGHT_HEADERS,
    RESULT_PATH,
    SAFE_METHODS,
    AllowedOrigins,
    check_preflight,
    is_preflight,
)
from enlarger.service.middleware.drain_body import drain_body
from enlarger.service.middleware.error_handler import error_handler
from enlarger.service.middleware.head_requests import head_as_get
from enlarger.service.middleware.open_requests import OpenRequests
from enlarger.service.middleware.security_headers import security_headers
from enlarger.service.middleware.trusted_host import make_host_check
from enlarger.service.problems import problem_error
from enlarger.service.settings import Settings

Reserve = Callable[[str, float | None], Reservation]  # owner, seconds that the client waits
IsKnown = Callable[[str, str], Awaitable[bool]]  # owner, Idempotency-Key
MAX_HEADER_BYTES = 32 << 10
ARRIVAL_SECONDS = 0.25  # in which most bodies are whole; one that takes longer keeps nobody else out meanwhile
PUBLIC_PATHS = frozenset({"/", "/favicon.ico", "/healthz", "/readyz", "/health", "/v1/"})  # to be read without a key


def middleware_stack(
    app: ASGIApp, settings: Settings, metrics: Metrics, reserve: Reserve, is_known: IsKnown
) -> ASGIApp:
    """An application behind all checks, the cheapest first. `reserve(owner, max_wait)` refuses work before its body is
    read, or holds a place; what `is_known` has its place already. That lapses where the body takes its time, which must
    then find one when it is whole. The routes find `owner`, `request_id` and that `reservation` in the request's state.
    Raises InputError for settings that would let anybody in."""
    routes = head_as_get(app)
    check_host, origins = make_host_check(settings), AllowedOrigins.from_settings(settings)
    open_requests = OpenRequests(settings.bounds.requests_per_key)

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
        with open_requests.count(owner):
            await answer(head, owner, scope, receive, send)

    async def answer(head: RequestHead, owner: str, scope: Scope, receive: Receive, send: Send) -> None:
        if settings.a1111 and head.takes_body:
            await run_with_body(app, body_limits_for(head, settings), scope, receive, send)
            return
        if not head.is_image_request:
            refuse_body(head)
            await routes(scope, EmptyBody(receive), send)
            return
        limits, max_wait = body_limits_for(head, settings), client_timeout(head)
        key = head.get("idempotency-key")
        if key is not None and await is_known(owner, key):
            await run_with_body(app, limits, scope, receive, send)
            return
        place = reserve(owner, max_wait)  # refused before the body is read
        lapse = asyncio.get_running_loop().call_later(ARRIVAL_SECONDS, place.release)

        def on_body_complete() -> None:
            nonlocal place
            lapse.cancel()
            if not place.is_held:
                place = reserve(owner, max_wait)
            request_state(scope)["reservation"] = place

        try:
            await run_with_body(app, limits, scope, receive, send, on_body_complete)
        finally:
            lapse.cancel()
            place.release()

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
    """The start and stop of the application pass by the middleware; a WebSocket is closed, there are none here."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
        else:
            await (app if scope["type"] == "http" else lifespan_app)(scope, receive, send)

    return middleware
