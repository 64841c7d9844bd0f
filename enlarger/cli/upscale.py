"""`enlarger upscale`: pictures in, larger pictures out."""

import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enlarger.cli.options import Device, JsonLines, Model, Options, Precision, request_options
from enlarger.errors import EnlargerError, InputError
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
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace files that exist; never an input")]
Recursive = Annotated[
    bool, typer.Option("--recursive", "-r", help="also the folders in a folder, as a tree in --output")
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
        upscaler = None
        if any(job.error is None for job in jobs):
            report.show("loading the model")
            upscaler = load_upscaler(model, device, precision)
        outcomes = _run(jobs, request, upscaler, report, overwrite)
    if any(outcome.error is not None for outcome in outcomes):
        raise typer.Exit(1)


def _run(
    jobs: Sequence["Job"], request: UpscaleRequest, upscaler: "Upscaler | None", report: "Report", overwrite: bool
) -> list["Outcome"]:
    """Do the jobs in turn. Ctrl-C ends the run, with the finished files in place and nothing of the current one."""
    from enlarger.cli.report import Outcome

    outcomes: list[Outcome] = []
    try:
        for job in jobs:
            if job.error is not None or upscaler is None:
                outcome = Outcome(job.input, error=job.error)
            else:
                outcome = _guarded(job, request, upscaler, report, overwrite)
            report.end(outcome)
            outcomes.append(outcome)
    except KeyboardInterrupt:
        report.say(f"interrupted: {len(outcomes)} of {len(jobs)} files done")
        raise typer.Exit(130) from None
    report.close(outcomes)
    return outcomes


def _guarded(job: "Job", request: UpscaleRequest, upscaler: "Upscaler", report: "Report", overwrite: bool) -> "Outcome":
    """The outcome of a job, whatever happens: one bad picture must not end a run."""
    from enlarger.cli.report import Outcome

    try:
        with warnings.catch_warnings(record=True) as caught:
            outcome = _enlarge(job, request, upscaler, report, overwrite)
        said = tuple(str(warning.message) for warning in caught)
        return replace(outcome, notes=tuple(dict.fromkeys(outcome.notes + said)))
    except EnlargerError as error:
        return Outcome(job.input, error=str(error))
    except Exception as error:  # noqa: BLE001 - a fault of ours or of a library in one file; the others go on
        return Outcome(job.input, error=unexpected(error))


def _enlarge(job: "Job", request: UpscaleRequest, upscaler: "Upscaler", report: "Report", overwrite: bool) -> "Outcome":
    from enlarger.cli.report import Outcome
    from enlarger.images import save_image

    started = time.monotonic()
    result = upscaler(replace(request, image=job.input), watch=report.begin(job.input.name))
    report.show(f"{job.input.name}: saving")
    saved = [
        save_image(image, path, overwrite=overwrite) for image, path in zip(result.images, job.outputs, strict=True)
    ]
    return Outcome(
        job.input,
        tuple(saved),
        result.images[0].size,
        round(time.monotonic() - started, 3),
        result.seeds[0],
        result.model,
        result.consistency,
        result.notes,
    )


def unexpected(error: Exception) -> str:
    """One line for an error that is not ours; its traceback goes to standard error if ENLARGER_DEBUG is set."""
    if os.environ.get("ENLARGER_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    return f"unexpected {type(error).__name__}: {error}; set ENLARGER_DEBUG=1 to see where it comes from"
