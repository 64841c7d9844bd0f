"""How jobs come, go on and end: each step is written down first, then told. Nothing else changes a job."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from enlarger.service.faults import Fault, Refused
from enlarger.service.jobs import FINISHED, Job, folder_of
from enlarger.service.queue.estimate import Costs
from enlarger.service.queue.events import Boards, Kind
from enlarger.service.queue.line import Line, Live, moved
from enlarger.service.queue.state import Metrics, Standing
from enlarger.service.queue.store import Database, Store
from enlarger.service.queue.sweep import read_done, remove_folder

End = Literal["succeeded", "failed", "canceled"]
CRASHES = 2  # workers that may die over a job
STARTS = 10  # times that a job may be begun
RETRIES = (0.1, 0.3, 1.0, 3.0)  # seconds between attempts to write down how a job ended
T = TypeVar("T")
log = logging.getLogger("enlarger.service.queue")


@dataclass(frozen=True)
class Outcome:
    """How a job ends."""

    status: End
    result: Mapping[str, Any] | None = None
    fault: Fault | None = None


class Book:
    """The store, the line in memory, and those who watch, kept in step."""

    def __init__(self, data: Path, metrics: Metrics) -> None:
        self.data, self.metrics = data, metrics
        self.store = Store(data / "queue.sqlite3")
        self.line, self.boards = Line(Costs()), Boards()
        self.workers = 1  # that can work, for expected times
        self._unwritten: dict[str, Job] = {}  # ends that the disk did not take
        self._ended: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something to its end, whoever waits for it or not."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def settle_all(self) -> None:
        """Wait for all that was spawned."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def recover(self) -> None:
        """What an earlier process left: what it completed has succeeded, the rest waits again or is ended."""
        self._ended = Counter(await self.store.do(Database.counts))
        self._ended.subtract({"queued": self._ended["queued"], "running": self._ended["running"]})
        for job in await self.store.do(Database.unfinished):
            outcome = await asyncio.to_thread(_outcome_of, self.data, job)
            if outcome is not None:
                live = self.line.lives[job.id] = Live(job)
                await self.settle(live, outcome)
                continue
            if job.status == "running":
                await self.store.do(Database.requeue, job.id, job.crashes)
            self.line.add(Live(replace(job, status="queued", started=None)))
        self.changed()

    async def add(self, job: Job) -> Job:
        """A new job comes to the end of the line; or the earlier one that its owner gave the same key."""
        kept = await self.store.do(Database.add, job)
        if kept is not job:
            return kept
        self.line.add(Live(job))
        self.changed()
        return job

    async def get(self, id: str) -> Job | None:
        if id in self._unwritten:
            return self._unwritten[id]
        live = self.line.lives.get(id)
        return await self.store.do(Database.get, id) if live is None else live.job

    async def begin(self, lives: Sequence[Live]) -> list[Live]:
        """Jobs that were taken from the line now run; those are left out that ended meanwhile."""
        now = time.time()
        claimed = await self.store.do(Database.claim, [live.job.id for live in lives], now)
        begun = [live for live in lives if not live.settled and live.job.id in claimed]
        for live in begun:
            live.job = replace(live.job, status="running", started=now, starts=live.job.starts + 1)
            self.metrics.waited(max(now - live.job.created, 0.0))
            self.tell(live, "started")
        return begun

    async def retry(self, live: Live, blamed: bool) -> None:
        """The worker of a job is gone: the job has ended, or waits again at the front, or has had too many tries."""
        done = await asyncio.to_thread(read_done, self.data, live.job.id)
        crashes = live.job.crashes + blamed
        if live.settled:
            return
        live.job = replace(live.job, crashes=crashes)
        if done is not None:
            await self.settle(live, Outcome("succeeded", done))
        elif crashes >= CRASHES or live.job.starts >= STARTS:
            text = "the worker process ended while it ran this, and again when it was tried a second time"
            await self.settle(live, Outcome("failed", fault=Fault(500, "worker_died", text)))
        else:
            await self._wait_again(live)

    async def _wait_again(self, live: Live) -> None:
        try:
            await self.store.do(Database.requeue, live.job.id, live.job.crashes)
        except Refused as error:
            log.error("a job waits again, but that could not be written down: %s", error)
        if not live.settled:
            self.line.leave(live)
            live.job = replace(live.job, status="queued", started=None)
            live.pace = None
            self.line.put_first([live])
            self.changed()

    def settle(self, live: Live, outcome: Outcome) -> "asyncio.Task[None]":
        """End a job. It leaves the line at once; the task is over when the end is written down and told."""
        assert not live.settled
        live.settled = True
        self.line.leave(live)
        self.changed()
        return self.spawn(self._end(live, outcome))

    async def forget(self, id: str) -> None:
        """Delete a job that has ended, and its files."""
        unwritten, status = self._unwritten.pop(id, None), await self.store.do(Database.remove, id)
        status = status if unwritten is None else unwritten.status
        self.boards.forget(id)
        if status in FINISHED:
            self._ended[status] -= 1
        await asyncio.to_thread(remove_folder, self.data, id)
        self.changed()

    async def write_again(self) -> None:
        """Try once more to write down what the disk did not take."""
        for id, job in list(self._unwritten.items()):
            await self.store.do(Database.finish, job)
            self._unwritten.pop(id, None)

    def tell(self, live: Live, kind: Kind, more: Mapping[str, Any] | None = None) -> None:
        """Tell those who watch a job where it stands."""
        self._publish(live, kind, self.line.standing(live, self.workers), more)

    def _publish(self, live: Live, kind: Kind, standing: Standing, more: Mapping[str, Any] | None = None) -> None:
        data = {"status": live.job.status, **standing.to_json(), **(more or {})}
        self.boards.publish(live.job.id, kind, data)

    def changed(self) -> None:
        """The line has changed: positions are told, and counted."""
        for live, standing in list(moved(self.line, self.workers)):
            self._publish(live, "queued", standing)
        self.metrics.queue(len(self.line.waiting), len(self.line.running))
        self.metrics.jobs(self.counts())

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status."""
        ended = {status: self._ended[status] for status in ("succeeded", "failed", "canceled")}
        return {"queued": len(self.line.waiting), "running": len(self.line.running), **ended}

    def close(self) -> None:
        """Wake all who wait for something that this process will not do any more."""
        for live in self.line.lives.values():
            live.ended.set()
        self.boards.close()

    async def _end(self, live: Live, outcome: Outcome) -> None:
        ended = {"status": outcome.status, "result": outcome.result, "fault": outcome.fault}
        job = replace(live.job, finished=time.time(), **ended)
        try:
            first = await self._write(job)
        except Refused as error:
            self._unwritten[job.id] = job = replace(job, status="failed", result=None, fault=error.fault)
            first = True
        if not first:
            log.error("job %s had ended before", job.id)
            job = await self.store.do(Database.get, job.id) or job
        assert job.status in ("succeeded", "failed", "canceled")
        live.job = job
        self._ended[job.status] += 1
        self.line.drop(live)
        self.tell(live, job.status)
        live.ended.set()
        self.changed()

    async def _write(self, job: Job) -> bool:
        """Write down how a job ended, patiently."""
        for seconds in RETRIES:
            try:
                return await self.store.do(Database.finish, job)
            except Refused as error:
                log.error("the end of a job could not be written down: %s", error)
                await asyncio.sleep(seconds)
        return await self.store.do(Database.finish, job)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Refused):
            log.error("a step of the queue failed", exc_info=error)


def _outcome_of(data: Path, job: Job) -> Outcome | None:
    """How a job has ended that an earlier process left; None if it is to wait."""
    done = read_done(data, job.id)
    if done is not None:
        return Outcome("succeeded", done)
    if job.attached:
        text = "the service was stopped before this was done, and the connection that waited for it was lost"
        return Outcome("canceled", fault=Fault(499, "canceled", text))
    if job.status == "running" and job.starts >= STARTS:
        text = f"the service ended {job.starts} times while it ran this"
        return Outcome("failed", fault=Fault(500, "worker_died", text))
    if not folder_of(data, job.id).is_dir():
        return Outcome("failed", fault=Fault(500, "internal", "the files of this job are gone; send it again"))
    return None


def several(lives: Iterable[Live | None]) -> list[Live]:
    """Those that are there and whose end nobody has decided."""
    return [live for live in lives if live is not None and not live.settled]
