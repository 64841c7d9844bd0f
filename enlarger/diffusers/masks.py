"""Masks of the inpainting pipelines, and the crop around one: what is cut out, fitted, and pasted back."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from enlarger.diffusers.arguments import ArgumentError
from enlarger.diffusers.pictures import Size

Box = tuple[int, int, int, int]  # left, top, right, bottom
LANCZOS = Image.Resampling.LANCZOS


def read_mask(mask: Any, size: Size) -> Tensor:
    """PIL images, arrays or tensors, one or a list, to (N, 1, H, W) of 0, keep, and 1, repaint, of `size`.

    From 0.5 on a pixel is repainted. PIL images of any mode are resized by Lanczos and made grey. Arrays (H, W),
    (B, H, W) or (B, H, W, 1) and tensors (H, W), (B, H, W) or (B, 1, H, W) in 0..1 are resized by nearest neighbour.
    """
    masks: list[Any] = list(mask) if isinstance(mask, list | tuple) else [mask]  # pyright: ignore[reportUnknownArgumentType] - anything
    if masks and all(isinstance(one, Image.Image) for one in masks):
        grey = [np.array(one.resize((size[1], size[0]), LANCZOS).convert("L"), np.float32) / 255 for one in masks]
        return _binary(torch.from_numpy(np.stack(grey))[:, None])
    if masks and all(isinstance(one, np.ndarray | Tensor) for one in masks):
        batch = torch.cat([_planes(one) for one in masks])
        return _binary(batch if batch.shape[2:] == size else F.interpolate(batch, size))
    kinds = sorted({type(one).__name__ for one in masks}) or ["no mask"]
    raise ArgumentError(f"`mask_image` holds {', '.join(kinds)}; expected PIL images, numpy arrays or tensors")


def crop_box(mask: Image.Image, size: Size, pad: int) -> Box:
    """What is cut out to repaint: all that the mask covers with `pad` pixels around it, made longer on one side to the
    proportions of `size` as far as the picture reaches."""
    rows, columns = np.nonzero(np.array(mask.convert("L")))
    if not len(rows):
        raise ArgumentError("`mask_image` is black, there is nothing to crop to; leave out `padding_mask_crop`")
    left, right = _padded(columns, pad, mask.width)
    top, bottom = _padded(rows, pad, mask.height)
    ratio = size[1] / size[0]
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _longer(top, bottom, int((right - left) / ratio - (bottom - top)), mask.height)
    else:
        left, right = _longer(left, right, int((bottom - top) * ratio - (right - left)), mask.width)
    return left, top, right, bottom


def fitted(image: Image.Image, size: Size) -> Image.Image:
    """The whole picture in the middle of `size`, its first and last rows or columns drawn out to fill what is left."""
    canvas, resized, (left, top) = _centred(image, size, cover=False)
    wide, high = resized.size
    if top > 0:
        bar = (size[1], top)
        canvas.paste(resized.resize(bar, box=(0, 0, wide, 0)), (0, 0))
        canvas.paste(resized.resize(bar, box=(0, high, wide, high)), (0, top + high))
    if left > 0:
        bar = (left, size[0])
        canvas.paste(resized.resize(bar, box=(0, 0, 0, high)), (0, 0))
        canvas.paste(resized.resize(bar, box=(wide, 0, wide, high)), (left + wide, 0))
    return canvas


def pasted(made: Image.Image, original: Image.Image, mask: Image.Image, box: Box) -> Image.Image:
    """The original with what was made of the box, as far as the mask (of the original's size, soft) covers it."""
    left, top, right, bottom = box
    canvas = Image.new("RGBA", original.size)
    canvas.paste(_centred(made, (bottom - top, right - left), cover=True)[0], (left, top))
    kept = Image.new("RGBa", original.size)
    kept.paste(original.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    whole = canvas.convert("RGB").convert("RGBA")
    whole.alpha_composite(kept.convert("RGBA"))
    return whole.convert("RGB")


def _planes(mask: Any) -> Tensor:
    """An array or a tensor as (B, 1, H, W) floats."""
    shape = tuple(mask.shape)
    if isinstance(mask, np.ndarray):
        mask = torch.from_numpy(mask[..., 0] if shape[-1:] == (1,) and mask.ndim > 2 else mask)
    elif mask.ndim == 4 and shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim not in (2, 3):
        raise ArgumentError(f"`mask_image` has shape {shape}, expected one channel: (H, W), or a batch of those")
    if float(mask.min()) < 0 or float(mask.max()) > 1:
        found = f"{float(mask.min()):g} to {float(mask.max()):g}"
        raise ArgumentError(f"`mask_image` has values from {found}, expected 0 (keep) to 1 (repaint); divide by 255")
    return mask.float().reshape(-1, 1, *mask.shape[-2:])


def _binary(mask: Tensor) -> Tensor:
    return (mask >= 0.5).float()


def _padded(places: Any, pad: int, limit: int) -> tuple[int, int]:
    return max(int(places.min()) - pad, 0), min(int(places.max()) + 1 + pad, limit)


def _longer(low: int, high: int, more: int, limit: int) -> tuple[int, int]:
    """The span `more` pixels longer on both sides, moved back inside 0..limit."""
    low, high = low - more // 2, high + more - more // 2
    over = max(high - limit, 0)
    low, high = low - over, high - over
    under = max(-low, 0)
    return low + under, min(high + under, limit)


def _centred(image: Image.Image, size: Size, *, cover: bool) -> tuple[Image.Image, Image.Image, tuple[int, int]]:
    """A canvas of `size` with the picture in its middle, as large as fits or, to `cover`, until nothing is left free;
    with it the picture at that size and its place."""
    height, width = size
    to_width = (width / height < image.width / image.height) != cover
    wide = width if to_width else image.width * height // image.height
    high = image.height * width // image.width if to_width else height
    resized = image.resize((wide, high), LANCZOS)
    place = (width // 2 - wide // 2, height // 2 - high // 2)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(resized, place)
    return canvas, resized, place
