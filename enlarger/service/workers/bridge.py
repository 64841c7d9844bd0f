"""The process between the server and an actor: a worker to the one, with lines on pipes, the owner of the other.

It alone writes what an actor has made into the folder of the jobs, so that an actor which outlives its owner for a
moment does no harm. If either end goes away, it ends, and Ray ends the actor with it.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from enlarger.cluster.connect import ClusterOptions, connected
from enlarger.errors import EnlargerError
from enlarger.image.decode import one_line
from enlarger.service.jobs.files import write_job_file
from enlarger.service.jobs.job import RESULT_FILE, job_folder
from enlarger.service.problems import ProblemError
from enlarger.service.workers import messages
from enlarger.service.workers.actor import Files, Heard, WorkerActor

CALLS_AT_ONCE = 4  # of an actor: it is told something while it is asked what it says


def bridge_argv(address: str, gpus: float) -> Sequence[str]:
    """How a bridge is started."""
    return (sys.executable, "-m", "enlarger.service.workers.bridge", json.dumps({"address": address, "gpus": gpus}))


class Bridge:
    """Commands one way, events and files the other."""

    def __init__(self, ray: Any, gpus: float, events: int) -> None:
        self._ray, self._events = ray, events
        self._data = Path()
        options = {"num_cpus": 1, "num_gpus": gpus, "max_concurrency": CALLS_AT_ONCE, "max_restarts": 0}
        self._actor = ray.remote(**options)(WorkerActor).remote(os.getcwd())

    def listen(self, lines: Iterable[bytes]) -> None:
        """Pass on commands until the server closes its end, then end the process."""
        try:
            for line in lines:
                command = messages.COMMANDS.validate_json(line)
                if isinstance(command, messages.Start):
                    self._data = command.data
                jobs = command.jobs if isinstance(command, messages.Run) else ()
                files = {job.id: self._files(job.id) for job in jobs}
                self._actor.tell.remote(line, files)
        finally:
            os._exit(0)

    def relay(self) -> str:
        """Pass on what the worker says until it ends; why it did."""
        failure = None
        while failure is None:
            heard, failure = self._ray.get(self._actor.hear.remote())
            for each in heard:
                self._write(self._delivered(each))
        return failure

    def _files(self, id: str) -> Files:
        """What lies in a job's folder; previews of an earlier attempt aside."""
        return {path.name: path.read_bytes() for path in job_folder(self._data, id).iterdir() if path.is_file()}

    def _delivered(self, heard: Heard) -> bytes:
        """The message, once the files that it speaks of are in the job's folder; a problem where they cannot be."""
        event = messages.EVENTS.validate_json(heard.line)
        if not isinstance(event, messages.JobMessage) or not heard.files:
            return heard.line
        folder = job_folder(self._data, event.id)
        try:
            for name, data in heard.files.items():
                if folder.is_dir() and not (name == RESULT_FILE and (folder / name).exists()):
                    with write_job_file(folder / Path(name).name) as stream:
                        stream.write(data)
        except ProblemError as error:
            return messages.JobFailed(id=event.id, problem=error.problem).encode()
        return heard.line

    def _write(self, line: bytes) -> None:
        remaining = memoryview(line)
        while remaining:
            remaining = remaining[os.write(self._events, remaining) :]


def main(about: dict[str, Any]) -> None:
    """Bridge until either end goes away."""
    for number in (signal.SIGINT, signal.SIGTERM):  # may reach the whole group; the server decides
        signal.signal(number, signal.SIG_IGN)
    events = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints goes to the log
    gpus = float(about["gpus"])
    try:
        with connected(ClusterOptions(str(about["address"]), gpus_per_worker=gpus)) as ray:
            bridge = Bridge(ray, gpus, events)
            threading.Thread(target=bridge.listen, args=(sys.stdin.buffer,), daemon=True).start()
            reason = _relay(ray, bridge)
    except EnlargerError as error:
        reason = str(error)
    sys.stderr.write(f"enlarger: {one_line(reason)}\n")
    os._exit(1)


def _relay(ray: Any, bridge: Bridge) -> str:
    """Why it is over."""
    try:
        return bridge.relay()
    except ray.exceptions.RayError as error:
        return f"the worker's actor is lost: {str(error).strip().splitlines()[0]}"
    except OSError:
        return "the server is gone"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
