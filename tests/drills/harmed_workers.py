"""A worker that is stopped, one in an endless loop, one that eats memory: noticed in time, and the next job runs."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from tests.drills import jobs, wire
from tests.drills.figures import Figure, seconds, share
from tests.drills.processes import pids
from tests.support.service import Served, running, until

HEARTBEAT, JOB_SECONDS, MEMORY = 4, 10, 1.5  # seconds, seconds, GiB
BOUNDS = {"job_seconds": JOB_SECONDS}
GRACE = 2.0  # seconds for a look at the process, and to tell of it
HARM = """
import signal, time

def loop(*_):
    while True:
        pass

def eat(*_):
    kept = [b"x" * (64 << 20) for _ in range(40)]
    time.sleep(len(kept))

signal.signal(signal.SIGUSR1, loop)
signal.signal(signal.SIGUSR2, eat)
"""
WAYS = (
    ("stopped", signal.SIGSTOP, "succeeded", HEARTBEAT),
    ("in a loop", signal.SIGUSR1, "job_timeout", JOB_SECONDS),
    ("eating", signal.SIGUSR2, "out_of_memory", 5),
)


def harmed_workers(rounds: int) -> list[Figure]:
    """Harm the worker in each way, so many times."""
    figures: list[Figure] = []
    with (
        harm_on_signals(),
        running(models=(), heartbeat_seconds=HEARTBEAT, worker_memory=MEMORY, bounds=BOUNDS) as served,
    ):
        for name, number, expected, deadline in WAYS:
            found = [harm(served, number) for _ in range(rounds)]
            longest = max(after for after, _, _ in found)
            figures += [
                seconds(f"{name}: the worker was ended after, longest", longest, most=deadline + GRACE),
                share(f"{name}: the job ended as {expected}", sum(end == expected for _, end, _ in found), rounds),
                share(f"{name}: the next job succeeded", sum(next_one for _, _, next_one in found), rounds),
            ]
    return figures


@contextmanager
def harm_on_signals() -> Iterator[None]:
    """Processes that start meanwhile loop on SIGUSR1 and eat on SIGUSR2."""
    before = os.environ.get("PYTHONPATH")
    with TemporaryDirectory(prefix="enlarger-harm-") as place:
        (Path(place) / "sitecustomize.py").write_text(HARM)
        os.environ["PYTHONPATH"] = os.pathsep.join([place, *([] if before is None else [before])])
        try:
            yield
        finally:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before


def harm(served: Served, number: signal.Signals) -> tuple[float, str, bool]:
    """Harm the worker of a job. Seconds until it was ended, how the job ended, and whether the one behind it was
    done."""
    served.wait_ready()
    job = jobs.upscale_later(served, wire.png(512, 512))["id"]
    behind = jobs.upscale_later(served, wire.png(8, 8))["id"]
    jobs.wait_status(served, job, "running", seconds=60)
    after = seconds_to_end(pids(served.process.pid, "worker")[0], number)
    ended = jobs.wait_for(served, [job, behind], 120)
    error = ended[job]["error"]
    return after, ended[job]["status"] if error is None else error["code"], ended[behind]["status"] == "succeeded"


def seconds_to_end(worker: int, number: signal.Signals) -> float:
    """Harm a worker; the seconds until its process is gone."""
    began = time.monotonic()
    os.kill(worker, number)
    until(lambda: not psutil.pid_exists(worker), 60)
    return time.monotonic() - began
