"""`enlarger generate`: prompts in, pictures out."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enlarger.cli.cluster_options import GpusPerWorker, Ray, Workers, read_cluster_options, refuse_uris
from enlarger.cli.image_jobs import FileOptions, ModelFolder, Offload, make_request, process_image, run_jobs
from enlarger.cli.loading import Loading
from enlarger.cli.options import (
    Device,
    Engine,
    JsonLines,
    NewKind,
    Options,
    Overwrite,
    Precision,
    Quality,
    Quiet,
    SkipExisting,
    describe_runtime,
    explain_runtime,
    request_options,
)
from enlarger.cli.terminal import print_lines
from enlarger.errors import InputError
from enlarger.requests import RANDOM_SEED, GenerateRequest, seeds_for
from enlarger.runtime.importing import garbage_ignored
from enlarger.target_size import scaled_side

if TYPE_CHECKING:  # torch comes with these
    from enlarger.cli.files import Job
    from enlarger.cli.report import Outcome, Report
    from enlarger.cli.resume import Fingerprint
    from enlarger.tasks.latent_diffusion.sampling import SamplingReport
    from enlarger.tasks.text_to_image import Generator

Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="what the pictures show")]
PromptsFile = Annotated[
    Path | None, typer.Option("--prompts", help="text file with a prompt in each line", show_default=False)
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="folder, or file if there is one prompt",
        show_default="prompt-seed.png here",
    ),
]
RefinerFolder = Annotated[
    str | None, typer.Option("--refiner", help="folder of the model that finishes pictures", show_default="none")
]
UpscalerFolder = Annotated[
    str | None,
    typer.Option("--upscaler", help="folder of the model for --upscale", show_default="the bundled model"),
]
Explain = Annotated[bool, typer.Option("--explain", help="print how, and which network would run which step, and end")]


@request_options(GenerateRequest, "generate", seed=RANDOM_SEED)
def generate(
    options: Options,
    model: ModelFolder,
    prompts: Prompts = None,
    file: PromptsFile = None,
    refiner: RefinerFolder = None,
    upscaler: UpscalerFolder = None,
    output: Output = None,
    device: Device = "auto",
    precision: Precision = "auto",
    offload: Offload = "none",
    engine: Engine = "torch",
    overwrite: Overwrite = False,
    kind: NewKind = None,
    quality: Quality = 95,
    skip_existing: SkipExisting = False,
    json_lines: JsonLines = False,
    quiet: Quiet = False,
    explain: Explain = False,
    ray: Ray = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = 0.0,
) -> None:
    """Make pictures from text.

    Writes PNG unless --output or --format names another kind of file, and prints the names of the files written.
    A prompt that fails is reported, the others go on, and the exit status is 1.
    """
    texts = _read_prompts(prompts or [], file)
    request = make_request(GenerateRequest, prompt=texts, **options)
    if upscaler is not None and request.upscale == 1:
        raise typer.BadParameter("--upscaler is given, but not --upscale; give both, or neither")

    def load() -> "Generator":
        from enlarger.tasks.text_to_image import load_generator

        return load_generator(model, device, precision, offload, refiner, upscaler, engine)

    cluster = read_cluster_options(ray, workers, gpus_per_worker, device)
    if explain and cluster is not None:
        raise typer.BadParameter("--explain computes nothing, so that --ray has no meaning with it; leave one")
    if explain:
        print_lines(_explain(load().explain(request), (device, precision, engine), json_lines=json_lines))
        return
    from enlarger.cli.report import Report

    requests = _requests_per_prompt(request, texts)
    loading = Loading(model, device, precision, offload, refiner, upscaler, engine)
    files = FileOptions(
        inputs=[],
        output=output,
        label="",
        overwrite=overwrite,
        kind=kind,
        quality=quality,
        skip_existing=skip_existing,
        run=(model, loading.identity(request)),
        loading=loading,
    )
    if cluster is not None:
        files = replace(files, cluster=cluster, json_lines=json_lines, quiet=quiet)
        _generate_on_cluster(files, request, requests, load)
        return
    refuse_uris([output])
    jobs = _plan_jobs(requests, files)
    with Report(len(jobs), json_lines=json_lines, quiet=quiet) as report:
        run_job = None
        if any(job.error is None and job.skipped is None for job in jobs):
            report.start_stage("loading the model")
            requests_by_job = dict(zip(jobs, requests, strict=True))
            with garbage_ignored():
                generator = load()
            run_job = partial(_run_job, generator, requests_by_job, report, files)
        run_jobs(jobs, run_job, report)


def _generate_on_cluster(
    files: FileOptions, request: GenerateRequest, requests: Sequence[GenerateRequest], load: Callable[[], "Generator"]
) -> None:
    from enlarger.cli.cluster_jobs import destination, run_on_cluster
    from enlarger.cli.cluster_listing import PromptListing
    from enlarger.cli.cluster_worker import ClusterRun
    from enlarger.cli.resume import run_name

    assert files.cluster is not None
    target = destination(files.output)
    outputs = [_named_outputs(each, target.folder, f".{files.kind or 'png'}") for each in requests]
    listing = PromptListing(
        [(str(each.prompt), each.seed, slug(str(each.prompt))) for each in requests], outputs, target.storage
    )
    name = run_name(replace(request, prompt="", seed=0), files.quality, files.loading, *files.run)

    def check(job: "Job", request: GenerateRequest, files: FileOptions) -> "Job":
        return _check_size(job, request)

    def process(generator: "Generator", to_request: object, request: GenerateRequest, *rest: Any) -> "Outcome":
        report, files, job = rest
        return _run_job(generator, {job: request}, report, files, job)

    run = ClusterRun(request, load, files, name, None, target.storage, process, check)
    run_on_cluster(run, listing, target, files.cluster)


def _explain(plan: "SamplingReport", asked: tuple[str, str, str], *, json_lines: bool) -> list[str]:
    """How the networks would run, of the device, the precision and the engine that are asked for, and which would run
    which step."""
    if json_lines:
        return [json.dumps(asdict(plan) | {"calls": plan.calls} | describe_runtime(*asked))]
    return [*explain_runtime(*asked, json_lines=False), *str(plan).splitlines()]


def _run_job(
    generator: "Generator",
    requests_by_job: "dict[Job, GenerateRequest]",
    report: "Report",
    files: FileOptions,
    job: "Job",
) -> "Outcome":
    from enlarger.image.encode import check_output

    request = requests_by_job[job]
    check_output(job.outputs[0], "RGB", generator.target_size(request), overwrite=True)
    files = replace(files, fingerprint=_fingerprint(request, files))
    outcome = process_image(generator, lambda request, _: request, request, report, files, job)
    return replace(outcome, prompt=str(request.prompt))


def _fingerprint(request: GenerateRequest, files: FileOptions) -> "Fingerprint":
    """By which the pictures of a prompt are known."""
    from enlarger.cli.resume import fingerprint_of_request

    return fingerprint_of_request(request, files.quality, *files.run)


def _read_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """The prompts of the command line, then those of a file; blank lines are none."""
    lines: list[str] = []
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text("utf-8-sig").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"--prompts {file} cannot be read ({error}); give a text file") from error
    if not (texts := [*prompts, *lines]):
        raise typer.BadParameter("found no prompt; give one, or --prompts FILE")
    return texts


def _requests_per_prompt(request: GenerateRequest, texts: Sequence[str]) -> list[GenerateRequest]:
    """A request per prompt; seeds count on from prompt to prompt, as in the library."""
    seeds = seeds_for(request.seed, len(texts) * request.count)
    return [replace(request, prompt=text, seed=seeds[i * request.count]) for i, text in enumerate(texts)]


def _plan_jobs(requests: Sequence[GenerateRequest], files: FileOptions) -> "list[Job]":
    """A job per prompt, its files named after prompt and seed."""
    from enlarger.cli.files import ExistingFiles, is_folder_name, plan_job
    from enlarger.cli.inputs import InputFile
    from enlarger.image.encode import SUFFIXES

    output, suffix = files.output, f".{files.kind or 'png'}"
    target = Path() if output is None else Path(output)
    is_file = output is not None and not is_folder_name(output)
    if is_file and len(requests) > 1 and target.suffix.lower() in SUFFIXES:
        raise typer.BadParameter(f"--output {output} names one file, but there are several prompts; give a folder")
    if is_file and files.kind is not None and SUFFIXES.get(target.suffix.lower()) != SUFFIXES[suffix]:
        raise typer.BadParameter(f"--output {output} and --format {files.kind} name different kinds of file; give one")
    reserved: dict[Path, str] = {}
    jobs: list[Job] = []
    for request in requests:
        name, outputs = slug(str(request.prompt)), _named_outputs(request, target, suffix)
        if is_file and len(requests) == 1:
            numbered = [target.with_name(f"{target.stem}-{k}{target.suffix}") for k in range(1, request.count + 1)]
            outputs = (target,) if request.count == 1 else tuple(numbered)
        existing = ExistingFiles(files.overwrite, files.skip_existing, _fingerprint(request, files))
        job = plan_job(InputFile(Path(name), is_named_by_user=True), outputs, reserved, existing)
        jobs.append(_check_size(job, request))
    return jobs


def _named_outputs(request: GenerateRequest, folder: Path, suffix: str) -> tuple[Path, ...]:
    name = slug(str(request.prompt))
    return tuple(folder / f"{name}-{seed}{suffix}" for seed in seeds_for(request.seed, request.count))


def _check_size(job: "Job", request: GenerateRequest) -> "Job":
    """The job, with an error if its kind of file does not hold a picture of the size that was asked for."""
    from enlarger.image.encode import check_output

    if job.error is not None or job.skipped is not None:
        return job
    sides = [scaled_side(side, request.upscale) for side in (request.width, request.height) if side is not None]
    size = (max(sides), min(sides)) if sides else None
    try:
        check_output(job.outputs[0], "RGB", size, overwrite=True)
    except InputError as error:
        return replace(job, error=str(error))
    return job


def slug(prompt: str) -> str:
    """A prompt as the beginning of a file's name."""
    return re.sub(r"\W+", "-", prompt.lower()).strip("-_")[:40].strip("-_") or "picture"
