"""Giving jobs to workers, and following what becomes of them."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

from enlarger.service.jobs.files import read_result, remove_job_folder
from enlarger.service.jobs.job import RESULT_FILE
from enlarger.service.jobs.job_queue import ActiveJob
from enlarger.service.jobs.lifecycle import JobLifecycle, Outcome, unfinished
from enlarger.service.jobs.model_registry import ModelRegistry
from enlarger.service.metrics import Metrics
from enlarger.service.problems import CANCELED, NO_WORKER, Problem, ProblemError
from enlarger.service.settings import Settings
from enlarger.service.workers import messages
from enlarger.service.workers.scaling import Scaling
from enlarger.service.workers.supervisor import WorkerCommand, WorkerPlan, WorkerSupervisor
from enlarger.service.workers.watchdog import LossCause

log = logging.getLogger("enlarger.service.jobs")
DEFAULT_GPU_BATCH = 4  # jobs that run together by default, except on a CPU
RETRY_SECONDS = 1.0  # seconds until jobs are given out again that could not be marked as running


class WorkerPool:
    """The workers of all devices, and what runs on them."""

    def __init__(self, settings: Settings, lifecycle: JobLifecycle, registry: ModelRegistry, plan: WorkerPlan) -> None:
        self.lifecycle, self.registry = lifecycle, registry
        self.workers: list[WorkerSupervisor] = []
        self.is_paused = False  # nothing new is begun
        self._settings, self._plan = settings, plan
        self._scaling: Scaling | None = None
        self._pending_deletions: set[str] = set()  # deleted while a worker still had their files
        self._model_requests: dict[WorkerSupervisor, dict[str, messages.ModelCommand]] = {}  # by model, the last one

    def start(self, command: WorkerCommand) -> None:
        self.workers = [WorkerSupervisor(device, command, self) for device in self._plan.devices]
        least = self._plan.least
        for worker in self.workers[:least]:
            worker.start()
        self._scaling = None if least is None else Scaling(self.workers, least)

    async def stop(self) -> None:
        """End all workers."""
        self.is_paused = True
        await asyncio.gather(*(worker.stop() for worker in self.workers), return_exceptions=True)

    @property
    def is_defunct(self) -> bool:
        """Whether no worker can be started."""
        return bool(self.workers) and all(worker.state == "defunct" for worker in self.workers)

    def dispatch(self) -> None:
        """Give idle workers what waits."""
        for worker in self.workers:
            if worker.state == "idle" and not self.is_paused:
                active_jobs = self.lifecycle.queue.take_batch(self._max_batch_size(worker))
                if active_jobs:
                    self.lifecycle.spawn(self._run_batch(worker, worker.reserve(), active_jobs))
                elif model_requests := self._model_requests.get(worker):
                    worker.run_model_command(model_requests.pop(next(iter(model_requests))))
        if self._scaling is not None and not self.is_paused:
            self._scaling.update(len(self.lifecycle.queue.waiting))
        self.lifecycle.num_workers = max(sum(worker.is_up for worker in self.workers), 1)
        self.lifecycle.on_queue_changed()

    def request_model(self, command: messages.ModelCommand) -> None:
        """Let each worker that can work load or drop a model once nothing waits. Of several wishes for a model the last
        one counts."""
        for worker in self.workers:
            if worker.is_up:
                self._model_requests.setdefault(worker, {})[command.model] = command
        self.dispatch()

    def cancel(self, id: str) -> None:
        """Stop what runs of a job; for everybody else it has ended already."""
        for worker in self.workers:
            worker.cancel(id)

    def delete_later(self, id: str) -> None:
        """Delete a job's files again once its worker has let go of them."""
        if any(id in worker.assigned for worker in self.workers):
            self._pending_deletions.add(id)

    def _max_batch_size(self, worker: WorkerSupervisor) -> int:
        if self._settings.batch is not None:
            return self._settings.batch
        return 1 if worker.device == "cpu" else DEFAULT_GPU_BATCH

    async def _run_batch(self, worker: WorkerSupervisor, process_number: int, active_jobs: list[ActiveJob]) -> None:
        try:
            started = await self.lifecycle.start(active_jobs)
        except ProblemError as error:
            log.error("jobs cannot be begun: %s", error)
            self.lifecycle.queue.requeue_first(unfinished(active_jobs))
            worker.run(process_number, [])
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self.dispatch)
            return
        jobs = [messages.AssignedJob(id=active.job.id, spec=active.job.spec) for active in started]
        if not worker.run(process_number, jobs):
            await self._retry(started, None)
        if not started:
            self.dispatch()

    async def _retry(self, active_jobs: Sequence[ActiveJob], cause: LossCause | None) -> None:
        """Jobs whose worker is gone; the first of them comes to the front last, and so is the first again. A `cause`
        that is final for a job alone is for each of several a reason to be tried alone."""
        if cause is not None and len(active_jobs) > 1:
            cause = replace(cause, is_final=False)
        for active in reversed(active_jobs):
            if not active.is_finishing:
                await self.lifecycle.retry(active, cause)
        self.dispatch()

    def on_event(self, worker: WorkerSupervisor, event: messages.Event) -> None:
        """What a worker's process says."""
        match event:
            case messages.Ready():
                self.registry.register(event.models, event.adapters)
            case messages.Alive():
                pass
            case messages.Idle():
                self.dispatch()
            case messages.ModelLoading():
                self._on_model_loading(worker)
            case messages.LoadedModels():
                self._end_loading_stage(worker)
                self._update_loaded_models(worker, event.loaded)
                for model, text in event.errors.items():
                    log.error("the worker of %s cannot load %s: %s", worker.requested_device, model, text)
            case messages.JobMessage() if event.id not in worker.assigned:
                text = "the worker of %s said %r of a job that it does not have"
                log.warning(text, worker.requested_device, event.event)
            case messages.JobDone() | messages.JobFailed() | messages.JobCanceled():
                self._on_job_finished(worker, event)
            case messages.JobStarted() | messages.JobProgressed() | messages.JobPreviewed():
                self._on_job_progress(event)
            case _:
                record_measurement(self.lifecycle.metrics, event)

    def on_jobs_lost(self, worker: WorkerSupervisor, ids: Sequence[str], cause: LossCause | None) -> None:
        """Jobs that a worker holds no more, without a word of their end."""
        for id in ids:
            self._delete_pending(id)
        if not self.is_paused:
            self.lifecycle.spawn(self._retry(unfinished(map(self.lifecycle.queue.active_jobs.get, ids)), cause))

    def on_worker_exit(self, worker: WorkerSupervisor) -> None:
        """A worker's process has ended."""
        self._update_loaded_models(worker, {})
        if worker.state not in ("defunct", "released") and not self.is_paused:
            self.lifecycle.metrics.worker_restarts.inc()
        self.fail_attached_if_defunct()
        self.dispatch()

    def fail_attached_if_defunct(self) -> None:
        """Where no worker can be started, fail the jobs that a connection waits for; the others stay for later."""
        for active in unfinished(list(self.lifecycle.queue.waiting.values())):
            if self.is_defunct and active.job.attached:
                self.lifecycle.finish(active, Outcome("failed", problem=NO_WORKER))

    def _on_job_finished(self, worker: WorkerSupervisor, event: messages.JobFinished) -> None:
        """A worker has let go of a job."""
        worker.release_job(event.id)
        self._delete_pending(event.id)
        active = self.lifecycle.queue.active_jobs.get(event.id)
        if active is None or active.is_finishing:
            return
        match event:
            case messages.JobDone():
                self.lifecycle.spawn(self._complete(active, time.monotonic()))
            case messages.JobFailed():
                self.lifecycle.finish(active, Outcome("failed", problem=event.problem))
            case messages.JobCanceled():
                self.lifecycle.finish(active, Outcome("canceled", problem=CANCELED))

    async def _complete(self, active: ActiveJob, now: float) -> None:
        """A worker says that a job is done: its file says what came of it."""
        result = await asyncio.to_thread(read_result, self.lifecycle.data, active.job.id)
        if active.is_finishing:
            return
        if result is None:
            problem = Problem(
                500, "internal", f"the worker left no readable {RESULT_FILE}; the log of the service says why"
            )
            self.lifecycle.finish(active, Outcome("failed", problem=problem))
            return
        if active.estimator is not None:
            active.estimator.finish(now)
        spec, images = active.job.spec, result.images
        pixels = sum(image.width * image.height for image in images)
        self.lifecycle.metrics.images.labels(spec.task, spec.model).inc(len(images))
        self.lifecycle.metrics.output_pixels.inc(pixels)
        self.lifecycle.finish(active, Outcome("succeeded", result))

    def _on_job_progress(self, event: messages.JobStarted | messages.JobProgressed | messages.JobPreviewed) -> None:
        """A worker says how far a job has come."""
        active, now = self.lifecycle.queue.active_jobs.get(event.id), time.monotonic()
        if active is None or active.is_finishing or active.estimator is None:
            return
        match event:
            case messages.JobStarted():
                active.estimator.start(now)
            case messages.JobProgressed():
                active.estimator.update(event.stage, event.done, event.total, now)
                self.lifecycle.publish(active, "progress")
            case messages.JobPreviewed():
                active.preview = PurePath(event.file).name
                self.lifecycle.publish(active, "preview", {"file": active.preview, "index": event.index})

    def _on_model_loading(self, worker: WorkerSupervisor) -> None:
        for active in unfinished(map(self.lifecycle.queue.active_jobs.get, worker.assigned)):
            if active.estimator is not None and not active.estimator.has_progress:
                active.estimator.stage = "loading"
                self.lifecycle.publish(active, "progress")

    def _end_loading_stage(self, worker: WorkerSupervisor) -> None:
        for active in unfinished(map(self.lifecycle.queue.active_jobs.get, worker.assigned)):
            if active.estimator is not None and active.estimator.stage == "loading":
                active.estimator.start(time.monotonic())

    def _update_loaded_models(self, worker: WorkerSupervisor, loaded: Mapping[str, int]) -> None:
        self.registry.set_loaded(worker, loaded)
        for state in self.registry.states():
            self.lifecycle.metrics.model_loaded.labels(state.name).set(state.loaded is not None)

    def _delete_pending(self, id: str) -> None:
        if id in self._pending_deletions:
            self._pending_deletions.remove(id)
            self.lifecycle.spawn(asyncio.to_thread(remove_job_folder, self.lifecycle.data, id))


def record_measurement(metrics: Metrics, measured: messages.Measured) -> None:
    """Pass on what a worker has measured."""
    match measured:
        case messages.ModelLoadTime():
            metrics.model_load_seconds.observe(measured.seconds)
        case messages.StageTime(task=task, model=model, stage=stage):
            metrics.inference_seconds.labels(task, model, stage).observe(measured.seconds)
        case messages.StepTime():
            metrics.step_seconds.labels(measured.model).observe(measured.seconds)
        case messages.OutOfMemory():
            metrics.oom.labels(measured.fallback).inc()
        case messages.NonFiniteOutput():
            metrics.nonfinite.labels(measured.stage).inc()
        case messages.BatchSize():
            metrics.batch_size.observe(measured.size)
        case messages.MemoryUse():
            metrics.device_memory_bytes.labels(measured.kind).set(measured.bytes)
