"""HEAD on every route that has GET: the same status and headers, and no body."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


def head_as_get(app: ASGIApp) -> ASGIApp:
    """Answers HEAD as the application answers GET, up to the body; what would still make one is canceled."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "HEAD":
            await app(scope, receive, send)
            return
        has_ended = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
            elif not has_ended.is_set():
                has_ended.set()
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        handle_request = asyncio.ensure_future(app({**scope, "method": "GET"}, receive, send_head))
        waiting = asyncio.ensure_future(has_ended.wait())
        try:
            await asyncio.wait({handle_request, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not has_ended.is_set():
                await handle_request
        finally:
            waiting.cancel()
            handle_request.cancel()
            await asyncio.wait({handle_request})

    return middleware
