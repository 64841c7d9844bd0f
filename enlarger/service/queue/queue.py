"""The queue of the service: jobs are given, watched, canceled and forgotten here."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence

from enlarger.service.faults import Fault, Refused, refuse
from enlarger.service.jobs import Ask, Event, Job, Status, Task
from enlarger.service.queue import lock
from enlarger.service.queue.book import Book, Outcome, several
from enlarger.service.queue.catalogue import Catalogue
from enlarger.service.queue.claims import Claim, Claims
from enlarger.service.queue.line import Live, standing_after
from enlarger.service.queue.runs import CANCELED, NO_WORKER, Runs
from enlarger.service.queue.state import Metrics, ModelState, Standing, State
from enlarger.service.queue.store import Database
from enlarger.service.queue.sweep import empty_spool, make_folders, over_quota, remove_folder, remove_orphans, sizes
from enlarger.service.queue.workers import WORKER, Launch
from enlarger.service.settings import GIB, Settings

log = logging.getLogger("enlarger.service.queue")
SWEEP_SECONDS = 30.0
FRESH_SECONDS = 60.0  # results are safe from the disk quota for so long after they were made
DRAINING = Fault(503, "draining", "the service is stopping; ask again in a moment", retry_after=5)


class Queue:
    """What waits and runs. All of it happens on the event loop that `start` was called on."""

    def __init__(self, settings: Settings, metrics: Metrics, command: Sequence[str] = WORKER) -> None:
        self._settings, self._metrics, self._command = settings, metrics, command
        self._catalogue = Catalogue(settings.known_models)
        self._book = Book(settings.data, metrics)
        self._runs = Runs(settings, self._book, self._catalogue)
        self._lock: lock.Lock | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None
        self._claims = Claims()
        self._adding: list[str] = []  # the owners of jobs that are being written down

    async def start(self) -> None:
        """Take the data folder, recover what an earlier service left, and start the workers.

        Raises InputError for a folder or a database that cannot be used, or that another service uses.
        """
        data = self._settings.data
        await asyncio.to_thread(make_folders, data)
        self._lock = await lock.take(data)
        try:
            await asyncio.to_thread(empty_spool, data)
            await self._book.store.open()
            await self._book.recover()
            await asyncio.to_thread(remove_orphans, data, await self._book.store.do(Database.ids))
        except BaseException:
            await self._close()
            raise
        models = [model.model_dump(mode="json") for model in self._settings.known_models]
        self._runs.start(Launch(self._command, models, self._settings.memory, data, self._lock.shared))
        self._sweeper = asyncio.create_task(self._sweep_on())

    async def drain(self) -> None:
        """Take no more jobs, let those that run end for `drain_seconds`, stop the workers, close the store.

        Whoever waits on a connection is told that the service stops; other jobs wait for the next service.
        """
        if self._drain is None:
            self._drain = asyncio.create_task(self._stop())
        await asyncio.shield(self._drain)

    @property
    def state(self) -> State:
        """How the whole is: the best that any worker is, unless the disk fails."""
        workers = self._runs.workers
        if self._runs.hopeless:
            return "DEFUNCT" if any(worker.ever_ready for worker in workers) else "SETUP_FAILED"
        if self._book.store.failed:
            return "UNHEALTHY"
        if any(worker.state == "idle" for worker in workers):
            return "READY"
        if any(worker.state == "busy" for worker in workers):
            return "BUSY"
        return "UNHEALTHY" if any(worker.ever_ready for worker in workers) else "STARTING"

    @property
    def ready(self) -> bool:
        """Whether jobs are taken and some worker can do them."""
        return self._drain is None and self.state in ("READY", "BUSY")

    @property
    def draining(self) -> bool:
        return self._drain is not None

    @property
    def expected_wait(self) -> float:
        """Seconds until a job that came now would begin."""
        return self._book.line.begins(self._book.workers)[""]

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status."""
        return self._book.counts()

    def claim(self, owner: str, patience: float | None = None) -> Claim:
        """A place for a request whose body is still to come. Raises Refused as `check_room`."""
        self.check_room(owner, patience)
        return self._claims.take(owner)

    def check_room(self, owner: str, patience: float | None = None) -> None:
        """Raise Refused where a job of this owner would not be taken now; `patience`: seconds that it can wait.

        429 `queue_full`, `rate_limit_exceeded`; 503 `draining`, `model_loading`, `no_worker`.
        """
        if self._drain is not None:
            raise Refused(DRAINING)
        if self._runs.hopeless:
            raise Refused(NO_WORKER)
        if not self._catalogue.known:
            raise refuse(503, "model_loading", "the models are being read; ask again in a moment", retry_after=2)
        coming = [*self._adding, *self._claims.owners()]
        self._check_key(owner, coming)
        wait, most = self.expected_wait, self._settings.queue
        if len(self._book.line.waiting) + len(coming) >= most:
            text = f"{most} jobs wait already, which is all that may; ask again in {max(1, round(wait))} s"
            raise refuse(429, "queue_full", text, retry_after=wait)
        longest = min(patience, self._settings.wait_seconds) if patience is not None else self._settings.wait_seconds
        if wait > longest:
            text = (
                f"a job would wait {round(wait)} s before it begins, and may wait {round(longest)} s; ask again later"
            )
            raise refuse(429, "queue_full", text, retry_after=wait - longest)

    def _check_key(self, owner: str, coming: Sequence[str]) -> None:
        own, most = self._book.line.owned(owner), self._settings.bounds.per_key
        if owner and len(own) + coming.count(owner) >= most:
            first = min((self._standing(live).eta_seconds or 0.0 for live in own), default=1.0)
            text = f"{most} jobs of this key wait or run, which is all that may at a time; wait for one to end"
            raise refuse(429, "rate_limit_exceeded", text, retry_after=first)

    async def submit(
        self, ask: Ask, *, id: str, owner: str = "", attached: bool = False, key: str | None = None,
        claim: Claim | None = None,
    ) -> Job:  # fmt: skip
        """Take a job whose files lie in its folder; the earlier one, if its owner has used `key` before.

        A `claim` that still counts is its place. The folder is deleted where the job is not taken. Raises Refused as
        `check_room`, and for the storage. If the caller goes away meanwhile, an attached job is canceled.
        """
        job = Job(id, ask, "queued", time.time(), owner, attached, key)
        task = self._book.spawn(self._submit(job, claim))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if attached:
                self._book.spawn(self._abandon(task))
            raise

    async def _submit(self, job: Job, claim: Claim | None) -> Job:
        try:
            kept = await self._take(job, claim)
        except BaseException:
            await asyncio.to_thread(remove_folder, self._settings.data, job.id)
            raise
        if kept is not job:
            await asyncio.to_thread(remove_folder, self._settings.data, job.id)
        self._runs.dispatch()
        return kept

    async def _take(self, job: Job, claim: Claim | None) -> Job:
        if job.key is not None and (earlier := await self.find_key(job.owner, job.key)) is not None:
            return earlier
        if claim is None or not claim.release() or self._drain is not None:
            self.check_room(job.owner)
        self._adding.append(job.owner)
        try:
            kept = await self._book.add(job)
        finally:
            self._adding.remove(job.owner)
        if self._drain is not None:
            self._dismiss()
        self._runs.give_up()
        return kept

    async def _abandon(self, task: "asyncio.Task[Job]") -> None:
        await self.cancel((await task).id, "disconnect")

    async def find_key(self, owner: str, key: str) -> Job | None:
        """The job that an owner gave with an Idempotency-Key."""
        found = await self._book.store.do(Database.find_key, owner, key)
        return None if found is None else await self.get(found.id)

    async def get(self, id: str) -> Job | None:
        return await self._book.get(id)

    async def list(self, owner: str, status: Status | None = None, limit: int = 100) -> list[Job]:
        """The jobs of an owner, the newest first."""
        found = await self._book.store.do(Database.list, owner, status, limit)
        return [await self._book.get(job.id) or job for job in found]

    async def wait(self, id: str) -> Job:
        """A job once it is over. Raises Refused: 404 `job_not_found`, 503 `draining` if the next service does it."""
        live = self._book.line.lives.get(id)
        if live is not None:
            await live.ended.wait()
        job = await self.get(id) if live is None else live.job
        if job is None:
            raise refuse(404, "job_not_found", f"there is no job {id}; results are kept for a limited time")
        if not job.over:
            raise Refused(DRAINING)
        return job

    async def events(self, id: str, after: int = 0) -> AsyncGenerator[Event]:
        """What happened to a job after the event of that number, and what happens until it is over.

        `data` holds its status and all fields of Standing; those of a preview `file` and `index` besides. A job whose
        events are gone answers with the last. Raises Refused: 404 `job_not_found`.
        """
        board = self._book.boards.find(id)
        if board is not None:
            async for event in board.follow(after):
                yield event
            return
        job = await self.get(id)
        if job is None:
            raise refuse(404, "job_not_found", f"there is no job {id}; results are kept for a limited time")
        if job.status in ("succeeded", "failed", "canceled"):
            yield Event(after + 1, job.status, {"status": job.status, **self.standing(job).to_json()})

    async def cancel(self, id: str, cause: str = "client") -> Job | None:
        """End a job that is not over, and stop its work; `cause` is counted. None if there is no such job."""
        live = self._book.line.lives.get(id)
        if live is None:
            return await self.get(id)
        if not live.settled:
            self._metrics.cancelled(cause)
            self._book.settle(live, Outcome("canceled", fault=CANCELED))
            self._runs.cancel(id)
        await live.ended.wait()
        return live.job

    async def forget(self, id: str) -> None:
        """Delete a job and its files; it is canceled if it is not over."""
        await self.cancel(id)
        self._runs.doom(id)
        await self._book.forget(id)

    def standing(self, job: Job) -> Standing:
        """Where a job stands now."""
        live = self._book.line.lives.get(job.id)
        return standing_after(job) if live is None else self._standing(live)

    def _standing(self, live: Live) -> Standing:
        return self._book.line.standing(live, self._book.workers)

    def models(self) -> Sequence[ModelState]:
        """All models of the settings; before the first worker is ready without their kinds."""
        return self._catalogue.states()

    def model_for(self, task: Task, name: str | None) -> ModelState:
        """The model of a name or alias; the first that can, without one. Raises Refused, see `Catalogue.able`."""
        return self._catalogue.able(task, name)

    async def load(self, name: str) -> None:
        """Tell the workers to load a model; `models()` shows when they have."""
        self._tell_workers("load", name)

    async def unload(self, name: str) -> None:
        """Tell the workers to let a model go."""
        self._tell_workers("unload", name)

    def _tell_workers(self, what: str, name: str) -> None:
        found = self._catalogue.named(name)
        if self._drain is not None:
            raise Refused(DRAINING)
        if found.error is not None:
            raise refuse(500, "model_unusable", f"the model {found.name} cannot be used: {found.error}", "model")
        up = [worker for worker in self._runs.workers if worker.up]
        if not up:
            raise refuse(503, "model_loading", "no worker is ready; ask again in a moment", retry_after=2)
        for worker in up:
            worker.tell({"do": what, "model": found.name})

    async def sweep(self) -> None:
        """Forget results that are old, and the oldest where all take too much of the disk."""
        await self._book.write_again()
        now, do = time.time(), self._book.store.do
        for id in await do(Database.ended, now - self._settings.job_minutes * 60):
            await self._book.forget(id)
        ended = await do(Database.ended, now - FRESH_SECONDS)
        taken = await asyncio.to_thread(sizes, self._settings.data)
        for id in over_quota(taken, ended, self._settings.disk * GIB):
            await self._book.forget(id)

    async def _sweep_on(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.sweep()
            except (Refused, OSError) as error:
                log.error("old results could not be deleted: %s", error)

    def _dismiss(self) -> None:
        """Tell those who wait on a connection that the service stops."""
        for live in several(list(self._book.line.waiting.values())):
            if live.job.attached:
                self._metrics.cancelled("draining")
                self._book.settle(live, Outcome("canceled", fault=DRAINING))

    async def _stop(self) -> None:
        self._runs.paused = True
        self._dismiss()
        end = time.monotonic() + self._settings.drain_seconds
        while self._book.line.running and time.monotonic() < end:
            await asyncio.sleep(0.02)
        for live in several(list(self._book.line.running.values())):
            if live.job.attached:
                self._metrics.cancelled("draining")
                self._book.settle(live, Outcome("canceled", fault=DRAINING))
        await self._runs.stop()
        await self._book.settle_all()
        self._dismiss()
        await self._book.settle_all()
        try:
            await self._book.write_again()
        except Refused as error:
            log.error("how some jobs ended could not be written down: %s", error)
        await self._close()

    async def _close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        self._book.close()
        await self._book.store.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
