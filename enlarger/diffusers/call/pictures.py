"""Pictures in and out of the pipelines, by diffusers' rules."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.types import PipelineImageInput
from enlarger.diffusion.listing import Array

LATENT_CHANNELS = 4
Size = tuple[int, int]  # height, width


def preprocess(
    image: PipelineImageInput | None,
    factor: int,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    size: Size | None = None,
) -> Tensor:
    """PIL images, arrays or tensors, one or a list, to (B, 3, H, W) in -1..1, or latents (B, 4, h, w) as they are.

    All are resized to `size` (height, width), or to the first one's with its sides lowered to multiples of `factor`:
    PIL by `resample`, arrays and tensors by nearest neighbour. Arrays (H, W, 3) and tensors (3, H, W) whose least value
    is below 0 are taken as -1..1, others as 0..1. PIL images of other modes are converted to RGB (diffusers takes RGBA
    for latents); arrays of 4 channels raise.
    """
    images: list[Any] = list(image) if isinstance(image, list | tuple) else [image]  # pyright: ignore[reportUnknownArgumentType] - anything
    if not images:
        raise ArgumentError("`image` is an empty list, expected at least one picture")
    if all(isinstance(one, Image.Image) for one in images):
        return _normalize(_from_pil(images, resample, size or _floor_size(images[0].height, images[0].width, factor)))
    if all(isinstance(one, np.ndarray) for one in images):
        return _normalize(_resize_nearest(_from_arrays(images), factor, size))
    if all(isinstance(one, Tensor) for one in images):
        batch = torch.cat([one if one.ndim == 4 else one[None] for one in images])
        return batch if batch.shape[1] == LATENT_CHANNELS else _normalize(_resize_nearest(batch, factor, size))
    kinds = sorted({type(one).__name__ for one in images})
    raise ArgumentError(
        f"`image` holds {', '.join(kinds)}; expected PIL images, numpy arrays or tensors, all of a kind"
    )


def postprocess(images: Tensor, output_type: str, scaled: Sequence[bool] = (True,)) -> Any:
    """(B, 3, H, W) about -1..1 to PIL images, an array (B, H, W, 3) or a tensor, both in 0..1.

    `scaled` says of each picture, or of all, whether it is in -1..1; others are in 0..1 already.
    """
    images = (
        (images / 2 + 0.5).clamp(0, 1)
        if all(scaled)
        else torch.stack([(x / 2 + 0.5).clamp(0, 1) if each else x for x, each in zip(images, scaled, strict=True)])
    )
    if output_type == "pt":
        return images
    array = images.permute(0, 2, 3, 1).float().cpu().numpy()
    return array if output_type == "np" else numpy_to_pil(array)


def numpy_to_pil(images: Array) -> list[Image.Image]:
    """An array (H, W, C) or (B, H, W, C) in 0..1 as PIL images."""
    batch = images[None] if images.ndim == 3 else images
    eight_bit = (batch * 255).round().astype("uint8")
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in eight_bit]


def _from_pil(images: list[Image.Image], resample: Image.Resampling, size: Size) -> Tensor:
    resized = [one.convert("RGB").resize((size[1], size[0]), resample) for one in images]
    return torch.from_numpy(np.stack([np.array(one, np.float32) for one in resized]) / 255).permute(0, 3, 1, 2)


def _from_arrays(images: list[Array]) -> Tensor:
    batch = np.concatenate([one if one.ndim == 4 else one[None] for one in images])
    if batch.ndim != 4 or batch.shape[-1] != 3:
        raise ArgumentError(f"`image` has shape {images[0].shape}, expected (H, W, 3) or (B, H, W, 3); leave out alpha")
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


def _resize_nearest(batch: Tensor, factor: int, size: Size | None) -> Tensor:
    height, width = batch.shape[-2:]
    size = size or _floor_size(height, width, factor)
    return batch if size == (height, width) else F.interpolate(batch, size)


def _floor_size(height: int, width: int, factor: int) -> Size:
    if min(height, width) < factor:
        raise ArgumentError(f"`image` is {width} x {height} pixels, expected at least {factor} x {factor}")
    return height - height % factor, width - width % factor


def _normalize(batch: Tensor) -> Tensor:
    if not batch.is_floating_point():
        raise ArgumentError(f"`image` holds {batch.dtype}, expected floats in 0..1 or -1..1; divide by 255 first")
    if float(batch.max()) > 2:
        raise ArgumentError(f"`image` has values up to {float(batch.max()):g}, expected 0..1 or -1..1; divide first")
    return batch if float(batch.min()) < 0 else 2 * batch - 1


def lowered_size(image: PipelineImageInput | None, factor: int) -> Size:
    """Height and width of pictures or masks of any kind, lowered to multiples of `factor`."""
    listed: list[Any] = [*image] if isinstance(image, list | tuple) else [image]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - anything
    first = listed[0]
    if isinstance(first, Image.Image):
        height, width = first.height, first.width
    else:
        shape: tuple[int, ...] = tuple(first.shape)
        height, width = [side for side in shape if len(shape) == 2 or side not in (1, 3)][-2:]
    return height - height % factor, width - width % factor
