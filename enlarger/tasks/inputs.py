"""What users give, taken apart into single pictures or latents, and the way back to a picture like the input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from enlarger.errors import InputError
from enlarger.image.decode import upright_size
from enlarger.image.fill import bleed_alpha
from enlarger.image.picture import Picture, PictureSource, read_picture, to_pil
from enlarger.image.resize import resize
from enlarger.nn.autoencoder import AutoencoderConfig, AutoencoderKL
from enlarger.requests import (
    DepthRequest,
    GenerateRequest,
    InpaintRequest,
    RefineRequest,
    UpscaleRequest,
    one_per_image,
    seeds_for,
)
from enlarger.tasks.latent_diffusion.latent_diffusion import pad_to_multiple

LatentSpace = str
"""Whose latents: "sd" (Stable Diffusion 1, 2, the x2 upscaler), "sdxl", "x4", or the scale of another autoencoder."""


SPACE_BY_SCALING_FACTOR: dict[float, LatentSpace] = {0.18215: "sd", 0.13025: "sdxl", 0.08333: "x4"}


COMPATIBLE_MODELS: dict[LatentSpace, str] = {
    "sd": "a Stable Diffusion 1 or 2 checkpoint or the x2 latent upscaler",
    "sdxl": "an SDXL checkpoint, base or refiner",
    "x4": "the x4 upscaler's autoencoder",
}


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents (B, C, h, w) in float32, scaled as their autoencoder scales them.

    `space` names that autoencoder. `sigma` is the noise level left in them: they are clean + sigma * noise.
    """

    values: Tensor
    space: LatentSpace
    sigma: float = 0.0

    def __post_init__(self) -> None:
        if self.values.ndim != 4 or not self.values.is_floating_point():
            found = f"{tuple(self.values.shape)} of {self.values.dtype}"
            raise InputError(f"latents have shape {found}, expected floats (B, C, h, w)")
        if not 0 < self.scale < math.inf or latent_space(self.scale) != self.space:
            expected = f"one of {', '.join(COMPATIBLE_MODELS)}, or the scale of their autoencoder"
            raise InputError(f"latents are of space {self.space!r}, expected {expected}")
        if not self.sigma >= 0:
            raise InputError(f"latents have noise of level {self.sigma}, expected 0 or above")

    @property
    def scale(self) -> float:
        """What their autoencoder multiplied them by; NaN for a space that there is not."""
        known = next((scale for scale, space in SPACE_BY_SCALING_FACTOR.items() if space == self.space), None)
        try:
            return float(self.space) if known is None else known
        except ValueError:
            return math.nan

    def __repr__(self) -> str:
        return f"Latents({tuple(self.values.shape)}, {self.space!r}, sigma={self.sigma:g})"

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: int | slice) -> "Latents":
        """One picture's, or several pictures', in the same four dimensions."""
        rows = self.values[part]
        return replace(self, values=rows if rows.ndim == 4 else rows[None])

    def values_for(self, autoencoder: AutoencoderKL, what: str, allow_noise: bool = False) -> Tensor:
        """The values, for `what`, if it has the same space; InputError, naming who takes them, if not."""
        check_space(self.space, autoencoder.config, what)
        channels = autoencoder.config.latent_channels
        if self.values.shape[1] != channels:
            raise InputError(f"found latents with {self.values.shape[1]} channels for {what}, expected {channels}")
        if self.sigma and not allow_noise:
            raise InputError(
                f"found latents with noise of level {self.sigma:.4g} for {what}, expected finished ones; run their own "
                "checkpoint to the end of its noise levels first"
            )
        return self.values


ImageSource = PictureSource | Latents | Sequence[PictureSource | Latents]  # what the `image` of a request may be


def join_latents(batch: Sequence[Latents | None]) -> Latents | None:
    """Pictures' latents in one batch; None if some are absent, of other sizes or of other spaces."""
    present = [one for one in batch if one is not None]
    kinds = {(tuple(one.values.shape[1:]), one.space, one.sigma) for one in present}
    if len(present) < len(batch) or len(kinds) != 1:
        return None
    return replace(present[0], values=torch.cat([one.values for one in present]))


def check_space(found: LatentSpace, config: AutoencoderConfig, what: str) -> None:
    """InputError, naming who takes such latents, if they are not of the space that `what` works in."""
    space = latent_space_of(config)
    if found != space:
        raise InputError(
            f"found latents of {found} for {what}, which takes those of {space}; give them to "
            f"{COMPATIBLE_MODELS.get(found, 'a checkpoint whose autoencoder has that scale')}, or decode them and give "
            "the picture"
        )


def latent_space_of(config: AutoencoderConfig) -> LatentSpace:
    """Whose latents an autoencoder makes; its scale tells."""
    return latent_space(config.scaling_factor)


def latent_space(scale: float) -> LatentSpace:
    """Whose latents are multiplied by that."""
    return next((space for known, space in SPACE_BY_SCALING_FACTOR.items() if abs(scale - known) < 1e-6), str(scale))


R = TypeVar("R", UpscaleRequest, RefineRequest, DepthRequest, InpaintRequest)


def split_request(request: R, **per_image: Sequence[Any]) -> list[tuple[R, tuple[int, ...]]]:
    """For each of the request's pictures a request of its own, its prompts single, and its seeds.

    A picture never shares a batch with another, so that it is the same to the last bit alone and among others.
    `per_image` names further fields of the request that have a value for each picture.
    """
    images = split_images(request.image)
    values_by_name = {"prompt": request.prompt, "negative": request.negative} | per_image
    columns = {name: one_per_image(value, len(images), name) for name, value in values_by_name.items()}
    count, seeds = request.count, seeds_for(request.seed, len(images) * request.count)
    return [
        (
            replace(request, image=image, **{name: values[i] for name, values in columns.items()}),
            tuple(seeds[i * count : (i + 1) * count]),
        )
        for i, image in enumerate(images)
    ]


def prompt_pairs(request: GenerateRequest) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts, each `count` times in a row."""
    prompts = [request.prompt] if isinstance(request.prompt, str) else list(request.prompt)
    if not prompts:
        raise InputError("an empty list of prompts, expected at least one")
    negatives = one_per_image(request.negative, len(prompts), "negative")
    return [p for p in prompts for _ in range(request.count)], [n for n in negatives for _ in range(request.count)]


def split_images(image: Any) -> list[Any]:
    """One picture, a list of them, a batch in a tensor, an array or of `Latents`, as a list."""
    if isinstance(image, list | tuple):
        if not image:
            raise InputError("an empty list of pictures, expected at least one")
        return [one for item in cast("Sequence[Any]", image) for one in _split_latents(item)]
    if isinstance(image, Tensor) and image.ndim == 4:
        return list(image)
    if isinstance(image, np.ndarray) and image.ndim == 4:
        return list(cast("Sequence[Any]", image))
    return _split_latents(image)


def _split_latents(image: Any) -> list[Any]:
    return [image[i] for i in range(len(image))] if isinstance(image, Latents) else [image]


def image_size(source: Any, factor: int = 8) -> tuple[int, int]:
    """Height and width in pixels of a picture as it is seen, from its header; of latents, `factor` pixels for each."""
    if isinstance(source, Latents):
        return factor * source.values.shape[2], factor * source.values.shape[3]
    if isinstance(source, Tensor):
        pixels = factor if source.shape[-3] == 4 else 1
        return pixels * source.shape[-2], pixels * source.shape[-1]
    if isinstance(source, np.ndarray):
        height, width = cast("tuple[int, ...]", source.shape)[:2]
        return height, width
    width, height = upright_size(source)
    return height, width


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """One picture as a network takes it, and the way back to a picture like it."""

    image: Tensor  # (1, 3, H, W) in -1..1, padded at the right and the bottom, or latents (1, C, h, w)
    size: tuple[int, int]  # height and width of the result
    picture: Picture | None = None  # None for latents

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self.picture is None else self.picture.notes

    def to_image(self, pixels: Tensor) -> Image.Image:
        """Pixels (1, 3, H, W) of the padded size as a picture; alpha, grey, depth and profile are the input's."""
        colour = pixels[0, :, : self.size[0], : self.size[1]].float().cpu()
        return to_pil(Picture(colour) if self.picture is None else replace(self.picture, colour=colour))


def prepare_picture(source: Any, multiple: int) -> PreparedImage:
    """A picture of any size, padded to multiples of `multiple` pixels."""
    if isinstance(source, Tensor) and source.ndim > 2 and source.shape[-3] == 4:
        raise InputError(
            "found a tensor with 4 channels, expected a picture or latents that say whose they are: "
            'enlarger.Latents(values, "sd") or "sdxl", values (B, 4, h, w)'
        )
    picture = read_picture(source)
    return PreparedImage(
        pad_to_multiple(bleed_alpha(picture)[None], multiple), (picture.height, picture.width), picture
    )


def match_input(picture: Picture, colour: Tensor) -> Picture:
    """The enlarged colour with the alpha enlarged beside it, and all else as in the input."""
    size = (colour.shape[-2], colour.shape[-1])
    alpha = None if picture.alpha is None else resize(picture.alpha, size, "lanczos").clamp(0, 1)
    return replace(picture, colour=colour, alpha=alpha)
