"""The headers that every answer has: its id, and those that make browsers strict."""

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enlarger.service.middleware.asgi import (
    RequestHead,
    encode_headers,
    get_header,
    request_state,
)
from enlarger.service.middleware.cors import AllowedOrigins

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


def security_headers(app: ASGIApp, origins: AllowedOrigins) -> ASGIApp:
    """Gives each request an id, and each answer that id, the headers that make browsers strict, and those of CORS for
    the origins of the settings."""

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
