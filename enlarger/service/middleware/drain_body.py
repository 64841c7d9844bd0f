"""The rest of a body that nobody wants any more is read on for a moment, so that its sender sees the answer."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enlarger.service.middleware.asgi import EMPTY_BODY, RequestHead
from enlarger.service.settings import MIB

DRAIN_BYTES = 8 * MIB  # of a body that nobody wants, read on so that its sender sees the answer
DRAIN_SECONDS = 1.0
CONNECTION_CLOSE = (b"connection", b"close")


def drain_body(app: ASGIApp) -> ASGIApp:
    """Closes the connection after an answer that came before the end of the body, but not at once: a sender who is cut
    off while sending may never see the answer. So a little more is read, and dropped."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        head = RequestHead.from_scope(scope)
        body_complete, skip_drain = head.content_length == 0, head.get("expect") is not None

        async def tracked_receive() -> Message:
            nonlocal body_complete
            message = await receive()
            body_complete = body_complete or message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def drain() -> None:
            drained = 0
            while not body_complete and drained < DRAIN_BYTES:
                drained += len((await tracked_receive()).get("body", b""))

        async def send_and_close(message: Message) -> None:
            nonlocal skip_drain
            if message["type"] == "http.response.start" and not body_complete:
                skip_drain = skip_drain or message["status"] == 408
                other_headers = [header for header in message.get("headers", ()) if header[0].lower() != b"connection"]
                message = {**message, "headers": [*other_headers, CONNECTION_CLOSE]}
            elif _is_last_chunk(message) and not (body_complete or skip_drain):
                await send({**message, "more_body": True})
                await _with_timeout(DRAIN_SECONDS, drain())
                message = EMPTY_BODY
            await send(message)

        await app(scope, tracked_receive, send_and_close)

    return middleware


def _is_last_chunk(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


async def _with_timeout(seconds: float, coroutine: Coroutine[Any, Any, None]) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(coroutine, seconds)
