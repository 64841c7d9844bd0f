"""Queues with fake workers, for tests."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

from enlarger.service.jobs.job import Job, JobSpec, job_folder, new_job_id
from enlarger.service.jobs.manager import JobManager
from enlarger.service.settings import ModelSettings, Settings
from enlarger.service.workers.supervisor import WorkerPlan

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
SD = ModelSettings(name="sd", path="tiny", aliases=("dall-e-2",))


@dataclass(frozen=True)
class RecordedMetric:
    """One of them: what was counted, set or observed is remembered behind the values of its labels."""

    calls: list[tuple[str, tuple[Any, ...]]]
    name: str
    label_values: tuple[str, ...] = ()

    def labels(self, *values: str) -> "RecordedMetric":
        return replace(self, label_values=values)

    def observe(self, value: float = 1) -> None:
        self.calls.append((self.name, (*self.label_values, value)))

    inc = set = observe


class RecordingMetrics:
    """Metrics that only remember."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> "RecordedMetric":
        return RecordedMetric(self.calls, name)

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [values for called, values in self.calls if called == name]

    def total(self, name: str) -> Counter[Any]:
        """How often each first value came."""
        return Counter(values[0] if values else None for values in self.of(name))


def settings(data: Path, **values: Any) -> Settings:
    return Settings(**{"data": data, "models": (SD,), "devices": ("cpu",), "drain_seconds": 5} | values)


def queue_of(data: Path, *flags: str, metrics: Any = None, **values: Any) -> JobManager:
    """A queue that is not started; `flags` are those of the fake worker."""
    chosen = settings(data, **values)
    return JobManager(
        chosen, RecordingMetrics() if metrics is None else metrics, WorkerPlan(chosen.devices, (*FAKE, *flags))
    )


@asynccontextmanager
async def running(data: Path, *flags: str, metrics: Any = None, **values: Any) -> AsyncGenerator[JobManager]:
    """A queue whose workers are ready; drained at the end."""
    queue = queue_of(data, *flags, metrics=metrics, **values)
    await queue.start()
    try:
        await until(lambda: queue.is_ready)
        yield queue
    finally:
        await queue.drain()


def make_job_spec(fake: Mapping[str, Any] | None = None, **values: Any) -> JobSpec:
    """A picture to generate; `fake`: what the fake worker does."""
    options = {"prompt": "a lighthouse", "seed": 0, "fake": dict(fake or {})} | values.pop("options", {})
    return JobSpec(**{"task": "generate", "model": "sd", "options": options, "size": (64, 48)} | values)


async def submit_job(queue: JobManager, fake: Mapping[str, Any] | None = None, **values: Any) -> Job:
    """Submit a job; `values` are of `submit` and of the Ask."""
    named = {key: values.pop(key) for key in ("owner", "attached", "idempotency") if key in values}
    return await queue.submit(make_job_spec(fake, **values), id=new_job_folder(queue), **named)


def new_job_folder(queue: JobManager) -> str:
    """The id of a job whose folder is there, as the routes make it."""
    id = new_job_id()
    job_folder(data_of(queue), id).mkdir(parents=True)
    return id


def data_of(queue: JobManager) -> Path:
    return queue._settings.data


def runs(queue: JobManager, id: str) -> list[str]:
    """What the workers noted of a job: begin, end, again."""
    path = job_folder(data_of(queue), id) / "runs"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


async def until(true: Callable[[], Any], seconds: float = 20) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


def async_test(test: Callable[..., Any]) -> Callable[..., None]:
    """Run an asynchronous test in a loop of its own."""

    @wraps(test)
    def run(*args: Any, **named: Any) -> None:
        asyncio.run(test(*args, **named))

    return run
