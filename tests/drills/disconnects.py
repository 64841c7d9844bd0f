"""Clients that hang up while their request waits, runs or streams: the place is free at once, and nothing leaks."""

import asyncio
import random
import time
from typing import Any

from tests.drills import jobs, wire
from tests.drills.figures import Figure, mebibytes, millis, none, quantile
from tests.drills.processes import memory, open_files, pids, threads
from tests.support.service import Served, until

LONG = 120  # steps of requests that are hung up on
MOMENT = 0.1  # seconds that the place may take to be free, beyond one step


def disconnects(served: Served, times: int, seed: int = 0) -> list[Figure]:
    """Hang up so often at random moments, every tenth time with a stopwatch."""
    chance = random.Random(seed)
    workers = pids(served.process.pid, "worker")
    asyncio.run(some(served, max(15, times // 10), chance))  # warm up: code, connections, weights
    settle(served)
    before = standing(served)
    freed = [place_freed(served) for _ in range(max(3, times // 20))]
    asyncio.run(some(served, times - len(freed), chance))
    settle(served)
    after = standing(served)
    step = step_seconds(served)
    return [
        Figure("hung up on while waiting, running or streaming", times, least=times),
        millis("one step", step),
        millis("running: the next job started after, median", quantile(freed, 0.5)),
        millis("running: the next job started after, longest", max(freed), most=step + MOMENT),
        none("jobs left waiting or running", round(left(served))),
        none("workers lost", len(set(workers) - set(pids(served.process.pid, "worker")))),
        Figure("growth of the server's open files", after["files"] - before["files"], most=2),
        Figure("growth of the server's threads", after["threads"] - before["threads"], most=2),
        mebibytes("growth of the server's memory", after["server"] - before["server"], most=4 * 2**20),
        mebibytes("growth of the worker's memory", after["worker"] - before["worker"], most=32 * 2**20),
    ]


def raw(served: Served, steps: int, **fields: Any) -> bytes:
    """A request whose client waits on its connection."""
    return wire.send_json(wire.GENERATE, jobs.host_of(served), jobs.generation(num_inference_steps=steps, **fields))


async def some(served: Served, count: int, chance: random.Random) -> None:
    """Hang up on so many requests, three at a time, so that some wait, one runs and some stream."""
    for _ in range(-(-count // 3)):
        await asyncio.gather(
            hang_up(served, raw(served, LONG), chance.uniform(0, 0.3), chance.random() < 0.5),
            hang_up(served, raw(served, LONG), chance.uniform(0, 0.4), chance.random() < 0.5),
            hang_up(served, raw(served, LONG, stream=True, partial_images=3), chance.uniform(0, 0.5), False),
        )


async def hang_up(served: Served, request: bytes, after: float, rudely: bool) -> None:
    """Send a request, listen for a while, and go; rudely: with a reset instead of an orderly end."""
    reader, writer = await asyncio.open_connection(*wire.address(served.url))
    writer.write(request)
    try:
        async with asyncio.timeout(after):
            await reader.read()
    except TimeoutError:
        pass
    finally:
        if rudely:
            writer.transport.abort()
        await wire.closed(writer)


def place_freed(served: Served) -> float:
    """Seconds from hanging up on the running request to the start of the job behind it."""

    async def drop() -> tuple[float, str]:
        _, writer = await asyncio.open_connection(*wire.address(served.url))
        writer.write(raw(served, LONG))
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, until, lambda: jobs.metric(served, "enlarger_requests_running") == 1, 10)
        next_ = await loop.run_in_executor(None, lambda: jobs.generate_later(served)["id"])
        await asyncio.sleep(0.1)
        writer.transport.abort()
        moment = jobs.now()
        await wire.closed(writer)
        return moment, next_

    moment, next_ = asyncio.run(drop())
    ended = jobs.wait_for(served, [next_])[next_]
    assert ended["status"] == "succeeded", ended
    return jobs.clock_of(ended, "started") - moment


def settle(served: Served) -> None:
    """Wait until nothing waits and nothing runs, and a moment for connections to close."""
    until(lambda: jobs.idle(served), 30, served.log_tail)
    time.sleep(0.3)


def left(served: Served) -> float:
    return jobs.metric(served, "enlarger_queue_size") + jobs.metric(served, "enlarger_requests_running")


def standing(served: Served) -> dict[str, int]:
    """What could leak."""
    pid = served.process.pid
    held = memory(pid)
    return {"files": open_files(pid), "threads": threads(pid), "server": held["server"], "worker": held["worker"]}


def step_seconds(served: Served) -> float:
    """The mean time of a step, as the service measured it."""
    count = jobs.metric(served, "enlarger_step_duration_seconds_count")
    return jobs.metric(served, "enlarger_step_duration_seconds_sum") / max(count, 1)
