"""Requests as their Idempotency-Keys name them: which job each has, and which were canceled before they had one."""

from enlarger.service.jobs.job import Job
from enlarger.service.jobs.lifecycle import JobLifecycle
from enlarger.service.jobs.store import JobDatabase
from enlarger.service.problems import CANCELED, ProblemError, problem_error

MAX_CANCELED = 256  # keys of one owner that are remembered; the oldest go


class KnownRequests:
    """The requests that came with a key."""

    def __init__(self, lifecycle: JobLifecycle) -> None:
        self._lifecycle = lifecycle
        self._canceled: dict[str, dict[str, None]] = {}  # keys by owner, in the order in which they came

    async def job_of(self, owner: str, key: str) -> Job | None:
        """The job of the request that an owner has sent with a key."""
        job = await self._lifecycle.store.run(JobDatabase.find_by_idempotency_key, owner, key)
        return None if job is None else await self._lifecycle.get(job.id)

    async def find(self, owner: str, key: str | None, fingerprint: str | None) -> Job | None:
        """The job of a request that was sent before. Raises ProblemError: 400 `idempotency_key_reused` where the key
        came with another one, 499 `canceled` where it was canceled before it had a job."""
        job = None if key is None else await self.job_of(owner, key)
        if job is not None:
            check_fingerprint(job, fingerprint)
        elif self.is_canceled(owner, key):
            raise ProblemError(CANCELED)
        return job

    def is_canceled(self, owner: str, key: str | None) -> bool:
        """Whether a request was canceled that had no job then."""
        return key in self._canceled.get(owner, ())

    async def cancel(self, owner: str, key: str) -> Job | None:
        """The job that is to be canceled; where there is none, the request will get none, should it still come."""
        keys = self._canceled.setdefault(owner, {})
        keys[key] = None  # before it is looked for: a job that comes meanwhile looks here after it is there
        if len(keys) > MAX_CANCELED:
            keys.pop(next(iter(keys)))
        job = await self.job_of(owner, key)
        if job is not None:
            keys.pop(key, None)
        return job


def check_fingerprint(job: Job, fingerprint: str | None) -> None:
    """Raise ProblemError where the earlier job of an Idempotency-Key is another request's."""
    if job.fingerprint != fingerprint:
        text = "this Idempotency-Key was used for another request; use a new key for each"
        raise problem_error(400, "idempotency_key_reused", text, "Idempotency-Key")
