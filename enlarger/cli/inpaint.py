"""`enlarger inpaint`: a picture and a mask in, the picture repainted there out."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enlarger.cli.options import Device, JsonLines, Options, Overwrite, Precision, request_options
from enlarger.cli.pictures import Files, Folder, Offload, asked
from enlarger.cli.runs import run_jobs, save_all
from enlarger.errors import InputError
from enlarger.requests import InpaintRequest

if TYPE_CHECKING:
    from enlarger.cli.files import Job
    from enlarger.cli.report import Outcome, Report
    from enlarger.tasks.repair import Repairer

LOSSY = ("JPEG", "WEBP", "AVIF")  # kinds of files that change every pixel a little
ImageFile = Annotated[Path, typer.Argument(metavar="IMAGE", help="the picture")]
MaskFile = Annotated[
    Path | None,
    typer.Option("--mask", help="a picture of the same size", show_default="only what --expand adds is painted"),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="file or folder", show_default="name-inpaint.png beside the input")
]


@request_options(InpaintRequest, "inpaint")
def inpaint(
    image: ImageFile,
    options: Options,
    model: Folder,
    mask: MaskFile = None,
    output: Output = None,
    device: Device = "auto",
    precision: Precision = "auto",
    offload: Offload = "none",
    overwrite: Overwrite = False,
    json_lines: JsonLines = False,
) -> None:
    """Repaint what a mask covers, with a model made for it or any other of Stable Diffusion 1 or 2 or SDXL.

    Writes PNG unless --output names another kind of file, and prints the names of the files written.
    With --preserve exact not one pixel changes outside the mask.
    """
    request = asked(InpaintRequest, image=image, mask=mask, **options)
    from enlarger.cli.report import Report  # torch comes with these
    from enlarger.tasks.repair import load_inpainter

    files = Files([image], output, "inpaint", overwrite)
    jobs = [_checked(job, request, overwrite) for job in files.jobs(request.count)]
    with Report(len(jobs), json_lines=json_lines) as report:
        work = None
        if any(job.error is None for job in jobs):
            report.show("loading the model")
            work = partial(_work, request, load_inpainter(model, device, precision, offload), report, overwrite)
        run_jobs(jobs, work, report)


def _checked(job: "Job", request: InpaintRequest, overwrite: bool) -> "Job":
    """The job, with an error if its files do not fit together."""
    from enlarger.saving import check_output
    from enlarger.tasks.repair import lay_out

    if job.error is not None:
        return job
    try:
        for path in job.outputs:
            if request.mask is not None and path.resolve() == request.mask.resolve():
                raise InputError(f"{path} is the mask; choose another --output")
        original = lay_out(replace(request, image=job.input)).original
        check_output(job.outputs[0], original.write(original.values).mode, overwrite=overwrite)
    except InputError as error:
        return replace(job, error=str(error))
    return job


def _work(request: InpaintRequest, repairer: "Repairer", report: "Report", overwrite: bool, job: "Job") -> "Outcome":
    from enlarger.cli.report import Outcome
    from enlarger.saving import SUFFIXES

    started = time.monotonic()
    result = repairer(replace(request, image=job.input), watch=report.begin(job.input.name))
    kind = SUFFIXES[job.outputs[0].suffix.lower()]
    lossy = (f"{kind} files change every pixel a little: save as .png to keep what is outside the mask",)
    return Outcome(
        job.input,
        save_all(job, result.images, report, overwrite),
        result.image.size,
        round(time.monotonic() - started, 3),
        result.seeds[0],
        result.model,
        notes=result.notes + (lossy if kind in LOSSY and request.preserve == "exact" else ()),
        changed=result.changed[0].pixels,
        box=result.changed[0].box,
        coverage=round(result.coverage[0], 3),
    )
