"""Masks of the inpainting pipelines, and the crop around one: what is cut out, fitted, and pasted back."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.call.pictures import Size
from enlarger.diffusers.types import PipelineImageInput
from enlarger.diffusion.listing import Array

Box = tuple[int, int, int, int]  # left, top, right, bottom
LANCZOS = Image.Resampling.LANCZOS


def read_mask(mask: PipelineImageInput | None, size: Size) -> Tensor:
    """PIL images, arrays or tensors, one or a list, to (N, 1, H, W) of 0, keep, and 1, repaint, of `size`.

    From 0.5 on a pixel is repainted. PIL images of any mode are resized by Lanczos and made grey. Arrays (H, W),
    (B, H, W) or (B, H, W, 1) and tensors (H, W), (B, H, W) or (B, 1, H, W) in 0..1 are resized by nearest neighbour.
    """
    masks: list[Any] = list(mask) if isinstance(mask, list | tuple) else [mask]  # pyright: ignore[reportUnknownArgumentType] - anything
    if masks and all(isinstance(one, Image.Image) for one in masks):
        grey = [np.array(one.resize((size[1], size[0]), LANCZOS).convert("L"), np.float32) / 255 for one in masks]
        return _binarize(torch.from_numpy(np.stack(grey))[:, None])
    if masks and all(isinstance(one, np.ndarray | Tensor) for one in masks):
        batch = torch.cat([_to_single_channel(one) for one in masks])
        return _binarize(batch if batch.shape[2:] == size else F.interpolate(batch, size))
    kinds = sorted({type(one).__name__ for one in masks}) or ["no mask"]
    raise ArgumentError(f"`mask_image` holds {', '.join(kinds)}; expected PIL images, numpy arrays or tensors")


def get_crop_region(mask: Image.Image, size: Size, padding: int) -> Box:
    """What is cut out to repaint: all that the mask covers with `pad` pixels around it, made longer on one side to the
    proportions of `size` as far as the picture reaches."""
    rows, columns = np.nonzero(np.array(mask.convert("L")))
    if not len(rows):
        raise ArgumentError("`mask_image` is black, there is nothing to crop to; leave out `padding_mask_crop`")
    left, right = _padded_span(columns, padding, mask.width)
    top, bottom = _padded_span(rows, padding, mask.height)
    ratio = size[1] / size[0]
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _extend_span(top, bottom, int((right - left) / ratio - (bottom - top)), mask.height)
    else:
        left, right = _extend_span(left, right, int((bottom - top) * ratio - (right - left)), mask.width)
    return left, top, right, bottom


def resize_and_fill(image: Image.Image, size: Size) -> Image.Image:
    """The whole picture in the middle of `size`, its first and last rows or columns drawn out to fill what is left."""
    canvas, resized, (left, top) = _resize_centered(image, size, cover=False)
    resized_width, resized_height = resized.size
    if top > 0:
        bar = (size[1], top)
        canvas.paste(resized.resize(bar, box=(0, 0, resized_width, 0)), (0, 0))
        canvas.paste(
            resized.resize(bar, box=(0, resized_height, resized_width, resized_height)), (0, top + resized_height)
        )
    if left > 0:
        bar = (left, size[0])
        canvas.paste(resized.resize(bar, box=(0, 0, 0, resized_height)), (0, 0))
        canvas.paste(
            resized.resize(bar, box=(resized_width, 0, resized_width, resized_height)), (left + resized_width, 0)
        )
    return canvas


def resize_and_crop(image: Image.Image, size: Size) -> Image.Image:
    """The middle of the picture in `size`, as much of it as covers that."""
    return _resize_centered(image, size, cover=True)[0]


def apply_overlay(inpainted: Image.Image, original: Image.Image, mask: Image.Image, box: Box) -> Image.Image:
    """The original with what was made of the box, as far as the mask (of the original's size, soft) covers it."""
    left, top, right, bottom = box
    canvas = Image.new("RGBA", original.size)
    canvas.paste(_resize_centered(inpainted, (bottom - top, right - left), cover=True)[0], (left, top))
    unmasked = Image.new("RGBa", original.size)
    unmasked.paste(original.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    composite = canvas.convert("RGB").convert("RGBA")
    composite.alpha_composite(unmasked.convert("RGBA"))
    return composite.convert("RGB")


def _to_single_channel(mask: Array | Tensor) -> Tensor:
    """An array or a tensor as (B, 1, H, W) floats."""
    shape = tuple(mask.shape)
    if isinstance(mask, np.ndarray):
        mask = torch.from_numpy(mask[..., 0] if shape[-1:] == (1,) and mask.ndim > 2 else mask)
    elif mask.ndim == 4 and shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim not in (2, 3):
        raise ArgumentError(f"`mask_image` has shape {shape}, expected one channel: (H, W), or a batch of those")
    if not mask.is_floating_point():  # 255 or 1, as in diffusers
        mask = mask > 0
    if float(mask.min()) < 0 or float(mask.max()) > 1:
        value_range = f"{float(mask.min()):g} to {float(mask.max()):g}"
        raise ArgumentError(
            f"`mask_image` has values from {value_range}, expected 0 (keep) to 1 (repaint); divide by 255"
        )
    return mask.float().reshape(-1, 1, *mask.shape[-2:])


def _binarize(mask: Tensor) -> Tensor:
    return (mask >= 0.5).float()


def _padded_span(positions: Any, padding: int, limit: int) -> tuple[int, int]:
    return max(int(positions.min()) - padding, 0), min(int(positions.max()) + 1 + padding, limit)


def _extend_span(low: int, high: int, extra: int, limit: int) -> tuple[int, int]:
    """The span `more` pixels longer on both sides, moved back inside 0..limit."""
    low, high = low - extra // 2, high + extra - extra // 2
    over = max(high - limit, 0)
    low, high = low - over, high - over
    under = max(-low, 0)
    return low + under, min(high + under, limit)


def _resize_centered(
    image: Image.Image, size: Size, *, cover: bool
) -> tuple[Image.Image, Image.Image, tuple[int, int]]:
    """A canvas of `size` with the picture in its middle, as large as fits or, to `cover`, until nothing is left free;
    with it the picture at that size and its place."""
    height, width = size
    to_width = (width / height < image.width / image.height) != cover
    resized_width = width if to_width else image.width * height // image.height
    resized_height = image.height * width // image.width if to_width else height
    resized = image.resize((resized_width, resized_height), LANCZOS)
    offset = (width // 2 - resized_width // 2, height // 2 - resized_height // 2)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(resized, offset)
    return canvas, resized, offset
