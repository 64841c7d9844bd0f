"""Pictures from files and in grids, outputs and logging, as diffusers.utils has them."""

import urllib.request
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps
from torch import Tensor

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.call.pictures import numpy_to_pil, postprocess
from enlarger.diffusers.pipelines.pipeline_output import Output as BaseOutput
from enlarger.diffusers.unsupported import missing
from enlarger.diffusers.utils import logging
from enlarger.image.picture import read_picture, to_pil

__all__ = ["BaseOutput", "load_image", "logging", "make_image_grid", "numpy_to_pil", "pt_to_pil"]
MAX_BYTES, TIMEOUT = 64 * 2**20, 30.0  # of a picture that is fetched


def load_image(
    image: str | Path | Image.Image, convert_method: Callable[[Image.Image], Image.Image] | None = None
) -> Image.Image:
    """A picture from a file, or from an address that begins with http:// or https://, upright and in RGB.

    `convert_method` replaces the conversion to RGB. Files, and what is fetched, are those that
    `read_picture` reads, and are brought to sRGB.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        image = to_pil(read_picture(_fetch(image), name=image))
    elif isinstance(image, str | Path):
        image = to_pil(read_picture(image))
    upright = ImageOps.exif_transpose(image)
    return upright.convert("RGB") if convert_method is None else convert_method(upright)


def _fetch(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as reply:  # the caller names the address
            content: bytes = reply.read(MAX_BYTES + 1)
    except OSError as error:
        raise ArgumentError(f"{address}: cannot be fetched ({error}); save the picture and give its path") from error
    if len(content) > MAX_BYTES:
        raise ArgumentError(f"{address}: has over {MAX_BYTES >> 20} MiB; save the picture and give its path")
    return content


def make_image_grid(images: list[Image.Image], rows: int, cols: int, resize: int | None = None) -> Image.Image:
    """Pictures of one size in rows; `resize` is the side each is brought to."""
    if len(images) != rows * cols:
        raise ArgumentError(f"found {len(images)} pictures for {rows} rows of {cols}; give {rows * cols}")
    resized = images if resize is None else [image.resize((resize, resize)) for image in images]
    width, height = resized[0].size
    grid = Image.new("RGB", (cols * width, rows * height))
    for i, image in enumerate(resized):
        grid.paste(image, (i % cols * width, i // cols * height))
    return grid


def pt_to_pil(images: Tensor) -> list[Image.Image]:
    """Tensors (B, 3, H, W) in -1..1 as PIL images."""
    return postprocess(images, "pil")


def __getattr__(name: str) -> object:
    """One sentence for the names of diffusers that are not here."""
    raise missing(name, __name__)
