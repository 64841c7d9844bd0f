"""`load_image` and `make_image_grid`, as diffusers.utils has them."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps

from enlarger.diffusers.arguments import ArgumentError
from enlarger.images import read_picture, to_pil


def load_image(
    image: str | Path | Image.Image, convert_method: Callable[[Image.Image], Image.Image] | None = None
) -> Image.Image:
    """A local picture, upright, in sRGB and in mode RGB; `convert_method` makes another mode. Nothing is downloaded."""
    if isinstance(image, str | Path):
        if str(image).startswith(("http://", "https://")):
            raise ArgumentError(
                f"{image} is an address; nothing is downloaded here, save the picture and give its path"
            )
        image = to_pil(read_picture(image))
    upright = ImageOps.exif_transpose(image)
    return upright.convert("RGB") if convert_method is None else convert_method(upright)


def make_image_grid(images: list[Image.Image], rows: int, cols: int, resize: int | None = None) -> Image.Image:
    """Pictures of one size in rows; `resize` is the side each is brought to."""
    if len(images) != rows * cols:
        raise ArgumentError(f"found {len(images)} pictures for {rows} rows of {cols}; give {rows * cols}")
    shown = images if resize is None else [image.resize((resize, resize)) for image in images]
    width, height = shown[0].size
    grid = Image.new("RGB", (cols * width, rows * height))
    for i, image in enumerate(shown):
        grid.paste(image, (i % cols * width, i // cols * height))
    return grid
