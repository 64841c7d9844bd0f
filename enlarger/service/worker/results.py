"""Finished pictures as files of a job's folder, each whole or not there, and what is said of them all, last."""

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from enlarger.images import read_picture, to_pil
from enlarger.resize import resize
from enlarger.service.faults import refuse
from enlarger.service.jobs import DONE, Output
from enlarger.service.worker.recipes import EXIF_MOST, Json, exif_with, png_text
from enlarger.tasks.fill import spread_colour
from enlarger.tasks.sources import like

LEVEL = 1  # of PNG compression: the usual 6 takes four times as long for a sixth less
SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp"}
WHITE = (255, 255, 255, 255)


def sized(image: Image.Image, size: tuple[int, int] | None) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture in exactly that width and height, and what was done to it."""
    if size is None or image.size == size:
        return image, ()
    picture = read_picture(image)
    colour = resize(spread_colour(picture), (size[1], size[0]), "lanczos").clamp(-1, 1)
    note = f"the model made {image.width} x {image.height} pixels, resized to {size[0]} x {size[1]}"
    return to_pil(like(picture, colour)), (*picture.notes, note)


def save(image: Image.Image, index: int, folder: Path, output: Output, recipe: Json) -> tuple[Json, tuple[str, ...]]:
    """Write one result with its recipe in it. Gives what is said of the file, and notes."""
    name = f"result-{index}.{SUFFIXES[output.format]}"
    plain, notes = _fitting(image, output.format)
    options: Json = {"icc_profile": image.info["icc_profile"]} if image.info.get("icc_profile") else {}
    if output.format == "png":
        options |= {"compress_level": LEVEL, "pnginfo": png_text(recipe, plain.size)}
    else:
        exif, options["quality"] = exif_with(recipe, plain.size), output.quality
        if output.format == "webp" or len(exif) <= EXIF_MOST:
            options["exif"] = exif
        else:
            notes = (*notes, "the recipe is too long for a JPEG file, and is in this reply only; PNG holds it")
    plain.info = {}
    written = write_whole(folder / name, lambda stream: plain.save(stream, format=output.format.upper(), **options))
    seed = recipe["seeds"][0]
    about = {"file": name, "width": plain.width, "height": plain.height, "seed": seed, "format": output.format}
    return about | {"bytes": written}, notes


def _fitting(image: Image.Image, format: str) -> tuple[Image.Image, tuple[str, ...]]:
    """A copy that the format can hold, and what that cost."""
    if format == "png":
        return image.copy(), ()
    notes: tuple[str, ...] = ()
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value / 257 + 0.5).convert("L")
        notes = (f"{format} holds 8 bits: the 16-bit grey is rounded; PNG keeps it",)
    if format == "jpeg" and image.has_transparency_data:
        grey, whole = image.mode == "LA", image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), whole).convert("L" if grey else "RGB")
        notes = (*notes, "jpeg has no transparency: the picture is laid on white; PNG and WebP keep it")
    return image.copy(), notes


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> int:
    """Write a file beside its place and move it there when all of it is on the disk; gives its bytes.

    Raises Refused where the disk does not take it.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        os.replace(part, path)
    except OSError as error:
        reason, full = error.strerror or type(error).__name__, error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise refuse(
            500,
            "storage_full" if full else "storage_failed",
            f"the result cannot be stored ({reason}); the service needs a place to write to",
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return size


def finish(folder: Path, done: Mapping[str, Any]) -> None:
    """Write DONE, with which the job is complete. One that is there already stays as it is."""
    if not (folder / DONE).exists():  # only one worker at a time has a job
        text = json.dumps(done, allow_nan=False).encode()
        write_whole(folder / DONE, lambda stream: stream.write(text))
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # the names too are on the disk
    finally:
        os.close(handle)


def clear(folder: Path) -> None:
    """Take away the pictures of a job that came to nothing."""
    for file in folder.glob("result-*"):
        file.unlink(missing_ok=True)
