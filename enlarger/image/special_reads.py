"""Reading pictures as an option asks: what is there of one cut short, an HDR one tone-mapped. Without torch."""

from contextlib import suppress
from pathlib import Path

from PIL import Image

from enlarger.image.damage import rows_of_truncated
from enlarger.image.decode import (
    PIXEL_LIMIT,
    UnreadableImage,
    apply_orientation,
    decode_image,
    file_content,
    open_image,
)
from enlarger.image.hdr import is_hdr
from enlarger.image.metadata import upright_info


def salvage(path: str | Path, notes: list[str], *, limit: int = PIXEL_LIMIT) -> Image.Image | None:
    """The rows that are there of a file that is cut short, upright; None for a file that is whole.

    Raises InputError as `read_picture` does, also for a file of which no row is there.
    """
    with open_image(path) as (image, name):
        try:
            decode_image(image, name, limit, [])
        except UnreadableImage as error:
            if error.reason != "damaged" or not (rows := _rows_of_truncated(image)):
                raise
        else:
            return None
        notes.append(f"the file is cut short: {rows.height} of {image.height} rows are there, the others are left out")
        upright = apply_orientation(rows, rows, notes)
        upright.info = upright_info(image)
        return upright


def tone_map(path: str | Path, notes: list[str], *, limit: int = PIXEL_LIMIT) -> Image.Image | None:
    """An HDR picture, a TIFF of floats or of 32-bit integers, as a display shows it, upright; None for any other file.

    The numbers are taken for linear light, and become sRGB of 16 bits; see `hdr.tone_mapped`. Raises InputError as
    `read_picture` does.
    """
    with open_image(path) as (image, name):
        if not is_hdr(image):
            return None
        mapped = decode_image(image, name, limit, notes, tone_map=True).copy()
        mapped.info = {key: value for key, value in upright_info(image).items() if key != "icc_profile"}
        return mapped


def _rows_of_truncated(image: Image.Image) -> Image.Image | None:
    with suppress(Exception):  # decoders raise anything on damaged files
        return rows_of_truncated(image, file_content(image))
    return None
