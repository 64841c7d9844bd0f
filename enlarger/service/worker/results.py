"""Finished pictures as files of a job's folder, each whole or not there, and what is said of them all, last."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from enlarger.image.deep import DeepImage
from enlarger.image.encode import file_options, write_image
from enlarger.image.fill import bleed_alpha
from enlarger.image.generation import Json
from enlarger.image.picture import read_picture, to_pil
from enlarger.image.resize import resize
from enlarger.service.jobs.files import write_job_file
from enlarger.service.jobs.job import RESULT_FILE, JobResult, OutputOptions, ResultImage
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
) -> tuple[ResultImage, tuple[str, ...]]:
    """Write one result with its generation metadata in it. Gives what is said of the file, and notes."""
    name = f"result-{index}.{SUFFIXES[output.format]}"
    converted, notes = _convert_for_format(image, output.format)
    options, file_notes = file_options(converted, output.format.upper(), generation=metadata)
    options |= {"compress_level": PNG_COMPRESS_LEVEL} if output.format == "png" else {"quality": output.quality}
    with write_job_file(folder / name) as stream:
        write_image(converted, stream, output.format.upper(), options)
        num_bytes = stream.seek(0, os.SEEK_END)
    seed = metadata["seeds"][0]
    return ResultImage(name, converted.width, converted.height, seed, output.format, num_bytes), notes + file_notes


def _convert_for_format(image: Image.Image, format: str) -> tuple[Image.Image, tuple[str, ...]]:
    """A copy that the format can hold, and what that cost."""
    if format == "png":
        return image.copy(), ()
    notes: tuple[str, ...] = ()
    if isinstance(image, DeepImage):
        image = image.convert(image.mode)
        notes = (f"{format} holds 8 bits: the 16-bit colour is rounded; PNG keeps it",)
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value / 257 + 0.5).convert("L")
        notes = (f"{format} holds 8 bits: the 16-bit grey is rounded; PNG keeps it",)
    if format == "jpeg" and image.has_transparency_data:
        is_grey, rgba = image.mode == "LA", image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), rgba).convert("L" if is_grey else "RGB")
        notes = (*notes, "jpeg has no transparency: the picture is laid on white; PNG and WebP keep it")
    return image.copy(), notes


def write_result_file(folder: Path, result: JobResult) -> None:
    """Write the result file, with which the job is complete. One that is there already stays as it is."""
    if not (folder / RESULT_FILE).exists():  # only one worker at a time has a job
        with write_job_file(folder / RESULT_FILE) as stream:
            stream.write(json.dumps(asdict(result), allow_nan=False).encode())


def remove_images(folder: Path) -> None:
    """Take away the pictures of a job that came to nothing."""
    for file in folder.glob("result-*"):
        file.unlink(missing_ok=True)
