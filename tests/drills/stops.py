"""Stops in order (SIGTERM) while work runs and waits: what runs ends, what waits is kept, the exit status is 0."""

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2

from tests.drills import jobs
from tests.drills.figures import Figure, middle, millis, seconds, share
from tests.support.service import START_SECONDS, Served, start

WAITING = 2  # detached jobs behind the one that runs
DRAIN = 30.0  # seconds that the service may take


@dataclass(frozen=True)
class Stop:
    """What one stop was like."""

    unready: float  # seconds until /readyz said so, or the door was closed
    said: bool  # whether /readyz said 503
    exit: float
    status: int
    finished: bool  # the running job
    kept: bool  # the waiting ones, as queued
    done: bool = False  # the waiting ones, after the restart


def stops(rounds: int) -> list[Figure]:
    """Stop and start a service so often."""
    made: list[Stop] = []
    with TemporaryDirectory(prefix="enlarger-stops-") as place:
        waiting: list[str] = []
        for _ in range(rounds):
            served = begun(Path(place))
            made, waiting = settle(served, made, waiting)
            stop, waiting = one(served)
            made.append(stop)
        served = begun(Path(place))
        made, _ = settle(served, made, waiting)
        served.process.terminate()
        served.process.wait(DRAIN)
    return report(made)


def begun(place: Path) -> Served:
    served = start(place, place / "data")
    served.wait_ready(START_SECONDS)
    return served


def settle(served: Served, made: list[Stop], waiting: list[str]) -> tuple[list[Stop], list[str]]:
    """Let the jobs that outlived the last stop end, and note whether they all succeeded."""
    if not made:
        return made, []
    ended = jobs.wait_for(served, waiting)
    last = Stop(**{**vars(made[-1]), "done": all(each["status"] == "succeeded" for each in ended.values())})
    return [*made[:-1], last], []


def one(served: Served) -> tuple[Stop, list[str]]:
    """Start a job that takes a second or so, queue others behind it, and ask the service to end."""
    running = jobs.generate_later(served, num_inference_steps=100)["id"]
    waiting = [jobs.generate_later(served, seed=seed)["id"] for seed in range(WAITING)]
    jobs.wait_status(served, running, "running")
    started = time.perf_counter()
    served.process.send_signal(signal.SIGTERM)
    unready, said = wait_unready(served, started)
    status = served.process.wait(DRAIN + 10)
    took = time.perf_counter() - started
    found = jobs.statuses(served.data)
    kept = all(found.get(id) == "queued" for id in waiting)
    return Stop(unready, said, took, status, found.get(running) == "succeeded", kept), waiting


def wait_unready(served: Served, started: float) -> tuple[float, bool]:
    """Seconds until the service no longer says that it is ready, and whether it said so in an answer."""
    while served.process.poll() is None:
        try:
            status = jobs.HTTP.get(f"{served.url}/readyz").status_code
        except httpx2.HTTPError:
            return time.perf_counter() - started, False
        if status != 200:
            return time.perf_counter() - started, status == 503
        time.sleep(0.005)
    return time.perf_counter() - started, False


def report(made: list[Stop]) -> list[Figure]:
    count = len(made)
    exits = [each.exit for each in made]
    return [
        share("/readyz said 503 while the job still ran", sum(each.said for each in made), count),
        millis("time from SIGTERM to that, longest", max(each.unready for each in made), most=0.25),
        share("the running job ended as succeeded", sum(each.finished for each in made), count),
        share("waiting detached jobs were kept as queued", sum(each.kept for each in made), count),
        share("and succeeded after the restart", sum(each.done for each in made), count),
        share("exit status 0", sum(each.status == 0 for each in made), count),
        seconds("time from SIGTERM to the end, median", middle(exits)),
        seconds("time from SIGTERM to the end, longest", max(exits), most=DRAIN),
    ]
