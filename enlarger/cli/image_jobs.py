"""What the verbs share that make new pictures of pictures: their options, and the run over the files."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from enlarger.cli.run_jobs import run_jobs, save_all
from enlarger.errors import InputError

if TYPE_CHECKING:  # torch comes with these
    from enlarger.cli.files import Job
    from enlarger.cli.report import Outcome, Report
    from enlarger.tasks.result import Result

ModelFolder = Annotated[str, typer.Option("--model", help="folder of a model in diffusers' layout", show_default=False)]
Offload = Annotated[
    Literal["none", "model", "sequential"], typer.Option(help="keep a network off the device while it is not at work")
]
Inputs = Annotated[list[Path], typer.Argument(metavar="INPUT...", help="pictures, and folders of pictures")]
Task = Callable[..., "Result"]  # of a request, and `watch`


@dataclass(frozen=True)
class FileOptions:
    """Which files a verb reads and writes; results are named after `label`."""

    inputs: Sequence[Path]
    output: Path | None
    label: str
    overwrite: bool = False
    recursive: bool = False
    json_lines: bool = False

    def jobs(self, count: int) -> "list[Job]":
        """A job per input, with `count` files to write."""
        from enlarger.cli.files import output_naming, plan_jobs

        try:
            names = output_naming(self.inputs, self.output, self.label, count)
        except InputError as error:
            raise typer.BadParameter(str(error)) from error
        return plan_jobs(self.inputs, names, recursive=self.recursive, overwrite=self.overwrite)


def make_request(kind: Callable[..., Any], **options: Any) -> Any:
    """A request made of options; what is wrong with them is wrong usage."""
    try:
        return kind(**options)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def process_images(
    files: FileOptions,
    request: Any,
    load: Callable[[], Task],
    request_for: Callable[[Any, "Job"], Any] | None = None,
    first_stage: str = "loading the model",
) -> None:
    """Load a model and run its task on each input; `ask` makes the request for a job, `first` is what is said first."""
    from enlarger.cli.report import Report

    jobs = files.jobs(request.count)
    with Report(len(jobs), json_lines=files.json_lines) as report:
        run_job = None
        if any(job.error is None for job in jobs):
            report.start_stage(first_stage)
            run_job = partial(process_image, load(), request_for or _with_input_image, request, report, files.overwrite)
        run_jobs(jobs, run_job, report)


def process_image(
    task: Task, request_for: Callable[[Any, "Job"], Any], request: Any, report: "Report", overwrite: bool, job: "Job"
) -> "Outcome":
    """Do one job and write its files."""
    from enlarger.cli.report import Outcome

    started = time.monotonic()
    result = task(request_for(request, job), watch=report.start_file(job.input.name))
    return Outcome(
        job.input,
        save_all(job, result.images, report, overwrite),
        result.images[0].size,
        round(time.monotonic() - started, 3),
        result.seeds[0],
        result.model,
        result.consistency,
        result.notes,
    )


def _with_input_image(request: Any, job: "Job") -> Any:
    return replace(request, image=job.input)
