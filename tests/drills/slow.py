"""Clients that send slowly or not at all: a good client does not notice, and they are shown the door."""

import asyncio
import time
import tomllib
from collections.abc import Callable, Coroutine
from typing import Any

from enlarger.service.settings import Bounds
from tests.drills import jobs, wire
from tests.drills.figures import Figure, quantile, seconds, share
from tests.support.service import Served

ROUTES = (wire.UPSCALE, wire.GENERATE, wire.EDIT, "/v1/images/variations", "/v1/jobs/x/cancel")
SPACING = 0.02  # seconds between two slow senders: in the end all of them are there at once


def slow(served: Served, senders: int) -> list[Figure]:
    """So many slow senders of four kinds, while a good client works."""
    bounds = Bounds(**tomllib.loads(served.config.read_text()).get("bounds", {}))
    return asyncio.run(_slow(served, senders, bounds))


async def _slow(served: Served, senders: int, bounds: Bounds) -> list[Figure]:
    host, most = jobs.host_of(served), bounds.body_seconds + 10
    makers = list(KINDS.items())
    kinds = [makers[number % len(makers)] for number in range(senders)]
    tasks = [
        asyncio.create_task(held(served, make(host, ROUTES[number % len(ROUTES)]), number * SPACING, most))
        for number, (_, make) in enumerate(kinds)
    ]
    good = await good_client(served, tasks)
    ends = await asyncio.gather(*tasks)
    figures = [
        Figure("requests of the good client meanwhile", len(good), least=10),
        seconds("its answers, p99", quantile(good, 0.99)),
        seconds("its answers, longest", max(good), most=1),
    ]
    deadlines = {
        "silent": bounds.header_seconds, "header": bounds.header_seconds, "stalled": bounds.idle_seconds,
        "trickle": bounds.body_seconds,
    }  # fmt: skip
    for name, deadline in deadlines.items():
        times = [end for (kind, _), end in zip(kinds, ends, strict=True) if kind == name]
        closed = sum(end <= deadline + 2 for end in times)
        figures += [share(f"{REPORTED[name]}: closed within {deadline + 2:g} s", closed, len(times))]
        figures += [seconds(f"{REPORTED[name]}: the last one closed after", max(times, default=0))]
    return figures


async def good_client(served: Served, others: list[asyncio.Task[float]]) -> list[float]:
    """Ask for models and enlarge a small picture, in turn, for as long as there are others."""
    host = jobs.host_of(served)
    picture = wire.form(wire.UPSCALE, host, {"model": "bundled"}, [wire.Part("image", wire.png(16, 16))])
    rounds = (wire.request("GET", "/v1/models", host), picture)
    times: list[float] = []
    while not all(task.done() for task in others):
        started = time.perf_counter()
        answer = await wire.exchange(served.url, rounds[len(times) % 2])
        assert answer.status == 200, f"the good client got {answer.status}: {answer.body[:300]}"
        times.append(time.perf_counter() - started)
        await asyncio.sleep(0.05)
    return times


Sending = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]


async def held(served: Served, sending: Sending, later: float, most: float) -> float:
    """How long the service keeps a connection, opened a little later, on which somebody sends like this."""
    await asyncio.sleep(later)
    reader, writer = await asyncio.open_connection(*wire.address(served.url))
    started = time.perf_counter()
    task = asyncio.create_task(sending(writer))
    try:
        async with asyncio.timeout(most):
            while await reader.read(1 << 16):
                pass
    except OSError:  # a reset closes, too; TimeoutError is an OSError
        pass
    finally:
        took = time.perf_counter() - started
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await wire.closed(writer)
    return took


def _silent(host: str, path: str) -> Sending:
    async def send(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    return send


def _header(host: str, path: str) -> Sending:
    return _slowly(b"", wire.head("POST", path, host, {"X-Slow": "a" * 3600}))


def _stalled(host: str, path: str) -> Sending:
    body, kind = wire.multipart({"prompt": "a"}, [wire.Part("image", wire.png(64, 64))])
    start = wire.head("POST", path, host, {"Content-Type": kind, "Content-Length": str(len(body))})
    return _slowly(start + body[: len(body) // 2], b"")


def _trickle(host: str, path: str) -> Sending:
    body, kind = wire.multipart({"prompt": "a" * 3600})
    return _slowly(wire.head("POST", path, host, {"Content-Type": kind, "Content-Length": str(len(body))}), body)


def _slowly(at_once: bytes, rest: bytes) -> Sending:
    """Some bytes at once, then one each second."""

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(at_once)
        for byte in rest:
            writer.write(bytes([byte]))
            await asyncio.sleep(1)
        await asyncio.sleep(3600)

    return send


KINDS: dict[str, Callable[[str, str], Sending]] = {
    "silent": _silent,
    "header": _header,
    "stalled": _stalled,
    "trickle": _trickle,
}
REPORTED = {
    "silent": "nothing sent",
    "header": "headers at a byte a second",
    "stalled": "half a body, then nothing",
    "trickle": "a body at a byte a second",
}
