"""Pictures as files to send, and files that came as pictures."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from enlarger.errors import InputError
from enlarger.image.decode import EXIF_ORIENTATION, ORIENTATION_TRANSPOSES, decode_error, load_pixels, transpose
from enlarger.image.deep import DeepImage

Array = np.ndarray[Any, Any]
ImageSource = str | Path | bytes | Image.Image | Array
PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})  # what PNG holds as it is
RESULT_FORMATS = ("PNG", "JPEG", "WEBP")
RANGE_TOLERANCE = 1e-3  # by which floats may overshoot 0..1


def encode_image_file(source: ImageSource, name: str = "image") -> bytes:
    """The bytes of a picture file: those of a path as they are; PIL images and arrays as PNG or TIFF, without a loss.

    An array is (H, W) or (H, W, 1..4) of uint8, uint16 or floats in 0..1, its channels grey, grey and alpha, RGB or
    RGBA; floats are sent in 8 bits.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, (str, Path)):
        try:
            return Path(source).read_bytes()
        except (OSError, ValueError) as error:
            raise InputError(f"{source}: cannot be read ({error}); check the name and its permissions") from error
    if isinstance(source, np.ndarray):
        return _encode(_from_array(source, name))
    if isinstance(source, Image.Image):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        return _encode(source)
    raise InputError(f"{name} is a {type(source).__name__}, expected a path, bytes, PIL image or numpy array")


def decode_image(data: bytes) -> Image.Image:
    """A picture that came from the service, decoded."""
    return load_pixels(Image.open(io.BytesIO(data), formats=RESULT_FORMATS), [])


def _encode(image: Image.Image) -> bytes:
    """The image as a file, upright, with its profile and nothing else of its metadata."""
    stream = io.BytesIO()
    try:
        loaded = load_pixels(image, [])  # Pillow applies a TIFF file's orientation by this
    except Exception as error:  # decoders raise anything on damaged files
        raise decode_error("image", error) from error
    orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    method = ORIENTATION_TRANSPOSES.get(orientation)
    upright = loaded if method is None else transpose(loaded, method)
    options: dict[str, Any] = {"icc_profile": image.info.get("icc_profile"), "exif": Image.Exif()}
    if image.info.get("transparency") is not None and image.mode in PNG_MODES:
        options["transparency"] = image.info["transparency"]
    try:
        if image.mode in PNG_MODES:
            upright.save(stream, "PNG", compress_level=1, **options)
        else:
            upright.save(stream, "TIFF", **options)
    except (OSError, ValueError) as error:
        raise InputError(f"a PIL image of mode {image.mode} cannot be sent ({error}); convert it to RGB") from error
    return stream.getvalue()


def _from_array(array: Array, name: str) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)) or 0 in array.shape:
        raise InputError(f"{name}: found shape {array.shape}, expected (H, W) or (H, W, 1..4); move the channels last")
    squeezed = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if squeezed.dtype == np.uint16:
        return Image.fromarray(squeezed) if squeezed.ndim == 2 else DeepImage.from_samples(squeezed)
    return Image.fromarray(np.ascontiguousarray(_to_uint8(squeezed, name)))


def _to_uint8(array: Array, name: str) -> Array:
    """The values as uint8."""
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{name}: found {array.dtype}, expected uint8, uint16 or floats in 0..1; convert it first")
    lowest, highest = float(array.min()), float(array.max())
    if not (lowest >= -RANGE_TOLERANCE and highest <= 1 + RANGE_TOLERANCE):
        raise InputError(
            f"{name}: found values from {lowest:g} to {highest:g}, expected floats in 0..1; scale them first"
        )
    return np.rint(array.clip(0, 1) * 255).astype(np.uint8)
