"""How jobs begin, go on and end: each change is stored first, then published. Nothing else changes a job."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from enlarger.service.jobs.data_folder import DATABASE
from enlarger.service.jobs.disk_usage import DiskUsage, expected_bytes
from enlarger.service.jobs.events import EventLogs
from enlarger.service.jobs.files import folder_bytes, read_result, remove_job_folder
from enlarger.service.jobs.job import FINISHED_STATUSES, EventKind, Job, JobProgress, JobResult, job_folder
from enlarger.service.jobs.job_queue import ActiveJob, JobQueue, changed_positions
from enlarger.service.jobs.progress_estimator import DurationStats
from enlarger.service.jobs.store import STORAGE_BUSY, JobDatabase, JobStore, row_bytes
from enlarger.service.metrics import Metrics
from enlarger.service.problems import Problem, ProblemError
from enlarger.service.workers.watchdog import DIED, LossCause

FinishedStatus = Literal["succeeded", "failed", "canceled"]
MAX_CRASHES = 2  # workers that may die over a job
MAX_ATTEMPTS = 10  # times that a job may be begun
BUSY_RETRY_SECONDS, MAX_BUSY_RETRIES = 2.0, 15  # the same, while another program has the file locked
RETRY_DELAYS = (0.1, 0.3, 1.0, 3.0)  # seconds between attempts to write down how a job ended
T = TypeVar("T")
log = logging.getLogger("enlarger.service.jobs")


@dataclass(frozen=True)
class Outcome:
    """How a job ends."""

    status: FinishedStatus
    result: JobResult | None = None
    problem: Problem | None = None


class JobLifecycle:
    """The store, the queue in memory and the event logs, always in step."""

    def __init__(self, data: Path, metrics: Metrics, disk: DiskUsage) -> None:
        self.data, self.metrics, self.disk = data, metrics, disk
        self.store = JobStore(data / DATABASE)
        self.queue, self.event_logs = JobQueue(DurationStats()), EventLogs()
        self.num_workers = 1  # that can work, for expected times
        self._unwritten: dict[str, Job] = {}  # ends that the disk did not take
        self._finished_counts: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something to its end, whoever waits for it or not."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    async def wait_for_tasks(self) -> None:
        """Wait for all that was spawned."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def recover(self) -> None:
        """What an earlier process left: what it completed has succeeded, the rest waits again or is ended."""
        self._finished_counts = Counter(await self.store.run(JobDatabase.counts))
        self._finished_counts.subtract(
            {"queued": self._finished_counts["queued"], "running": self._finished_counts["running"]}
        )
        for job in await self.store.run(JobDatabase.unfinished):
            outcome = await asyncio.to_thread(_recovered_outcome, self.data, job)
            if outcome is not None:
                active = self.queue.active_jobs[job.id] = ActiveJob(job)
                await self.finish(active, outcome)
                continue
            if job.status == "running":
                await self.store.run(JobDatabase.requeue, job.id, job.crashes)
            self.queue.add(ActiveJob(replace(job, status="queued", started=None)))
            self.disk.expect(job.id, await asyncio.to_thread(expected_bytes, self.data, job.id, job.spec))
        self.on_queue_changed()

    async def add(self, job: Job) -> Job:
        """A new job comes to the end of the queue; or the earlier one with the same Idempotency-Key of its owner."""
        stored = await self.store.run(JobDatabase.add, job)
        if stored is not job:
            return stored
        self.queue.add(ActiveJob(job))
        self.on_queue_changed()
        return job

    def current(self, job: Job) -> Job:
        """A job out of the store as it is now in memory, if it is there."""
        active = self.queue.active_jobs.get(job.id)
        return self._unwritten.get(job.id, job) if active is None else active.job

    async def get(self, id: str) -> Job | None:
        if id in self._unwritten:
            return self._unwritten[id]
        active = self.queue.active_jobs.get(id)
        return await self.store.run(JobDatabase.get, id) if active is None else active.job

    async def start(self, active_jobs: Sequence[ActiveJob]) -> list[ActiveJob]:
        """Jobs that were taken from the queue now run; those are left out that ended meanwhile."""
        now = time.time()
        claimed = await self.store.run(JobDatabase.mark_running, [active.job.id for active in active_jobs], now)
        started = [live for live in active_jobs if not live.is_finishing and live.job.id in claimed]
        for live in started:
            live.job = replace(live.job, status="running", started=now, attempts=live.job.attempts + 1)
            self.metrics.queue_wait_seconds.observe(max(now - live.job.created, 0.0))
            self.publish(live, "started")
        return started

    async def retry(self, active: ActiveJob, cause: LossCause | None) -> None:
        """The worker of a job is gone: the job has ended, or waits again at the front, or has had too many tries."""
        result = await asyncio.to_thread(read_result, self.data, active.job.id)
        crashes = active.job.crashes + (cause is not None)
        if active.is_finishing:
            return
        active.job = replace(active.job, crashes=crashes)
        if result is not None:
            await self.finish(active, Outcome("succeeded", result))
        elif crashes >= MAX_CRASHES or active.job.attempts >= MAX_ATTEMPTS or (cause is not None and cause.is_final):
            await self.finish(active, Outcome("failed", problem=(DIED if cause is None else cause).problem))
        else:
            await self._requeue(active)

    async def _requeue(self, active: ActiveJob) -> None:
        try:
            await self.store.run(JobDatabase.requeue, active.job.id, active.job.crashes)
        except ProblemError as error:
            log.error("a job waits again, but that could not be written down: %s", error)
        if not active.is_finishing:
            self.queue.dequeue(active)
            active.job = replace(active.job, status="queued", started=None)
            active.estimator = None
            self.queue.requeue_first([active])
            self.on_queue_changed()

    def finish(self, active: ActiveJob, outcome: Outcome) -> "asyncio.Task[None]":
        """End a job. It leaves the queue at once; the task is over when the end is stored and published."""
        assert not active.is_finishing
        active.is_finishing = True
        self.queue.dequeue(active)
        self.on_queue_changed()
        return self.spawn(self._record_finish(active, outcome))

    async def delete(self, id: str) -> None:
        """Delete a job that has ended, and its files."""
        unwritten, status = self._unwritten.pop(id, None), await self.store.run(JobDatabase.remove, id)
        status = status if unwritten is None else unwritten.status
        self.event_logs.remove(id)
        if status in FINISHED_STATUSES:
            self._finished_counts[status] -= 1
        await asyncio.to_thread(remove_job_folder, self.data, id)
        self.disk.release(id)
        self.on_queue_changed()

    async def retry_unwritten(self) -> None:
        """Try once more to write down what the disk did not take."""
        for id, job in list(self._unwritten.items()):
            await self.store.run(JobDatabase.finish, job)
            self._unwritten.pop(id, None)

    def publish(self, active: ActiveJob, kind: EventKind, extra: Mapping[str, Any] | None = None) -> None:
        """Publish an event of a job, with its progress."""
        self._publish_progress(active, kind, self.queue.progress(active, self.num_workers), extra)

    def _publish_progress(
        self, active: ActiveJob, kind: EventKind, progress: JobProgress, extra: Mapping[str, Any] | None = None
    ) -> None:
        data = {"status": active.job.status, **asdict(progress), **(extra or {})}
        self.event_logs.publish(active.job.id, kind, data)

    def on_queue_changed(self) -> None:
        """The queue has changed: positions are published, and counted."""
        for active, progress in list(changed_positions(self.queue, self.num_workers)):
            self._publish_progress(active, "queued", progress)
        self.metrics.queue_size.set(len(self.queue.waiting))
        self.metrics.requests_running.set(len(self.queue.running))
        for status, count in self.counts().items():
            self.metrics.jobs.labels(status).set(count)

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status."""
        finished = {status: self._finished_counts[status] for status in ("succeeded", "failed", "canceled")}
        return {"queued": len(self.queue.waiting), "running": len(self.queue.running), **finished}

    def close(self) -> None:
        """Wake all who wait for something that this process will not do any more."""
        for active in self.queue.active_jobs.values():
            active.finished_event.set()
        self.event_logs.close()

    async def _record_finish(self, active: ActiveJob, outcome: Outcome) -> None:
        changes = {"status": outcome.status, "result": outcome.result, "problem": outcome.problem}
        job = replace(active.job, finished=time.time(), **changes)
        try:
            is_first = await self._write_with_retries(job)
        except ProblemError as error:
            self._unwritten[job.id] = job = replace(job, status="failed", result=None, problem=error.problem)
            is_first = True
        if not is_first:
            log.error("job %s had ended before", job.id)
            job = await self.store.run(JobDatabase.get, job.id) or job
        assert job.status in ("succeeded", "failed", "canceled")
        self.disk.charge(job.id, await asyncio.to_thread(folder_bytes, job_folder(self.data, job.id)) + row_bytes(job))
        active.job = job
        self._finished_counts[job.status] += 1
        self.queue.remove(active)
        self.publish(active, job.status)
        active.finished_event.set()
        self.on_queue_changed()

    async def _write_with_retries(self, job: Job) -> bool:
        """Write down how a job ended, patiently."""
        for i, seconds in enumerate((*RETRY_DELAYS, *[BUSY_RETRY_SECONDS] * MAX_BUSY_RETRIES)):
            try:
                return await self.store.run(JobDatabase.finish, job)
            except ProblemError as error:
                log.error("the end of a job could not be written down: %s", error)
                if i >= len(RETRY_DELAYS) and error.problem.code != STORAGE_BUSY:
                    raise
                await asyncio.sleep(seconds)
        return await self.store.run(JobDatabase.finish, job)

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, ProblemError):
            log.error("a step of the queue failed", exc_info=error)


def _recovered_outcome(data: Path, job: Job) -> Outcome | None:
    """How a job has ended that an earlier process left; None if it is to wait."""
    result = read_result(data, job.id)
    if result is not None:
        return Outcome("succeeded", result)
    if job.attached:
        text = "the service was stopped before this was done, and the connection that waited for it was lost"
        return Outcome("canceled", problem=Problem(499, "canceled", text))
    if job.status == "running" and job.attempts >= MAX_ATTEMPTS:
        text = f"the service ended {job.attempts} times while it ran this"
        return Outcome("failed", problem=Problem(500, "worker_died", text))
    folder = job_folder(data, job.id)
    if folder.is_symlink() or not folder.is_dir():
        return Outcome("failed", problem=Problem(500, "internal", "the files of this job are gone; send it again"))
    return None


def unfinished(active_jobs: Iterable[ActiveJob | None]) -> list[ActiveJob]:
    """Those that are there and whose end nobody has decided."""
    return [active for active in active_jobs if active is not None and not active.is_finishing]
