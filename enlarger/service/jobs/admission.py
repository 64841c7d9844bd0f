"""Who is let into the queue, and the places in it that requests hold from their heads on; a slow body loses its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from enlarger.service.jobs.job import JobSpec
from enlarger.service.jobs.job_queue import ActiveJob, JobQueue
from enlarger.service.jobs.progress_estimator import DEFAULT_SECONDS, megapixels
from enlarger.service.problems import problem_error
from enlarger.service.settings import Settings


@dataclass(eq=False)
class Reservation:
    """One place, until it is released."""

    owner: str
    price: float = field(default=0.0, init=False)  # of its job, once that is known
    held: "set[Reservation]" = field(repr=False)  # all places that are

    @property
    def is_held(self) -> bool:
        return self in self.held

    def release(self) -> bool:
        """Give the place up; whether it was still held."""
        was_held = self.is_held
        self.held.discard(self)
        return was_held


class Reservations:
    """All places that are held."""

    def __init__(self) -> None:
        self._held: set[Reservation] = set()

    def reserve(self, owner: str) -> Reservation:
        reservation = Reservation(owner, held=self._held)
        self._held.add(reservation)
        return reservation

    def held(self) -> list[Reservation]:
        """All that are held now."""
        return list(self._held)

    def owners(self) -> list[str]:
        """Whose places are held now."""
        return [reservation.owner for reservation in self._held]


def price(spec: JobSpec) -> float:
    """What a job costs: the megapixels of all its pictures, times its steps and those of its enlarging."""
    steps, more = spec.options.get("steps"), spec.options.get("upscale_steps")
    own = steps if isinstance(steps, int) else spec.default_steps
    return megapixels(spec) * (own + (more if isinstance(more, int) else 0))


class Admission:
    """The bounds on how many jobs wait, how long, what they cost, and how many one key has."""

    def __init__(self, settings: Settings, queue: JobQueue) -> None:
        self._settings, self._queue = settings, queue
        self.reservations = Reservations()

    def check(self, owner: str, max_wait: float | None, num_workers: int) -> None:
        """Raise ProblemError 429, `queue_full` or `rate_limit_exceeded`, where a job would not be taken now, or would
        wait longer than `max_wait` seconds."""
        pending_owners = self.reservations.owners()
        self._check_owner(owner, pending_owners, num_workers)
        wait, limit = self._queue.expected_wait(owner, num_workers), self._settings.queue
        if len(self._queue.waiting) + len(pending_owners) >= limit:
            text = f"{limit} jobs wait already, which is all that may; ask again in {max(1, round(wait))} s"
            raise problem_error(429, "queue_full", text, retry_after=wait)
        longest_wait = self._settings.wait_seconds if max_wait is None else min(max_wait, self._settings.wait_seconds)
        if wait > longest_wait:
            found = f"a job would wait {round(wait)} s before it begins"
            text = f"{found}, and may wait {round(longest_wait)} s; ask again later"
            raise problem_error(429, "queue_full", text, retry_after=wait - longest_wait)

    def check_price(self, place: Reservation, spec: JobSpec, num_workers: int) -> None:
        """Give a place the price of its job. Raises ProblemError: 400 `invalid_value` for one that is too high at any
        time, 429 `rate_limit_exceeded` or `queue_full` where it is together with what waits and runs."""
        bounds, cost = self._settings.bounds, price(spec)
        if cost > bounds.request_price:
            found = f"this costs {cost:,.0f} megapixels x steps, expected at most {bounds.request_price:,.0f}"
            raise problem_error(400, "invalid_value", f"{found}; ask for fewer or smaller pictures, or fewer steps")
        others = [
            *((active.job.owner, price(active.job.spec), active) for active in self._queue.active_jobs.values()),
            *((other.owner, other.price, None) for other in self.reservations.held() if other is not place),
        ]
        limits = [("rate_limit_exceeded", "of this key", bounds.key_price, place.owner)] if place.owner else []
        for code, whose, limit, owner in [*limits, ("queue_full", "of all keys", bounds.total_price, None)]:
            counted = [(each, active) for other, each, active in others if owner in (None, other)]
            total = sum(each for each, _ in counted)
            if total + cost > limit and total > 0:
                etas = (self._seconds_left(active, num_workers) for _, active in counted if active)
                found = f"jobs {whose} that wait or run cost {total:,.0f} megapixels x steps and this {cost:,.0f}"
                text = f"{found}, expected at most {limit:,.0f} together; wait for one to end"
                raise problem_error(429, code, text, retry_after=min(etas, default=DEFAULT_SECONDS))
        place.price = cost

    def _seconds_left(self, active: ActiveJob, num_workers: int) -> float:
        """Until a job has ended, as far as is known."""
        eta = self._queue.progress(active, num_workers).eta_seconds
        return DEFAULT_SECONDS if eta is None else eta

    def _check_owner(self, owner: str, pending_owners: Sequence[str], num_workers: int) -> None:
        owned, limit = self._queue.owned_by(owner), self._settings.bounds.per_key
        if owner and len(owned) + pending_owners.count(owner) >= limit:
            etas = (self._seconds_left(active, num_workers) for active in owned)
            text = f"{limit} jobs of this key wait or run, which is all that may at a time; wait for one to end"
            raise problem_error(429, "rate_limit_exceeded", text, retry_after=min(etas, default=DEFAULT_SECONDS))
