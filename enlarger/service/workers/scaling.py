"""How many workers there are: those above the least are started when jobs wait, and released when idle for a while."""

import asyncio
from collections.abc import Sequence

from enlarger.service.workers.supervisor import WorkerSupervisor

IDLE_SECONDS = 60.0  # that a worker above the least may wait for work before it gives back its place and its memory


class Scaling:
    """Starts and releases workers. All of them are there from the beginning; a released one has no process."""

    def __init__(self, workers: Sequence[WorkerSupervisor], least: int, idle_seconds: float = IDLE_SECONDS) -> None:
        self._workers, self._least, self._idle_seconds = workers, least, idle_seconds
        self._timers: dict[WorkerSupervisor, asyncio.TimerHandle] = {}
        self._releases = set[asyncio.Task[None]]()

    def update(self, num_waiting: int) -> None:
        """Do what the number of waiting jobs, which nobody is free for, asks for."""
        num_starting = sum(worker.state == "starting" for worker in self._workers)
        for worker in [each for each in self._workers if each.is_startable][: max(num_waiting - num_starting, 0)]:
            worker.start()
        for worker in self._workers:
            if worker.state != "idle" and (timer := self._timers.pop(worker, None)) is not None:
                timer.cancel()
            elif worker.state == "idle" and worker not in self._timers:
                self._timers[worker] = asyncio.get_running_loop().call_later(self._idle_seconds, self._release, worker)

    def _release(self, worker: WorkerSupervisor) -> None:
        """It was idle all the time."""
        self._timers.pop(worker, None)
        if worker.state == "idle" and sum(each.state != "released" for each in self._workers) > self._least:
            task = asyncio.create_task(worker.release())
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)
