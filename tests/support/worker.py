"""A worker process of the service, spoken to as the server does."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from enlarger.service.jobs.job import RESULT_FILE, JobSpec, job_folder, new_job_id

SECONDS = 60.0


class Worker:
    """The process, and all that it has said."""

    def __init__(self, data: Path, models: Sequence[dict[str, Any]], memory: float | None = None) -> None:
        self.data, self.seen = data, list[dict[str, Any]]()
        self.log = data / "worker.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "enlarger.service.worker.main"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.send(command="start", models=list(models), device="cpu", memory=memory, data=str(data))

    def _read(self) -> None:
        for line in self.process.stdout or ():
            event = json.loads(line)
            if event["event"] != "alive":  # said every second, whatever else is said
                self._lines.put(event)
        self._lines.put(None)

    def close(self) -> None:
        """Close its pipes, once it has ended."""
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()

    def send(self, **message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def next(self, seconds: float = SECONDS) -> dict[str, Any]:
        event = self._lines.get(timeout=seconds)
        assert event is not None, f"the worker ended: {self.log.read_text()}"
        self.seen.append(event)
        return event

    def until(self, event: str, **fields: Any) -> dict[str, Any]:
        """The next event of a kind, with such fields."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            found = self.next()
            if found["event"] == event and fields.items() <= found.items():
                return found
            assert found["event"] != "failed" or found["id"] != fields.get("id"), found
        raise AssertionError(f"no {event} {fields}")

    def job(self, spec: JobSpec, image: Image.Image | None = None, mask: Image.Image | None = None) -> dict[str, Any]:
        """A job with its pictures in place, as a run message lists it."""
        id = new_job_id()
        folder = job_folder(self.data, id)
        folder.mkdir(parents=True)
        for name, picture in (("image.png", image), ("mask.png", mask)):
            if picture is not None:
                picture.save(folder / name)
        return {"id": id, "spec": asdict(spec)}

    def folder(self, job: dict[str, Any]) -> Path:
        return job_folder(self.data, job["id"])

    def run(self, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
        """All that was said of the jobs, and besides, until the worker is idle again."""
        before = len(self.seen)
        self.send(command="run", jobs=list(jobs))
        self.until("idle")
        return self.seen[before:]

    def run_to_result(self, job: dict[str, Any]) -> dict[str, Any]:
        """What the job's file says, once it has run by itself."""
        events = self.run(job)
        assert [e["event"] for e in events if e["event"] in ("done", "failed", "canceled")] == ["done"], events
        return json.loads((self.folder(job) / RESULT_FILE).read_text())

    def run_to_problem(self, job: dict[str, Any]) -> dict[str, Any]:
        """The fault of a job that fails."""
        events = self.run(job)
        problems = [e["problem"] for e in events if e["event"] == "failed"]
        assert len(problems) == 1 and not (self.folder(job) / RESULT_FILE).exists(), events
        return problems[0]


@contextmanager
def working(data: Path, *models: dict[str, Any], memory: float | None = None) -> Iterator[Worker]:
    """A worker that is idle, and that is gone at the end."""
    worker = Worker(data, models, memory)
    try:
        worker.until("idle")
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait()
        worker.close()
