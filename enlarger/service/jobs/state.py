"""What the queue tells others: where a job stands, what each model is, how the whole is; and what it measures."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from enlarger.service.jobs.job import Task

ServiceState = Literal["STARTING", "READY", "BUSY", "SETUP_FAILED", "DEFUNCT", "UNHEALTHY"]


@dataclass(frozen=True)
class JobProgress:
    """Where a job stands at this moment."""

    position: int | None  # jobs before this one and itself; 0 while it runs, None afterwards
    progress: float = 0.0  # 0..1
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    eta_seconds: float | None = None  # until it ends, the wait included
    preview: str | None = None  # a file in the job's folder

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ModelState:
    """A model of the settings, as the workers found it."""

    name: str
    kind: str | None  # None: no worker has described it yet
    tasks: tuple[Task, ...]
    aliases: tuple[str, ...]
    loaded: int | None = None  # bytes of weights in all workers; None: not loaded
    error: str | None = None  # why it cannot be used


class Metrics(Protocol):
    """What the queue measures."""

    def observe_queue_wait(self, seconds: float, /) -> None: ...
    def observe_stage(self, task: str, model: str, stage: str, seconds: float, /) -> None: ...
    def observe_step(self, model: str, seconds: float, /) -> None: ...
    def images(self, task: str, model: str, count: int, pixels: int, /) -> None: ...
    def batch(self, size: int, /) -> None: ...
    def count_cancelled(self, cause: str, /) -> None: ...
    def oom(self, fallback: str, /) -> None: ...
    def nonfinite(self, stage: str, /) -> None: ...
    def model_loaded(self, name: str, loaded: bool, /) -> None: ...
    def model_load(self, seconds: float, /) -> None: ...
    def worker_restart(self) -> None: ...
    def memory(self, kind: str, size: int, /) -> None: ...
    def jobs(self, counts: Mapping[str, int], /) -> None: ...
    def queue(self, size: int, running: int, /) -> None: ...
