"""New colours into an input's own numbers, so that what is not repainted keeps every bit, and the kind stays."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms
from torch import Tensor

from enlarger.colour import srgb_profile, to_srgb
from enlarger.errors import InputError
from enlarger.images import Picture, open_upright, read_picture
from enlarger.tasks.fill import spread_colour

PLAIN = {"RGB", "RGBA", "L", "LA"}
DEEP = {"I": 65535, "I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "F": 1}  # their white
NEAREST = {
    "1": "L",
    "La": "LA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "P": "RGB",
    "PA": "RGBA",
}  # the same colours, each its own
WHOLE = torch.int32  # stands for whole numbers of any width
Sides = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True, eq=False)
class Original:
    """An input as it came, and what the networks see of it.

    `values` (C, H, W) holds its own numbers exactly, in float32 or float64, colour first and alpha behind it; black is
    `low` and white `top`. `write` makes the input's kind of them. `profile` is the ICC profile that the colours are in,
    None for sRGB.
    """

    picture: Picture
    values: Tensor
    write: Callable[[Tensor], Any]
    dtype: torch.dtype  # of the input's numbers, `WHOLE` for whole ones
    low: float
    top: float
    same: Any  # the input, upright
    notes: tuple[str, ...] = ()
    profile: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.values.shape[-2], self.values.shape[-1]

    @property
    def colours(self) -> int:
        """How many channels are colour: 1 or 3."""
        return 1 if len(self.values) < 3 else 3


def read_original(source: Any) -> Original:
    """An input of any kind that `read_picture` takes. A path is read as a PIL image of the file's own mode."""
    picture = read_picture(source)
    picture = replace(picture, colour=spread_colour(picture))
    if isinstance(source, np.ndarray):
        return _of_array(cast("np.ndarray[Any, Any]", source), picture)
    if isinstance(source, Tensor):
        values = source.detach().cpu().to(torch.promote_types(source.dtype, torch.float32))
        back = partial(_to_tensor, dtype=source.dtype, device=source.device)
        return Original(picture, values, back, source.dtype, -1, 1, source, picture.notes)
    return _of_image(source, picture)


def pasted(original: Original, colour: Tensor, weights: Tensor) -> Tensor:
    """The original's values with `colour` (3, H, W) in -1..1 mixed in by `weights` (1, H, W).

    Where the weight is 0 the values are those of the original, and so is alpha everywhere.
    """
    if original.profile is not None:
        colour = _in_profile(colour, original.profile)
    count = original.colours
    shades = colour.mean(0, keepdim=True) if count == 1 else colour
    old = original.values[:count]
    new = original.low + (shades.to(old) / 2 + 0.5).clamp(0, 1) * (original.top - original.low)
    mixed = torch.where(weights < 1, torch.lerp(old, new, weights.to(old)), new)
    mixed = mixed.to(original.dtype).to(old) if original.dtype.is_floating_point else mixed.round()
    return torch.cat([torch.where(weights > 0, mixed, old), original.values[count:]])


def expanded(original: Original, sides: Sides) -> Original:
    """The original on a larger canvas: its edge colours continued, opaque."""
    if not any(sides):
        return original
    left, top, right, bottom = sides
    picture, around = original.picture, (left, right, top, bottom)
    values = F.pad(original.values[None], around, mode="replicate")[0]
    inside = F.pad(torch.ones(1, *original.size), around)
    count = original.colours
    values[count:] = torch.where(inside > 0, values[count:], torch.as_tensor(original.top).to(values))
    alpha = None if picture.alpha is None else F.pad(picture.alpha, around, value=1.0)
    colour = F.pad(picture.colour[None], around, mode="replicate")[0]
    return replace(original, picture=replace(picture, colour=colour, alpha=alpha), values=values)


def _of_array(array: np.ndarray[Any, Any], picture: Picture) -> Original:
    if array.dtype.itemsize > 8:
        raise InputError(f"array: found {array.dtype}, expected floats of 64 bits at most; convert it first")
    values = array.reshape(*array.shape[:2], -1).astype(np.promote_types(array.dtype, np.float32), order="C")
    real = np.issubdtype(array.dtype, np.floating)
    dtype = torch.from_numpy(np.empty(0, array.dtype.newbyteorder("="))).dtype if real else WHOLE
    write = partial(_to_array, dtype=array.dtype, flat=array.ndim == 2)
    top = 1 if real else np.iinfo(array.dtype).max
    return Original(picture, _planes(values), write, dtype, 0, top, array, picture.notes)


def _of_image(source: str | Path | Image.Image, picture: Picture) -> Original:
    upright = open_upright(source)
    upright.info.pop("exif", None)  # its orientation is applied
    own, notes = _with_own_values(upright)
    array = np.array(own)
    values = array.reshape(*array.shape[:2], -1).astype(np.float32)
    data = own.info.get("icc_profile")
    profile = data if own.mode in PLAIN and data and data != picture.icc else None
    info = {key: value for key, value in own.info.items() if key != "transparency"}
    write = partial(_to_image, mode=own.mode, dtype=array.dtype, info=info)
    dtype, top = torch.float32 if own.mode == "F" else WHOLE, DEEP.get(own.mode, 255)
    return Original(picture, _planes(values), write, dtype, 0, top, upright, (*picture.notes, *notes), profile)


def _with_own_values(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """An image whose pixels can be repainted one by one, and what was done for it."""
    mode = image.mode
    if mode in DEEP or (mode in PLAIN and "transparency" not in image.info):
        return image, []
    if mode in PLAIN or mode in NEAREST:
        wanted = {"L": "LA", "1": "LA", "RGB": "RGBA", "P": "RGBA"}.get(mode) if image.has_transparency_data else None
        wanted = wanted or NEAREST[mode]
        grey = image.convert("L") if mode == "1" else image
        return grey.convert(wanted), [f"mode {mode} cannot be repainted in place: the result is {wanted}, same colours"]
    plain, icc = to_srgb(image, [])
    plain.info = {"icc_profile": icc} if icc else {}
    return plain, [f"mode {mode} cannot be repainted in place: the result is {plain.mode}, converted to sRGB"]


def _planes(values: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def _to_array(values: Tensor, dtype: np.dtype[Any], flat: bool) -> np.ndarray[Any, Any]:
    array = values.permute(1, 2, 0).numpy().astype(dtype)
    return array[..., 0] if flat else array


def _to_image(values: Tensor, mode: str, dtype: np.dtype[Any], info: dict[Any, Any]) -> Image.Image:
    array = _to_array(values, dtype, flat=len(values) == 1)
    image = Image.frombytes(mode, (array.shape[1], array.shape[0]), array.tobytes())
    image.info = dict(info)
    return image


def _to_tensor(values: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return values.to(device, dtype)


def _in_profile(colour: Tensor, profile: bytes) -> Tensor:
    """sRGB colours (3, H, W) as another profile's; as they are if it cannot be used, which `read_picture` notes."""
    shown = ((colour.clamp(-1, 1) / 2 + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    try:
        mode = {b"RGB ": "RGB", b"GRAY": "L"}[profile[16:20]]  # the header's colour space
        srgb, own = (ImageCms.ImageCmsProfile(io.BytesIO(data)) for data in (srgb_profile(), profile))
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(srgb, own, "RGB", mode, intent, flags)
        there = ImageCms.applyTransform(Image.fromarray(shown.numpy()), transform)
    except Exception:  # noqa: BLE001 - damaged profiles raise anything
        return colour
    assert there is not None, "a transform of another image always gives one"
    return _planes(np.asarray(there.convert("RGB")).astype(np.float32)) / 127.5 - 1
