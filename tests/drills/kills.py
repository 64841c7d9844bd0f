"""Kills (SIGKILL) of the worker and of the server at random moments: no job is lost, run twice to its end, or half."""

import json
import os
import random
import re
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from tests.drills import jobs, wire
from tests.drills.figures import Figure, middle, none, seconds, share
from tests.drills.processes import pids
from tests.support.service import Served, start

FILES = re.compile(r"(image|mask)\.png|(result|preview)-\d+\.(png|jpeg|jpg|webp)|done\.json")
WINDOW = 0.5  # seconds after the jobs are handed in, within which the kill comes
EACH = 2  # jobs handed in each round


@dataclass
class Tally:
    """What was seen so far."""

    made: list[str] = field(default_factory=list)
    complete: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # id: the files' identity when first complete
    worker: list[float] = field(default_factory=list)  # seconds to recover
    server: list[float] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def kills(rounds: int, seed: int = 0) -> list[Figure]:
    """So many kills, of worker and server in turn."""
    chance, tally = random.Random(seed), Tally()
    with TemporaryDirectory(prefix="enlarger-kills-") as folder:
        place = Path(folder)
        served = begun(place)
        try:
            for number in range(rounds):
                hand_in(served, tally, number)
                time.sleep(chance.uniform(0, WINDOW))
                served = kill_worker(served, tally) if number % 2 == 0 else kill_server(served, tally, place)
                look(served, tally)
            ended = jobs.wait_for(served, tally.made, 120)
            look(served, tally)
            stored = jobs.statuses(served.data)
            return report(tally, served, ended, stored)
        finally:
            served.process.kill()
            served.process.wait()


def begun(place: Path) -> Served:
    served = start(place, place / "data", settings={"queue": 64, "job_minutes": 600})
    served.wait_ready()
    return served


def hand_in(served: Served, tally: Tally, number: int) -> None:
    """One job of each kind; those of the rounds before may still wait."""
    tally.made += [jobs.upscale_later(served, wire.png(48, 40, seed=number))["id"]]
    tally.made += [jobs.generate_later(served, num_inference_steps=12, seed=number)["id"] for _ in range(EACH - 1)]


def kill_worker(served: Served, tally: Tally) -> Served:
    """Kill the worker, and wait until another one has done all that was handed in: a second death of one job's worker
    would rightly fail the job."""
    victims = pids(served.process.pid, "worker")
    moment = jobs.now()
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    tally.made += [jobs.generate_later(served)["id"]]
    ended = jobs.wait_for(served, tally.made[-3 * EACH :])
    begun_again = [start for each in ended.values() if (start := jobs.clock_of(each, "started")) > moment]
    tally.worker.append(min(begun_again) - moment)
    return served


def kill_server(served: Served, tally: Tally, place: Path) -> Served:
    """Kill the server, look at what is left, and start another."""
    served.process.kill()
    served.process.wait()
    started = time.perf_counter()
    try:
        jobs.statuses(served.data)
    except AssertionError as error:
        tally.damaged.append(str(error))
    again = begun(place)
    tally.server.append(time.perf_counter() - started)
    return again


def look(served: Served, tally: Tally) -> None:
    """Note the identity of the files of jobs that are complete since the last look."""
    for id in tally.made:
        if id not in tally.complete and jobs.job(served, id)["status"] == "succeeded":
            tally.complete[id] = identity(served.data / "jobs" / id)


def identity(folder: Path) -> tuple[Any, ...]:
    """What changes when a file is written again."""
    files = sorted([folder / "done.json", *folder.glob("result-*")])
    return tuple((file.name, file.stat().st_ino, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def report(tally: Tally, served: Served, ended: dict[str, Any], stored: dict[str, str]) -> list[Figure]:
    count, folders = len(tally.made), [served.data / "jobs" / id for id in tally.made]
    succeeded = sum(each["status"] == "succeeded" for each in ended.values())
    stored_so = sum(stored.get(id) == "succeeded" for id in tally.made)
    left = [file.name for folder in folders for file in folder.iterdir() if not FILES.fullmatch(file.name)]
    return [
        Figure("kills", len(tally.worker) + len(tally.server)),
        none("times that the queue's file did not open or was damaged", len(tally.damaged)),
        share("detached jobs that succeeded", succeeded, count),
        share("rows that say so in the queue's file", stored_so, count),
        none("jobs in it that nobody handed in", len(set(stored) - set(tally.made))),
        none("results written again after completion", sum(
            identity(served.data / "jobs" / id) != seen for id, seen in tally.complete.items()
        )),
        share("whole results (done.json and every picture opens)", sum(map(whole, folders)), count),
        none("temporary files left" + (f" ({', '.join(left[:5])})" if left else ""), len(left)),
        seconds("worker killed: another one began a job after, median", middle(tally.worker)),
        seconds("worker killed: another one began a job after, longest", max(tally.worker, default=0), most=5),
        seconds("server killed: started and ready again after, median", middle(tally.server)),
        seconds("server killed: started and ready again after, longest", max(tally.server, default=0), most=10),
    ]  # fmt: skip


def whole(folder: Path) -> bool:
    """Whether a job's folder holds what its done.json says."""
    try:
        done = json.loads((folder / "done.json").read_text())
        for each in done["images"]:
            with Image.open(BytesIO((folder / each["file"]).read_bytes())) as picture:
                picture.load()
                if picture.size != (each["width"], each["height"]):
                    return False
    except (OSError, ValueError, KeyError, SyntaxError):
        return False
    return bool(done["images"])
