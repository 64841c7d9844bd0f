"""Jobs computed: alone or in a batch, again with less at a time where memory does not suffice, and never in vain."""

import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from enlarger import __version__
from enlarger.errors import Cancelled, CheckpointError, NonFinite
from enlarger.requests import GenerateRequest, UpscaleRequest
from enlarger.service.jobs.job import RESULT_FILE, JobResult, ResultImage
from enlarger.service.problems import Problem, ProblemError, problem_from_exception
from enlarger.service.worker.generation_metadata import Json, generation_metadata, metadata_of_image
from enlarger.service.worker.model_cache import CachedModel, ModelCache, SendEvent, empty_cache
from enlarger.service.worker.model_requests import ModelRequests, build_requests, check_prompt_tokens, refiner_name
from enlarger.service.worker.previews import PreviewSpec, PreviewWriter, Size, preview_decoder_for
from enlarger.service.worker.progress_reporter import ProgressReporter, RunningJob
from enlarger.service.worker.results import remove_images, resize_to, save_image, write_result_file
from enlarger.service.workers import messages
from enlarger.target_size import scaled_side
from enlarger.tasks.batching import group_into_batches, run_in_batches

OUT_OF_MEMORY_MESSAGES = (
    "can't allocate memory",
    "out of memory",
    "not enough memory",
)  # torch's texts where it is a RuntimeError

MAX_MESSAGE_CHARACTERS = 1000  # characters of an error that are passed on


@dataclass(frozen=True, eq=False)
class JobContext:
    """What the jobs of one run work with: the model, and the task that it does."""

    model: CachedModel
    task: Any  # a request and a callback for progress in, a `Result` or `InpaintResult` out
    is_batched: bool  # requests that are alike may share a batch
    load_seconds: float  # that loading took

    def run(self, requests: Sequence[Any], watch: ProgressReporter) -> list[Any]:
        """The result of each request; several are one batch."""
        return run_in_batches(self.task, requests, watch) if self.is_batched else [self.task(requests[0], watch)]

    def batches(self, requests: Sequence[Any]) -> list[tuple[int, ...]]:
        """Which requests can be computed in one batch."""
        return group_into_batches(self.task, requests) if self.is_batched else [(i,) for i in range(len(requests))]


@dataclass(frozen=True, eq=False)
class PreparedJob:
    """A job ready to be computed, and what came of it so far."""

    job: RunningJob
    model_requests: ModelRequests
    previews: PreviewWriter
    results: list[Any] = field(default_factory=list[Any])  # a result for each request


@dataclass(frozen=True, eq=False)
class Executor:
    """Where jobs are worked on, one run after another."""

    model_cache: ModelCache
    send: SendEvent
    max_prompt_tokens: int = 1500

    def run(self, jobs: Sequence[RunningJob]) -> None:
        """Do all jobs of a run; each ends in some way, whatever happens."""
        waiting = [job for job in jobs if self._start(job)]
        groups: dict[tuple[str, str, str], list[RunningJob]] = {}
        for job in waiting:
            key = (job.spec.task, job.spec.model, str(job.spec.options.get("refiner")))
            groups.setdefault(key, []).append(job)
        for group in groups.values():
            with self._fail_jobs_on_error(group):
                self._run_group(group)
        for kind, size in memory_usage(self.model_cache.device).items():
            self.send(messages.MemoryUse(kind=kind, bytes=size))

    def _start(self, job: RunningJob) -> bool:
        """Report that a job has started; one that was completed before its worker died is done at once."""
        job.send(messages.JobStarted(id=job.id))
        if (job.folder / RESULT_FILE).exists():
            job.finish(messages.JobDone(id=job.id))
        return job.check_active()

    def _run_group(self, jobs: Sequence[RunningJob]) -> None:
        context, prepared_jobs = self._load_context(jobs[0]), list[PreparedJob]()
        for job in jobs:
            with self._fail_jobs_on_error([job]):
                if job.check_active():
                    model_requests = build_requests(job.spec, context.model, job.folder)
                    check_prompt_tokens(model_requests.requests[0], context.model, self.max_prompt_tokens)
                    prepared_jobs.append(
                        PreparedJob(job, model_requests, _preview_writer(context.model, job, model_requests))
                    )
        batchable = [prepared for prepared in prepared_jobs if prepared.model_requests.is_batchable]
        first_requests = [prepared.model_requests.requests[0] for prepared in batchable]
        for indices in context.batches(first_requests) if batchable else ():
            self._run_batch(context, [batchable[i] for i in indices])
        for prepared in prepared_jobs:
            if prepared not in batchable:
                self._run_batch(context, [prepared])

    def _load_context(self, job: RunningJob) -> JobContext:
        """The job's model, and what helps it, loaded."""
        start = time.monotonic()
        description = self.model_cache.descriptions.get(job.spec.model)
        refiner = None if description is None else refiner_name(job.spec, description.settings)
        upscaler_name = self.model_cache.bundled_name if job.spec.options.get("upscale", 1) != 1 else None
        names = [job.spec.model, *(name for name in (refiner, upscaler_name) if name is not None)]
        try:
            models = self.model_cache.get(*names)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            models = None
        if models is None:
            self._free_memory(names, "load")
            models = self.model_cache.get(*names)
        models_by_name = dict(zip(names, models, strict=True))
        model, task = models[0], models[0].task_for(job.spec.task)
        if job.spec.task == "generate":
            refiners = () if refiner is None else (models_by_name[refiner].refiner,)
            upscaler = None if upscaler_name is None else models_by_name[upscaler_name].task_for("upscale")
            task = replace(task, refiners=refiners, upscaler=upscaler)
        is_batched = model.loaded.kind.tasks[model.description.verbs[job.spec.task]].is_batched
        return JobContext(model, task, is_batched, time.monotonic() - start)

    def _run_batch(self, context: JobContext, prepared_jobs: Sequence[PreparedJob], is_retry: bool = False) -> None:
        """Compute and deliver one batch. What fails in a batch is tried one by one; what memory does not suffice for,
        once more with all other models unloaded; `is_retry`: that has been done."""
        jobs = [prepared.job for prepared in prepared_jobs]
        with self._fail_jobs_on_error(jobs):
            error = self._try_batch(context, prepared_jobs)
            if error is None:
                return
            out_of_memory = is_out_of_memory(error)
            is_single = len(prepared_jobs) == 1
            if out_of_memory:
                self._free_memory([context.model.name], "none" if is_retry else "retry" if is_single else "single")
            if is_single and (is_retry or not out_of_memory):
                raise error
            del error
            for prepared in prepared_jobs:
                prepared.results.clear()
                self._run_batch(context, [prepared], is_retry=is_single or out_of_memory)

    def _try_batch(self, context: JobContext, prepared_jobs: Sequence[PreparedJob]) -> Exception | None:
        """Compute and deliver; gives back what went wrong, without the frames that hold on to memory."""
        try:
            start = time.monotonic()
            for prepared in prepared_jobs:
                prepared.previews.show_input(prepared.model_requests.image)
            warning_messages = self._run_networks(context, prepared_jobs)
            seconds = time.monotonic() - start
            for prepared in prepared_jobs:
                with self._fail_jobs_on_error([prepared.job]):
                    if prepared.job.check_active():
                        self._write_results(context, prepared, seconds, warning_messages)
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001 - looked at by the caller
            return error if len(prepared_jobs) == 1 and not is_out_of_memory(error) else error.with_traceback(None)
        return None

    def _run_networks(self, context: JobContext, prepared_jobs: Sequence[PreparedJob]) -> tuple[str, ...]:
        """All pictures of one job, or the one picture of each of several; gives what was warned of."""
        self.send(messages.BatchSize(size=len(prepared_jobs)))
        num_images = len(prepared_jobs[0].model_requests.requests)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for image_index in range(num_images):
                self._run_image(context, prepared_jobs, image_index, num_images)
        return tuple(dict.fromkeys(str(one.message) for one in caught if one.category is UserWarning))

    def _run_image(
        self, context: JobContext, prepared_jobs: Sequence[PreparedJob], image_index: int, num_images: int
    ) -> None:
        previews = [prepared.previews for prepared in prepared_jobs]
        reporter = ProgressReporter(
            self.send, [prepared.job for prepared in prepared_jobs], previews, image_index, num_images
        )
        try:
            requests = [prepared.model_requests.requests[image_index] for prepared in prepared_jobs]
            with reporter.hear_cancels_while_encoding():
                results = context.run(requests, reporter)
        except NonFinite:
            self.send(messages.NonFiniteOutput(stage=reporter.stage or "start"))
            raise
        for prepared, result in zip(prepared_jobs, results, strict=True):
            prepared.results.append(result)
        self._send_stage_seconds(prepared_jobs[0].job, dict(reporter.finish()))

    def _send_stage_seconds(self, job: RunningJob, stages: dict[str, float]) -> None:
        for stage, seconds in stages.items():
            self.send(messages.StageTime(task=job.spec.task, model=job.spec.model, stage=stage, seconds=seconds))

    def _write_results(
        self, context: JobContext, prepared: PreparedJob, seconds: float, warning_messages: Sequence[str]
    ) -> None:
        """Write the job's files and, last, what is said of them."""
        start, job, model_requests = time.monotonic(), prepared.job, prepared.model_requests
        images: list[Image.Image] = [image for result in prepared.results for image in result.images]
        flags = [flag for result in prepared.results for flag in (result.flagged or (None,) * len(result.images))]
        metadata = generation_metadata(
            __version__,
            job.spec.task,
            job.spec.model,
            model_requests.options,
            model_requests.seeds,
            model_requests.input_info,
        )
        notes = [
            *job.spec.notes,
            *model_requests.notes,
            *warning_messages,
            *(note for result in prepared.results for note in result.notes),
        ]
        files: list[ResultImage] = []
        for index, image in enumerate(images):
            resized, resize_notes = resize_to(image, job.spec.size)
            info, format_notes = save_image(
                resized, index, job.folder, job.spec.output, metadata_of_image(metadata, index)
            )
            files.append(replace(info, flagged=flags[index]))
            notes += [*resize_notes, *format_notes]
        if not job.check_active():
            remove_images(job.folder)
            return
        consistencies = [
            one for one in (getattr(result, "consistency", None) for result in prepared.results) if one is not None
        ]
        encode = time.monotonic() - start
        result = JobResult(
            tuple(files),
            job.spec.model,
            tuple(dict.fromkeys(notes)),
            max(consistencies, default=None),
            _changed_regions(prepared.results),
            model_requests.num_prompt_tokens,
            {"load": context.load_seconds, "inference": seconds, "encode": encode},
            metadata,
        )
        write_result_file(job.folder, result)
        self._send_stage_seconds(job, {"encode": encode})
        job.finish(messages.JobDone(id=job.id))

    def _free_memory(self, in_use: Sequence[str], fallback: str) -> None:
        """Unload all models but some, after memory ran out."""
        self.send(messages.OutOfMemory(fallback=fallback))
        self.model_cache.unload_others(*in_use)
        empty_cache(self.model_cache.device)

    @contextmanager
    def _fail_jobs_on_error(self, jobs: Sequence[RunningJob]) -> Generator[None]:
        """Whatever is raised ends the jobs, and nothing else."""
        try:
            yield
        except Cancelled:
            for job in jobs:
                job.finish(messages.JobCanceled(id=job.id))
        except Exception as error:  # noqa: BLE001 - one job must not cost the others
            problem = problem_for(error)
            if problem.status >= 500:
                log_error("job failed", error)
            for job in (job for job in jobs if not job.is_finished):
                remove_images(job.folder)
                message = problem.message.replace(f"{job.folder}/", "")
                message = (
                    message if len(message) <= MAX_MESSAGE_CHARACTERS else f"{message[:MAX_MESSAGE_CHARACTERS]} ..."
                )
                job.finish(messages.JobFailed(id=job.id, problem=replace(problem, message=message)))


def problem_for(error: BaseException) -> Problem:
    """The problem of what a task raised; memory that ran out is known by torch's texts too."""
    return problem_from_exception(MemoryError() if is_out_of_memory(error) else error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had too little memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in OUT_OF_MEMORY_MESSAGES)


def log_error(event: str, error: BaseException) -> None:
    """One line of JSON on standard error: where it happened. Its text only where no prompt can be in it."""
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    is_message_safe = isinstance(error, CheckpointError | ProblemError | OSError) or is_out_of_memory(error)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    record = {"time": now, "level": "error", "event": event, "error": type(error).__name__, "frames": frames}
    sys.stderr.write(json.dumps(record | ({"message": str(error)} if is_message_safe else {})) + "\n")
    sys.stderr.flush()


def _preview_writer(model: CachedModel, job: RunningJob, model_requests: ModelRequests) -> PreviewWriter:
    """What is shown of a job while it is computed."""
    result_size, network_size = _preview_sizes(model_requests)
    is_upscale = isinstance(model_requests.requests[0], UpscaleRequest)
    spec = PreviewSpec(
        job.spec.previews,
        job.spec.live,
        result_size if job.spec.size is None else job.spec.size,
        network_size,
        is_upscale,
    )

    def show(file: str, index: int | None) -> None:
        job.send(messages.JobPreviewed(id=job.id, file=file, index=index))

    return PreviewWriter(
        job.folder, spec, preview_decoder_for(model), show, lambda error: log_error("preview failed", error)
    )


def _preview_sizes(model_requests: ModelRequests) -> tuple[Size | None, Size | None]:
    """The size of the result, and that of what the network draws or begins with; None where the latents decide."""
    request, image, scale = model_requests.requests[0], model_requests.image, 1.0
    if isinstance(request, GenerateRequest):
        network_size, scale = (
            (int(model_requests.options["width"]), int(model_requests.options["height"])),
            request.upscale,
        )
    elif image is None or getattr(request, "crop", None) is not None or getattr(request, "expand", "") != "":
        return None, None
    else:
        if isinstance(request, UpscaleRequest):
            height, width = request.target_size(image.height, image.width)
            return (width, height), image.size
        network_size = image.size
    return (scaled_side(network_size[0], scale), scaled_side(network_size[1], scale)), network_size


def memory_usage(device: torch.device) -> dict[str, int]:
    """Bytes in use, by kind: of the process, and of the device where it counts them."""
    pages = Path("/proc/self/statm")
    usage = {"process": int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")} if pages.exists() else {}
    if device.type == "cuda":
        usage |= {"allocated": torch.cuda.memory_allocated(device), "reserved": torch.cuda.memory_reserved(device)}
    return usage


def _changed_regions(results: Sequence[Any]) -> tuple[Json, ...] | None:
    """What inpainting changed, by picture; None for other tasks."""
    regions = [one for result in results for one in getattr(result, "changed", ())]
    return tuple({"pixels": one.pixels, "box": one.box} for one in regions) or None
