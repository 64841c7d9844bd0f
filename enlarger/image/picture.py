"""Pictures in and out: files, PIL images, arrays and tensors become a `Picture`; a `Picture` becomes a file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from enlarger.errors import InputError, NonFinite
from enlarger.image.cmyk import cmyk_metadata
from enlarger.image.colour import deep_to_srgb, grey_to_srgb, to_srgb, to_unit_grey
from enlarger.image.colour_marks import notes_of_chromaticity
from enlarger.image.decode import (
    PIXEL_LIMIT,
    FileSource,
    check_size,
    decode_error,
    decode_image,
    is_file_source,
    one_line,
    open_image,
    open_upright,
    pixel_limit,
)
from enlarger.image.deep import DeepImage
from enlarger.image.encode import SUFFIXES, check_output, save_image
from enlarger.image.metadata import read_file_metadata
from enlarger.image.resize import resize, resize_matrix

__all__ = [
    "PIXEL_LIMIT",
    "SUFFIXES",
    "Picture",
    "check_output",
    "one_line",
    "open_upright",
    "read_picture",
    "resize",
    "resize_matrix",
    "save_image",
    "to_pil",
]


@dataclass(frozen=True)
class Picture:
    """One picture in memory: upright, in sRGB or, where `icc_profile` says so, in a wider space.

    The colour of transparent pixels is what the file holds, not premultiplied: whoever mixes neighbouring pixels weighs
    them by `alpha` first. `bit_depth` is 16 for what came with more than 8 bits; it is written back as such.
    """

    colour: Tensor  # (3, H, W) float32 in -1..1; grey has three equal channels
    alpha: Tensor | None = None  # (1, H, W) float32 in 0..1
    is_grey: bool = False
    bit_depth: int = 8
    icc_profile: bytes | None = None  # that of `colour`, where the source was in colour and had one
    notes: tuple[str, ...] = ()  # what was converted, guessed or left out, one line each
    metadata: Mapping[str, Any] = field(
        default_factory=dict[str, Any]
    )  # of its file: EXIF, XMP, IPTC, resolution, the CMYK profile

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.colour.shape[-2]

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.colour.shape[-1]


STRIP = 256  # rows that are converted at once
Array = np.ndarray[Any, Any]  # of any shape and numbers
PictureSource = FileSource | Image.Image | Array | Tensor


def read_picture(
    source: PictureSource, *, limit: int | None = None, name: str | None = None, tone_map: bool = False
) -> Picture:
    """Read one picture.

    `source` is a path, a file's bytes, or an open file; a PIL image; an array (H, W) or (H, W, 1..4) of uint8, uint16
    or floats in 0..1, its channels grey, grey and alpha, RGB or RGBA; or a float tensor (1 or 3, H, W) in -1..1. The
    EXIF orientation is applied, an ICC profile converted to sRGB unless its gamut is wider, the first frame of several
    taken; `notes` says so. PIL modes I and I;16 are 16-bit grey, mode F is grey in 0..1; of PNG and TIFF files 16-bit
    colour, and grey with alpha, keep all bits. TIFF files of floats in 0..1 and of 32-bit integers in 0..65535 are
    scaled with a note where they go beyond, or, with `tone_map`, taken for linear light and brought to what a display
    shows. Raises InputError, one line with the file's name (`name` for what has no path), for whatever cannot be read
    or has more than `limit` pixels: if not said, files have PIXEL_LIMIT at most, and what is in memory any number (for
    files, Pillow's own bound, twice `PIL.Image.MAX_IMAGE_PIXELS`, holds too).
    """
    limit = pixel_limit(source, limit)
    if isinstance(source, np.ndarray):
        return _from_array(source, limit)
    if isinstance(source, Tensor):
        return _from_tensor(source, limit)
    if isinstance(source, Image.Image) or is_file_source(source):
        notes: list[str] = []
        with open_image(source, name, notes) as (image, shown_name):
            return _from_pil(image, shown_name, limit, notes, tone_map)
    raise InputError(
        f"found a {type(source).__name__}, expected a path, bytes, an open file, a PIL image, numpy array or tensor; "
        "pass one of these"
    )


def list_pictures(folder: str | Path) -> list[Path]:
    """The files in a folder, and in the folders in it, whose suffix is a picture's; in order."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)


def _from_pil(image: Image.Image, name: str, limit: int, notes: list[str], tone_map: bool) -> Picture:
    source, image = image, decode_image(image, name, limit, notes, tone_map)
    metadata = read_file_metadata(source) | cmyk_metadata(source)
    notes += notes_of_chromaticity(source)
    try:
        if image.mode == "F" or image.mode.startswith("I"):
            values, bit_depth, icc_profile = _read_grey16(image, name, notes), 16, None
        elif isinstance(image, DeepImage):
            samples, icc_profile = deep_to_srgb(image, notes)
            values, bit_depth = _to_unit_range(samples), 16
        else:
            srgb, icc_profile = to_srgb(image, notes)
            values, bit_depth = _to_unit_range(np.array(srgb)), 8
    except InputError:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        raise decode_error(name, error) from error
    return replace(_from_planes(values, bit_depth, icc_profile, notes), metadata=metadata)


def _read_grey16(image: Image.Image, name: str, notes: list[str]) -> Tensor:
    """(H, W, 1) in 0..1 of the modes that hold more than 8 bits of grey."""
    profile: bytes | None = image.info.get("icc_profile")
    if image.info.get("transparency") is not None:
        notes.append("the transparent level of 16-bit grey is left out")
    grey = to_unit_grey(image, name, notes)
    grey = grey_to_srgb(grey, profile, notes) if profile else grey
    return torch.from_numpy(grey)[..., None].float()


def _check_range(values: Tensor, name: str, expected: str, scale: float = 1, low: float = 0) -> Tensor:
    """Values that may overshoot `low`..1 only by rounding, clamped."""
    minimum, maximum = (float(v) for v in values.aminmax())
    if not (minimum >= low - 1e-3 and maximum <= 1 + 1e-3):
        found = f"values from {minimum * scale:g} to {maximum * scale:g}"
        raise InputError(f"{name}: found {found}, expected {expected}; scale or clip the values first")
    return values.clamp(low, 1)


def _to_unit_range(values: Array) -> Tensor:
    """Unsigned integers (H, W) or (H, W, C) as float32 (H, W, C) in 0..1."""
    max_value = np.iinfo(values.dtype).max
    return torch.from_numpy(values.reshape(*values.shape[:2], -1).astype(np.float32)).div_(max_value)


def _from_planes(values: Tensor, bit_depth: int, icc_profile: bytes | None, notes: list[str]) -> Picture:
    """From (H, W, 1..4) float32 in 0..1: grey, grey and alpha, RGB, RGBA."""
    planes = values.permute(2, 0, 1)
    is_grey, alpha = len(planes) < 3, len(planes) in (2, 4)
    colour = (planes[:1] if is_grey else planes[:3]) * 2 - 1
    return Picture(
        colour=colour.expand(3, -1, -1).contiguous(),
        alpha=planes[-1:].clone() if alpha else None,
        is_grey=is_grey,
        bit_depth=bit_depth,
        icc_profile=icc_profile,
        notes=tuple(one_line(note) for note in notes),
    )


def _from_array(array: Array, limit: int) -> Picture:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise InputError(f"array: found shape {array.shape}, expected (H, W) or (H, W, 1..4); move the channels last")
    check_size("array", array.shape[1], array.shape[0], limit)
    if array.dtype in (np.uint8, np.uint16):
        values = _to_unit_range(array)
    elif np.issubdtype(array.dtype, np.floating):
        values = torch.from_numpy(array.reshape(*array.shape[:2], -1).astype(np.float32))
        values = _check_range(values, "array", "floats in 0..1")
    else:
        raise InputError(f"array: found {array.dtype}, expected uint8, uint16 or floats in 0..1; convert it first")
    return _from_planes(values, 16 if array.dtype == np.uint16 else 8, None, [])


def _from_tensor(tensor: Tensor, limit: int) -> Picture:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise InputError(f"tensor: found shape {tuple(tensor.shape)}, expected one picture (1 or 3, H, W) in -1..1")
    if not tensor.is_floating_point():
        raise InputError(
            f"tensor: found {tensor.dtype}, expected floats in -1..1; divide uint8 by 127.5 and subtract 1"
        )
    check_size("tensor", tensor.shape[2], tensor.shape[1], limit)
    values = _check_range(tensor.detach().cpu().float(), "tensor", "floats in -1..1", low=-1)
    return Picture(values.expand(3, -1, -1).clone(), is_grey=tensor.shape[0] == 1)


def to_pil(picture: Picture) -> Image.Image:
    """The picture as a PIL image, mode L, LA, RGB, RGBA, or of depth 16 I;16 (grey without alpha) or a `DeepImage`.

    Rounded half to even after clamping; grey is the mean of the three channels; the metadata is in its `info`.
    Raises NonFinite for NaN or infinity.
    """
    image = _deep_image(picture) if picture.bit_depth == 16 else _eight_bit_image(picture)
    image.info.update(picture.metadata)
    if picture.icc_profile and not picture.is_grey:
        image.info["icc_profile"] = picture.icc_profile
    return image


def _strips(picture: Picture, max_value: int) -> Iterator[tuple[int, Tensor]]:
    """Band after band of rows, so that little beside the picture is in memory: the first row's number, and (rows, W, C)
    in 0..`max_value`, rounded, C of 1 to 4."""
    for top in range(0, picture.height, STRIP):
        colour = picture.colour[:, top : top + STRIP].float().cpu()
        if not bool(torch.isfinite(colour).all()):
            raise NonFinite("found NaN or infinity in a picture, expected numbers; run again in float32")
        colour = colour.mean(dim=0, keepdim=True) if picture.is_grey else colour
        planes = (colour / 2 + 0.5).clamp(0, 1)
        if picture.alpha is not None:
            planes = torch.cat([planes, picture.alpha[:, top : top + STRIP].float().cpu().clamp(0, 1)])
        yield top, (planes * max_value).round().permute(1, 2, 0)


def _deep_image(picture: Picture) -> Image.Image:
    channels = (1 if picture.is_grey else 3) + (picture.alpha is not None)
    samples = np.empty((picture.height, picture.width, channels), np.uint16)
    for top, strip in _strips(picture, 65535):
        samples[top : top + STRIP] = strip.numpy()
    return Image.fromarray(samples[..., 0]) if channels == 1 else DeepImage.from_samples(samples)


def _eight_bit_image(picture: Picture) -> Image.Image:
    mode = ("L" if picture.is_grey else "RGB") + ("" if picture.alpha is None else "A")
    image = Image.new(mode, (picture.width, picture.height))
    for top, strip in _strips(picture, 255):
        array = strip.to(torch.uint8).contiguous().numpy()
        image.paste(Image.fromarray(array[..., 0] if mode == "L" else array), (0, top))
    return image
