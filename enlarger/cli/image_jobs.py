"""What the verbs that write pictures share: options, the loop over files, saving, and errors and Ctrl-C on the way."""

import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar

import typer

from enlarger.cli.cluster_options import refuse_uris
from enlarger.cli.loading import Loading, check_options
from enlarger.errors import EnlargerError, InputError
from enlarger.requests import RefineRequest, SamplingOptions, UpscaleRequest
from enlarger.runtime.importing import garbage_ignored
from enlarger.strict_json import Json, is_object

if TYPE_CHECKING:  # torch comes with these
    from PIL import Image

    from enlarger.cli.companions import Companions
    from enlarger.cli.files import Job, Plan
    from enlarger.cli.report import Outcome, Report
    from enlarger.cli.resume import Fingerprint
    from enlarger.client.responses import Result as RemoteResult
    from enlarger.cluster.connect import ClusterOptions
    from enlarger.image.metadata import Strip
    from enlarger.tasks.results.result import Result

ModelFolder = Annotated[str, typer.Option("--model", help="folder of a model in diffusers' layout", show_default=False)]
Offload = Annotated[
    Literal["none", "model", "sequential"], typer.Option(help="keep a network off the device while it is not at work")
]
Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT...", help="pictures, and folders of pictures; with --ray also URIs of them"),
]


class Pictures(Protocol):
    """The pictures of a result, and what made them, where that is known."""

    @property
    def images(self) -> Sequence["Image.Image"]: ...
    @property
    def generation(self) -> Sequence[Json]: ...


Task = Callable[..., "Result | RemoteResult"]  # of a request, and `watch`
SpecialRead = Literal["tone_map", "salvage"]  # how an input is read that an option asks for
RunJob = Callable[["Job"], "Outcome"]
Request = TypeVar("Request", bound=UpscaleRequest | SamplingOptions)


@dataclass(frozen=True)
class FileOptions:
    """Which files a verb reads and writes; results are named after `label`."""

    inputs: Sequence[str | Path]
    output: str | None
    label: str
    overwrite: bool = False
    recursive: bool = False
    json_lines: bool = False
    salvage: bool = False  # take the rows that are there of pictures cut short
    tone_map: bool = False  # of HDR pictures, instead of scaling
    strip: "Strip" = "none"
    kind: str | None = None  # of files to write: png, jpg, webp, tif, or same as the input's
    quality: int = 95
    skip_existing: bool = False
    background: str | None = None  # under transparent parts, in files that hold none
    cmyk: bool = False  # of pictures that are in CMYK
    again: bool = False  # pictures of a folder that are results of earlier runs, too
    quiet: bool = False
    run: tuple[object, ...] = ()  # what else makes results differ: the model, and how it is run
    companions: "Companions | None" = None  # files that go with the inputs
    fingerprint: "Fingerprint | None" = None  # by which results of this run are known
    one_answer: bool = False  # whatever the count: the model makes the same picture again
    all_frames: bool = False  # of animations and files of several pages, each into one file of the input's kind
    loading: Loading = field(default_factory=Loading)  # of the models
    cluster: "ClusterOptions | None" = None  # that computes instead of this process

    def plan(self, count: int) -> "Plan":
        """A job per input, with `count` files to write."""
        from enlarger.cli.files import ExistingFiles, output_naming, plan_jobs
        from enlarger.image.encode import check_background

        refuse_uris([*map(str, self.inputs), self.output])
        inputs = [Path(one) for one in self.inputs]
        try:
            check_background(self.background)
            names = output_naming(inputs, self.output, self.label, 1 if self.one_answer else count, self.kind)
        except InputError as error:
            raise typer.BadParameter(str(error)) from error
        existing = ExistingFiles(self.overwrite, self.skip_existing, self.fingerprint, self.again)
        return plan_jobs(inputs, names, existing, recursive=self.recursive)


def make_request(kind: type[Request], **options: Any) -> Request:
    """A request made of options; what is wrong with them is wrong usage."""
    try:
        return kind(**options)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def process_images(
    files: FileOptions,
    request: Request,
    load: Callable[[], Task],
    first_stage: str = "loading the model",
    describe: Callable[[Any, Request], str] | None = None,
) -> None:
    """Load a model and run its task on each input.

    What `describe` says of task and request is printed before the job runs.
    """
    from enlarger.cli.report import Report
    from enlarger.cli.resume import fingerprint_of_run, nothing_beside

    flat = (*(() if files.background is None else (files.background,)), *(("cmyk",) if files.cmyk else ()))
    settings = (
        files.label,
        files.quality,
        files.salvage,
        files.strip,
        *flat,
        *files.run,
        files.loading.identity(request),
    )
    settings += ("tone map",) if files.tone_map else ()
    process = process_frames if files.all_frames else process_image
    if files.cluster is not None:
        from enlarger.cli.cluster_jobs import process_on_cluster

        process_on_cluster(files, request, load, settings, process=process)
        return
    beside = nothing_beside if files.companions is None else partial(_beside, files.companions)
    files = replace(files, fingerprint=fingerprint_of_run(request, *settings, beside=beside))
    plan = files.plan(request.count)
    jobs = [check_result(job, request, files) for job in plan.jobs]
    with Report(len(jobs), json_lines=files.json_lines, passed_over=plan.passed_over, quiet=files.quiet) as report:
        run_job = None
        if any(job.error is None and job.skipped is None for job in jobs):
            report.start_stage(first_stage)
            with garbage_ignored():
                task = load()
            to_request = partial(_with_input_image, files.companions)
            check_options(task, request)

            def run(request: Request, watch: Any) -> "Result | RemoteResult":
                if describe is not None:
                    report.message(describe(task, request))
                return task(request, watch=watch)

            run_job = partial(process, run, to_request, request, report, files)
        run_jobs(jobs, run_job, report)


def process_image(
    task: Task,
    request_for: Callable[[Request, "Job"], Request],
    request: Request,
    report: "Report",
    files: FileOptions,
    job: "Job",
) -> "Outcome":
    """Do one job and write its files."""
    from enlarger.cli.report import Outcome

    started = time.monotonic()
    watch = report.start_file(job.input.name)
    request, notes, read = request_for(request, job), (), None
    if files.salvage or files.tone_map:
        request, notes, read = _read_specially(request, job, files)
    result = task(request, watch=watch)
    result = result if read is None else _with_input_read(result, job, read)
    return Outcome(
        job.input,
        save_all(job, result, report, files),
        result.images[0].size,
        round(time.monotonic() - started, 3),
        result.seeds[0],
        result.model,
        result.consistency,
        (() if job.note is None else (job.note,)) + notes + result.notes,
    )


def process_frames(
    task: Task,
    request_for: Callable[[Request, "Job"], Request],
    request: Request,
    report: "Report",
    files: FileOptions,
    job: "Job",
) -> "Outcome":
    """Do one job with every frame of its input, and write them to one file, with their timing."""
    from enlarger.cli.report import Outcome
    from enlarger.image.frames import FrameSettings, check_frames, read_frames, read_timing, save_frames

    started, timing = time.monotonic(), read_timing(job.input)
    check_frames(job.outputs[0], timing)
    if timing.count == 1 and job.outputs[0].suffix.lower() != ".gif":
        return process_image(task, request_for, request, report, files, job)
    watch, results = report.start_file(job.input.name), list["Result | RemoteResult"]()
    request = request_for(request, job)

    def frames() -> Iterator["Image.Image"]:
        for frame in read_frames(job.input):
            result = task(replace(request, image=frame), watch=watch)
            results.append(replace(result, images=()))
            yield result.images[0]

    made = frames()
    first = next(made)
    about = next(iter(results[0].generation), Json())
    about |= {"input": {"file": job.input.name}, "frames": True} if about else {}
    generation = _describe_file(about, job, 0, files)
    settings = FrameSettings(job.overwrite, files.quality, files.strip, generation)
    path = save_frames(chain([first], made), job.outputs[0], timing, settings)
    notes = dict.fromkeys(note for result in results for note in result.notes)
    return Outcome(
        job.input,
        (path,),
        first.size,
        round(time.monotonic() - started, 3),
        results[0].seeds[0],
        results[0].model,
        max((one.consistency for one in results if one.consistency is not None), default=None),
        (f"{len(results)} frames", *notes),
    )


def check_result(job: "Job", request: UpscaleRequest | SamplingOptions, files: FileOptions) -> "Job":
    """The job, with an error if its files cannot hold what will be made of its input."""
    from enlarger.image.cmyk import is_cmyk
    from enlarger.image.decode import read_header
    from enlarger.image.encode import FRAME_SUFFIXES, check_output

    if job.error is not None or job.skipped is not None:
        return job
    try:
        mode, size = read_header(job.input)
        is_ink, (width, height) = files.cmyk and is_cmyk(job.input), size
        if isinstance(request, RefineRequest) and request.by is not None:
            size = UpscaleRequest(None, request.by).target_size(height, width)
        size = request.target_size(height, width) if isinstance(request, UpscaleRequest) else size
        for path in job.outputs:
            made = "CMYK" if is_ink else _written_mode(mode, job, path, files)
            check_output(path, made, size, overwrite=True, suffixes=FRAME_SUFFIXES)
    except InputError as error:
        return replace(job, error=str(error))
    except Exception as error:  # noqa: BLE001 - one damaged file does not end the others
        return replace(job, error=describe_unexpected(error))
    return job


def _written_mode(mode: str, job: "Job", path: Path, files: FileOptions) -> str:
    """See `flattened_mode`; of what is there of a picture that is cut short, alpha is not taken for opaque."""
    from enlarger.image.decode import UnreadableImage
    from enlarger.image.encode import flattened_mode

    try:
        return flattened_mode(mode, job.input, path, files.background)
    except UnreadableImage:
        if not files.salvage:
            raise
        return mode


def _with_input_image(companions: "Companions | None", request: Request, job: "Job") -> Request:
    """The request for a job, with what goes with its picture."""
    beside = {} if companions is None else {companions.field: companions.find(job.input)[1]}
    return replace(request, image=job.input, **beside)


def _beside(companions: "Companions", picture: Path) -> Sequence[Path]:
    return (companions.find(picture)[1],)


def _read_specially(
    request: Request, job: "Job", files: FileOptions
) -> tuple[Request, tuple[str, ...], SpecialRead | None]:
    """The request for a job, of what is there of its picture or of its tone map; what is to be said; which it is."""
    from enlarger.image.special_reads import salvage, tone_map

    notes, read = list[str](), None
    image = tone_map(job.input, notes) if files.tone_map else None
    if image is not None:
        read = "tone_map"
    elif files.tone_map:
        notes.append("its numbers do not go beyond a display's: read without --tone-map")
    if image is None and files.salvage and (image := salvage(job.input, notes)) is not None:
        read = "salvage"
    return request if image is None else replace(request, image=image), tuple(notes), read


def _with_input_read(result: "Result | RemoteResult", job: "Job", read: SpecialRead) -> "Result | RemoteResult":
    """The result, which was made of a picture in memory, with the file that this was read from, and how."""
    from enlarger.client.responses import Result as RemoteResult
    from enlarger.image.digest import file_sha256

    about = {"file": job.input.name, "sha256": file_sha256(job.input), "read": read}
    if isinstance(result, RemoteResult):
        return result if result.recipe is None else replace(result, recipe=_with_input(result.recipe, about))
    return replace(result, generation=tuple(_with_input(one, about) if one else one for one in result.generation))


def _with_input(made: Json, about: Json) -> Json:
    stated = made.get("input")
    return made | {"input": (stated if is_object(stated) else {}) | about}


def run_jobs(jobs: Sequence["Job"], run_job: RunJob | None, report: "Report") -> list["Outcome"]:
    """Do the jobs one after another; those that carry an error are reported without `run_job`, None if all do.

    Ctrl-C ends the run with status 130, with the finished files in place and nothing of the current one. Ends with
    status 1 if a job failed.
    """
    outcomes: list[Outcome] = []
    try:
        for job in jobs:
            outcome = run_safely(job, run_job)
            report.finish_file(outcome)
            outcomes.append(outcome)
    except KeyboardInterrupt:
        report.message(f"interrupted: {len(outcomes)} of {len(jobs)} files done")
        raise typer.Exit(130) from None
    report.summarize(outcomes)
    if any(outcome.error is not None for outcome in outcomes):
        raise typer.Exit(1)
    return outcomes


def save_all(job: "Job", result: Pictures, report: "Report", files: FileOptions) -> tuple[Path, ...]:
    """Write a job's pictures, with what made them and the fingerprints by which the next run knows them.

    They can be fewer than asked for, where a model would make the same one again. Returns the files.
    """
    from enlarger.image.cmyk import to_cmyk
    from enlarger.image.encode import save_image

    report.start_stage(f"{job.input.name}: saving")
    made = result.generation if result.generation else [Json()] * len(result.images)
    outputs = job.outputs[: len(result.images)]
    for number, (image, path, one) in enumerate(zip(result.images, outputs, made, strict=True)):
        generation = _describe_file(one, job, number, files)
        save_image(
            to_cmyk(image) if files.cmyk else image,
            path,
            overwrite=job.overwrite,
            quality=files.quality,
            strip=files.strip,
            generation=generation,
            background=files.background,
        )
    return outputs


def _describe_file(generation: Json, job: "Job", number: int, files: FileOptions) -> Json:
    """What a file says of what made it: the picture's, how the model was loaded, and the run's fingerprint."""
    if generation and (loading := files.loading.describe()):
        generation = generation | {"loading": loading}
    if files.fingerprint is not None:
        generation = generation | {"fingerprint": files.fingerprint(job.input, number)}
    return generation


def describe_unexpected(error: Exception) -> str:
    """One line for an error that is not ours; its traceback goes to standard error if ENLARGER_DEBUG is set."""
    if os.environ.get("ENLARGER_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    return f"unexpected {type(error).__name__}: {error}; set ENLARGER_DEBUG=1 to see where it comes from"


def run_safely(job: "Job", run_job: RunJob | None) -> "Outcome":
    """The outcome of a job, whatever happens: one bad picture must not end a run."""
    from enlarger.cli.report import Outcome

    if job.error is not None or job.skipped is not None or run_job is None:
        return Outcome(job.input, job.outputs if job.error is None else (), error=job.error, skipped=job.skipped)
    try:
        with warnings.catch_warnings(record=True) as caught:
            outcome = run_job(job)
        warning_notes = tuple(str(warning.message) for warning in caught)
        return replace(outcome, notes=tuple(dict.fromkeys(outcome.notes + warning_notes)))
    except EnlargerError as error:
        return Outcome(job.input, error=str(error))
    except Exception as error:  # noqa: BLE001 - an error of ours or of a library in one file; the others go on
        return Outcome(job.input, error=describe_unexpected(error))
