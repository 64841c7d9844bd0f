"""Noticing a worker that hangs, that works too long on its jobs, or that takes too much memory."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from enlarger.service.problems import Problem
from enlarger.service.settings import GIB, Settings

CHECK_SECONDS = 0.5  # between two looks at a process
RESPONSIVE_SECONDS = 5.0  # of silence after which a worker is not counted on
START_SECONDS = 180.0  # for a process to import what it needs, before it says its first word
MEMORY_SHARE = 0.9  # of the machine's memory that a worker may take by default


@dataclass(frozen=True)
class LossCause:
    """Why a worker's jobs are blamed for its end; with `is_final` they are not tried again."""

    problem: Problem
    is_final: bool = False


DIED = LossCause(
    Problem(500, "worker_died", "the worker process ended while it ran this, and again when it was tried a second time")
)


@dataclass(frozen=True)
class WorkerLimits:
    """What a worker must keep to."""

    heartbeat_seconds: float  # the longest silence
    job_seconds: float  # for each job of a run
    memory_bytes: float  # resident

    @classmethod
    def of(cls, settings: Settings) -> "WorkerLimits":
        """What the settings say; a machine's memory bounds where they do not."""
        memory = default_memory_bytes() if settings.worker_memory is None else settings.worker_memory * GIB
        return cls(settings.heartbeat_seconds, settings.bounds.job_seconds, memory)


class Watchdog:
    """What one process has said and done lately. Time is counted while the server itself runs: a machine that was
    asleep, or a server that was stopped, is no silence of a worker."""

    def __init__(self, limits: WorkerLimits) -> None:
        self._limits = limits
        self._silence = 0.0
        self._has_spoken = False
        self._run_deadline: float | None = None

    @property
    def is_responsive(self) -> bool:
        """Whether the process has given a sign of life lately."""
        return self._silence < min(RESPONSIVE_SECONDS, self._limits.heartbeat_seconds)

    def hear(self) -> None:
        """The process said something."""
        self._silence, self._has_spoken = 0.0, True

    def begin_run(self, num_jobs: int) -> None:
        """It was given so many jobs at once."""
        self._run_deadline = time.monotonic() + num_jobs * self._limits.job_seconds

    def end_run(self) -> None:
        """It has none any more."""
        self._run_deadline = None

    def check(self, pid: int) -> LossCause | None:
        """Why the process is to be killed; called every CHECK_SECONDS."""
        self._silence += CHECK_SECONDS
        limits = self._limits
        silence = limits.heartbeat_seconds if self._has_spoken else max(limits.heartbeat_seconds, START_SECONDS)
        if self._silence > silence:
            text = (
                f"the worker process hung: it said nothing for {silence:g} seconds while it ran this, and again when "
            )
            return LossCause(Problem(500, "worker_died", text + "it was tried a second time"))
        if self._run_deadline is not None and time.monotonic() > self._run_deadline:
            text = (
                f"this took longer than {limits.job_seconds:g} seconds, which is all that a job may take; ask for less"
            )
            return LossCause(Problem(500, "job_timeout", text), is_final=True)
        memory = resident_bytes(pid)
        if memory > limits.memory_bytes:
            found = (
                f"the worker took {memory / GIB:.2f} GiB of memory, expected at most {limits.memory_bytes / GIB:.2f}"
            )
            return LossCause(Problem(500, "out_of_memory", f"{found}; ask for a smaller picture"), is_final=True)
        return None


def default_memory_bytes() -> float:
    """Nine tenths of the machine's memory."""
    return MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int) -> int:
    """The memory that a process has in use; 0 where the system does not say it in /proc, or the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
