"""`enlarger replay`: a picture's file says what made it; make it again, and compare byte for byte."""

import io
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enlarger import __version__
from enlarger.cli.loading import DEFAULTS, checkpoint_of, file_of
from enlarger.cli.options import ALLOW_PICKLE, Device, Overwrite
from enlarger.cli.terminal import print_lines
from enlarger.errors import InputError
from enlarger.image.digest import file_sha256
from enlarger.requests import (
    DepthRequest,
    GenerateRequest,
    InpaintRequest,
    RefineRequest,
    UpscaleRequest,
    make_request,
)
from enlarger.strict_json import Json

if TYPE_CHECKING:  # torch comes with these
    from PIL import Image

    from enlarger.tasks.results.result import Result

REQUESTS: dict[str, type] = {
    "upscale": UpscaleRequest,
    "generate": GenerateRequest,
    "refine": RefineRequest,
    "depth": DepthRequest,
    "inpaint": InpaintRequest,
}
SERVICE_PNG_LEVEL = 1  # the service's files do not say how they were written: they are all written alike
SERVICE_BACKGROUND = "white"  # nor what it lays transparent pictures on
InputPath = Annotated[
    Path | None,
    typer.Option("--input", metavar="PATH", help="the picture that it was made of, or the folder it is in"),
]


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a picture that enlarger has made")],
    source: InputPath = None,
    model: Annotated[str | None, typer.Option(help="where its model is now", show_default="as the file says")] = None,
    device: Device = "auto",
    allow_pickle: Annotated[bool, ALLOW_PICKLE] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="where to write what was made")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a picture again from what its file says, and say whether the bytes are the same.

    Exit status: 0 the same bytes, 1 others, or it cannot be made again; then the reason is said.
    """
    from enlarger.image.decode import open_image
    from enlarger.image.encode import check_output, write_whole
    from enlarger.image.generation import read_metadata

    with open_image(file, any_size=True) as (image, name):
        metadata, file_format, pixels = read_metadata(image), str(image.format), image.width * image.height
    before = file.read_bytes()
    if metadata is None:
        raise InputError(f"{name}: says nothing of how it was made, expected a picture of enlarger's with its metadata")
    if metadata.get("frames"):
        raise InputError(f"{name}: holds several frames, which are not made again; enlarge its input again")
    sources = _sources(metadata, file, source)
    if output is not None:
        written = check_output(output, overwrite=overwrite)
        _check_other_file(output, file, *sources.values())
        if written != file_format:
            raise InputError(f"{output}: {written}, but {file} is {file_format} and so is what is made; name it so")
    result = _run(metadata, _read_as_before(sources, metadata, file), device, model, allow_pickle)
    made = _encode(result.images[0], file_format, metadata, result)
    if output is not None:
        with write_whole(output, overwrite=overwrite) as stream:
            stream.write(made)
    if made == before:
        print_lines([f"{file}: the same {len(made):,} bytes"])
        return
    reasons = _reasons(metadata, before, made, max(pixels, math.prod(result.images[0].size)))
    print_lines([f"{file}: other bytes: {'; '.join(reasons)}"])
    raise typer.Exit(1)


def _check_other_file(output: Path, *read: Path) -> None:
    """Raise InputError for a place where one of the files is that the picture is made of or compared with."""
    for path in read:
        if output.resolve() == path.resolve():
            text = f"is {path} itself, which the picture is made of or compared with, expected another file"
            raise InputError(f"{output}: {text}; choose another name")


def _sources(metadata: Json, file: Path, given: Path | None) -> dict[str, Path]:
    """The files that it was made of, by the fields of a request. Raises InputError where one is missing."""
    about: Json = metadata.get("input") or {}
    if metadata["task"] == "generate":
        return {}
    found = {"image": _find(about, file, given)}
    return found | {name: _find(about[name], file, given) for name in ("mask", "depth") if name in about}


def _read_as_before(sources: dict[str, Path], metadata: Json, file: Path) -> dict[str, "Path | Image.Image"]:
    """The files, the input as `--tone-map` or `--salvage` had read it. Raises InputError for another way to read it."""
    from enlarger.image.special_reads import salvage, tone_map

    about: Json = metadata.get("input") or {}
    if "image" not in sources or (read := about.get("read")) is None:
        return {**sources}
    readers = {"tone_map": tone_map, "salvage": salvage}
    if read not in readers:
        text = f"its input was read by {read!r}, expected one of {', '.join(readers)}; a newer enlarger may know it"
        raise InputError(f"{file}: {text}")
    image = readers[read](sources["image"], [])
    return {**sources} if image is None else {**sources, "image": image}


def _find(about: Json, file: Path, given: Path | None) -> Path:
    name: str | None = about.get("file")
    if name is None:
        if given is not None and given.is_file():
            return given
        text = "was made of a picture in memory, or by a service, which names no file; give it with --input"
        raise InputError(f"{file}: {text}")
    places = [path for path in _places(Path(name).name, file, given) if path.is_file()]
    for path in places:
        if about.get("sha256", digest := file_sha256(path)) == digest:
            return path
    if places:
        raise InputError(f"{file}: was made of another {name} than {places[0]} (its SHA-256 differs); give --input")
    raise InputError(f"{file}: was made of {name}, which is not beside it; give --input")


def _places(name: str, file: Path, given: Path | None) -> Iterator[Path]:
    """Where a picture of that name may be."""
    if given is not None:
        yield given / name if given.is_dir() else given
        if not given.is_dir():
            yield given.parent / name
        return
    for folder in (file.parent, Path(), file.parent.parent):
        yield folder / name


def _run(
    metadata: Json, sources: dict[str, "Path | Image.Image"], device: str, model: str | None, allow_pickle: bool
) -> "Result":
    """The task done again. Raises InputError and CheckpointError for what it cannot be done with."""
    from enlarger.tasks.loading.load import load_model
    from enlarger.tasks.text_to_image import load_generator

    task: str = metadata["task"]
    if task not in REQUESTS:
        raise InputError(f"its task is {task!r}, expected one of {', '.join(REQUESTS)}; a newer enlarger may know it")
    kind: Any = REQUESTS[task]
    names = {item.name for item in fields(kind)}
    options: Json = {name: value for name, value in metadata["options"].items() if name in names}
    request: Any = make_request(kind, **options | {"seed": metadata["seeds"][0]} | sources)
    loading: Json = metadata.get("loading", {})
    where = device if device != "auto" else loading.get("device", "auto")
    precision, offload, engine = (loading.get(name, DEFAULTS[name]) for name in ("precision", "offload", "engine"))
    location = checkpoint_of(metadata["model"] if model is None else model, loading, allow_pickle=allow_pickle)
    if task == "generate":
        others = (file_of(loading.get(name), allow_pickle=allow_pickle) for name in ("refiner", "upscaler"))
        refiner, upscaler = others
        return load_generator(location, where, precision, offload, refiner, upscaler, engine)(request)
    return load_model(location, where, precision, offload, task, engine).tasks[task](request)


def _encode(image: "Image.Image", file_format: str, metadata: Json, result: "Result") -> bytes:
    """The bytes of the file, written as the one that is repeated."""
    from enlarger.image.cmyk import to_cmyk
    from enlarger.image.encode import file_options, flatten_for, write_image
    from enlarger.image.metadata import INFO_KEYS

    how: Json | None = metadata.get("file")
    said = metadata | {"enlarger": __version__, "torch": result.generation[0]["torch"]}
    is_grey = image.mode == "LA"
    image = flatten_for(file_format, image, SERVICE_BACKGROUND if how is None else how.get("background"))
    if how is None:  # the service's, which knows no metadata of its input
        image = image.convert("L") if is_grey and image.mode == "RGB" else image
        image.info = {key: value for key, value in image.info.items() if key not in INFO_KEYS}
        said = metadata | {"enlarger": __version__}
    image = to_cmyk(image) if how is not None and how.get("cmyk") else image
    options, _ = file_options(image, file_format, "none" if how is None else how["strip"], said)
    if file_format in ("JPEG", "WEBP", "AVIF"):
        options["quality"] = 95 if how is None else how["quality"]
    elif how is None:
        options["compress_level"] = SERVICE_PNG_LEVEL
    stream = io.BytesIO()
    write_image(image, stream, file_format, options)
    return stream.getvalue()


def _reasons(metadata: Json, old: bytes, made: bytes, pixels: int) -> list[str]:
    """What differs from what was made now, none of more than `pixels` pixels, and what may be why."""
    import torch

    from enlarger.image.decode import PIXEL_LIMIT, open_upright
    from enlarger.image.deep import mode_of

    before, after = (open_upright(data, limit=max(pixels, PIXEL_LIMIT)) for data in (old, made))
    if before.size != after.size or mode_of(before) != mode_of(after):
        found = [f"it is {mode_of(after)} of {after.size[0]} x {after.size[1]}, not {mode_of(before)} of "
                 f"{before.size[0]} x {before.size[1]}"]  # fmt: skip
    else:
        found = [_difference(before, after)]
    pairs = (("enlarger", __version__), ("torch", torch.__version__))
    changed = [f"it was made with {name} {metadata[name]}, this is {now}" for name, now in pairs
               if metadata.get(name, now) != now]  # fmt: skip
    return found + (changed or ["another device, number of threads or model gives other rounding"])


def _difference(before: "Image.Image", after: "Image.Image") -> str:
    """In how many pixels two pictures of one size and mode differ, by how many steps of their depth; row after row."""
    import numpy as np

    from enlarger.image.deep import DeepImage

    first, second = (image.samples if isinstance(image, DeepImage) else np.asarray(image) for image in (before, after))
    count = most = 0
    for row, other in zip(first, second, strict=True):
        steps = np.abs(row.astype(np.int64) - other.astype(np.int64)).reshape(len(row), -1)
        count += int((steps > 0).any(1).sum())
        most = max(most, int(steps.max()))
    return f"{count} pixels differ, by at most {most}" if count else "the pixels are equal"
