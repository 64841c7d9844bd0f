"""What is reported of jobs while they are computed: progress, times, previews; here a cancel takes effect."""

import threading
import time
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from enlarger.errors import Cancelled
from enlarger.nn.clip_text import ClipText
from enlarger.service.jobs.job import JobSpec
from enlarger.service.worker.model_cache import SendEvent
from enlarger.service.worker.previews import PreviewWriter
from enlarger.service.workers import messages
from enlarger.tasks.results.result import Progress

REPORT_SECONDS = 0.1  # between two reports of progress, at least


class RunningJob:
    """One job at work. It ends once, as done, failed or canceled; nothing is said of it afterwards."""

    def __init__(self, id: str, spec: JobSpec, folder: Path, send: SendEvent, cancel_event: threading.Event) -> None:
        self.id, self.spec, self.folder, self.cancel_event = id, spec, folder, cancel_event
        self._send, self.is_finished = send, False

    def send(
        self, event: messages.JobStarted | messages.JobProgressed | messages.JobPreviewed | messages.JobFinished
    ) -> None:
        if not self.is_finished:
            self._send(event)

    def finish(self, event: messages.JobFinished) -> None:
        self.send(event)
        self.is_finished = True

    def check_active(self) -> bool:
        """Whether somebody still wants its result; the first time that nobody does, the server is told."""
        if self.cancel_event.is_set():
            self.finish(messages.JobCanceled(id=self.id))
        return not self.is_finished


class ProgressReporter:
    """Watches a task at one picture of a job, or at one batch with a picture of each of several jobs.

    `image_index` of `num_images` is which of the job's pictures it is. Raises Cancelled once nobody wants any of them.
    """

    def __init__(
        self,
        send: SendEvent,
        jobs: Sequence[RunningJob],
        previews: Sequence[PreviewWriter],
        image_index: int = 0,
        num_images: int = 1,
    ) -> None:
        self.send, self.jobs, self.previews, self.image_index, self.num_images = (
            send,
            jobs,
            previews,
            image_index,
            num_images,
        )
        self.stage = ""  # the last that was reported
        self._stage_seconds: defaultdict[str, float] = defaultdict(float)
        self._last_time = self._last_report_time = time.monotonic()
        self._unreported_steps = 0  # since the last report

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        self._stage_seconds[progress.stage] += now - self._last_time
        self._last_time = now
        for row, (job, previews) in enumerate(zip(self.jobs, self.previews, strict=True)):
            if job.check_active():
                previews.update(progress, row)
        self._check_wanted()
        self._unreported_steps += progress.step is not None
        is_last = progress.done == progress.total
        if is_last or progress.stage != self.stage or now - self._last_report_time >= REPORT_SECONDS:
            self._report(progress, now)
        self.stage = progress.stage

    @contextmanager
    def hear_cancels_while_encoding(self) -> Generator[None]:
        """Within the block, a cancel takes effect before each run of a text encoder too: long prompts have many."""

        def check(module: nn.Module, _: object) -> None:
            if isinstance(module, ClipText):
                self._check_wanted()

        handle = register_module_forward_pre_hook(check)
        try:
            yield
        finally:
            handle.remove()

    def _check_wanted(self) -> None:
        """Raise Cancelled once nobody wants any of the jobs."""
        active = [job for job in self.jobs if job.check_active()]
        if not active:
            raise Cancelled("all jobs of the batch are canceled")

    def _report(self, progress: Progress, now: float) -> None:
        done, total = self.image_index * progress.total + progress.done, self.num_images * progress.total
        for job in self.jobs:
            job.send(messages.JobProgressed(id=job.id, stage=progress.stage, done=done, total=total))
        if self._unreported_steps:
            seconds = (now - self._last_report_time) / self._unreported_steps
            self.send(messages.StepTime(model=self.jobs[0].spec.model, seconds=seconds))
        self._last_report_time, self._unreported_steps = now, 0

    def finish(self) -> Mapping[str, float]:
        """The seconds of each stage, once the task is through; what came after the last step is the decoding."""
        self._stage_seconds["decode"] += time.monotonic() - self._last_time
        return dict(self._stage_seconds)
