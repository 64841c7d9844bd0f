"""The connection to a service: the actions of `job_protocol`, done with httpx2."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx2

from enlarger import __version__
from enlarger.client.endpoints import HttpRequest
from enlarger.client.job_protocol import Action, Compute, OpenStream, ReadStream, Send, Sleep
from enlarger.client.responses import HttpResponse, NoResponse
from enlarger.errors import InputError

READ_TIMEOUT = 120.0  # without a byte from the service; it decodes a picture before it answers
STREAM_TIMEOUT = 45.0  # in a stream of events, where the service sends a keep-alive every 15
CONNECT_TIMEOUT = 10.0
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def http_client(url: str, key: str | None) -> httpx2.AsyncClient:
    """A client of httpx2 for the service at an address. Raises InputError if it is no address."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"url is {url!r}, expected an address such as http://127.0.0.1:8997")
    key = os.environ.get("ENLARGER_KEY") if key is None else key
    headers = {"User-Agent": f"enlarger/{__version__}"}
    return httpx2.AsyncClient(
        base_url=url.rstrip("/").removesuffix("/v1"),
        headers=headers if key is None else headers | {"Authorization": f"Bearer {key}"},
        trust_env=parts.hostname not in LOOPBACK,  # this machine is reached without a proxy
    )


class HttpTransport:
    """Does one action after the other; the stream of events is open until the next that is not ReadStream."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self._stack = AsyncExitStack()
        self._chunks: AsyncIterator[bytes] | None = None

    async def perform(self, action: Action) -> object:
        """The reply to an action."""
        try:
            match action:
                case ReadStream():
                    return None if self._chunks is None else await anext(self._chunks, None)
                case Compute():
                    await self.close()
                    return await anyio.to_thread.run_sync(action.function)
                case Sleep():
                    await self.close()
                    return await anyio.sleep(action.seconds)
                case Send():
                    await self.close()
                    timeout = _timeout(READ_TIMEOUT, action.timeout)
                    response = await self._http.send(self._build_request(action.request, timeout))
                    return _to_response(response, response.content)
                case OpenStream():
                    await self.close()
                    return await self._open_stream(action.request)
        except httpx2.HTTPError as error:
            return _no_response(error, self._http.base_url)

    async def _open_stream(self, request: HttpRequest) -> HttpResponse:
        response = await self._http.send(self._build_request(request, _timeout(STREAM_TIMEOUT)), stream=True)
        self._stack.push_async_callback(response.aclose)
        self._chunks = response.aiter_bytes()
        return _to_response(response)

    def _build_request(self, request: HttpRequest, timeout: httpx2.Timeout) -> httpx2.Request:
        return self._http.build_request(
            request.method,
            request.path,
            json=request.json,
            data=request.form,
            files={name: (name, data, "application/octet-stream") for name, data in request.files.items()} or None,
            headers=request.headers,
            timeout=timeout,
        )

    async def close(self) -> None:
        """End the stream, if there is one."""
        self._chunks = None
        await self._stack.aclose()


def _timeout(read: float, total: float | None = None) -> httpx2.Timeout:
    """So many seconds without a byte, or in all."""
    return httpx2.Timeout(read, connect=CONNECT_TIMEOUT) if total is None else httpx2.Timeout(total)


def _to_response(response: httpx2.Response, body: bytes = b"") -> HttpResponse:
    return HttpResponse(response.status_code, {name.lower(): value for name, value in response.headers.items()}, body)


def _no_response(error: httpx2.HTTPError, url: httpx2.URL) -> NoResponse:
    return NoResponse(f"{str(url).rstrip('/')} does not answer ({str(error) or type(error).__name__})")
