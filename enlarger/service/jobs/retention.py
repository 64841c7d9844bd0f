"""What is kept, and for how long: old results go, and the oldest where all would take too much of the disk."""

import asyncio
import logging
import time

from enlarger.service.jobs.data_folder import DATABASE
from enlarger.service.jobs.disk_usage import database_bytes, expected_bytes
from enlarger.service.jobs.files import job_folder_bytes, spool_bytes
from enlarger.service.jobs.job import Job
from enlarger.service.jobs.lifecycle import JobLifecycle
from enlarger.service.jobs.store import JobDatabase
from enlarger.service.problems import ProblemError, problem_error
from enlarger.service.settings import MIB, Settings

CLEANUP_SECONDS = 30.0
MIN_RETENTION_SECONDS = 60.0  # results are safe from the disk quota for so long after they were made
log = logging.getLogger("enlarger.service.jobs")


class Retention:
    """Deletes what is old or too much. `disk` counts all that the service writes: pictures, texts, the database."""

    def __init__(self, settings: Settings, lifecycle: JobLifecycle) -> None:
        self._settings, self._lifecycle, self._disk = settings, lifecycle, lifecycle.disk

    async def run(self) -> None:
        """Look again and again, until canceled."""
        while True:
            await asyncio.sleep(CLEANUP_SECONDS)
            try:
                await self.delete_expired()
            except (ProblemError, OSError) as error:
                log.error("old results could not be deleted: %s", error)

    async def delete_expired(self) -> None:
        """Forget results that are old, and the oldest where all take too much of the disk."""
        await self._lifecycle.retry_unwritten()
        run = self._lifecycle.store.run
        for id in await run(JobDatabase.finished_before, time.time() - self._settings.job_minutes * 60):
            await self._lifecycle.delete(id)
        await self.measure()
        await self._free(0)

    async def measure(self) -> None:
        """Count what lies on the disk."""
        data = self._settings.data
        by_job = await asyncio.to_thread(job_folder_bytes, data)
        other = await asyncio.to_thread(database_bytes, data, DATABASE) + await asyncio.to_thread(spool_bytes, data)
        self._disk.reset(by_job, other)

    async def make_room(self, job: Job) -> None:
        """Count a new job for what it may take; older results go for it. Raises ProblemError: 400 `image_too_large`
        where it would take more than all may, 429 `queue_full` where what is there may not go yet."""
        needed = await asyncio.to_thread(expected_bytes, self._settings.data, job.id, job.spec)
        allowed = self._disk.max_bytes / MIB
        found = f"this may take {needed / MIB:,.1f} MiB of the disk, of which the service may have {allowed:,.1f}"
        if needed > self._disk.max_bytes:
            raise problem_error(400, "image_too_large", f"{found}; ask for fewer or smaller pictures")
        if not self._disk.has_room(needed):
            await self._free(needed, job.owner)
        if not self._disk.has_room(needed):
            text = f"{found}, and jobs that wait, run or were just done take the rest; ask again later"
            raise problem_error(429, "queue_full", text, retry_after=MIN_RETENTION_SECONDS)
        self._disk.expect(job.id, needed)

    async def _free(self, needed: int, owner: str | None = None) -> None:
        """Delete results until there is room: first those of an owner, then all, the first to end first. For an owner
        none goes where there would be too little room all the same. What rows took comes back at the end."""
        before = time.time() - MIN_RETENTION_SECONDS
        ended = await self._lifecycle.store.run(JobDatabase.finished_before, before, owner)
        rows = await asyncio.to_thread(database_bytes, self._settings.data, DATABASE)  # at most
        can_go = rows + sum(self._disk.by_job.get(id, 0) for id in ended)
        if owner is not None and not self._disk.has_room(needed - can_go):
            return
        deleted = False
        for id in ended:
            if self._disk.has_room(needed):
                break
            await self._lifecycle.delete(id)
            deleted = True
        if deleted:
            await self._lifecycle.store.run(JobDatabase.compact)
            await self.measure()
