"""New colours into an input's own numbers, so that what is not repainted keeps every bit, and the kind stays."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from enlarger.errors import InputError
from enlarger.image.colour import srgb_profile, to_srgb, transform_samples
from enlarger.image.deep import DeepImage
from enlarger.image.fill import bleed_alpha
from enlarger.image.metadata import KEYS_WITH_ORIENTATION
from enlarger.image.picture import Array, Picture, open_upright, read_picture

EDITABLE_MODES = {"RGB", "RGBA", "L", "LA"}
HIGH_DEPTH_WHITE = {"I": 65535, "I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "F": 1}  # their white
EDITABLE_EQUIVALENTS = {
    "1": "L",
    "La": "LA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "P": "RGB",
    "PA": "RGBA",
}  # the same colours, each its own
INTEGER_DTYPE = torch.int32  # stands for whole numbers of any width
Sides = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True, eq=False)
class OriginalImage:
    """An input as it came, and what the networks see of it.

    `values` (C, H, W) holds its own numbers exactly, in float32 or float64, colour first and alpha behind it; black is
    `low` and white `top`. `write` makes the input's kind of them. `profile` is the ICC profile that the colours are in,
    None for sRGB.
    """

    picture: Picture
    values: Tensor
    write: Callable[[Tensor], Any]
    dtype: torch.dtype  # of the input's numbers, `WHOLE` for whole ones
    black: float
    white: float
    upright: Any  # the input, upright
    notes: tuple[str, ...] = ()
    icc_profile: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.values.shape[-2], self.values.shape[-1]

    @property
    def num_colour_channels(self) -> int:
        """How many channels are colour: 1 or 3."""
        return 1 if len(self.values) < 3 else 3


def read_original(source: Any) -> OriginalImage:
    """An input of any kind that `read_picture` takes. A path is read as a PIL image of the file's own mode."""
    picture = read_picture(source)
    picture = replace(picture, colour=bleed_alpha(picture))
    if isinstance(source, np.ndarray):
        return _from_array(cast("Array", source), picture)
    if isinstance(source, Tensor):
        values = source.detach().cpu().to(torch.promote_types(source.dtype, torch.float32))
        write = partial(_to_tensor, dtype=source.dtype, device=source.device)
        return OriginalImage(picture, values, write, source.dtype, -1, 1, source, picture.notes)
    return _from_image(source, picture)


def composite(original: OriginalImage, colour: Tensor, weights: Tensor) -> Tensor:
    """The original's values with `colour` (3, H, W) in -1..1 mixed in by `weights` (1, H, W).

    Where the weight is 0 the values are those of the original, and so is alpha everywhere.
    """
    if original.icc_profile is not None:
        colour = _to_profile(colour, original.picture.icc_profile or srgb_profile(), original.icc_profile)
    count = original.num_colour_channels
    new_colours = colour.mean(0, keepdim=True) if count == 1 else colour
    old_values = original.values[:count]
    new_values = original.black + (new_colours.to(old_values) / 2 + 0.5).clamp(0, 1) * (original.white - original.black)
    mixed = torch.where(weights < 1, torch.lerp(old_values, new_values, weights.to(old_values)), new_values)
    mixed = mixed.to(original.dtype).to(old_values) if original.dtype.is_floating_point else mixed.round()
    return torch.cat([torch.where(weights > 0, mixed, old_values), original.values[count:]])


def expand_canvas(original: OriginalImage, sides: Sides) -> OriginalImage:
    """The original on a larger canvas: its edge colours continued, opaque."""
    if not any(sides):
        return original
    left, top, right, bottom = sides
    picture, padding = original.picture, (left, right, top, bottom)
    values = F.pad(original.values[None], padding, mode="replicate")[0]
    inside = F.pad(torch.ones(1, *original.size), padding)
    count = original.num_colour_channels
    values[count:] = torch.where(inside > 0, values[count:], torch.as_tensor(original.white).to(values))
    alpha = None if picture.alpha is None else F.pad(picture.alpha, padding, value=1.0)
    colour = F.pad(picture.colour[None], padding, mode="replicate")[0]
    return replace(original, picture=replace(picture, colour=colour, alpha=alpha), values=values)


def _from_array(array: Array, picture: Picture) -> OriginalImage:
    if array.dtype.itemsize > 8:
        raise InputError(f"array: found {array.dtype}, expected floats of 64 bits at most; convert it first")
    values = array.reshape(*array.shape[:2], -1).astype(np.promote_types(array.dtype, np.float32), order="C")
    is_floating = np.issubdtype(array.dtype, np.floating)
    dtype = torch.from_numpy(np.empty(0, array.dtype.newbyteorder("="))).dtype if is_floating else INTEGER_DTYPE
    write = partial(_to_array, dtype=array.dtype, flat=array.ndim == 2)
    white = 1 if is_floating else np.iinfo(array.dtype).max
    return OriginalImage(picture, _planes(values), write, dtype, 0, white, array, picture.notes)


def _from_image(source: str | Path | Image.Image, picture: Picture) -> OriginalImage:
    upright = open_upright(source)
    editable, notes = _to_editable_mode(upright)
    array = editable.samples if isinstance(editable, DeepImage) else np.array(editable)
    values = array.reshape(*array.shape[:2], -1).astype(np.float32)
    data = editable.info.get("icc_profile")
    icc_profile = data if editable.mode in EDITABLE_MODES and data and data != picture.icc_profile else None
    kept = {key: value for key, value in editable.info.items() if key not in ("transparency", *KEYS_WITH_ORIENTATION)}
    info = kept | dict(picture.metadata)  # in which the orientation is that of the result
    write = partial(_to_image, mode=editable.mode, dtype=array.dtype, info=info)
    white = 65535 if isinstance(editable, DeepImage) else HIGH_DEPTH_WHITE.get(editable.mode, 255)
    dtype = torch.float32 if editable.mode == "F" else INTEGER_DTYPE
    return OriginalImage(
        picture, _planes(values), write, dtype, 0, white, upright, (*picture.notes, *notes), icc_profile
    )


def _to_editable_mode(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """An image whose pixels can be repainted one by one, and what was done for it."""
    mode = image.mode
    if mode in HIGH_DEPTH_WHITE or (mode in EDITABLE_MODES and "transparency" not in image.info):
        return image, []
    if mode in EDITABLE_MODES or mode in EDITABLE_EQUIVALENTS:
        target_mode = (
            {"L": "LA", "1": "LA", "RGB": "RGBA", "P": "RGBA"}.get(mode) if image.has_transparency_data else None
        )
        target_mode = target_mode or EDITABLE_EQUIVALENTS[mode]
        grey = image.convert("L") if mode == "1" else image
        return grey.convert(target_mode), [
            f"mode {mode} cannot be repainted in place: the result is {target_mode}, same colours"
        ]
    srgb, icc = to_srgb(image, [])
    srgb.info = {"icc_profile": icc} if icc else {}
    return srgb, [f"mode {mode} cannot be repainted in place: the result is {srgb.mode}, converted to sRGB"]


def _planes(values: Array) -> Tensor:
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def _to_array(values: Tensor, dtype: np.dtype[Any], flat: bool) -> Array:
    array = values.permute(1, 2, 0).numpy().astype(dtype)
    return array[..., 0] if flat else array


def _to_image(values: Tensor, mode: str, dtype: np.dtype[Any], info: dict[Any, Any]) -> Image.Image:
    array = _to_array(values, dtype, flat=len(values) == 1)
    if array.ndim == 3 and array.dtype == np.uint16:
        return DeepImage.from_samples(array, info)
    image = Image.frombytes(mode, (array.shape[1], array.shape[0]), array.tobytes())
    image.info = dict(info)
    return image


def _to_tensor(values: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return values.to(device, dtype)


def _to_profile(colour: Tensor, source: bytes, target: bytes) -> Tensor:
    """Colours (3, H, W) of one profile as another's; as they are if it cannot be used, which `read_picture` notes."""
    samples = ((colour.clamp(-1, 1) / 2 + 0.5) * 65535).round().permute(1, 2, 0).contiguous().numpy().astype(np.uint16)
    try:
        converted = transform_samples(samples, source, target)
    except Exception:  # noqa: BLE001 - damaged profiles raise anything
        return colour
    return (_planes(converted.astype(np.float32)) / 32767.5 - 1).expand(3, -1, -1)
