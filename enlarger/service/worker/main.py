"""The worker process: JSON lines in and out, a thread that listens, and the main thread that computes."""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from enlarger.errors import EnlargerError
from enlarger.runtime.runtime import pick_device
from enlarger.service.jobs import Ask, folder_of
from enlarger.service.settings import ModelSettings
from enlarger.service.worker.shelf import Shelf, trim
from enlarger.service.worker.watching import Running
from enlarger.service.worker.work import Bench, fault_for, log

Message = Mapping[str, Any]
POLITE = 5  # of `nice`: the server goes first


class Wire:
    """Says things to the server, one whole line at a time, from any thread."""

    def __init__(self, handle: int) -> None:
        self._handle, self._lock = handle, threading.Lock()

    def tell(self, event: str, **fields: Any) -> None:
        line = memoryview(json.dumps({"event": event, **fields}).encode() + b"\n")
        try:
            with self._lock:
                while line:
                    line = line[os.write(self._handle, line) :]
        except OSError:  # the server is gone
            os._exit(0)


class Inbox:
    """What the server says. Cancels are heard at once; everything else waits for the main thread."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.waiting: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._stops: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def listen(self, lines: Iterable[bytes]) -> None:
        """Read until the server closes its end, then end the process, whatever it is doing."""
        try:
            for line in lines:
                self._hear(json.loads(line))
        finally:
            os._exit(0)

    def _hear(self, message: Message) -> None:
        with self._lock:
            if message["do"] == "cancel":
                stop = self._stops.get(message["id"])
                if stop is not None:  # else the job is over
                    stop.set()
                return
            if message["do"] == "run":
                self._stops |= {job["id"]: threading.Event() for job in message["jobs"]}
        self.waiting.put(message)

    def jobs(self, message: Message, data: Path) -> list[Running]:
        """The jobs of a run."""
        with self._lock:
            stops = dict(self._stops)
        return [
            Running(job["id"], Ask.from_json(job["ask"]), folder_of(data, job["id"]), self.wire.tell, stops[job["id"]])
            for job in message["jobs"]
        ]

    def forget(self, jobs: Sequence[Running]) -> None:
        """The jobs are over; a cancel that comes now is for nobody."""
        with self._lock:
            for job in jobs:
                self._stops.pop(job.id, None)


def main() -> None:
    """Work until standard input closes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # may reach the whole group; the server decides
        signal.signal(number, signal.SIG_IGN)
    os.nice(POLITE)
    wire = Wire(os.dup(1))
    os.dup2(2, 1)  # whatever a library prints goes to the log
    inbox = Inbox(wire)
    threading.Thread(target=inbox.listen, args=(sys.stdin.buffer,), daemon=True).start()
    start = inbox.waiting.get()
    assert start["do"] == "start", "the first message tells what to work with"
    try:
        device = pick_device(start["device"])
    except EnlargerError as error:
        sys.exit(f"enlarger: {error}")
    settings = [ModelSettings(**one) for one in start["models"]]
    shelf = Shelf(settings, device, start["memory"], wire.tell)
    for one in settings:
        if one.keep:
            _keep(shelf, one.name)
    wire.tell("ready", device=str(device), models=[one.to_json() for one in shelf.known.values()])
    _serve(inbox, Bench(shelf, wire.tell), Path(start["data"]))


def _serve(inbox: Inbox, bench: Bench, data: Path) -> None:
    """Do what is asked, in turn, for ever."""
    wire, shelf = inbox.wire, bench.shelf
    wire.tell("idle")
    while True:
        message = inbox.waiting.get()
        match message["do"]:
            case "run":
                jobs = inbox.jobs(message, data)
                bench.run(jobs)
                inbox.forget(jobs)
                wire.tell("idle")
                trim()
            case "load":
                error = _tried(lambda: shelf.take(message["model"]), "a model cannot be loaded")  # noqa: B023
                if error is not None:
                    wire.tell("models", loaded=dict(shelf.loaded), error={message["model"]: error})
            case "unload":
                shelf.unload(message["model"])
            case other:
                raise AssertionError(f"no message is called {other!r}")


def _keep(shelf: Shelf, name: str) -> None:
    """Load a model at the start; if that fails, it is listed with the reason."""
    error = _tried(lambda: shelf.take(name), "a model to keep cannot be loaded")
    if error is not None:
        shelf.known[name] = replace(shelf.known[name], error=error)


def _tried(action: Callable[[], Any], what: str) -> str | None:
    """Do something for whose failure there is no job to blame; gives the words for it."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - told, and the worker goes on
        log(what, error)
        return fault_for(error).message
    return None


if __name__ == "__main__":
    main()
