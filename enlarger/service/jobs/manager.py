"""The jobs of the service: submitted, followed, canceled and deleted here."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, replace
from typing import Literal

from enlarger.service.jobs import lock
from enlarger.service.jobs.admission import Admission, Reservation
from enlarger.service.jobs.data_folder import claim_folder, empty_spool, mark_folder, remove_orphan_folders
from enlarger.service.jobs.disk_usage import DiskUsage
from enlarger.service.jobs.events import EventFeed
from enlarger.service.jobs.files import remove_job_folder
from enlarger.service.jobs.job import Idempotency, Job, JobEvent, JobProgress, JobSpec, JobStatus, Task
from enlarger.service.jobs.job_queue import ActiveJob, finished_progress
from enlarger.service.jobs.known_requests import KnownRequests, check_fingerprint
from enlarger.service.jobs.lifecycle import JobLifecycle, Outcome, unfinished
from enlarger.service.jobs.model_registry import AdapterNames, ModelRegistry, ModelState
from enlarger.service.jobs.retention import Retention
from enlarger.service.jobs.store import JobDatabase, JobPage
from enlarger.service.metrics import Metrics
from enlarger.service.problems import (
    CANCELED,
    CLOSED,
    DRAINING,
    FOLDER_LOST,
    MODELS_LOADING,
    NO_WORKER,
    ProblemError,
    problem_error,
)
from enlarger.service.settings import GIB, Settings
from enlarger.service.workers.messages import Load, Unload
from enlarger.service.workers.pool import WorkerPool
from enlarger.service.workers.supervisor import WorkerCommand, WorkerPlan
from enlarger.service.workers.watchdog import WorkerLimits

log = logging.getLogger("enlarger.service.jobs")
ServiceState = Literal["STARTING", "READY", "BUSY", "SETUP_FAILED", "DEFUNCT", "UNHEALTHY"]
FOLDER_CHECK_SECONDS = 2.0


class JobManager:
    """What waits and runs. All of it happens on the event loop that `start` was called on."""

    def __init__(self, settings: Settings, metrics: Metrics, plan: WorkerPlan | None = None) -> None:
        self._settings, self._metrics = settings, metrics
        self._plan = WorkerPlan(settings.devices) if plan is None else plan
        self._registry = ModelRegistry(settings.known_models)
        self._lifecycle = JobLifecycle(settings.data, metrics, DiskUsage(settings.disk * GIB))
        self._retention = Retention(settings, self._lifecycle)
        self._pool = WorkerPool(settings, self._lifecycle, self._registry, self._plan)
        self._lock: lock.DataFolderLock | None = None
        self._is_open = True  # jobs are taken, as far as operators say
        self._is_folder_lost = False  # somebody has deleted or replaced the data folder
        self._background_tasks: list[asyncio.Task[None]] = []
        self._drain_task: asyncio.Task[None] | None = None
        self._admission = Admission(settings, self._lifecycle.queue)
        self._requests = KnownRequests(self._lifecycle)

    async def start(self) -> None:
        """Take the data folder, recover what an earlier service left, and start the workers.

        Raises InputError for a folder or a database that cannot be used, or that another service uses.
        """
        data = self._settings.data
        await asyncio.to_thread(claim_folder, data)
        self._lock = await lock.acquire(data)
        try:
            await self._lifecycle.store.open()  # says whose folder it is, before anything in it is deleted
            await asyncio.to_thread(mark_folder, data)
            await asyncio.to_thread(empty_spool, data)
            await self._lifecycle.recover()
            known_ids = await self._lifecycle.store.run(JobDatabase.ids)
            await asyncio.to_thread(remove_orphan_folders, data, known_ids)
            await self._retention.measure()
        except BaseException:
            await self._close()
            raise
        models, memory = self._settings.known_models, self._settings.memory
        limits = WorkerLimits.of(self._settings)
        tokens, lock_fd = self._settings.bounds.prompt_tokens, self._lock.workers_fd
        folder, allow_pickle = self._settings.models_folder, self._settings.allow_pickle
        self._pool.start(
            WorkerCommand(self._plan.argv, models, memory, data, limits, tokens, lock_fd, folder, allow_pickle)
        )
        self._background_tasks = [asyncio.create_task(self._retention.run()), asyncio.create_task(self._watch_folder())]

    async def drain(self) -> None:
        """Take no more jobs, let those that run end for `drain_seconds`, stop the workers, close the store.

        Who waits on a connection gets the answer that the service stops; other jobs wait for the next service.
        """
        if self._drain_task is None:
            self._drain_task = asyncio.create_task(self._shut_down())
        await asyncio.shield(self._drain_task)

    @property
    def state(self) -> ServiceState:
        """How the whole is: the best that any worker is, unless the disk fails."""
        workers = self._pool.workers
        if self._pool.is_defunct:
            return "DEFUNCT" if any(worker.was_ever_ready for worker in workers) else "SETUP_FAILED"
        if self._lifecycle.store.has_failed or self._is_folder_lost:
            return "UNHEALTHY"
        states = {worker.state for worker in workers if worker.is_responsive}
        if "idle" in states or "busy" in states:
            return "READY" if "idle" in states else "BUSY"
        return "UNHEALTHY" if any(worker.was_ever_ready for worker in workers) else "STARTING"

    @property
    def is_ready(self) -> bool:
        """Whether jobs are taken and some worker can do them."""
        return self._drain_task is None and self._is_open and self.state in ("READY", "BUSY")

    @property
    def is_draining(self) -> bool:
        return self._drain_task is not None

    def expected_wait(self, owner: str = "") -> float:
        """Seconds until a job of this owner that came now would begin."""
        return self._lifecycle.queue.expected_wait(owner, self._lifecycle.num_workers)

    def counts(self) -> dict[str, int]:
        return self._lifecycle.counts()

    def reserve(self, owner: str, max_wait: float | None = None) -> Reservation:
        """A place in the queue, from the head of a request on. Raises ProblemError as `check_capacity`."""
        self.check_capacity(owner, max_wait)
        return self._admission.reservations.reserve(owner)

    def check_capacity(self, owner: str, max_wait: float | None = None) -> None:
        """Raise ProblemError where a job of this owner would not be taken now; `max_wait`: seconds that it can wait.

        429 `queue_full`, `rate_limit_exceeded`; 503 `draining`, `model_loading`, `no_worker`.
        """
        if self._drain_task is not None:
            raise ProblemError(DRAINING)
        if not self._is_open:
            raise ProblemError(CLOSED)
        if self._pool.is_defunct:
            raise ProblemError(NO_WORKER)
        if self._is_folder_lost:
            raise ProblemError(FOLDER_LOST)
        if not self._registry.is_described:
            raise ProblemError(MODELS_LOADING)
        self._admission.check(owner, max_wait, self._lifecycle.num_workers)

    async def submit(
        self, spec: JobSpec, *, id: str, owner: str = "", attached: bool = False,
        idempotency: Idempotency | None = None, reservation: Reservation | None = None,
    ) -> Job:  # fmt: skip
        """Take a job whose files lie in its folder; the earlier one, if its owner has sent the same request before.

        A `reservation` that still counts is its place. The folder is deleted where the job is not taken. Raises
        ProblemError as `check_capacity` and `find_repeated`, and for the storage. If the caller goes away meanwhile, an
        attached job is canceled.
        """
        key, fingerprint = (None, None) if idempotency is None else (idempotency.key, idempotency.fingerprint)
        job = Job(id, spec, "queued", time.time(), owner, attached, key, fingerprint)
        task = self._lifecycle.spawn(self._submit(job, reservation))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if attached:
                self._lifecycle.spawn(self._cancel_disconnected(task))
            raise

    async def _submit(self, job: Job, reservation: Reservation | None) -> Job:
        try:
            stored = await self._admit(job, reservation)
        except BaseException:
            self._lifecycle.disk.release(job.id)
            await asyncio.to_thread(remove_job_folder, self._settings.data, job.id)
            raise
        if stored is not job:
            self._lifecycle.disk.release(job.id)
            await asyncio.to_thread(remove_job_folder, self._settings.data, job.id)
        self._pool.dispatch()
        return stored

    async def _admit(self, job: Job, reservation: Reservation | None) -> Job:
        await self._check_folder()
        earlier = await self._requests.find(job.owner, job.idempotency_key, job.fingerprint)
        if earlier is not None:
            return earlier
        place = reservation
        if place is None or not place.is_held or self._drain_task is not None:
            place = self.reserve(job.owner)
        try:
            self._admission.check_price(place, job.spec, self._lifecycle.num_workers)
            await self._retention.make_room(job)
            stored = await self._lifecycle.add(job)
        finally:
            place.release()
        check_fingerprint(stored, job.fingerprint)
        if self._requests.is_canceled(job.owner, job.idempotency_key):
            await self.cancel(stored.id)
        if self._drain_task is not None:
            self._cancel_attached()
        self._pool.fail_attached_if_defunct()
        return stored

    async def _cancel_disconnected(self, task: "asyncio.Task[Job]") -> None:
        await self.cancel((await task).id, "disconnect")

    async def find_repeated(self, owner: str, idempotency: Idempotency) -> Job | None:
        """The job of a request that its owner has sent before. Raises ProblemError as `KnownRequests.find`."""
        return await self._requests.find(owner, idempotency.key, idempotency.fingerprint)

    async def is_known(self, owner: str, idempotency_key: str) -> bool:
        """Whether an owner has sent a request with this key that has a job."""
        return await self._requests.job_of(owner, idempotency_key) is not None

    async def cancel_request(self, owner: str, idempotency_key: str) -> Job | None:
        """Cancel the job of a request; None where it has none yet, and then it will have none."""
        job = await self._requests.cancel(owner, idempotency_key)
        return None if job is None else await self.cancel(job.id)

    async def get(self, id: str) -> Job | None:
        return await self._lifecycle.get(id)

    async def list(
        self, owner: str, status: JobStatus | None = None, limit: int = 100, after: str | None = None
    ) -> JobPage:
        """A page of the jobs of an owner, the newest first, or those older than one of them. Raises ProblemError: 404
        `job_not_found` where that one is not there."""
        page = await self._lifecycle.store.list(owner, status, limit, after)
        return replace(page, jobs=tuple(map(self._lifecycle.current, page.jobs)))

    async def wait(self, id: str) -> Job:
        """A job once it is over. Raises ProblemError: 404 `job_not_found`, 503 `draining` if it is left for later."""
        active = self._lifecycle.queue.active_jobs.get(id)
        if active is not None:
            await active.finished_event.wait()
        job = await self.get(id) if active is None else active.job
        if job is None:
            raise problem_error(404, "job_not_found", f"there is no job {id}; results are kept for a limited time")
        if not job.is_finished:
            raise ProblemError(DRAINING)
        return job

    async def events(self, id: str, after: int = 0) -> AsyncGenerator[JobEvent]:
        """What happened to a job after the event of that number, and what happens until it is over.

        `data` has its status and all fields of JobProgress; those of a preview `file` and `index` besides. A job whose
        events are gone answers with the last. Raises ProblemError: 404 `job_not_found`.
        """
        event_log = self._lifecycle.event_logs.find(id)
        if event_log is not None:
            async for event in event_log.subscribe(after):
                yield event
            return
        job = await self.get(id)
        if job is None:
            raise problem_error(404, "job_not_found", f"there is no job {id}; results are kept for a limited time")
        if job.status in ("succeeded", "failed", "canceled"):
            yield JobEvent(after + 1, job.status, {"status": job.status, **asdict(self.progress(job))})

    def feed(self) -> AbstractContextManager[EventFeed]:
        """The events of all jobs of all owners, from now on."""
        return self._lifecycle.event_logs.feed()

    async def cancel(self, id: str, cause: str = "client") -> Job | None:
        """End a job that is not over, and stop its work; `cause` is counted. None if there is no such job."""
        active = self._lifecycle.queue.active_jobs.get(id)
        if active is None:
            return await self.get(id)
        if not active.is_finishing:
            self._metrics.cancelled.labels(cause).inc()
            self._lifecycle.finish(active, Outcome("canceled", problem=CANCELED))
            self._pool.cancel(id)
        await active.finished_event.wait()
        return active.job

    def set_open(self, is_open: bool) -> None:
        """Whether new jobs are taken; those that are there go on."""
        self._is_open = is_open
        log.warning("an operator lets jobs in again" if is_open else "an operator lets no more jobs in")

    async def cancel_any(self, id: str | None) -> bool:
        """End a job of whomever, or all that are not over; False where there is no such job."""
        ids = [each for each in self._lifecycle.queue.active_jobs if id in (None, each)]
        if id is not None and not ids:
            return False
        await asyncio.gather(*(self.cancel(each, "operator") for each in ids))
        log.warning("an operator canceled %d jobs", len(ids))
        return True

    async def delete(self, id: str) -> None:
        """Delete a job and its files; it is canceled if it is not over."""
        await self.cancel(id)
        self._pool.delete_later(id)
        await self._lifecycle.delete(id)

    def progress(self, job: Job) -> JobProgress:
        """How far a job is now."""
        active = self._lifecycle.queue.active_jobs.get(job.id)
        return finished_progress(job) if active is None else self._progress(active)

    def _progress(self, active: ActiveJob) -> JobProgress:
        return self._lifecycle.queue.progress(active, self._lifecycle.num_workers)

    def models(self) -> Sequence[ModelState]:
        """All models of the settings; before the first worker is ready without their kinds."""
        return self._registry.states()

    def adapters(self) -> AdapterNames:
        """What requests can add to models, from the folder of models."""
        return self._registry.adapters

    def model_for(self, task: Task, name: str | None) -> ModelState:
        """The model of a name or alias, else the first that can, see `ModelRegistry.get_for_task`."""
        return self._registry.get_for_task(task, name)

    async def load_model(self, name: str) -> None:
        """Let the workers load a model once nothing waits; `models()` shows when they have."""
        self._request_model(Load, name)

    async def unload_model(self, name: str) -> None:
        """Let the workers drop a model once nothing waits. Raises ProblemError for one that is kept."""
        if any(model.keep and name in (model.name, *model.aliases) for model in self._settings.known_models):
            text = f"the model {name} is kept loaded by the service's settings; leave keep out to unload it"
            raise problem_error(400, "unsupported", text, "model")
        self._request_model(Unload, name)

    def _request_model(self, command: type[Load | Unload], name: str) -> None:
        model = self._registry.get(name)
        if self._drain_task is not None:
            raise ProblemError(DRAINING)
        if model.error is not None:
            raise problem_error(500, "model_unusable", f"the model {model.name} cannot be used: {model.error}", "model")
        if not any(worker.is_up for worker in self._pool.workers):
            raise problem_error(503, "model_loading", "no worker is ready; ask again in a moment", retry_after=2)
        self._pool.request_model(command(model=model.name))

    async def delete_expired(self) -> None:
        """Forget results that are old, and the oldest where all take too much of the disk."""
        await self._retention.delete_expired()

    async def _check_folder(self) -> None:
        """Raise ProblemError where the data folder is gone."""
        if self._lock is not None and await asyncio.to_thread(self._lock.is_lost):
            if not self._is_folder_lost:
                log.error("%s is no longer the folder that this service started with; stop it", self._settings.data)
            self._is_folder_lost = True
            raise ProblemError(FOLDER_LOST)

    async def _watch_folder(self) -> None:
        while not self._is_folder_lost:
            await asyncio.sleep(FOLDER_CHECK_SECONDS)
            with suppress(ProblemError):
                await self._check_folder()

    def _cancel_attached(self) -> None:
        """Cancel the waiting jobs of those who wait on a connection."""
        for active in unfinished(list(self._lifecycle.queue.waiting.values())):
            if active.job.attached:
                self._metrics.cancelled.labels("draining").inc()
                self._lifecycle.finish(active, Outcome("canceled", problem=DRAINING))

    async def _shut_down(self) -> None:
        self._pool.is_paused = True
        self._cancel_attached()
        deadline = time.monotonic() + self._settings.drain_seconds
        while self._lifecycle.queue.running and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for active in unfinished(list(self._lifecycle.queue.running.values())):
            if active.job.attached:
                self._metrics.cancelled.labels("draining").inc()
                self._lifecycle.finish(active, Outcome("canceled", problem=DRAINING))
        await self._pool.stop()
        await self._lifecycle.wait_for_tasks()
        self._cancel_attached()
        await self._lifecycle.wait_for_tasks()
        try:
            await self._lifecycle.retry_unwritten()
        except ProblemError as error:
            log.error("how some jobs ended could not be written down: %s", error)
        await self._close()

    async def _close(self) -> None:
        for task in self._background_tasks:
            task.cancel()
        await asyncio.gather(*self._background_tasks, return_exceptions=True)
        self._lifecycle.close()
        await self._lifecycle.store.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
