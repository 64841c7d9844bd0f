"""`Client` and `AsyncClient`: the service's tasks as methods. Both run the steps of `follow.py`, each its own way."""

import time
import uuid
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import httpx2

from enlarger.client import endpoints
from enlarger.client.endpoints import HttpRequest
from enlarger.client.http import AsyncHttpTransport, HttpTransport, client_options
from enlarger.client.images import ImageSource
from enlarger.client.job_protocol import (
    CANCEL_SECONDS,
    JobProtocol,
    RetryPolicy,
    Watch,
    ignore,
    run_task,
    send_until_answered,
    send_with_retries,
    wait_for_result,
)
from enlarger.client.responses import (
    Health,
    HttpResponse,
    Job,
    Model,
    Result,
    health_from_response,
    job_from_json,
    model_from_json,
)

DEFAULT_URL = "http://127.0.0.1:8997"
TIMEOUT = 600.0  # seconds for a whole call
RETRIES = 2
Kind = TypeVar("Kind")


class Client:
    """A service, from a program that waits. May be shared by threads; close it, or use it in a `with` block.

    `key` is by default that of the variable ENLARGER_KEY. `timeout` bounds each call in seconds, waiting for a free
    place included; None waits for ever. A failed connection or a server error is tried `retries` times more, and the
    service makes the pictures once all the same. Errors are those of the library, and ServiceError where it is the
    service itself that refused or failed.
    """

    def __init__(
        self, url: str = DEFAULT_URL, key: str | None = None, timeout: float | None = TIMEOUT, retries: int = RETRIES
    ) -> None:
        self._http = httpx2.Client(**client_options(url, key))
        self._timeout, self._retries = timeout, retries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def upscale(
        self,
        image: ImageSource,
        by: float = 2.0,
        *,
        model: str | None = None,
        watch: Watch | None = None,
        **options: Any,
    ) -> Result:
        """Enlarge a picture; options are those of `UpscaleRequest`. `watch` sees progress and may raise Cancelled."""
        return self._run_task(partial(endpoints.upscale, image, by, model, options), watch)

    def generate(
        self,
        prompt: str,
        *,
        model: str | None = None,
        refiner: bool = False,
        watch: Watch | None = None,
        **options: Any,
    ) -> Result:
        """Make pictures of a prompt; options are those of `GenerateRequest`."""
        return self._run_task(partial(endpoints.generate, prompt, model, refiner, options), watch)

    def inpaint(
        self,
        image: ImageSource,
        mask: ImageSource,
        prompt: str = "",
        *,
        model: str | None = None,
        watch: Watch | None = None,
        **options: Any,
    ) -> Result:
        """Repaint what a mask covers; options are those of `InpaintRequest`."""
        return self._run_task(partial(endpoints.inpaint, image, mask, prompt, model, options), watch)

    def refine(
        self,
        image: ImageSource,
        prompt: str = "",
        *,
        model: str | None = None,
        watch: Watch | None = None,
        **options: Any,
    ) -> Result:
        """Remake a picture from a noisy copy of itself; options are those of `RefineRequest`."""
        return self._run_task(partial(endpoints.refine, image, prompt, model, options), watch)

    def models(self) -> tuple[Model, ...]:
        """The models that can be asked for."""
        return tuple(model_from_json(data) for data in self._request(HttpRequest("GET", "/v1/models")).json()["data"])

    def jobs(self, status: str | None = None) -> tuple[Job, ...]:
        """The jobs of this key, the newest first."""
        return tuple(job_from_json(data) for data in self._request(endpoints.jobs(status)).json()["data"])

    def job(self, id: str) -> Job:
        """Where a job stands."""
        return job_from_json(self._request(endpoints.job(id)).json())

    def result(self, id: str, *, watch: Watch | None = None) -> Result:
        """The pictures of a job begun before, when it is over. Leaving early does not cancel it."""
        return self._run(wait_for_result(self.job(id), self._retry_policy(), watch or ignore))

    def cancel(self, id: str) -> Job:
        """End a job; one that is over stays as it is."""
        return job_from_json(self._request(endpoints.cancel(id)).json())

    def health(self) -> Health:
        """Whether the service takes requests."""
        return health_from_response(self._run(send_until_answered(HttpRequest("GET", "/readyz"), self._retry_policy())))

    def _retry_policy(self) -> RetryPolicy:
        return RetryPolicy(self._timeout, self._retries, time.monotonic())

    def _request(self, request: HttpRequest) -> HttpResponse:
        return self._run(send_with_retries(request, self._retry_policy()))

    def _run_task(self, make_request: Callable[[], HttpRequest], watch: Watch | None) -> Result:
        return self._run(run_task(make_request, uuid.uuid4().hex, self._retry_policy(), watch or ignore))

    def _run(self, protocol: JobProtocol[Kind]) -> Kind:
        """Do what the steps say. What breaks in, Ctrl-C for one, is told to them, so that they leave in order."""
        transport = HttpTransport(self._http)
        try:
            action = next(protocol)
            while True:
                try:
                    reply = transport.perform(action)
                except BaseException as error:  # noqa: BLE001 - passed on by the steps
                    action = protocol.throw(error)
                else:
                    action = protocol.send(reply)
        except StopIteration as end:
            return end.value
        finally:
            transport.close()


class AsyncClient:
    """The same, from a program with an event loop (asyncio or trio). A canceled call cancels its job at the service."""

    def __init__(
        self, url: str = DEFAULT_URL, key: str | None = None, timeout: float | None = TIMEOUT, retries: int = RETRIES
    ) -> None:
        self._http = httpx2.AsyncClient(**client_options(url, key))
        self._timeout, self._retries = timeout, retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def upscale(
        self,
        image: ImageSource,
        by: float = 2.0,
        *,
        model: str | None = None,
        watch: Watch | None = None,
        **options: Any,
    ) -> Result:
        """See `Client.upscale`."""
        return await self._run_task(partial(endpoints.upscale, image, by, model, options), watch)

    async def generate(
        self,
        prompt: str,
        *,
        model: str | None = None,
        refiner: bool = False,
        watch: Watch | None = None,
        **options: Any,
    ) -> Result:
        """See `Client.generate`."""
        return await self._run_task(partial(endpoints.generate, prompt, model, refiner, options), watch)

    async def inpaint(
        self,
        image: ImageSource,
        mask: ImageSource,
        prompt: str = "",
        *,
        model: str | None = None,
        watch: Watch | None = None,
        **options: Any,
    ) -> Result:
        """See `Client.inpaint`."""
        return await self._run_task(partial(endpoints.inpaint, image, mask, prompt, model, options), watch)

    async def refine(
        self,
        image: ImageSource,
        prompt: str = "",
        *,
        model: str | None = None,
        watch: Watch | None = None,
        **options: Any,
    ) -> Result:
        """See `Client.refine`."""
        return await self._run_task(partial(endpoints.refine, image, prompt, model, options), watch)

    async def models(self) -> tuple[Model, ...]:
        """See `Client.models`."""
        return tuple(
            model_from_json(data) for data in (await self._request(HttpRequest("GET", "/v1/models"))).json()["data"]
        )

    async def jobs(self, status: str | None = None) -> tuple[Job, ...]:
        """See `Client.jobs`."""
        return tuple(job_from_json(data) for data in (await self._request(endpoints.jobs(status))).json()["data"])

    async def job(self, id: str) -> Job:
        """See `Client.job`."""
        return job_from_json((await self._request(endpoints.job(id))).json())

    async def result(self, id: str, *, watch: Watch | None = None) -> Result:
        """See `Client.result`."""
        return await self._run(wait_for_result(await self.job(id), self._retry_policy(), watch or ignore))

    async def cancel(self, id: str) -> Job:
        """See `Client.cancel`."""
        return job_from_json((await self._request(endpoints.cancel(id))).json())

    async def health(self) -> Health:
        """See `Client.health`."""
        return health_from_response(
            await self._run(send_until_answered(HttpRequest("GET", "/readyz"), self._retry_policy()))
        )

    def _retry_policy(self) -> RetryPolicy:
        return RetryPolicy(self._timeout, self._retries, time.monotonic())

    async def _request(self, request: HttpRequest) -> HttpResponse:
        return await self._run(send_with_retries(request, self._retry_policy()))

    async def _run_task(self, make_request: Callable[[], HttpRequest], watch: Watch | None) -> Result:
        return await self._run(run_task(make_request, uuid.uuid4().hex, self._retry_policy(), watch or ignore))

    async def _run(self, protocol: JobProtocol[Kind]) -> Kind:
        """As `Client._run`. Once something broke in, the rest is done shielded from it, and shortly."""
        transport = AsyncHttpTransport(self._http)
        try:
            action = next(protocol)
            while True:
                try:
                    reply = await transport.perform(action)
                except BaseException as error:  # noqa: BLE001 - passed on by the steps
                    action = protocol.throw(error)
                    reply = None
                    with anyio.move_on_after(CANCEL_SECONDS, shield=True):
                        reply = await transport.perform(action)
                    action = protocol.send(reply)
                else:
                    action = protocol.send(reply)
        except StopIteration as end:
            return end.value
        finally:
            with anyio.move_on_after(CANCEL_SECONDS, shield=True):
                await transport.close()
