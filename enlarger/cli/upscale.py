"""`enlarger upscale`: pictures in, larger pictures out."""

from typing import TYPE_CHECKING, Annotated

import typer

from enlarger.cli.cluster_options import GpusPerWorker, Ray, Workers, read_cluster_options
from enlarger.cli.image_jobs import FileOptions, Inputs, Offload, make_request, process_images
from enlarger.cli.loading import Loading
from enlarger.cli.options import (
    ALL_FRAMES,
    Again,
    AllFrames,
    Background,
    Cmyk,
    Device,
    Engine,
    JsonLines,
    Kind,
    Model,
    Options,
    Overwrite,
    Precision,
    Quality,
    Quiet,
    Recursive,
    Salvage,
    SkipExisting,
    Strip,
    ToneMap,
    request_options,
)
from enlarger.cli.remote import Key, Server, check_no_local_options, remote_upscaler
from enlarger.requests import UpscaleRequest

if TYPE_CHECKING:
    from enlarger.tasks.upscale.upscaler import Upscaler

Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="folder, or file if there is one input",
        show_default="name-x2.png beside the input",
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
    offload: Offload = "none",
    engine: Engine = "torch",
    overwrite: Overwrite = False,
    recursive: Recursive = False,
    salvage: Salvage = False,
    tone_map: ToneMap = False,
    strip: Strip = "none",
    kind: Kind = None,
    quality: Quality = 95,
    skip_existing: SkipExisting = False,
    background: Background = None,
    cmyk: Cmyk = False,
    again: Again = False,
    quiet: Quiet = False,
    all_frames: AllFrames = False,
    json_lines: JsonLines = False,
    server: Server = None,
    key: Key = None,
    ray: Ray = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = 0.0,
) -> None:
    """Enlarge pictures.

    Writes PNG unless --output names another kind of file, and prints the names of the files written.
    A file that fails is reported, the others go on, and the exit status is 1.
    """

    def load() -> "Upscaler":
        from enlarger.tasks.upscale.upscale import load_upscaler

        return load_upscaler(model, device, precision, offload, engine)

    request = make_request(UpscaleRequest, image=None, **options)
    others = kind is not None or background is not None or request.count > 1
    if all_frames and (others or salvage or tone_map or cmyk):
        raise typer.BadParameter(
            "--all-frames makes one file of the input's kind; leave --format, --count, --salvage, --tone-map and "
            "--cmyk, and --background too"
        )
    if server is not None and cmyk:
        raise typer.BadParameter("--cmyk cannot be given with --server: a service's pictures are in RGB")
    if server is not None and ray is not None:
        raise typer.BadParameter("--server and --ray name two that compute; give one of them")
    files = FileOptions(
        inputs=inputs,
        output=output,
        label=_label(request),
        overwrite=overwrite,
        recursive=recursive,
        json_lines=json_lines,
        salvage=salvage,
        tone_map=tone_map,
        strip=strip,
        kind=ALL_FRAMES if all_frames else kind,
        quality=quality,
        skip_existing=skip_existing,
        background=background,
        cmyk=cmyk,
        again=again,
        quiet=quiet,
        loading=Loading(model, device, precision, offload, engine=engine) if server is None else Loading(),
        one_answer=model is None and server is None,
        all_frames=all_frames,
        run=(model, server, all_frames) if all_frames else (model, server),
        cluster=read_cluster_options(ray, workers, gpus_per_worker, device),
    )
    if server is None:
        process_images(files, request, load, describe=None if all_frames else _describe_plan)
        return
    check_no_local_options(model, {"device": device, "precision": precision, "offload": offload, "engine": engine})
    with remote_upscaler(server, key, model) as remote:
        process_images(files, request, lambda: remote, first_stage=f"asking {server}")


def _label(request: UpscaleRequest) -> str:
    """What the names of results end in: x2, 3000x2000, 4096px, 24mp."""
    if request.long_edge is not None:
        return f"{request.long_edge}px"
    if request.megapixels is not None:
        return f"{request.megapixels:g}mp"
    return f"x{request.by:g}" if request.size is None else request.size.lower()


def _describe_plan(upscaler: "Upscaler", request: UpscaleRequest) -> str:
    """The passes before they run; raises InputError for a size that does not fit the picture."""
    from enlarger.image.decode import upright_size
    from enlarger.tasks.upscale.upscale import plan_upscale

    width, height = upright_size(request.image)
    return str(plan_upscale(request, (height, width), upscaler.scale))
