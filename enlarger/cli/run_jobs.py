"""What the verbs that write pictures share: the loop over files, saving, and what becomes of errors and of Ctrl-C."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from enlarger.errors import EnlargerError

if TYPE_CHECKING:  # torch comes with these
    from PIL import Image

    from enlarger.cli.files import Job
    from enlarger.cli.report import Outcome, Report


RunJob = Callable[["Job"], "Outcome"]


def run_jobs(jobs: Sequence["Job"], run_job: RunJob | None, report: "Report") -> list["Outcome"]:
    """Do the jobs in turn; those that carry an error are reported without `work`, which is None if all do.

    Ctrl-C ends the run with status 130, with the finished files in place and nothing of the current one. Ends with
    status 1 if a job failed.
    """
    outcomes: list[Outcome] = []
    try:
        for job in jobs:
            outcome = _run_safely(job, run_job)
            report.finish_file(outcome)
            outcomes.append(outcome)
    except KeyboardInterrupt:
        report.message(f"interrupted: {len(outcomes)} of {len(jobs)} files done")
        raise typer.Exit(130) from None
    report.summarize(outcomes)
    if any(outcome.error is not None for outcome in outcomes):
        raise typer.Exit(1)
    return outcomes


def save_all(job: "Job", images: Sequence["Image.Image"], report: "Report", overwrite: bool) -> tuple[Path, ...]:
    """Write a job's pictures to its files."""
    from enlarger.image.encode import save_image

    report.start_stage(f"{job.input.name}: saving")
    return tuple(save_image(image, path, overwrite=overwrite) for image, path in zip(images, job.outputs, strict=True))


def describe_unexpected(error: Exception) -> str:
    """One line for an error that is not ours; its traceback goes to standard error if ENLARGER_DEBUG is set."""
    if os.environ.get("ENLARGER_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    return f"unexpected {type(error).__name__}: {error}; set ENLARGER_DEBUG=1 to see where it comes from"


def _run_safely(job: "Job", run_job: RunJob | None) -> "Outcome":
    """The outcome of a job, whatever happens: one bad picture must not end a run."""
    from enlarger.cli.report import Outcome

    if job.error is not None or run_job is None:
        return Outcome(job.input, error=job.error)
    try:
        with warnings.catch_warnings(record=True) as caught:
            outcome = run_job(job)
        warning_notes = tuple(str(warning.message) for warning in caught)
        return replace(outcome, notes=tuple(dict.fromkeys(outcome.notes + warning_notes)))
    except EnlargerError as error:
        return Outcome(job.input, error=str(error))
    except Exception as error:  # noqa: BLE001 - a fault of ours or of a library in one file; the others go on
        return Outcome(job.input, error=describe_unexpected(error))
