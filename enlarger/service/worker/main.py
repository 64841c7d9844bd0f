"""The worker process: JSON lines in and out, a thread that listens, and the main thread that computes."""

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from enlarger.errors import EnlargerError
from enlarger.runtime.choices import resolve_device
from enlarger.service.jobs.job import job_folder
from enlarger.service.worker.executor import Executor, log_error, problem_for
from enlarger.service.worker.folder_models import adapter_names, models_of_folder, open_model_folder
from enlarger.service.worker.model_cache import ModelCache, trim_heap
from enlarger.service.worker.progress_reporter import RunningJob
from enlarger.service.workers import messages

HEARTBEAT_SECONDS = 1.0  # between two signs of life
NICENESS = 5  # of `nice`: the server goes first


class EventSender(Protocol):
    """Where events go, from any thread."""

    def send(self, event: messages.Event) -> None: ...


class MessageWriter:
    """Says things to the server, one whole line at a time, from any thread."""

    def __init__(self, fd: int) -> None:
        self._fd, self._lock = fd, threading.Lock()

    def send(self, event: messages.Event) -> None:
        unwritten = memoryview(event.encode())
        try:
            with self._lock:
                while unwritten:
                    unwritten = unwritten[os.write(self._fd, unwritten) :]
        except OSError:  # the server is gone
            os._exit(0)


class MessageReader:
    """What the server says. Cancels are heard at once; everything else waits for the main thread."""

    def __init__(self, writer: EventSender) -> None:
        self.writer = writer
        self.commands: queue.SimpleQueue[messages.Start | messages.Run | messages.Load | messages.Unload] = (
            queue.SimpleQueue()
        )
        self._cancel_events: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def listen(self, lines: Iterable[bytes]) -> None:
        """Read until the server closes its end, then end the process, whatever it is doing."""
        try:
            for line in lines:
                self._handle(messages.COMMANDS.validate_json(line))
        finally:
            os._exit(0)

    def _handle(self, command: messages.Command) -> None:
        with self._lock:
            if isinstance(command, messages.Cancel):
                cancel_event = self._cancel_events.get(command.id)
                if cancel_event is not None:  # else the job is over
                    cancel_event.set()
                return
            if isinstance(command, messages.Run):
                self._cancel_events |= {job.id: threading.Event() for job in command.jobs}
        self.commands.put(command)

    def running_jobs(self, command: messages.Run, data: Path) -> list[RunningJob]:
        """The jobs of a run."""
        with self._lock:
            cancel_events = dict(self._cancel_events)
        return [
            RunningJob(job.id, job.spec, job_folder(data, job.id), self.writer.send, cancel_events[job.id])
            for job in command.jobs
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
    work(reader)


def work(reader: MessageReader) -> None:
    """Do what the server says, for ever; here, or in an actor of a cluster. Ends the thread for what cannot begin."""
    writer = reader.writer
    threading.Thread(target=_beat, args=(writer,), daemon=True).start()
    start = reader.commands.get()
    assert isinstance(start, messages.Start), "the first command says what to work with"
    try:
        device = resolve_device(start.device)
    except EnlargerError as error:
        sys.exit(f"enlarger: {error}")
    try:
        folder = open_model_folder(start.models_folder, start.allow_pickle)
    except EnlargerError as error:
        sys.exit(f"enlarger: {error}")
    models = (*start.models, *models_of_folder(folder, [each.name for each in start.models]))
    model_cache = ModelCache(models, device, start.memory, writer.send, folder)
    for settings in start.models:
        if settings.keep:
            _preload(model_cache, settings.name)
    states = tuple(one.state for one in model_cache.descriptions.values())
    writer.send(messages.Ready(device=str(device), models=states, adapters=adapter_names(folder)))
    _serve(reader, Executor(model_cache, writer.send, start.prompt_tokens), start.data)


def _beat(writer: EventSender) -> None:
    """Say again and again that the process lives."""
    while True:
        writer.send(messages.Alive())
        time.sleep(HEARTBEAT_SECONDS)


def _serve(reader: MessageReader, executor: Executor, data: Path) -> None:
    """Do one command after another, for ever."""
    writer, model_cache = reader.writer, executor.model_cache
    writer.send(messages.Idle())
    while True:
        match reader.commands.get():
            case messages.Run() as command:
                jobs = reader.running_jobs(command, data)
                executor.run(jobs)
                reader.remove_jobs(jobs)
                writer.send(messages.Idle())
                trim_heap()
            case messages.Load(model=name):
                error = _error_message_of(partial(model_cache.get, name), "a model cannot be loaded")
                if error is not None:
                    writer.send(messages.LoadedModels(loaded=dict(model_cache.loaded_bytes), errors={name: error}))
                writer.send(messages.Idle())
            case messages.Unload(model=name):
                model_cache.unload(name)
                writer.send(messages.Idle())
            case messages.Start():
                raise AssertionError("a worker is started once")


def _preload(model_cache: ModelCache, name: str) -> None:
    """Load a model at the start; if that fails, it is listed with the reason."""
    error = _error_message_of(lambda: model_cache.get(name), "a model to keep cannot be loaded")
    if error is not None:
        model_cache.descriptions[name] = replace(model_cache.descriptions[name], error=error)


def _error_message_of(action: Callable[[], Any], event: str) -> str | None:
    """Do something whose failure is no job's; gives the text of the error."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - reported, and the worker goes on
        log_error(event, error)
        return problem_for(error).message
    return None


if __name__ == "__main__":
    main()
