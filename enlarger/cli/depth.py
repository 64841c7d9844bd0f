"""`enlarger depth`: pictures in, other pictures of the same depth out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enlarger.cli.cluster_options import GpusPerWorker, Ray, Workers, read_cluster_options
from enlarger.cli.image_jobs import FileOptions, Inputs, ModelFolder, Offload, make_request, process_images
from enlarger.cli.loading import Loading
from enlarger.cli.options import (
    Again,
    Background,
    Cmyk,
    Device,
    Engine,
    JsonLines,
    Kind,
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
from enlarger.requests import DepthRequest

if TYPE_CHECKING:
    from enlarger.tasks.depth import DepthToImage

Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="folder, or file if there is one input",
        show_default="name-depth.png beside the input",
    ),
]
Maps = Annotated[
    str | None,
    typer.Option(
        "--depth",
        help="grey picture of the depth, near is bright, or a folder of them named like the inputs",
        show_default="estimated by the model",
    ),
]


@request_options(DepthRequest, "depth")
def depth(
    inputs: Inputs,
    options: Options,
    model: ModelFolder,
    maps: Maps = None,
    output: Output = None,
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
    json_lines: JsonLines = False,
    ray: Ray = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = 0.0,
) -> None:
    """Remake pictures with their depth kept, with the depth model of Stable Diffusion 2.

    Results have the size of their inputs.
    Writes PNG unless --output names another kind of file, and prints the names of the files written.
    A file that fails is reported, the others go on, and the exit status is 1.
    """

    def load() -> "DepthToImage":
        from enlarger.tasks.depth import load_depth

        return load_depth(model, device, precision, offload, maps is None, engine)

    from enlarger.cli.companions import Companions

    request = make_request(DepthRequest, image=None, **options)
    files = FileOptions(
        inputs=inputs,
        output=output,
        label="depth",
        overwrite=overwrite,
        recursive=recursive,
        json_lines=json_lines,
        salvage=salvage,
        tone_map=tone_map,
        strip=strip,
        kind=kind,
        quality=quality,
        skip_existing=skip_existing,
        background=background,
        cmyk=cmyk,
        again=again,
        quiet=quiet,
        loading=Loading(model, device, precision, offload, engine=engine),
        run=(model, None if maps is None else Path(maps)),
        companions=None if maps is None else Companions("depth", maps, "depth map"),
        cluster=read_cluster_options(ray, workers, gpus_per_worker, device),
    )
    process_images(files, request, load)
