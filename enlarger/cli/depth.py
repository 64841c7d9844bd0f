"""`enlarger depth`: pictures in, other pictures of the same depth out."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
from enlarger.errors import InputError
from enlarger.requests import DepthRequest

if TYPE_CHECKING:
    from enlarger.cli.files import Job
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
    Path | None,
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
) -> None:
    """Remake pictures with their depth kept, with the depth model of Stable Diffusion 2.

    Results have the size of their inputs.
    Writes PNG unless --output names another kind of file, and prints the names of the files written.
    A file that fails is reported, the others go on, and the exit status is 1.
    """

    def load() -> "DepthToImage":
        from enlarger.tasks.depth import load_depth

        return load_depth(model, device, precision, offload, maps is None, engine)

    def request_for(request: DepthRequest, job: "Job") -> DepthRequest:
        return replace(request, image=job.input, depth=None if maps is None else _map_for(job.input, maps))

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
        run=(model, maps),
        beside=None if maps is None else lambda picture: (_map_for(picture, maps),),
    )
    process_images(files, request, load, request_for)


def _map_for(picture: Path, maps: Path) -> Path:
    """The map itself, or the file in a folder of maps that is named like the picture; InputError where none is."""
    if not maps.is_dir():
        return maps
    matches = sorted(path for path in maps.iterdir() if path.stem == picture.stem and path.is_file())
    if len(matches) != 1:
        raise InputError(f"found {len(matches)} files named {picture.stem} in {maps}, expected one depth map")
    return matches[0]
