"""`AsyncClient` and `Client`: the service's tasks as methods. `Client` runs the other one's in a thread."""

import time
import uuid
import weakref
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from functools import partial, wraps
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import anyio
from anyio.from_thread import start_blocking_portal

from enlarger.client import endpoints
from enlarger.client.endpoints import HttpRequest
from enlarger.client.http import HttpTransport, http_client
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
from enlarger.client.options import GenerateOptions, InpaintOptions, RefineOptions, UpscaleOptions
from enlarger.client.responses import (
    Health,
    HttpResponse,
    Job,
    Model,
    Progress,
    Result,
    health_from_response,
    job_from_json,
    model_from_json,
)
from enlarger.errors import ServiceError
from enlarger.strict_json import Json

DEFAULT_URL = "http://127.0.0.1:8997"
TIMEOUT = 600.0  # seconds for a whole call
RETRIES = 2
Kind = TypeVar("Kind")
Params = ParamSpec("Params")


class AsyncClient:
    """A service, from a program with an event loop (asyncio or trio). Close it, or use it in an `async with` block.

    `key` is by default that of the variable ENLARGER_KEY. `timeout` bounds each call in seconds, waiting for a free
    place included; None waits for ever. A failed connection or a server error is tried `retries` times more, and the
    service makes the pictures once all the same. A canceled call cancels its job at the service. Errors are those of
    the library, and ServiceError where it is the service itself that refused or failed.
    """

    def __init__(
        self, url: str = DEFAULT_URL, key: str | None = None, timeout: float | None = TIMEOUT, retries: int = RETRIES
    ) -> None:
        self._http = http_client(url, key)
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
        **options: Unpack[UpscaleOptions],
    ) -> Result:
        """Enlarge a picture; options are those of `UpscaleRequest`. `watch` sees progress and may raise Cancelled."""
        return await self._run_task(partial(endpoints.upscale, image, by, model, options), watch)

    async def generate(
        self,
        prompt: str,
        *,
        model: str | None = None,
        refiner: bool = False,
        watch: Watch | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Result:
        """Make pictures of a prompt; options are those of `GenerateRequest`."""
        return await self._run_task(partial(endpoints.generate, prompt, model, refiner, options), watch)

    async def inpaint(
        self,
        image: ImageSource,
        mask: ImageSource,
        prompt: str = "",
        *,
        model: str | None = None,
        watch: Watch | None = None,
        **options: Unpack[InpaintOptions],
    ) -> Result:
        """Repaint what a mask covers; options are those of `InpaintRequest`."""
        return await self._run_task(partial(endpoints.inpaint, image, mask, prompt, model, options), watch)

    async def refine(
        self,
        image: ImageSource,
        prompt: str = "",
        *,
        model: str | None = None,
        watch: Watch | None = None,
        **options: Unpack[RefineOptions],
    ) -> Result:
        """Remake a picture from a noisy copy of itself; options are those of `RefineRequest`."""
        return await self._run_task(partial(endpoints.refine, image, prompt, model, options), watch)

    async def models(self) -> tuple[Model, ...]:
        """The models that the service has."""
        return tuple(map(model_from_json, await self._list(HttpRequest("GET", "/v1/models"))))

    async def jobs(self, status: str | None = None) -> tuple[Job, ...]:
        """The jobs of this key, the newest first."""
        listed, after = dict[str, Job](), list[str]()
        while True:
            try:
                page = (await self._request(endpoints.jobs(status, after[-1] if after else None))).json()
            except ServiceError as error:
                if not after or error.code != "job_not_found":
                    raise
                after.pop()  # it has expired meanwhile: go on after the one before it
                continue
            jobs = [job_from_json(data) for data in page["data"]]
            listed |= {job.id: job for job in jobs}
            after += [job.id for job in jobs]
            if not page.get("has_more") or not jobs:
                return tuple(listed.values())

    async def job(self, id: str) -> Job:
        """The state of a job."""
        return job_from_json((await self._request(endpoints.job(id))).json())

    async def result(self, id: str, *, watch: Watch | None = None) -> Result:
        """The pictures of a job begun before, when it is over. Leaving early does not cancel it."""
        return await self._run(wait_for_result(await self.job(id), self._retry_policy(), watch or ignore))

    async def cancel(self, id: str) -> Job:
        """End a job; one that is over stays as it is."""
        return job_from_json((await self._request(endpoints.cancel(id))).json())

    async def health(self) -> Health:
        """Whether the service takes requests."""
        return health_from_response(
            await self._run(send_until_answered(HttpRequest("GET", "/readyz"), self._retry_policy()))
        )

    def _retry_policy(self) -> RetryPolicy:
        return RetryPolicy(self._timeout, self._retries, time.monotonic())

    async def _request(self, request: HttpRequest) -> HttpResponse:
        return await self._run(send_with_retries(request, self._retry_policy()))

    async def _list(self, request: HttpRequest) -> list[Json]:
        return (await self._request(request)).json()["data"]

    async def _run_task(self, make_request: Callable[[], HttpRequest], watch: Watch | None) -> Result:
        return await self._run(run_task(make_request, uuid.uuid4().hex, self._retry_policy(), watch or ignore))

    async def _run(self, protocol: JobProtocol[Kind]) -> Kind:
        """Do what the protocol says. Once something broke in, the rest is done shielded from it, and shortly."""
        transport = HttpTransport(self._http)
        try:
            action = next(protocol)
            while True:
                try:
                    reply = await transport.perform(action)
                except BaseException as error:  # noqa: BLE001 - passed on by the protocol
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


def _blocking(
    method: Callable[Concatenate[AsyncClient, Params], Coroutine[Any, Any, Kind]],
) -> Callable[Concatenate["Client", Params], Kind]:
    """A method of AsyncClient, for a program that waits."""

    @wraps(method)
    def call(self: "Client", *args: Params.args, **kwargs: Params.kwargs) -> Kind:
        return self._call(partial(method, self._client, *args), kwargs)  # pyright: ignore[reportPrivateUsage, reportCallIssue] - its own method

    return call


class Client:
    """A service, from a program that waits: the same methods, arguments and errors as those of `AsyncClient`.

    May be shared by threads; close it, or use it in a `with` block. `watch` is called in the thread that waits. Ctrl-C
    cancels the job at the service.
    """

    def __init__(
        self, url: str = DEFAULT_URL, key: str | None = None, timeout: float | None = TIMEOUT, retries: int = RETRIES
    ) -> None:
        self._client = AsyncClient(url, key, timeout, retries)
        stack = ExitStack()
        self._portal = stack.enter_context(start_blocking_portal(name="enlarger-client"))
        stack.callback(self._portal.call, self._client.aclose)
        self._close = weakref.finalize(self, stack.close)  # a client that is forgotten leaves no thread behind

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._close()

    upscale = _blocking(AsyncClient.upscale)
    generate = _blocking(AsyncClient.generate)
    inpaint = _blocking(AsyncClient.inpaint)
    refine = _blocking(AsyncClient.refine)
    models = _blocking(AsyncClient.models)
    jobs = _blocking(AsyncClient.jobs)
    job = _blocking(AsyncClient.job)
    result = _blocking(AsyncClient.result)
    cancel = _blocking(AsyncClient.cancel)
    health = _blocking(AsyncClient.health)

    def _call(self, method: Callable[..., Coroutine[Any, Any, Kind]], options: dict[str, Any]) -> Kind:
        """Run a method on the loop, and `watch` here. What breaks in, Ctrl-C for one, cancels it, and its job."""
        watch: Watch | None = options.get("watch")
        inbox: SimpleQueue[Progress | None] = SimpleQueue()  # None: the method has ended

        async def run() -> Kind:
            try:
                return await method(**options if watch is None else options | {"watch": inbox.put})
            finally:
                inbox.put(None)

        future = self._portal.start_task_soon(run)
        try:
            while (progress := inbox.get()) is not None:
                (watch or ignore)(progress)
            return future.result()
        except BaseException:
            if future.cancel():
                with suppress(Empty):
                    while inbox.get(timeout=2 * CANCEL_SECONDS) is not None:
                        pass
            raise
