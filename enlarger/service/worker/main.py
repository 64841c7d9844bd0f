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
from enlarger.runtime.runtime import resolve_device
from enlarger.service.jobs.job import JobSpec, job_folder
from enlarger.service.settings import ModelSettings
from enlarger.service.worker.executor import Executor, log_error, problem_for
from enlarger.service.worker.model_cache import ModelCache, trim_heap
from enlarger.service.worker.progress_reporter import RunningJob

Message = Mapping[str, Any]
NICENESS = 5  # of `nice`: the server goes first


class MessageWriter:
    """Says things to the server, one whole line at a time, from any thread."""

    def __init__(self, fd: int) -> None:
        self._fd, self._lock = fd, threading.Lock()

    def send(self, event: str, **fields: Any) -> None:
        unwritten = memoryview(json.dumps({"event": event, **fields}).encode() + b"\n")
        try:
            with self._lock:
                while unwritten:
                    unwritten = unwritten[os.write(self._fd, unwritten) :]
        except OSError:  # the server is gone
            os._exit(0)


class MessageReader:
    """What the server says. Cancels are heard at once; everything else waits for the main thread."""

    def __init__(self, writer: MessageWriter) -> None:
        self.writer = writer
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._cancel_events: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def listen(self, lines: Iterable[bytes]) -> None:
        """Read until the server closes its end, then end the process, whatever it is doing."""
        try:
            for line in lines:
                self._handle(json.loads(line))
        finally:
            os._exit(0)

    def _handle(self, message: Message) -> None:
        with self._lock:
            if message["do"] == "cancel":
                cancel_event = self._cancel_events.get(message["id"])
                if cancel_event is not None:  # else the job is over
                    cancel_event.set()
                return
            if message["do"] == "run":
                self._cancel_events |= {job["id"]: threading.Event() for job in message["jobs"]}
        self.messages.put(message)

    def running_jobs(self, message: Message, data: Path) -> list[RunningJob]:
        """The jobs of a run."""
        with self._lock:
            cancel_events = dict(self._cancel_events)
        return [
            RunningJob(
                job["id"],
                JobSpec.from_json(job["ask"]),
                job_folder(data, job["id"]),
                self.writer.send,
                cancel_events[job["id"]],
            )
            for job in message["jobs"]
        ]

    def remove_jobs(self, jobs: Sequence[RunningJob]) -> None:
        """The jobs are over; a cancel that comes now is for nobody."""
        with self._lock:
            for job in jobs:
                self._cancel_events.pop(job.id, None)


def main() -> None:
    """Work until standard input closes."""
    for number in (signal.SIGINT, signal.SIGTERM):  # may reach the whole group; the server decides
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    writer = MessageWriter(os.dup(1))
    os.dup2(2, 1)  # whatever a library prints goes to the log
    reader = MessageReader(writer)
    threading.Thread(target=reader.listen, args=(sys.stdin.buffer,), daemon=True).start()
    start_message = reader.messages.get()
    assert start_message["do"] == "start", "the first message tells what to work with"
    try:
        device = resolve_device(start_message["device"])
    except EnlargerError as error:
        sys.exit(f"enlarger: {error}")
    settings = [ModelSettings(**one) for one in start_message["models"]]
    model_cache = ModelCache(settings, device, start_message["memory"], writer.send)
    for one in settings:
        if one.keep:
            _preload(model_cache, one.name)
    writer.send("ready", device=str(device), models=[one.to_json() for one in model_cache.descriptions.values()])
    _serve(reader, Executor(model_cache, writer.send), Path(start_message["data"]))


def _serve(reader: MessageReader, executor: Executor, data: Path) -> None:
    """Do what is asked, in turn, for ever."""
    writer, model_cache = reader.writer, executor.model_cache
    writer.send("idle")
    while True:
        message = reader.messages.get()
        match message["do"]:
            case "run":
                jobs = reader.running_jobs(message, data)
                executor.run(jobs)
                reader.remove_jobs(jobs)
                writer.send("idle")
                trim_heap()
            case "load":
                error = _error_message_of(lambda: model_cache.get(message["model"]), "a model cannot be loaded")  # noqa: B023
                if error is not None:
                    writer.send("models", loaded=dict(model_cache.loaded_bytes), error={message["model"]: error})
            case "unload":
                model_cache.unload(message["model"])
            case other:
                raise AssertionError(f"no message is called {other!r}")


def _preload(model_cache: ModelCache, name: str) -> None:
    """Load a model at the start; if that fails, it is listed with the reason."""
    error = _error_message_of(lambda: model_cache.get(name), "a model to keep cannot be loaded")
    if error is not None:
        model_cache.descriptions[name] = replace(model_cache.descriptions[name], error=error)


def _error_message_of(action: Callable[[], Any], event: str) -> str | None:
    """Do something for whose failure there is no job to blame; gives the words for it."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - told, and the worker goes on
        log_error(event, error)
        return problem_for(error).message
    return None


if __name__ == "__main__":
    main()
