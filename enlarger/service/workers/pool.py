"""Giving jobs to workers, and hearing what becomes of them."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from enlarger.service.jobs.files import read_result, remove_job_folder
from enlarger.service.jobs.job import RESULT_FILE
from enlarger.service.jobs.job_queue import ActiveJob
from enlarger.service.jobs.lifecycle import JobLifecycle, Outcome, unfinished
from enlarger.service.jobs.model_registry import ModelRegistry
from enlarger.service.metrics import Metrics
from enlarger.service.problems import CANCELED, NO_WORKER, Problem, ProblemError
from enlarger.service.settings import Settings
from enlarger.service.workers.supervisor import Message, WorkerCommand, WorkerSupervisor

log = logging.getLogger("enlarger.service.jobs")
DEFAULT_GPU_BATCH = 4  # jobs that run together by default, except on a CPU
RETRY_SECONDS = 1.0  # seconds until jobs are given out again that could not be marked as running


class WorkerPool:
    """The workers of all devices, and what runs on them."""

    def __init__(self, settings: Settings, lifecycle: JobLifecycle, registry: ModelRegistry) -> None:
        self.lifecycle, self.registry = lifecycle, registry
        self.workers: list[WorkerSupervisor] = []
        self.is_paused = False  # nothing new is begun
        self._settings = settings
        self._pending_deletions: set[str] = set()  # forgotten while a worker still had their files

    def start(self, command: WorkerCommand) -> None:
        self.workers = [WorkerSupervisor(device, command, self) for device in self._settings.devices]
        for worker in self.workers:
            worker.start()

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
        self.lifecycle.num_workers = max(sum(worker.is_up for worker in self.workers), 1)
        self.lifecycle.on_queue_changed()

    def cancel(self, id: str) -> None:
        """Stop what runs of a job; for everybody else it has ended already."""
        for worker in self.workers:
            worker.cancel(id)

    def delete_later(self, id: str) -> None:
        """Delete a forgotten job's files again once its worker has let go of them."""
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
        if not worker.run(process_number, [(active.job.id, active.job.spec) for active in started]):
            await self._retry(started, False)
        if not started:
            self.dispatch()

    async def _retry(self, active_jobs: Sequence[ActiveJob], counts_as_crash: bool) -> None:
        """Jobs whose worker is gone; the first of them comes to the front last, and so is the first again."""
        for active in reversed(active_jobs):
            if not active.is_finishing:
                await self.lifecycle.retry(active, counts_as_crash)
        self.dispatch()

    def on_message(self, worker: WorkerSupervisor, message: Message) -> None:
        """A message of a worker's process."""
        kind, id = message["event"], message.get("id")
        if kind == "ready":
            self.registry.register(message["models"])
        elif kind == "idle":
            self.dispatch()
        elif kind == "loading":
            self._on_model_loading(worker)
        elif kind == "models":
            self._on_models_loaded(worker)
            self._update_loaded_models(worker, message["loaded"])
            for model, text in message.get("error", {}).items():
                log.error("the worker of %s cannot load %s: %s", worker.requested_device, model, text)
        elif kind == "measured":
            record_measurement(self.lifecycle.metrics, message)
        elif id not in worker.assigned:
            log.warning("the worker of %s said %r of a job that it does not have", worker.requested_device, kind)
        elif kind in ("done", "failed", "canceled"):
            self._on_job_finished(worker, id, message)
        else:
            self._on_job_progress(self.lifecycle.queue.active_jobs.get(id), message)

    def on_jobs_lost(self, worker: WorkerSupervisor, ids: Sequence[str], counts_as_crash: bool) -> None:
        """Jobs that a worker holds no more, without a word of their end."""
        for id in ids:
            self._delete_pending(id)
        if not self.is_paused:
            self.lifecycle.spawn(
                self._retry(unfinished(map(self.lifecycle.queue.active_jobs.get, ids)), counts_as_crash)
            )

    def on_worker_exit(self, worker: WorkerSupervisor) -> None:
        """A worker's process has ended."""
        self._update_loaded_models(worker, {})
        if worker.state != "defunct" and not self.is_paused:
            self.lifecycle.metrics.worker_restarts.inc()
        self.fail_attached_if_defunct()
        self.dispatch()

    def fail_attached_if_defunct(self) -> None:
        """Where no worker can be started, tell those who wait on a connection; the others' jobs stay for later."""
        for active in unfinished(list(self.lifecycle.queue.waiting.values())):
            if self.is_defunct and active.job.attached:
                self.lifecycle.finish(active, Outcome("failed", problem=NO_WORKER))

    def _on_job_finished(self, worker: WorkerSupervisor, id: str, message: Message) -> None:
        """A worker has let go of a job."""
        worker.release_job(id)
        self._delete_pending(id)
        active = self.lifecycle.queue.active_jobs.get(id)
        if active is None or active.is_finishing:
            return
        if message["event"] == "done":
            self.lifecycle.spawn(self._complete(active, time.monotonic()))
        elif message["event"] == "failed":
            self.lifecycle.finish(active, Outcome("failed", problem=_problem_from_message(message)))
        else:
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
        spec, images = active.job.spec, result["images"]
        pixels = sum(int(image["width"]) * int(image["height"]) for image in images)
        self.lifecycle.metrics.images.labels(spec.task, spec.model).inc(len(images))
        self.lifecycle.metrics.output_pixels.inc(pixels)
        self.lifecycle.finish(active, Outcome("succeeded", result))

    def _on_job_progress(self, active: ActiveJob | None, message: Message) -> None:
        """A worker tells how far a job has come."""
        if active is None or active.is_finishing or active.estimator is None:
            return
        kind, now = message["event"], time.monotonic()
        if kind == "started":
            active.estimator.start(now)
        elif kind == "progress":
            active.estimator.update(str(message["stage"]), int(message["done"]), int(message["total"]), now)
            self.lifecycle.publish(active, "progress")
        elif kind == "preview":
            active.preview = PurePath(message["file"]).name
            self.lifecycle.publish(active, "preview", {"file": active.preview, "index": message.get("index")})
        else:
            log.warning("a worker said %r, which is not known", kind)

    def _on_model_loading(self, worker: WorkerSupervisor) -> None:
        for active in unfinished(map(self.lifecycle.queue.active_jobs.get, worker.assigned)):
            if active.estimator is not None and not active.estimator.has_progress:
                active.estimator.stage = "loading"
                self.lifecycle.publish(active, "progress")

    def _on_models_loaded(self, worker: WorkerSupervisor) -> None:
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


def record_measurement(metrics: Metrics, measurement: Message) -> None:
    """Pass on what a worker has measured."""
    name = measurement["what"]
    if name == "model_load":
        metrics.model_load_seconds.observe(float(measurement["seconds"]))
    elif name == "stage":
        labels = (measurement["task"], measurement["model"], measurement["stage"])
        metrics.inference_seconds.labels(*labels).observe(float(measurement["seconds"]))
    elif name == "step":
        metrics.step_seconds.labels(measurement["model"]).observe(float(measurement["seconds"]))
    elif name == "oom":
        metrics.oom.labels(measurement["fallback"]).inc()
    elif name == "nonfinite":
        metrics.nonfinite.labels(measurement["stage"]).inc()
    elif name == "batch":
        metrics.batch_size.observe(int(measurement["size"]))
    elif name == "memory":
        metrics.device_memory_bytes.labels(measurement["kind"]).set(int(measurement["bytes"]))
    else:
        log.warning("a worker measured %r, which is not known", name)


def _problem_from_message(message: Message) -> Problem:
    try:
        return Problem.from_json(message["fault"])
    except (KeyError, TypeError):
        return Problem(500, "internal", "the worker failed without saying why; the log of the service may")
