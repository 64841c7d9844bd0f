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
    Background,
    Device,
    Engine,
    JsonLines,
    Kind,
    Options,
    Overwrite,
    Precision,
    Quality,
    Quiet,
    SkipExisting,
    Strip,
    request_options,
)
from enlarger.errors import InputError
from enlarger.requests import InpaintRequest

if TYPE_CHECKING:
    from enlarger.cli.files import Job
    from enlarger.cli.report import Outcome, Report
    from enlarger.cli.resume import Fingerprint
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
    strip: Strip = "none",
    background: Background = None,
    skip_existing: SkipExisting = False,
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
    files = FileOptions(
        inputs=[image],
        output=output,
        label="inpaint",
        overwrite=overwrite,
        strip=strip,
        kind=kind,
        quality=quality,
        skip_existing=skip_existing,
        background=background,
        run=(model, loading.identity(request)),
        loading=loading,
    )
    files = replace(files, fingerprint=_fingerprint(request, files))
    if cluster is not None:
        beside = None if mask is None else Companions("mask", mask, "mask")
        files = replace(files, companions=beside, cluster=cluster, json_lines=json_lines, quiet=quiet)
        _inpaint_on_cluster(files, request, partial(load_inpainter, model, device, precision, offload, engine))
        return
    jobs = [_check_job(job, request, files) for job in files.plan(request.count).jobs]
    with Report(len(jobs), json_lines=json_lines, quiet=quiet) as report:
        run_job = None
        if any(job.error is None and job.skipped is None for job in jobs):
            report.start_stage("loading the model")
            inpainter = load_inpainter(model, device, precision, offload, engine)
            run_job = partial(_run_job, request, inpainter, report, files)
        run_jobs(jobs, run_job, report)


def _inpaint_on_cluster(files: FileOptions, request: InpaintRequest, load: Callable[[], "Inpainter"]) -> None:
    from enlarger.cli.cluster_jobs import process_on_cluster

    def process(
        inpainter: "Inpainter", to_request: Callable[..., InpaintRequest], request: InpaintRequest, *rest: Any
    ) -> "Outcome":
        report, files, job = rest
        return _run_job(to_request(request, job), inpainter, report, files, job)

    described = (files.label, files.quality, files.strip, files.background, files.kind, *files.run, files.companions)
    process_on_cluster(files, request, load, described, settings=None, check=_check_job, process=process)


def _fingerprint(request: InpaintRequest, files: FileOptions) -> "Fingerprint":
    """By which what is made of a picture and the request's mask is known."""
    from enlarger.cli.resume import fingerprint_of_run

    beside = [] if request.mask is None else [request.mask]
    settings = (files.quality, files.strip, files.background, *files.run)
    return fingerprint_of_run(replace(request, mask=None), *settings, beside=lambda _: beside)


def _check_job(job: "Job", request: InpaintRequest, files: FileOptions) -> "Job":
    """The job, with an error if its files do not fit together."""
    from enlarger.image.deep import mode_of
    from enlarger.image.encode import check_output, flatten
    from enlarger.image.inpaint_canvas import prepare_canvas

    if job.error is not None or job.skipped is not None:
        return job
    try:
        for path in job.outputs:
            if request.mask is not None and path.resolve() == request.mask.resolve():
                raise InputError(f"{path} is the mask; choose another --output")
        original = prepare_canvas(replace(request, image=job.input)).original
        made = original.write(original.values)
        for path in job.outputs:
            held = flatten(made, path, files.background)
            check_output(path, mode_of(held), made.size, overwrite=True)
    except InputError as error:
        return replace(job, error=str(error))
    return job


def _run_job(
    request: InpaintRequest, inpainter: "Inpainter", report: "Report", files: FileOptions, job: "Job"
) -> "Outcome":
    from enlarger.cli.report import Outcome
    from enlarger.image.encode import SUFFIXES

    started = time.monotonic()
    files = replace(files, fingerprint=_fingerprint(request, files))
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
        notes=(() if job.note is None else (job.note,))
        + result.notes
        + (lossy_note if file_format in LOSSY_FORMATS and request.preserve == "exact" else ()),
        changed=result.changed[0].pixels,
        box=result.changed[0].box,
        coverage=round(result.coverage[0], 3),
    )
