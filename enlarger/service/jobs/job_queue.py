"""Who waits, who runs, and until when: the queue as the server has it in memory. Nothing here waits or writes."""

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

from enlarger.service.jobs.job import Job, JobProgress, JobSpec
from enlarger.service.jobs.progress_estimator import DurationStats, ProgressEstimator

MAX_LIVE_POSITION = 64  # positions from the front at which each change is published


@dataclass(eq=False)
class ActiveJob:
    """A job that has not ended, or whose end is being written down."""

    job: Job
    finished_event: asyncio.Event = field(default_factory=asyncio.Event)
    is_finishing: bool = False  # somebody has decided how it ends; nobody else may
    estimator: ProgressEstimator | None = None  # while it runs
    batch_number: int = 0  # the same for the jobs of a batch
    preview: str | None = None
    reported_position: int | None = None  # the position that its watchers know


class JobQueue:
    """The jobs that have not ended."""

    def __init__(self, durations: DurationStats) -> None:
        self.durations = durations
        self.active_jobs: dict[str, ActiveJob] = {}
        self.waiting: dict[str, ActiveJob] = {}  # in order
        self.running: dict[str, ActiveJob] = {}
        self._num_batches = 0
        self._last_batch: dict[str, int] = {}  # the number of each owner's last batch; there are as many as keys

    def add(self, active: ActiveJob) -> None:
        """A job comes into the queue, behind all that its owner has there."""
        self.active_jobs[active.job.id] = self.waiting[active.job.id] = active
        self._round_robin()

    def _round_robin(self) -> None:
        """Order what waits: first what ran before and came back; then each owner's first job, the first of those whose
        last one ran longest ago; then each owner's second, and so on."""
        rounds: Counter[str] = Counter()
        self.waiting = dict(sorted(self.waiting.items(), key=lambda item: self._turn(item[1].job, rounds)))

    def _turn(self, job: Job, rounds: Counter[str]) -> tuple[bool, int, int]:
        """What jobs are ordered by; `rounds` counts those of each owner."""
        is_new = job.attempts == 0
        rounds[job.owner] += is_new
        return is_new, rounds[job.owner], self._last_batch.get(job.owner, 0)

    def requeue_first(self, active_jobs: Iterable[ActiveJob]) -> None:
        """Jobs that ran come back, to the front."""
        returning = {active.job.id: active for active in active_jobs}
        self.waiting = returning | {id: live for id, live in self.waiting.items() if id not in returning}

    def take_batch(self, max_size: int) -> list[ActiveJob]:
        """The next job, with others that may run together with it; those that saw a crash run alone."""
        head = next(iter(self.waiting.values()), None)
        if head is None:
            return []
        batch, batch_key = [head], head.job.spec.batch_key
        if batch_key is not None and head.job.crashes == 0 and max_size > 1:
            others = (active for active in self.waiting.values() if active is not head and active.job.crashes == 0)
            batch += [live for live in others if live.job.spec.batch_key == batch_key][: max_size - 1]
        self._num_batches, now = self._num_batches + 1, time.monotonic()
        for live in batch:
            self.waiting.pop(live.job.id)
            self.running[live.job.id] = live
            live.batch_number, live.estimator = (
                self._num_batches,
                ProgressEstimator(live.job.spec, self.durations, now, len(batch)),
            )
            live.preview = live.reported_position = None
            self._last_batch[live.job.owner] = self._num_batches
        self._round_robin()
        return batch

    def dequeue(self, active: ActiveJob) -> None:
        """A job neither waits nor runs any more."""
        self.waiting.pop(active.job.id, None)
        self.running.pop(active.job.id, None)

    def remove(self, active: ActiveJob) -> None:
        """A job has ended."""
        self.dequeue(active)
        self.active_jobs.pop(active.job.id, None)

    def owned_by(self, owner: str) -> list[ActiveJob]:
        """What waits or runs for an owner."""
        return [active for active in (*self.waiting.values(), *self.running.values()) if active.job.owner == owner]

    def position(self, active: ActiveJob) -> int | None:
        if active.job.id in self.waiting:
            return list(self.waiting).index(active.job.id) + 1
        return None if active.job.is_finished else 0

    def progress(self, active: ActiveJob, workers: int) -> JobProgress:
        """How far a job is."""
        position, estimator = self.position(active), active.estimator
        if position is None:
            return finished_progress(active.job)
        if position or estimator is None:
            return JobProgress(position, eta_seconds=self.eta_seconds(active, self.expected_waits(workers)))
        step, steps = (estimator.done, estimator.total) if estimator.has_progress else (None, None)
        eta = estimator.eta_seconds(time.monotonic())
        return JobProgress(0, estimator.progress, estimator.stage, step, steps, eta, active.preview)

    def eta_seconds(self, active: ActiveJob, waits: Mapping[str, float]) -> float | None:
        """Until a job that waits has ended; None where its model, or one that works before it, was never measured."""
        running = [one.estimator for one in self.running.values() if one.estimator is not None]
        before = takewhile(lambda one: one is not active, self.waiting.values())
        specs = [active.job.spec, *(one.job.spec for one in before)]
        now = time.monotonic()
        if any(one.eta_seconds(now) is None for one in running) or not all(map(self.durations.is_measured, specs)):
            return None
        return waits.get(active.job.id, 0.0) + self.durations.expected_seconds(active.job.spec)

    def expected_waits(self, workers: int) -> dict[str, float]:
        """In how many seconds each job that waits is expected to begin."""
        specs = [active.job.spec for active in self.waiting.values()]
        return dict(zip(self.waiting, self._waits(specs, workers), strict=False))

    def expected_wait(self, owner: str, workers: int) -> float:
        """In how many seconds a job of an owner that came now would begin, since owners take turns."""
        rounds: Counter[str] = Counter()
        turns = [(self._turn(active.job, rounds), active.job.spec) for active in self.waiting.values()]
        own_turn = (True, rounds[owner] + 1, self._last_batch.get(owner, 0))
        return self._waits([spec for turn, spec in turns if turn <= own_turn], workers)[-1]

    def _waits(self, specs: Iterable[JobSpec], workers: int) -> list[float]:
        """In how many seconds each of these jobs begins if they are taken in this order, and one after them."""
        seconds_until_free = self._seconds_until_free(workers)
        waits = [seconds_until_free[0]]
        for spec in specs:
            heapq.heapreplace(seconds_until_free, seconds_until_free[0] + self.durations.expected_seconds(spec))
            waits.append(seconds_until_free[0])
        return waits

    def _seconds_until_free(self, workers: int) -> list[float]:
        """In how many seconds each worker has ended what it runs, as a heap."""
        now, batch_seconds = time.monotonic(), dict[int, float]()
        for active in self.running.values():
            if active.estimator is not None:
                batch_seconds[active.batch_number] = max(
                    batch_seconds.get(active.batch_number, 0.0), active.estimator.remaining_seconds(now)
                )
        seconds_until_free = [0.0] * max(workers, 1)
        for seconds in sorted(batch_seconds.values(), reverse=True):
            heapq.heapreplace(seconds_until_free, seconds_until_free[0] + seconds)
        return seconds_until_free


def finished_progress(job: Job) -> JobProgress:
    """The progress of a job that is over."""
    return JobProgress(None, 1.0 if job.status == "succeeded" else 0.0)


def changed_positions(queue: JobQueue, workers: int) -> Iterable[tuple[ActiveJob, JobProgress]]:
    """Those waiting jobs whose position is another than was published; far back not each change."""
    changed = [
        (active, i)
        for i, active in enumerate(queue.waiting.values(), 1)
        if active.reported_position != i and (i <= MAX_LIVE_POSITION or not active.reported_position)
    ]
    waits = queue.expected_waits(workers) if changed else {}
    for live, position in changed:
        live.reported_position = position
        yield (
            live,
            JobProgress(position, eta_seconds=queue.eta_seconds(live, waits)),
        )
