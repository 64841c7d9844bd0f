"""Finished pictures as files of a job's folder, each whole or not there, and what is said of them all, last."""

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from enlarger.image.fill import bleed_alpha
from enlarger.image.picture import read_picture, to_pil
from enlarger.image.resize import resize
from enlarger.service.jobs.job import RESULT_FILE, OutputOptions
from enlarger.service.problems import problem_error
from enlarger.service.worker.generation_metadata import MAX_EXIF_BYTES, Json, exif_bytes, png_info
from enlarger.tasks.inputs import match_input

PNG_COMPRESS_LEVEL = 1  # of PNG compression: the usual 6 takes four times as long for a sixth less
SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp"}
WHITE = (255, 255, 255, 255)


def resize_to(image: Image.Image, size: tuple[int, int] | None) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture in exactly that width and height, and what was done to it."""
    if size is None or image.size == size:
        return image, ()
    picture = read_picture(image)
    resized = resize(bleed_alpha(picture), (size[1], size[0]), "lanczos").clamp(-1, 1)
    note = f"the model made {image.width} x {image.height} pixels, resized to {size[0]} x {size[1]}"
    return to_pil(match_input(picture, resized)), (*picture.notes, note)


def save_image(
    image: Image.Image, index: int, folder: Path, output: OutputOptions, metadata: Json
) -> tuple[Json, tuple[str, ...]]:
    """Write one result with its recipe in it. Gives what is said of the file, and notes."""
    name = f"result-{index}.{SUFFIXES[output.format]}"
    converted, notes = _convert_for_format(image, output.format)
    options: Json = {"icc_profile": image.info["icc_profile"]} if image.info.get("icc_profile") else {}
    if output.format == "png":
        options |= {"compress_level": PNG_COMPRESS_LEVEL, "pnginfo": png_info(metadata, converted.size)}
    else:
        exif, options["quality"] = exif_bytes(metadata, converted.size), output.quality
        if output.format == "webp" or len(exif) <= MAX_EXIF_BYTES:
            options["exif"] = exif
        else:
            notes = (*notes, "the recipe is too long for a JPEG file, and is in this reply only; PNG holds it")
    converted.info = {}
    num_bytes = write_atomically(
        folder / name, lambda stream: converted.save(stream, format=output.format.upper(), **options)
    )
    seed = metadata["seeds"][0]
    info = {"file": name, "width": converted.width, "height": converted.height, "seed": seed, "format": output.format}
    return info | {"bytes": num_bytes}, notes


def _convert_for_format(image: Image.Image, format: str) -> tuple[Image.Image, tuple[str, ...]]:
    """A copy that the format can hold, and what that cost."""
    if format == "png":
        return image.copy(), ()
    notes: tuple[str, ...] = ()
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value / 257 + 0.5).convert("L")
        notes = (f"{format} holds 8 bits: the 16-bit grey is rounded; PNG keeps it",)
    if format == "jpeg" and image.has_transparency_data:
        is_grey, rgba = image.mode == "LA", image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), rgba).convert("L" if is_grey else "RGB")
        notes = (*notes, "jpeg has no transparency: the picture is laid on white; PNG and WebP keep it")
    return image.copy(), notes


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> int:
    """Write a file beside its place and move it there when all of it is on the disk; gives its bytes.

    Raises Refused where the disk does not take it.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        os.replace(partial, path)
    except OSError as error:
        reason, is_full = error.strerror or type(error).__name__, error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise problem_error(
            500,
            "storage_full" if is_full else "storage_failed",
            f"the result cannot be stored ({reason}); the service needs a place to write to",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return size


def write_result_file(folder: Path, result: Mapping[str, Any]) -> None:
    """Write DONE, with which the job is complete. One that is there already stays as it is."""
    if not (folder / RESULT_FILE).exists():  # only one worker at a time has a job
        text = json.dumps(result, allow_nan=False).encode()
        write_atomically(folder / RESULT_FILE, lambda stream: stream.write(text))
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)  # the names too are on the disk
    finally:
        os.close(fd)


def remove_images(folder: Path) -> None:
    """Take away the pictures of a job that came to nothing."""
    for file in folder.glob("result-*"):
        file.unlink(missing_ok=True)
