"""Hours in small: mixed sizes, models, cancels, errors, hang-ups and streams for minutes, while memory is watched."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import httpx2

from tests.drills import jobs, wire
from tests.drills.figures import Figure, middle, none
from tests.drills.processes import Role, memory, open_files, pids
from tests.support.service import Served

CLIENTS = 4
EVERY = 2.0  # seconds between two looks at the memory
WARM = 0.25  # share of the time that is warm-up
SIDES = (16, 33, 64, 100, 128, 200, 256)
DRIFT = 2.0  # per cent


@dataclass
class Watch:
    """What was seen."""

    outcomes: Counter[str] = field(default_factory=Counter[str])
    memory: list[tuple[float, dict[Role, int]]] = field(default_factory=list)  # seconds since the start
    files: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Visitor:
    """One client."""

    served: Served
    http: httpx2.AsyncClient
    chance: random.Random
    watch: Watch


def soak(served: Served, seconds: int, seed: int = 0) -> list[Figure]:
    """Work for so many seconds, then compare memory with what it was after warm-up."""
    watch = Watch()
    workers = pids(served.process.pid, "worker")
    asyncio.run(_soak(served, watch, seconds, seed))
    lost = len(set(workers) - set(pids(served.process.pid, "worker")))
    return report(watch, seconds, lost)


async def _soak(served: Served, watch: Watch, length: float, seed: int) -> None:
    end = time.monotonic() + length
    async with httpx2.AsyncClient(base_url=served.url, timeout=120) as http, asyncio.TaskGroup() as group:
        group.create_task(looks(served, watch, end))
        for number in range(CLIENTS):
            visitor = Visitor(served, http, random.Random(f"{seed} {number}"), watch)
            group.create_task(visits(visitor, end))


async def looks(served: Served, watch: Watch, end: float) -> None:
    """Sample the memory until the end."""
    started = time.monotonic()
    while time.monotonic() < end:
        held = await asyncio.to_thread(memory, served.process.pid)
        watch.memory.append((time.monotonic() - started, held))
        watch.files.append(open_files(served.process.pid))
        await asyncio.sleep(EVERY)


async def visits(visitor: Visitor, end: float) -> None:
    """One client: one thing after another."""
    names, weights = list(ACTIONS), [weight for weight, _ in ACTIONS.values()]
    while time.monotonic() < end:
        name = visitor.chance.choices(names, weights)[0]
        outcome = await ACTIONS[name][1](visitor)
        visitor.watch.outcomes[f"{name}: {outcome}"] += 1
        if outcome == "429":
            await asyncio.sleep(1)


def picture(visitor: Visitor) -> bytes:
    chance = visitor.chance
    return wire.png(chance.choice(SIDES), chance.choice(SIDES), seed=chance.randrange(1000))


async def enlarge(visitor: Visitor) -> str:
    """A picture of some size, now and then with texture."""
    fields = {"model": "bundled", "detail": visitor.chance.choice(("0", "0", "1"))}
    answer = await visitor.http.post(wire.UPSCALE, files={"image": ("a.png", picture(visitor))}, data=fields)
    return str(answer.status_code)


async def generate(visitor: Visitor) -> str:
    size = f"{visitor.chance.choice((64, 96, 128))}x{visitor.chance.choice((64, 96))}"
    fields = jobs.generation(
        size=size, n=visitor.chance.choice((1, 1, 2)), num_inference_steps=visitor.chance.randint(1, 12)
    )
    return str((await visitor.http.post(wire.GENERATE, json=fields)).status_code)


async def repaint(visitor: Visitor) -> str:
    """An edit with a mask."""
    whole = wire.png(64, 64, seed=visitor.chance.randrange(1000))
    files = {"image": ("a.png", whole), "mask": ("m.png", wire.png(64, 64))}
    fields = {"model": "tiny-sd", "prompt": "a drill", "mask_mode": "luminance", "num_inference_steps": "4"}
    return str((await visitor.http.post(wire.EDIT, files=files, data=fields)).status_code)


async def stream(visitor: Visitor) -> str:
    """A generation with partial pictures, read to its end."""
    fields = jobs.generation(num_inference_steps=10, stream=True, partial_images=2)
    async with visitor.http.stream("POST", wire.GENERATE, json=fields) as answer:
        text = "".join([piece async for piece in answer.aiter_text()])
    return str(answer.status_code) if answer.status_code != 200 else "completed" if "completed" in text else "cut"


async def follow(visitor: Visitor) -> str:
    """A detached job whose events are read."""
    made = await later(visitor, 20)
    if isinstance(made, str):
        return made
    async with visitor.http.stream("GET", f"/v1/jobs/{made['id']}/events") as answer:
        kinds = [line.removeprefix("event: ") async for line in answer.aiter_lines() if line.startswith("event: ")]
    return kinds[-1] if kinds else "no events"


async def cancel(visitor: Visitor) -> str:
    """A detached job that is canceled after a moment."""
    made = await later(visitor, 100)
    if isinstance(made, str):
        return made
    await asyncio.sleep(visitor.chance.uniform(0, 0.5))
    answer = await visitor.http.post(f"/v1/jobs/{made['id']}/cancel")
    return answer.json().get("status", str(answer.status_code))


async def forget(visitor: Visitor) -> str:
    """A detached job whose result is fetched and deleted."""
    made = await later(visitor, 2)
    if isinstance(made, str):
        return made
    while (now := (await visitor.http.get(f"/v1/jobs/{made['id']}")).json())["status"] not in jobs.OVER:
        await asyncio.sleep(0.05)
    for each in (now["result"] or {"data": ()})["data"]:
        assert (await visitor.http.get(each["url"])).status_code == 200
    return str((await visitor.http.delete(f"/v1/jobs/{made['id']}")).status_code)


async def later(visitor: Visitor, steps: int) -> dict[str, str] | str:
    """A detached job, or the status that refused it."""
    fields = jobs.generation(num_inference_steps=steps)
    answer = await visitor.http.post(wire.GENERATE, json=fields, headers=jobs.DETACHED)
    return answer.json() if answer.status_code == 202 else str(answer.status_code)


async def hang_up(visitor: Visitor) -> str:
    """A client that goes before its answer."""
    raw = wire.send_json(wire.GENERATE, jobs.host_of(visitor.served), jobs.generation(num_inference_steps=100))
    with suppress(TimeoutError):
        async with asyncio.timeout(visitor.chance.uniform(0, 0.5)):
            return str((await wire.exchange(visitor.served.url, raw)).status)
    return "gone"


async def spoil(visitor: Visitor) -> str:
    """Something that must be refused."""
    whole = picture(visitor)
    wrong: list[Callable[[], Awaitable[httpx2.Response]]] = [
        lambda: visitor.http.post(wire.UPSCALE, files={"image": ("a.png", whole[: len(whole) // 2])}),
        lambda: visitor.http.post(wire.UPSCALE, data={"model": "bundled"}),
        lambda: visitor.http.post(wire.GENERATE, json=jobs.generation(num_inference_steps=10**6)),
        lambda: visitor.http.post(wire.GENERATE, content=b"{", headers={"Content-Type": "application/json"}),
        lambda: visitor.http.post(wire.GENERATE, json=jobs.generation(model="none")),
        lambda: visitor.http.get(f"/v1/jobs/{'a' * 22}"),
        lambda: visitor.http.post(wire.GENERATE, json=jobs.generation(), headers={"Origin": "https://evil.example"}),
    ]
    return str((await visitor.chance.choice(wrong)()).status_code)


async def browse(visitor: Visitor) -> str:
    paths = ("/", "/v1/models", "/info", "/metrics", "/v1/jobs", "/readyz", "/openapi.json")
    return str((await visitor.http.get(visitor.chance.choice(paths))).status_code)


ACTIONS: dict[str, tuple[int, Callable[[Visitor], Awaitable[str]]]] = {
    "enlarge": (8, enlarge),
    "generate": (6, generate),
    "repaint": (3, repaint),
    "stream": (3, stream),
    "follow events": (3, follow),
    "cancel": (3, cancel),
    "fetch and delete": (3, forget),
    "hang up": (3, hang_up),
    "mistake": (4, spoil),
    "browse": (3, browse),
}


def report(watch: Watch, length: float, lost: int) -> list[Figure]:
    """Memory of the second half beside that after warm-up, and requests by outcome."""
    count = watch.outcomes.total()
    failed = sum(
        n for outcome, n in watch.outcomes.items() if outcome.endswith((": 500", ": 503", ": 0", ": failed", ": cut"))
    )
    figures = [
        Figure("requests", count, least=1),
        none("answered with 5xx, cut off, or failed", failed),
        none("workers lost", lost),
    ]
    for role in ("server", "worker", "decoder"):
        warm = [held[role] for at, held in watch.memory if role in held and WARM * length <= at < length / 2]
        late = [held[role] for at, held in watch.memory if role in held and at >= length / 2]
        if warm and late:
            drift = 100 * (middle(late) / middle(warm) - 1)
            figures += [
                Figure(f"{role}: memory after warm-up", middle(warm) / 2**20, "MiB"),
                Figure(f"{role}: growth of the second half's median", drift, "%", most=DRIFT, loose=True),
                Figure(f"{role}: most", max(held.get(role, 0) for _, held in watch.memory) / 2**20, "MiB"),
            ]
    files = watch.files[len(watch.files) // 4 :]
    figures += [Figure("server: open files, most after warm-up", max(files, default=0), most=200)]
    return [*figures, *(Figure(outcome, n) for outcome, n in sorted(watch.outcomes.items()))]
