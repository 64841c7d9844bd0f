"""Who waits, who runs, and until when: the queue as the server has it in memory. Nothing here waits or writes."""

import asyncio
import heapq
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from enlarger.service.jobs import Job
from enlarger.service.queue.estimate import Costs, Pace
from enlarger.service.queue.state import Standing

NEAR = 64  # positions from the front at which each change is told


@dataclass(eq=False)
class Live:
    """A job that has not ended, or whose end is being written down."""

    job: Job
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    settled: bool = False  # somebody has decided how it ends; nobody else may
    pace: Pace | None = None  # while it runs
    run: int = 0  # the same for the jobs of a batch
    preview: str | None = None
    told: int | None = None  # the position that its watchers know


class Line:
    """The jobs that have not ended."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.lives: dict[str, Live] = {}
        self.waiting: dict[str, Live] = {}  # in order
        self.running: dict[str, Live] = {}
        self._runs = 0

    def add(self, live: Live) -> None:
        """A job comes to the end of the line."""
        self.lives[live.job.id] = self.waiting[live.job.id] = live

    def put_first(self, lives: Iterable[Live]) -> None:
        """Jobs that ran come back, to the front."""
        first = {live.job.id: live for live in lives}
        self.waiting = first | {id: live for id, live in self.waiting.items() if id not in first}

    def take(self, most: int) -> list[Live]:
        """The next job, with others that may run together with it; those that saw a crash run alone."""
        head = next(iter(self.waiting.values()), None)
        if head is None:
            return []
        taken, alike = [head], head.job.ask.alike
        if alike is not None and head.job.crashes == 0 and most > 1:
            others = (live for live in self.waiting.values() if live is not head and live.job.crashes == 0)
            taken += [live for live in others if live.job.ask.alike == alike][: most - 1]
        self._runs, now = self._runs + 1, time.monotonic()
        for live in taken:
            self.waiting.pop(live.job.id)
            self.running[live.job.id] = live
            live.run, live.pace = self._runs, Pace(live.job.ask, self.costs, now, len(taken))
            live.preview = live.told = None
        return taken

    def leave(self, live: Live) -> None:
        """A job neither waits nor runs any more."""
        self.waiting.pop(live.job.id, None)
        self.running.pop(live.job.id, None)

    def drop(self, live: Live) -> None:
        """A job has ended."""
        self.leave(live)
        self.lives.pop(live.job.id, None)

    def owned(self, owner: str) -> list[Live]:
        """What waits or runs for an owner."""
        return [live for live in (*self.waiting.values(), *self.running.values()) if live.job.owner == owner]

    def position(self, live: Live) -> int | None:
        if live.job.id in self.waiting:
            return list(self.waiting).index(live.job.id) + 1
        return None if live.job.over else 0

    def standing(self, live: Live, workers: int) -> Standing:
        """Where a job stands."""
        position, pace = self.position(live), live.pace
        if position is None:
            return standing_after(live.job)
        if position or pace is None:
            eta = self.begins(workers).get(live.job.id, 0.0) + self.costs.seconds(live.job.ask)
            return Standing(position, eta_seconds=eta)
        step, steps = (pace.done, pace.total) if pace.moved else (None, None)
        eta = pace.remaining(time.monotonic())
        return Standing(0, pace.best, pace.stage, step, steps, eta, live.preview)

    def begins(self, workers: int) -> dict[str, float]:
        """In how many seconds each job that waits is expected to begin, and "" for one that would come now."""
        free = self._free(workers)
        begins: dict[str, float] = {}
        for id, live in self.waiting.items():
            begins[id] = free[0]
            heapq.heapreplace(free, free[0] + self.costs.seconds(live.job.ask))
        return begins | {"": free[0]}

    def _free(self, workers: int) -> list[float]:
        """In how many seconds each worker has ended what it runs, as a heap."""
        now, busy = time.monotonic(), dict[int, float]()
        for live in self.running.values():
            if live.pace is not None:
                busy[live.run] = max(busy.get(live.run, 0.0), live.pace.remaining(now))
        free = [0.0] * max(workers, 1)
        for seconds in sorted(busy.values(), reverse=True):
            heapq.heapreplace(free, free[0] + seconds)
        return free


def standing_after(job: Job) -> Standing:
    """Where a job stands that is over."""
    return Standing(None, 1.0 if job.status == "succeeded" else 0.0)


def moved(line: Line, workers: int) -> Iterable[tuple[Live, Standing]]:
    """Where those waiting jobs stand whose position is another than their watchers know; far back not each is told."""
    changed = [
        (live, i) for i, live in enumerate(line.waiting.values(), 1) if live.told != i and (i <= NEAR or not live.told)
    ]
    begins = line.begins(workers) if changed else {}
    for live, position in changed:
        live.told = position
        yield live, Standing(position, eta_seconds=begins[live.job.id] + line.costs.seconds(live.job.ask))
