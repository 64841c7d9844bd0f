"""The line to a service: what `follow.py` says, done with httpx2; once for threads, once for event loops."""

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx2

from enlarger import __version__
from enlarger.client.calls import Call
from enlarger.client.follow import Action, Listen, Next, Pause, Send, Work
from enlarger.client.replies import Answer, Lost
from enlarger.errors import InputError

SECONDS = 120.0  # without a byte from the service; it decodes a picture before it answers
QUIET = 45.0  # in a stream of events, where the service sends a sign of life every 15
CONNECT = 10.0
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def settled(url: str, key: str | None) -> dict[str, Any]:
    """What both of httpx2's clients are made with."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"url is {url!r}, expected an address such as http://127.0.0.1:8997")
    key = os.environ.get("ENLARGER_KEY") if key is None else key
    headers = {"User-Agent": f"enlarger/{__version__}"}
    return {
        "base_url": url.rstrip("/").removesuffix("/v1"),
        "headers": headers if key is None else headers | {"Authorization": f"Bearer {key}"},
        "trust_env": parts.hostname not in LOOPBACK,  # no proxy is asked for this machine
    }


class Line:
    """Does one action after the other; the stream of events is open until the next that is not `Next`."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http
        self._stack = ExitStack()
        self._pieces: Iterator[bytes] = iter(())

    def do(self, action: Action) -> Any:
        """The reply to an action."""
        try:
            match action:
                case Next():
                    return next(self._pieces, None)
                case Work():
                    self.close()
                    return action.function()
                case Pause():
                    self.close()
                    return time.sleep(action.seconds)
                case Send():
                    self.close()
                    response = self._http.request(**_sent(action.call, SECONDS, action.seconds))
                    return _answer(response, response.content)
                case Listen():
                    self.close()
                    return self._listen(action.call)
        except httpx2.HTTPError as error:
            return _lost(error, self._http.base_url)

    def _listen(self, call: Call) -> Answer:
        response = self._stack.enter_context(self._http.stream(**_sent(call, QUIET)))
        self._pieces = response.iter_bytes()
        return _answer(response)

    def close(self) -> None:
        """End the stream, if there is one."""
        self._pieces = iter(())
        self._stack.close()


class AsyncLine:
    """The same on an event loop."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self._stack = AsyncExitStack()
        self._pieces: AsyncIterator[bytes] | None = None

    async def do(self, action: Action) -> Any:
        """The reply to an action."""
        try:
            match action:
                case Next():
                    return None if self._pieces is None else await anext(self._pieces, None)
                case Work():
                    await self.close()
                    return await anyio.to_thread.run_sync(action.function)
                case Pause():
                    await self.close()
                    return await anyio.sleep(action.seconds)
                case Send():
                    await self.close()
                    response = await self._http.request(**_sent(action.call, SECONDS, action.seconds))
                    return _answer(response, response.content)
                case Listen():
                    await self.close()
                    return await self._listen(action.call)
        except httpx2.HTTPError as error:
            return _lost(error, self._http.base_url)

    async def _listen(self, call: Call) -> Answer:
        response = await self._stack.enter_async_context(self._http.stream(**_sent(call, QUIET)))
        self._pieces = response.aiter_bytes()
        return _answer(response)

    async def close(self) -> None:
        """End the stream, if there is one."""
        self._pieces = None
        await self._stack.aclose()


def _sent(call: Call, read: float, most: float | None = None) -> dict[str, Any]:
    """A call as httpx2 takes it."""
    files = {name: (name, data, "application/octet-stream") for name, data in call.files.items()}
    body = {"json": call.json, "data": call.form, "files": files or None}
    given = {name: value for name, value in body.items() if value is not None}
    timeout = httpx2.Timeout(read if most is None else most, connect=CONNECT if most is None else most)
    return {"method": call.method, "url": call.path, "headers": dict(call.headers), "timeout": timeout, **given}


def _answer(response: httpx2.Response, body: bytes = b"") -> Answer:
    return Answer(response.status_code, {name.lower(): value for name, value in response.headers.items()}, body)


def _lost(error: httpx2.HTTPError, url: httpx2.URL) -> Lost:
    return Lost(f"{str(url).rstrip('/')} does not answer ({str(error) or type(error).__name__})")
