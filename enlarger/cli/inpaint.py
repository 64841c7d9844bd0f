"""`enlarger inpaint`: a picture and a mask in, the picture repainted there out."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enlarger.cli.cluster_options import GpusPerWorker, Ray, Workers, read_cluster_options, refuse_uris
from enlarger.cli.image_jobs import FileOptions, ModelFolder, Offload, make_request, run_jobs, save_all
from enlarger.cli.loading import Loading
from enlarger.cli.options import (
    Device,
    Engine,
    JsonLines,
    Kind,
    Options,
    Overwrite,
    Precision,
    Quality,
    Quiet,
    request_options,
)
from enlarger.errors import InputError
from enlarger.requests import InpaintRequest

if TYPE_CHECKING:
    from enlarger.cli.files import Job
    from enlarger.cli.report import Outcome, Report
    from enlarger.tasks.inpaint import Inpainter

LOSSY_FORMATS = ("JPEG", "WEBP", "AVIF")  # kinds of files that change every pixel a little
ImageFile = Annotated[
    str, typer.Argument(metavar="IMAGE", help="the picture; with --ray a folder or URI of pictures, too")
]
MaskFile = Annotated[
    str | None,
    typer.Option(
        "--mask",
        help="a picture of the same size; with --ray a folder of them, named like the pictures, too",
        show_default="only what --expand adds is painted",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="PATH", help="file or folder", show_default="name-inpaint.png beside the input"
    ),
]


@request_options(InpaintRequest, "inpaint")
def inpaint(
    image: ImageFile,
    options: Options,
    model: ModelFolder,
    mask: MaskFile = None,
    output: Output = None,
    device: Device = "auto",
    precision: Precision = "auto",
    offload: Offload = "none",
    engine: Engine = "torch",
    overwrite: Overwrite = False,
    kind: Kind = None,
    quality: Quality = 95,
    json_lines: JsonLines = False,
    quiet: Quiet = False,
    ray: Ray = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = 0.0,
) -> None:
    """Repaint what a mask covers, with a model made for it or any other of Stable Diffusion 1 or 2 or SDXL.

    Writes PNG unless --output names another kind of file, and prints the names of the files written.
    With --preserve exact not one pixel changes outside the mask.
    """
    cluster = read_cluster_options(ray, workers, gpus_per_worker, device)
    if cluster is None:
        refuse_uris([image, mask])
    mask_file = None if mask is None else Path(mask)
    request = make_request(InpaintRequest, image=Path(image), mask=mask_file, **options)
    from enlarger.cli.companions import Companions
    from enlarger.cli.report import Report  # torch comes with these
    from enlarger.tasks.inpaint import load_inpainter

    loading = Loading(model, device, precision, offload, engine=engine)
    files = FileOptions([image], output, "inpaint", overwrite, kind=kind, quality=quality, loading=loading)
    if cluster is not None:
        beside = None if mask is None else Companions("mask", mask, "mask")
        files = replace(files, companions=beside, cluster=cluster, json_lines=json_lines, quiet=quiet)
        _inpaint_on_cluster(files, request, partial(load_inpainter, model, device, precision, offload, engine))
        return
    jobs = [_check_job(job, request) for job in files.plan(request.count).jobs]
    with Report(len(jobs), json_lines=json_lines, quiet=quiet) as report:
        run_job = None
        if any(job.error is None for job in jobs):
            report.start_stage("loading the model")
            inpainter = load_inpainter(model, device, precision, offload, engine)
            run_job = partial(_run_job, request, inpainter, report, files)
        run_jobs(jobs, run_job, report)


def _inpaint_on_cluster(files: FileOptions, request: InpaintRequest, load: Callable[[], "Inpainter"]) -> None:
    from enlarger.cli.cluster_jobs import process_on_cluster

    def check(job: "Job", request: InpaintRequest, files: FileOptions) -> "Job":
        return _check_job(job, request)

    def process(
        inpainter: "Inpainter", to_request: Callable[..., InpaintRequest], request: InpaintRequest, *rest: Any
    ) -> "Outcome":
        report, files, job = rest
        return _run_job(to_request(request, job), inpainter, report, files, job)

    described = (files.label, files.quality, files.kind, files.loading.model, files.companions)
    process_on_cluster(files, request, load, described, settings=None, check=check, process=process)


def _check_job(job: "Job", request: InpaintRequest) -> "Job":
    """The job, with an error if its files do not fit together."""
    from enlarger.image.encode import check_output
    from enlarger.image.inpaint_canvas import prepare_canvas

    if job.error is not None:
        return job
    try:
        for path in job.outputs:
            if request.mask is not None and path.resolve() == request.mask.resolve():
                raise InputError(f"{path} is the mask; choose another --output")
        original = prepare_canvas(replace(request, image=job.input)).original
        check_output(job.outputs[0], original.write(original.values).mode, overwrite=True)
    except InputError as error:
        return replace(job, error=str(error))
    return job


def _run_job(
    request: InpaintRequest, inpainter: "Inpainter", report: "Report", files: FileOptions, job: "Job"
) -> "Outcome":
    from enlarger.cli.report import Outcome
    from enlarger.image.encode import SUFFIXES

    started = time.monotonic()
    result = inpainter(replace(request, image=job.input), watch=report.start_file(job.input.name))
    file_format = SUFFIXES[job.outputs[0].suffix.lower()]
    lossy_note = (f"{file_format} files change every pixel a little: save as .png to keep what is outside the mask",)
    return Outcome(
        job.input,
        save_all(job, result, report, files),
        result.image.size,
        round(time.monotonic() - started, 3),
        result.seeds[0],
        result.model,
        notes=result.notes + (lossy_note if file_format in LOSSY_FORMATS and request.preserve == "exact" else ()),
        changed=result.changed[0].pixels,
        box=result.changed[0].box,
        coverage=round(result.coverage[0], 3),
    )
