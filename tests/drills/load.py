"""Many requests at once: those that fit succeed, the others are told at once to come back, health stays answered."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from tests.drills import jobs, wire
from tests.drills.figures import Figure, middle, millis, none, quantile, share
from tests.drills.probe import probing
from tests.support.service import Served

QUEUE = 16
SIDE = 192  # pixels of the pictures that everybody sends
MOMENT = 0.05  # seconds to a refusal, and to an answer about health


def load(served: Served, requests: int) -> list[Figure]:
    """So many requests at the same moment, to a service with room for 16 that wait."""
    jobs.wait_for(served, [jobs.upscale_later(served, wire.png(SIDE, SIDE))["id"]])
    with probing(served.url) as health:
        answers = asyncio.run(volley(served, requests))
    by_status = {status: [a for a in answers if a.status == status] for status in (200, 429)}
    busy = by_status[429]
    logged = logged_seconds(served, busy)
    with_retry = sum(a.headers.get("retry-after", "").isdecimal() and a.code is not None for a in busy)
    return [
        Figure(f"of {requests} requests: admitted and succeeded", len(by_status[200]), least=min(QUEUE, requests)),
        none("lost, or answered otherwise", len(answers) - len(busy) - len(by_status[200])),
        share("refused with 429, Retry-After and a code", with_retry, len(busy)),
        millis("time to 429 in the service's log, longest", max(logged, default=0), most=MOMENT),
        millis("time to 429 at the client, median", middle([a.seconds for a in busy])),
        millis("time to 429 at the client, longest", max((a.seconds for a in busy), default=0)),
        millis("/healthz every 20 ms meanwhile, p99", quantile(health, 0.99), most=MOMENT),
        millis("/healthz meanwhile, longest", max(health)),
        *inference(served, max(3, requests // 12)),
        *expected_times(served),
    ]


async def volley(served: Served, count: int) -> list[wire.Answer]:
    """Open all connections, then send on all of them."""
    host = jobs.host_of(served)
    raw = wire.form(wire.UPSCALE, host, {"model": "bundled"}, [wire.Part("image", wire.png(SIDE, SIDE))])
    streams = await asyncio.gather(*(asyncio.open_connection(*wire.address(served.url)) for _ in range(count)))
    try:
        return await asyncio.gather(*(wire.answer_of(reader, writer, raw) for reader, writer in streams))
    finally:
        await asyncio.gather(*(wire.closed(writer) for _, writer in streams))


def logged_seconds(served: Served, answers: Sequence[wire.Answer]) -> list[float]:
    """How long the service says that these answers took it."""
    ids = {answer.headers["x-request-id"] for answer in answers}
    lines = [line for line in jobs.log_lines(served) if line.get("id") in ids and "seconds" in line]
    assert len(lines) >= len(ids), f"{len(ids)} requests, but {len(lines)} lines in the log"
    return [line["seconds"] for line in lines]


def inference(served: Served, seconds: float) -> list[Figure]:
    """Health while large pictures keep the worker busy."""
    end, picture = time.monotonic() + seconds, wire.png(512, 512)
    with probing(served.url) as health:
        while time.monotonic() < end:
            jobs.wait_for(served, [jobs.upscale_later(served, picture)["id"]])
    return [
        Figure("questions about health while pictures of 512 x 512 are enlarged", len(health)),
        millis("their answers, p99", quantile(health, 0.99), most=MOMENT),
        millis("their answers, longest", max(health)),
    ]


def expected_times(served: Served, count: int = 8) -> list[Figure]:
    """How far the stated waiting times of queued jobs are from what comes."""
    picture = wire.png(SIDE, SIDE)
    jobs.wait_for(served, [jobs.upscale_later(served, picture)["id"] for _ in range(3)])
    made = [jobs.upscale_later(served, picture)["id"] for _ in range(count)]
    asked = {id: (jobs.now(), jobs.job(served, id)) for id in made}
    done = jobs.wait_for(served, made)
    errors = [error for id in made if (error := missed(*asked[id], done[id])) is not None]
    return [
        Figure("queued jobs with a stated time left", len(errors), least=count - 3),
        Figure("error of the stated time, median", 100 * middle(errors), "%", most=25, loose=True),
        Figure("error of the stated time, largest", 100 * max(errors, default=0), "%"),
    ]


def missed(asked: float, stated: dict[str, Any], done: dict[str, Any]) -> float | None:
    """The relative error of one stated time; None for a job that had begun."""
    if stated["status"] != "queued" or stated["eta_seconds"] is None:
        return None
    real = jobs.clock_of(done, "finished") - asked
    return abs(stated["eta_seconds"] - real) / real
