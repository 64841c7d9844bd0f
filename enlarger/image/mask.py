"""Masks: from what the user gives to weights from 0, keep, to 1, repaint; and their edges and boxes."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from enlarger.errors import InputError
from enlarger.image.mask_cleaning import clean_mask, lossy_kind_of
from enlarger.image.picture import Array, Picture, read_picture

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts to grey

Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two are outside


@dataclass(frozen=True, eq=False)
class Mask:
    """Weights (1, H, W) float32 from 0 keep to 1 repaint, and how they were read."""

    weights: Tensor
    notes: tuple[str, ...] = ()

    @property
    def coverage(self) -> float:
        """The mean weight in percent."""
        return float(self.weights.double().mean()) * 100

    def image(self) -> Image.Image:
        """The mask as a grey picture, white is repainted."""
        return Image.fromarray((self.weights[0] * 255).round().to(torch.uint8).numpy())


def read_mask(source: Any, size: tuple[int, int], mode: str, *, resize: bool = False) -> Mask:
    """The mask of a picture of `size` (h, w).

    `source` is a path or PIL image; an array of what pictures may be, or bool; or a tensor (H, W) or (1, H, W) in 0..1,
    or bool. With `mode` "white" white is repainted (times alpha, if there is one); with "alpha" what is transparent;
    "auto" takes the alpha if it varies. Raises InputError for another size, unless it may `resize` the mask.
    """
    weights, notes = _from_tensor(source) if isinstance(source, Tensor) else _from_picture(source, mode)
    if isinstance(source, Tensor) and mode == "alpha":
        raise InputError("mask_mode is 'alpha', but the mask is a tensor, which has no alpha; use 'white'")
    if weights.shape[-2:] != size:
        sizes = f"{weights.shape[-1]} x {weights.shape[-2]} pixels and the picture {size[1]} x {size[0]}"
        if not resize:
            raise InputError(f"the mask is {sizes}; make them equal, or resize it (mask_resize, --mask-resize)")
        weights = F.interpolate(weights[None], size, mode="bilinear", antialias=True)[0]
        notes = (*notes, f"the mask was {sizes}: resized to the picture")
    return Mask(weights, notes)


def distance_to_edge(inside: Tensor, max_distance: int) -> Tensor:
    """For pixels (H, W) where `inside` is true the distance to the nearest where it is not, at most `most` + 1.

    Euclidean, from the distances along the columns. Beyond the picture's edges nothing is outside.
    """
    max_gap = max_distance + 1
    gaps_above = _gaps_above(inside, max_gap)
    column_gaps = torch.minimum(gaps_above, _gaps_above(inside.flip(0), max_gap).flip(0)).float() ** 2
    squared = column_gaps.clone()
    for k in range(1, min(max_distance, inside.shape[1] - 1) + 1):
        squared[:, k:] = torch.minimum(squared[:, k:], column_gaps[:, :-k] + k * k)
        squared[:, :-k] = torch.minimum(squared[:, :-k], column_gaps[:, k:] + k * k)
    return squared.sqrt().clamp(max=max_gap)


def feather_mask(weights: Tensor, feather: int) -> Tensor:
    """Weights (1, H, W) that fall to 0 over `feather` pixels inside the edge; what is 0 stays 0."""
    if feather == 0 or not bool((weights > 0).any()):
        return weights
    return weights * distance_to_edge(weights[0] > 0, feather) / (feather + 1)


def bounding_box(weights: Tensor) -> Box | None:
    """The smallest box with all that is above 0, None if nothing is."""
    rows, columns = (torch.nonzero((weights[0] > 0).any(axis)).flatten() for axis in (1, 0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def expand_box(box: Box, margin: int, size: tuple[int, int]) -> Box:
    """A box with a margin, made square as far as a picture of `size` (h, w) has room."""
    left, top, right, bottom = box
    spans = ((left - margin, right + margin, size[1]), (top - margin, bottom + margin, size[0]))
    clipped = [(max(low, 0), min(high, limit), limit) for low, high, limit in spans]
    side = max(high - low for low, high, _ in clipped)
    (left, right), (top, bottom) = (_widen_span(low, high, side, most) for low, high, most in clipped)
    return left, top, right, bottom


def _widen_span(low: int, high: int, side: int, limit: int) -> tuple[int, int]:
    """The span grown to `side` about its middle, and moved to lie in 0..`most`."""
    side = min(side, limit)
    first = min(max(low - (side - (high - low)) // 2, 0), limit - side)
    return first, first + side


def _gaps_above(inside: Tensor, max_gap: int) -> Tensor:
    """Rows up to the nearest outside pixel above, `far` at most."""
    row = torch.arange(inside.shape[0])[:, None]
    last = torch.where(inside, -max_gap, row).cummax(0).values
    return (row - last).clamp(max=max_gap)


def _from_tensor(mask: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    plane = mask[0] if mask.ndim == 3 and mask.shape[0] == 1 else mask
    if plane.ndim != 2:
        raise InputError(f"mask: found a tensor of shape {tuple(mask.shape)}, expected (H, W) or (1, H, W) in 0..1")
    if plane.dtype != torch.bool and not plane.is_floating_point():
        raise InputError(f"mask: found a tensor of {plane.dtype}, expected bool or floats in 0..1; convert it first")
    weights = plane.detach().cpu().float()
    if weights.numel() and not bool((weights >= 0).all() & (weights <= 1).all()):
        low, high = (float(v) for v in weights.aminmax())
        raise InputError(f"mask: found values from {low:g} to {high:g}, expected 0..1; scale or clip them first")
    return weights[None], ()


def _from_picture(source: Any, mode: str) -> tuple[Tensor, tuple[str, ...]]:
    readable: Any = source.astype(np.uint8) * 255 if getattr(source, "dtype", None) == np.bool_ else source
    picture = read_picture(readable)
    alpha, notes = picture.alpha, [f"mask: {note}" for note in picture.notes]
    if mode == "auto":
        alpha_varies = alpha is not None and bool((alpha != alpha.flatten()[0]).any())
        mode = "alpha" if alpha_varies else "white"
        repainted_part = "its transparent" if alpha_varies else "its white"
        notes.append(f"mask_mode auto took the mask as {mode!r}: {repainted_part} part is repainted")
    if mode == "alpha":
        if alpha is None:
            raise InputError("mask_mode is 'alpha', but the mask has no alpha; use 'white' or give a mask with alpha")
        return 1 - alpha, tuple(notes)
    weights = _brightness(picture)
    if picture.bit_depth == 8 and not _is_floating(source):
        weights = _clean(weights, lossy_kind_of(source), notes)
    return weights * (1 if alpha is None else alpha), tuple(notes)


def _clean(weights: Tensor, lossy_kind: str | None, notes: list[str]) -> Tensor:
    """Weights that `clean_mask` changed; the others keep their value, between the steps too."""
    values = (weights[0] * 255).round().to(torch.uint8)
    cleaned = torch.from_numpy(clean_mask(values.numpy(), lossy_kind, notes))
    return torch.where(cleaned == values, weights, cleaned / 255)


def _is_floating(source: object) -> bool:
    return isinstance(source, np.ndarray) and cast("Array", source).dtype.kind == "f"


def _brightness(picture: Picture) -> Tensor:
    """Brightness (1, H, W) in 0..1; what has three equal channels keeps its value to the bit."""
    planes = picture.colour / 2 + 0.5
    if picture.is_grey:
        return planes[:1]
    mixed = torch.einsum("chw,c->hw", planes, torch.tensor(LUMA))[None]
    equal = (planes == planes[:1]).all(0, keepdim=True)
    return torch.where(equal, planes[:1], mixed).clamp(0, 1)
