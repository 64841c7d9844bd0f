"""How pictures get to a size: pass after pass through an upscaler, exactly to it, and true to their input."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from enlarger.diffusion.noise import Noise
from enlarger.image.consistency import make_consistent_in_range
from enlarger.image.resize import resize


@dataclass(frozen=True, eq=False)
class Upscaled:
    """Pictures (B, 3, H, W) in -1..1, or latents, on their way to a size; which of them are graphics, once known."""

    pixels: Tensor
    graphics: tuple[bool, ...] | None = None


UpscaleFn = Callable[[Upscaled, Noise], Upscaled]  # to twice the size, or four times for x4


@dataclass(frozen=True)
class UpscalePlan:
    """How pictures are enlarged: by `upscale_fn`, until they are large enough, but once `at_least_once`.

    `consistent` says whether the result's half becomes the input; None: where it is no graphics.
    """

    upscale_fn: UpscaleFn
    consistent: bool | None
    at_least_once: bool = False


def upscale_to(image: Tensor, scale: float, plan: UpscalePlan, noise: Noise) -> Upscaled:
    """Enlarged until at least `by` times as large, brought to that size exactly, and made consistent with the input."""
    upscaled, size = Upscaled(image), (round(image.shape[-2] * scale), round(image.shape[-1] * scale))
    if plan.at_least_once:
        upscaled = _on_cpu(plan.upscale_fn(upscaled, noise))
    while upscaled.pixels.shape[-2] < size[0] or upscaled.pixels.shape[-1] < size[1]:
        upscaled = _on_cpu(plan.upscale_fn(upscaled, noise))
    pixels, graphics = upscaled.pixels, upscaled.graphics or (False,) * len(image)
    pixels = resize(pixels, size, "lanczos") if pixels.shape[-2:] != size else pixels
    if plan.consistent is not None:
        return Upscaled(make_consistent_in_range(pixels, image) if plan.consistent else pixels, graphics)
    pairs = zip(split_batch(pixels), split_batch(image), graphics, strict=True)
    rows = [large if drawn else make_consistent_in_range(large, small) for large, small, drawn in pairs]
    return Upscaled(torch.cat(rows), graphics)


def split_upscaled(upscaled: Upscaled) -> list[Upscaled]:
    """Each picture of a batch as a batch of its own."""
    graphics = upscaled.graphics or (False,) * len(upscaled.pixels)
    return [Upscaled(one, (drawn,)) for one, drawn in zip(split_batch(upscaled.pixels), graphics, strict=True)]


def split_batch(x: Tensor) -> list[Tensor]:
    """Each picture of a batch as a batch of its own."""
    return [x[i : i + 1] for i in range(len(x))]


def _on_cpu(upscaled: Upscaled) -> Upscaled:
    return Upscaled(upscaled.pixels.float().cpu(), upscaled.graphics)
