"""`enlarger upscale`: pictures in, larger pictures out."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enlarger.cli.options import Device, JsonLines, Model, Options, Overwrite, Precision, Recursive, request_options
from enlarger.cli.runs import run_jobs, save_all
from enlarger.errors import InputError
from enlarger.requests import UpscaleRequest

if TYPE_CHECKING:
    from enlarger.cli.files import Job
    from enlarger.cli.report import Outcome, Report
    from enlarger.tasks.enlarge import Upscaler

Inputs = Annotated[list[Path], typer.Argument(metavar="INPUT...", help="pictures, and folders of pictures")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="folder, or file if there is one input", show_default="name-x2.png beside the input"
    ),
]


@request_options(UpscaleRequest, "upscale")
def upscale(
    inputs: Inputs,
    options: Options,
    output: Output = None,
    model: Model = None,
    device: Device = "auto",
    precision: Precision = "auto",
    overwrite: Overwrite = False,
    recursive: Recursive = False,
    json_lines: JsonLines = False,
) -> None:
    """Enlarge pictures.

    Writes PNG unless --output names another kind of file, and prints the names of the files written.
    A file that fails is reported, the others go on, and the exit status is 1.
    """
    try:
        request = UpscaleRequest(image=None, **options)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error
    from enlarger.cli.files import naming, plan  # torch comes with these
    from enlarger.cli.report import Report
    from enlarger.tasks.enlarge import load_upscaler

    try:
        names = naming(inputs, output, f"x{request.by:g}", request.count)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error
    jobs = plan(inputs, names, recursive=recursive, overwrite=overwrite)
    with Report(len(jobs), json_lines=json_lines) as report:
        work = None
        if any(job.error is None for job in jobs):
            report.show("loading the model")
            work = partial(_work, request, load_upscaler(model, device, precision), report, overwrite)
        run_jobs(jobs, work, report)


def _work(request: UpscaleRequest, upscaler: "Upscaler", report: "Report", overwrite: bool, job: "Job") -> "Outcome":
    from enlarger.cli.report import Outcome

    started = time.monotonic()
    result = upscaler(replace(request, image=job.input), watch=report.begin(job.input.name))
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
