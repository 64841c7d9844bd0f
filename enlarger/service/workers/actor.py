"""A worker as an actor on some node of a Ray cluster: the worker's own loop, with messages and files in calls."""

import logging
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from enlarger.cluster.connect import enter_folder
from enlarger.service.jobs.job import RESULT_FILE, job_folder
from enlarger.service.workers import messages

WAIT_SECONDS = 1.0  # that the actor lets a caller wait for something to be said
MAX_HEARD = 64  # messages in one answer
Files = dict[str, bytes]  # of a job's folder, by name

log = logging.getLogger("enlarger.service.jobs")


@dataclass(frozen=True)
class Heard:
    """A message of the worker, and the files that it speaks of, the result file last."""

    line: bytes
    files: Files = field(default_factory=dict[str, bytes])


class WorkerActor:
    """Runs `worker.main.work` in a thread, with a folder of this node for the jobs that it has."""

    def __init__(self, folder: str) -> None:
        enter_folder(folder)
        self._data = Path(tempfile.mkdtemp(prefix="enlarger-worker-"))
        self._commands: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._heard: queue.SimpleQueue[Heard | None] = queue.SimpleQueue()
        self._given: dict[str, frozenset[str]] = {}  # names of the files that a job came with
        self._failure: str | None = None
        threading.Thread(target=self._work, daemon=True).start()

    def tell(self, line: bytes, files: Mapping[str, Files]) -> None:
        """Give the worker a command, and the files of the jobs in it, by their ids."""
        command = messages.COMMANDS.validate_json(line)
        if isinstance(command, messages.Start):
            command = command.model_copy(update={"data": self._data})
        for id, contents in files.items():
            folder = job_folder(self._data, id)
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in contents.items():
                (folder / name).write_bytes(data)
            self._given[id] = frozenset(contents)
        self._commands.put(command.encode())

    def hear(self) -> tuple[list[Heard], str | None]:
        """What the worker has said since, after a moment at most; and why it has ended, if it has."""
        heard = list[Heard]()
        try:
            first = self._heard.get(timeout=WAIT_SECONDS)
            while first is not None:
                heard.append(first)
                first = self._heard.get_nowait() if len(heard) < MAX_HEARD else None
        except queue.Empty:
            return heard, None
        return heard, self._failure

    def send(self, event: messages.Event) -> None:
        """What the worker says, from any of its threads."""
        files = self._files_of(event)
        self._heard.put(Heard(event.encode(), files))
        if isinstance(event, messages.JobDone | messages.JobFailed | messages.JobCanceled):
            self._given.pop(event.id, None)
            shutil.rmtree(job_folder(self._data, event.id), ignore_errors=True)

    def _files_of(self, event: messages.Event) -> Files:
        if isinstance(event, messages.JobPreviewed):
            path = Path(event.file)
            path = job_folder(self._data, event.id) / path.name
            return {path.name: path.read_bytes()} if path.exists() else {}
        if not isinstance(event, messages.JobDone):
            return {}
        given = self._given.get(event.id, frozenset[str]())
        made = [path for path in job_folder(self._data, event.id).iterdir() if path.name not in given]
        return {path.name: path.read_bytes() for path in sorted(made, key=lambda path: path.name == RESULT_FILE)}

    def _work(self) -> None:
        from enlarger.service.worker.main import MessageReader, work

        reader = MessageReader(self)
        threading.Thread(target=reader.listen, args=(self._lines(),), daemon=True).start()
        try:
            work(reader)
        except SystemExit as error:
            self._failure = str(error.code)
        except BaseException:
            log.exception("the worker has failed")
            self._failure = f"the worker on {os.uname().nodename} failed; the logs of Ray say why"
        finally:
            self._heard.put(None)

    def _lines(self) -> Iterator[bytes]:
        while True:
            yield self._commands.get()
