"""What is told of jobs while they are computed: progress, times, previews; and the place where a cancel is heard."""

import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from enlarger.errors import Cancelled
from enlarger.service.jobs import Ask
from enlarger.service.worker.previews import Previews
from enlarger.service.worker.shelf import Tell
from enlarger.tasks.parts import Progress

TELL_SECONDS = 0.1  # between two reports of progress, at least


class Running:
    """One job at work. It ends once, with `done`, `failed` or `canceled`; what comes later is not told."""

    def __init__(self, id: str, ask: Ask, folder: Path, tell: Tell, stop: threading.Event) -> None:
        self.id, self.ask, self.folder, self.stop = id, ask, folder, stop
        self._tell, self.over = tell, False

    def tell(self, event: str, **fields: Any) -> None:
        if not self.over:
            self._tell(event, id=self.id, **fields)

    def end(self, event: str, **fields: Any) -> None:
        self.tell(event, **fields)
        self.over = True

    def wanted(self) -> bool:
        """Whether somebody still wants its result; the first time that nobody does, this is told."""
        if self.stop.is_set():
            self.end("canceled")
        return not self.over


class Watcher:
    """Watches a task at one picture of a job, or at one batch with a picture of each of several jobs.

    `turn` of `turns` is which of the job's pictures it is. Raises Cancelled once nobody wants any of them.
    """

    def __init__(
        self, tell: Tell, jobs: Sequence[Running], previews: Sequence[Previews], turn: int = 0, turns: int = 1
    ) -> None:
        self.tell, self.jobs, self.previews, self.turn, self.turns = tell, jobs, previews, turn, turns
        self.stage = ""  # the last that was reported
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._last = self._told = time.monotonic()
        self._steps = 0  # since progress was told

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        self._seconds[progress.stage] += now - self._last
        self._last = now
        for row, (job, previews) in enumerate(zip(self.jobs, self.previews, strict=True)):
            if job.wanted():
                previews.see(progress, row)
        if all(job.over for job in self.jobs):
            raise Cancelled("all jobs of the batch are canceled")
        self._steps += progress.step is not None
        last = progress.done == progress.total
        if last or progress.stage != self.stage or now - self._told >= TELL_SECONDS:
            self._report(progress, now)
        self.stage = progress.stage

    def _report(self, progress: Progress, now: float) -> None:
        done = self.turn * progress.total + progress.done
        for job in self.jobs:
            job.tell("progress", stage=progress.stage, done=done, total=self.turns * progress.total)
        if self._steps:
            seconds = (now - self._told) / self._steps
            self.tell("measured", what="step", model=self.jobs[0].ask.model, seconds=seconds)
        self._told, self._steps = now, 0

    def close(self) -> Mapping[str, float]:
        """The seconds of each stage, once the task is through; what came after the last step is the decoding."""
        self._seconds["decode"] += time.monotonic() - self._last
        return dict(self._seconds)
