"""What drills ask of the service: detached jobs, and the log and queue file that they leave."""

import json
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from tests.drills import wire
from tests.support.service import Served, until

OVER = ("succeeded", "failed", "canceled")
DETACHED = {"Prefer": "respond-async"}
HTTP = httpx2.Client(timeout=60, limits=httpx2.Limits(max_keepalive_connections=0))  # a new one would read certificates


def host_of(served: Served) -> str:
    return ":".join(map(str, wire.address(served.url)))


def get(served: Served, path: str) -> httpx2.Response:
    return HTTP.get(served.url + path)


def upscale_later(served: Served, picture: bytes, **fields: str) -> dict[str, Any]:
    """A detached job that enlarges a picture."""
    return accepted(HTTP.post(
        served.url + wire.UPSCALE, files={"image": ("a.png", picture, "image/png")},
        data={"model": "bundled", **fields}, headers=DETACHED,
    ))  # fmt: skip


def generate_later(served: Served, **fields: Any) -> dict[str, Any]:
    """A detached job that makes a picture from text."""
    return accepted(HTTP.post(served.url + wire.GENERATE, json=generation(**fields), headers=DETACHED))


def generation(**fields: Any) -> dict[str, Any]:
    """The body of a small generation."""
    return {"model": "tiny-sd", "prompt": "a drill", "size": "64x64", "num_inference_steps": 4, "seed": 1} | fields


def accepted(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 202, f"expected 202, found {answer.status_code}: {answer.text[:500]}"
    return answer.json()


def job(served: Served, id: str) -> dict[str, Any]:
    """A job as the service tells it now."""
    answer = get(served, f"/v1/jobs/{id}")
    assert answer.status_code == 200, f"job {id}: {answer.status_code} {answer.text[:300]}"
    return answer.json()


def wait_for(served: Served, ids: Iterable[str], seconds: float = 60) -> dict[str, dict[str, Any]]:
    """The jobs, when all are over."""
    found: dict[str, dict[str, Any]] = {}
    for id in ids:
        until(lambda id=id: found.setdefault(id, over(served, id) or {}) or found.pop(id), seconds, served.log_tail)
    return found


def over(served: Served, id: str) -> dict[str, Any] | None:
    now = job(served, id)
    return now if now["status"] in OVER else None


def wait_status(served: Served, id: str, *statuses: str, seconds: float = 30) -> None:
    """Until a job stands so."""
    until(lambda: job(served, id)["status"] in statuses, seconds, served.log_tail)


def results(served: Served, done: dict[str, Any]) -> list[bytes]:
    """The files that a job made."""
    return [get(served, each["url"].removeprefix(served.url)).content for each in done["result"]["data"]]


def log_lines(served: Served) -> Iterator[dict[str, Any]]:
    """The JSON lines of the service's log."""
    for line in served.log.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def metric(served: Served, name: str) -> float:
    """The sum over all labels of one metric."""
    lines = get(served, "/metrics").text.splitlines()
    found = [line.rpartition(" ")[2] for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(map(float, found))


def idle(served: Served) -> bool:
    """Whether nothing waits and nothing runs."""
    return metric(served, "enlarger_queue_size") == 0 and metric(served, "enlarger_requests_running") == 0


def statuses(data: Path) -> dict[str, str]:
    """Every job's status, read from a copy of the queue's file; AssertionError if the file is damaged."""
    with TemporaryDirectory() as place:
        for file in data.glob("queue.sqlite3*"):
            if not file.name.endswith("-shm"):
                shutil.copy(file, place)
        with closing(sqlite3.connect(Path(place) / "queue.sqlite3")) as store:
            assert store.execute("PRAGMA integrity_check").fetchall() == [("ok",)], "the queue's file is damaged"
            return dict(store.execute("SELECT id, status FROM jobs").fetchall())


def clock_of(job: dict[str, Any], field: str) -> float:
    """A time of a job, seconds since 1970."""
    assert isinstance(job[field], int | float), f"{field} is {job[field]!r}"
    return job[field]


def now() -> float:
    return time.time()
