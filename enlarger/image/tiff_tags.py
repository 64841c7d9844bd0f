"""What the tags of a TIFF file say that Pillow does not look at. Without torch."""

from contextlib import suppress
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin

TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
SUBFILE_TYPE, SUB_IFDS, DNG_VERSION = 254, 330, 50706
REDUCED, FILTERS, LINEAR_RAW = 1, 32803, 34892  # values of these
MAX_SMALL_TILE = 1 << 22  # pixels of a tile that any TIFF may have
SAMPLE_KINDS = {1: "whole", 2: "signed", 3: "floating-point", 4: "untyped", 5: "complex whole", 6: "complex"}


def tiff_samples(stream: BinaryIO) -> str | None:
    """What the pixels of a TIFF are made of; None where its tags cannot be read."""
    with suppress(Exception):  # whatever a damaged file makes of them
        tags = _first_tags(stream)
        bits, sample_format = tags[BITS_PER_SAMPLE], tags.get(SAMPLE_FORMAT, (1,))[0]
        return f"{len(bits)} {SAMPLE_KINDS[sample_format]} numbers of {bits[0]} bits for each pixel"
    return None


def has_sensor_data(stream: BinaryIO) -> bool:
    """Whether the first picture of a TIFF is what a camera's sensor saw."""
    with suppress(Exception):
        return _first_tags(stream).get(PHOTOMETRIC) in (FILTERS, LINEAR_RAW)
    return False


def _first_tags(stream: BinaryIO) -> Any:
    stream.seek(0)
    tags = TiffImagePlugin.ImageFileDirectory_v2(stream.read(8))
    stream.seek(tags.next)
    tags.load(stream)
    return tags


def is_raw_photo(image: Image.Image, head: bytes) -> bool:
    """Whether an opened TIFF is a camera's raw photo, of which Pillow would read the small preview that comes first."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    kind = image.tag_v2.get(SUBFILE_TYPE, 0)  # of a damaged file it may be of any type
    is_preview = isinstance(kind, int) and bool(kind & REDUCED)
    return head[8:10] == b"CR" or (is_preview and (SUB_IFDS in image.tag_v2 or DNG_VERSION in image.tag_v2))


def oversized_tiles(image: Image.Image) -> str | None:
    """Of a TIFF whose tiles are far larger than its picture, what is wrong: each is made whole, and then cut."""
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag, 0) for tag in (TILE_WIDTH, TILE_LENGTH))
    is_tiled = isinstance(width, int) and isinstance(height, int)
    if is_tiled and width * height > max(MAX_SMALL_TILE, 4 * image.width * image.height):
        return f"has tiles of {width} x {height} pixels for a picture of {image.width} x {image.height}"
    return None
