"""`Client` and `AsyncClient`: the service's tasks as methods. Both run the steps of `follow.py`, each its own way."""

import time
import uuid
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import httpx2

from enlarger.client import calls
from enlarger.client.calls import Call
from enlarger.client.follow import GOODBYE, Patience, Steps, Watch, asked, finished, ignore, made, once
from enlarger.client.line import AsyncLine, Line, settled
from enlarger.client.pictures import Source
from enlarger.client.replies import Answer, Health, Job, Model, Result, health_of, job_of, model_of

URL = "http://127.0.0.1:8997"
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
        self, url: str = URL, key: str | None = None, timeout: float | None = TIMEOUT, retries: int = RETRIES
    ) -> None:
        self._http = httpx2.Client(**settled(url, key))
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
        self, image: Source, by: float = 2.0, *, model: str | None = None, watch: Watch | None = None, **options: Any
    ) -> Result:
        """Enlarge a picture; options are those of `UpscaleRequest`. `watch` sees progress and may raise Cancelled."""
        return self._make(partial(calls.upscale, image, by, model, options), watch)

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
        return self._make(partial(calls.generate, prompt, model, refiner, options), watch)

    def inpaint(
        self, image: Source, mask: Source, prompt: str = "", *, model: str | None = None, watch: Watch | None = None,
        **options: Any,
    ) -> Result:  # fmt: skip
        """Repaint what a mask covers; options are those of `InpaintRequest`."""
        return self._make(partial(calls.inpaint, image, mask, prompt, model, options), watch)

    def refine(
        self, image: Source, prompt: str = "", *, model: str | None = None, watch: Watch | None = None, **options: Any
    ) -> Result:
        """Remake a picture from a noisy copy of itself; options are those of `RefineRequest`."""
        return self._make(partial(calls.refine, image, prompt, model, options), watch)

    def models(self) -> tuple[Model, ...]:
        """The models that can be asked for."""
        return tuple(model_of(found) for found in self._ask(Call("GET", "/v1/models")).json()["data"])

    def jobs(self, status: str | None = None) -> tuple[Job, ...]:
        """The jobs of this key, the newest first."""
        return tuple(job_of(found) for found in self._ask(calls.jobs(status)).json()["data"])

    def job(self, id: str) -> Job:
        """Where a job stands."""
        return job_of(self._ask(calls.job(id)).json())

    def result(self, id: str, *, watch: Watch | None = None) -> Result:
        """The pictures of a job begun before, when it is over. Leaving early does not cancel it."""
        return self._run(finished(self.job(id), self._patience(), watch or ignore))

    def cancel(self, id: str) -> Job:
        """End a job; one that is over stays as it is."""
        return job_of(self._ask(calls.cancel(id)).json())

    def health(self) -> Health:
        """Whether the service takes requests."""
        return health_of(self._run(once(Call("GET", "/readyz"), self._patience())))

    def _patience(self) -> Patience:
        return Patience(self._timeout, self._retries, time.monotonic())

    def _ask(self, call: Call) -> Answer:
        return self._run(asked(call, self._patience()))

    def _make(self, make: Callable[[], Call], watch: Watch | None) -> Result:
        return self._run(made(make, uuid.uuid4().hex, self._patience(), watch or ignore))

    def _run(self, steps: Steps[Kind]) -> Kind:
        """Do what the steps say. What breaks in, Ctrl-C for one, is told to them, so that they leave in order."""
        line = Line(self._http)
        try:
            action = next(steps)
            while True:
                try:
                    reply = line.do(action)
                except BaseException as error:  # noqa: BLE001 - passed on by the steps
                    action = steps.throw(error)
                else:
                    action = steps.send(reply)
        except StopIteration as end:
            return end.value
        finally:
            line.close()


class AsyncClient:
    """The same, from a program with an event loop (asyncio or trio). A canceled call cancels its job at the service."""

    def __init__(
        self, url: str = URL, key: str | None = None, timeout: float | None = TIMEOUT, retries: int = RETRIES
    ) -> None:
        self._http = httpx2.AsyncClient(**settled(url, key))
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
        self, image: Source, by: float = 2.0, *, model: str | None = None, watch: Watch | None = None, **options: Any
    ) -> Result:
        """See `Client.upscale`."""
        return await self._make(partial(calls.upscale, image, by, model, options), watch)

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
        return await self._make(partial(calls.generate, prompt, model, refiner, options), watch)

    async def inpaint(
        self, image: Source, mask: Source, prompt: str = "", *, model: str | None = None, watch: Watch | None = None,
        **options: Any,
    ) -> Result:  # fmt: skip
        """See `Client.inpaint`."""
        return await self._make(partial(calls.inpaint, image, mask, prompt, model, options), watch)

    async def refine(
        self, image: Source, prompt: str = "", *, model: str | None = None, watch: Watch | None = None, **options: Any
    ) -> Result:
        """See `Client.refine`."""
        return await self._make(partial(calls.refine, image, prompt, model, options), watch)

    async def models(self) -> tuple[Model, ...]:
        """See `Client.models`."""
        return tuple(model_of(found) for found in (await self._ask(Call("GET", "/v1/models"))).json()["data"])

    async def jobs(self, status: str | None = None) -> tuple[Job, ...]:
        """See `Client.jobs`."""
        return tuple(job_of(found) for found in (await self._ask(calls.jobs(status))).json()["data"])

    async def job(self, id: str) -> Job:
        """See `Client.job`."""
        return job_of((await self._ask(calls.job(id))).json())

    async def result(self, id: str, *, watch: Watch | None = None) -> Result:
        """See `Client.result`."""
        return await self._run(finished(await self.job(id), self._patience(), watch or ignore))

    async def cancel(self, id: str) -> Job:
        """See `Client.cancel`."""
        return job_of((await self._ask(calls.cancel(id))).json())

    async def health(self) -> Health:
        """See `Client.health`."""
        return health_of(await self._run(once(Call("GET", "/readyz"), self._patience())))

    def _patience(self) -> Patience:
        return Patience(self._timeout, self._retries, time.monotonic())

    async def _ask(self, call: Call) -> Answer:
        return await self._run(asked(call, self._patience()))

    async def _make(self, make: Callable[[], Call], watch: Watch | None) -> Result:
        return await self._run(made(make, uuid.uuid4().hex, self._patience(), watch or ignore))

    async def _run(self, steps: Steps[Kind]) -> Kind:
        """As `Client._run`. Once something broke in, the rest is done shielded from it, and shortly."""
        line = AsyncLine(self._http)
        try:
            action = next(steps)
            while True:
                try:
                    reply = await line.do(action)
                except BaseException as error:  # noqa: BLE001 - passed on by the steps
                    action = steps.throw(error)
                    reply = None
                    with anyio.move_on_after(GOODBYE, shield=True):
                        reply = await line.do(action)
                    action = steps.send(reply)
                else:
                    action = steps.send(reply)
        except StopIteration as end:
            return end.value
        finally:
            with anyio.move_on_after(GOODBYE, shield=True):
                await line.close()
