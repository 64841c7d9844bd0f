"""`image_processor` and `mask_processor` of the pipelines, for loops that are written by hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor

from enlarger.diffusers.call import pictures
from enlarger.diffusers.call.arguments import ArgumentError, check_output_type
from enlarger.diffusers.call.masks import (
    Box,
    apply_overlay,
    get_crop_region,
    read_mask,
    resize_and_crop,
    resize_and_fill,
)
from enlarger.diffusers.call.pictures import Size
from enlarger.diffusers.schedulers.config import SchedulerConfig
from enlarger.diffusers.types import PipelineImageInput
from enlarger.diffusion.listing import Array
from enlarger.errors import Unsupported

FITTED: Mapping[str, Callable[[Image.Image, Size], Image.Image] | None] = {
    "default": None,
    "fill": resize_and_fill,
    "crop": resize_and_crop,
}


SAMPLINGS: Mapping[str, Image.Resampling] = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "linear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class VaeImageProcessor:
    """Pictures, or masks, to tensors and back, with diffusers' settings.

    `do_binarize` or `do_convert_grayscale` make it one of masks, which are 0 or 1. Without `do_normalize` pictures are
    in 0..1; without `do_resize` they keep their size.
    """

    do_resize: bool = True
    vae_scale_factor: int = 8
    vae_latent_channels: int = 4
    resample: str = "lanczos"
    reducing_gap: int | None = None
    do_normalize: bool = True
    do_binarize: bool = False
    do_convert_rgb: bool = False
    do_convert_grayscale: bool = False

    def __post_init__(self) -> None:
        if self.resample not in SAMPLINGS:
            raise ArgumentError(f"resample is {self.resample!r}, expected one of {', '.join(SAMPLINGS)}")
        if self.reducing_gap is not None:
            raise Unsupported("reducing_gap is not available: pictures are resized in one step; leave it out")

    @property
    def config(self) -> SchedulerConfig:
        """The settings by name or attribute."""
        return SchedulerConfig(type(self).__name__, asdict(self), {})

    @property
    def masks(self) -> bool:
        """Whether it is one of masks."""
        return self.do_binarize or self.do_convert_grayscale

    def preprocess(
        self, image: PipelineImageInput, height: int | None = None, width: int | None = None,
        resize_mode: str = "default", crops_coords: Box | None = None,
    ) -> Tensor:  # fmt: skip
        """Pictures to (B, 3, H, W) in -1..1, masks to (B, 1, H, W) of 0 and 1.

        PIL images are first cropped to `crops_coords`; then `resize_mode` "default" stretches them to the size, "fill"
        draws their edges out to it, and "crop" cuts off what is over. A side that is not given is the picture's.
        """
        if resize_mode not in FITTED:
            raise ArgumentError(f"resize_mode is {resize_mode!r}, expected one of {', '.join(FITTED)}")
        images: list[Any] = list(image) if isinstance(image, list | tuple) else [image]  # pyright: ignore[reportUnknownArgumentType] - anything
        if crops_coords is not None:
            images = [one.crop(crops_coords) if isinstance(one, Image.Image) else one for one in images]
        size = self._size(images, height, width)
        fit = FITTED[resize_mode]
        if fit is not None and size is not None:
            images = [fit(one, size) if isinstance(one, Image.Image) else one for one in images]
        if self.masks:
            return read_mask(images, size or pictures.lowered_size(images, self.vae_scale_factor))
        made = pictures.preprocess(images, self.vae_scale_factor, SAMPLINGS[self.resample], size)
        return made if self.do_normalize or made.shape[1] == self.vae_latent_channels else made / 2 + 0.5

    def _size(self, images: PipelineImageInput, height: int | None, width: int | None) -> Size | None:
        """The size asked for, in multiples of the factor; None where none is."""
        if not self.do_resize:
            return pictures.lowered_size(images, 1)
        if height is None and width is None:
            return None
        own = pictures.lowered_size(images, self.vae_scale_factor)
        sides = (own[0] if height is None else height, own[1] if width is None else width)
        return sides[0] - sides[0] % self.vae_scale_factor, sides[1] - sides[1] % self.vae_scale_factor

    def postprocess(
        self, image: Tensor, output_type: str | None = "pil", do_denormalize: Sequence[bool] | None = None
    ) -> Any:
        """(B, 3, H, W) about -1..1 to PIL images, an array, a tensor in 0..1, or as it is ("latent").

        `do_denormalize` says of each picture whether it is in -1..1; masks are not, unless it says so.
        """
        output_type = check_output_type(output_type)
        if output_type == "latent":
            return image
        scaled = [self.do_normalize and not self.masks] * len(image) if do_denormalize is None else do_denormalize
        return pictures.postprocess(image, output_type, scaled)

    @staticmethod
    def blur(image: Image.Image, blur_factor: int = 4) -> Image.Image:
        """A picture with a Gaussian blur, of a mask's edge for instance."""
        return image.filter(ImageFilter.GaussianBlur(blur_factor))

    @staticmethod
    def get_crop_region(mask_image: Image.Image, width: int, height: int, pad: int = 0) -> Box:
        """What a mask covers, in the proportions of a size."""
        return get_crop_region(mask_image, (height, width), pad)

    @staticmethod
    def apply_overlay(
        mask: Image.Image, init_image: Image.Image, image: Image.Image, crop_coords: Box | None = None
    ) -> Image.Image:
        """A picture put over another where a mask is white."""
        return apply_overlay(image, init_image, mask, crop_coords or (0, 0, *init_image.size))

    @staticmethod
    def numpy_to_pil(images: Array) -> list[Image.Image]:
        return pictures.numpy_to_pil(images)

    @staticmethod
    def pt_to_numpy(images: Tensor) -> Array:
        return images.cpu().permute(0, 2, 3, 1).float().numpy()

    @staticmethod
    def numpy_to_pt(images: Array) -> Tensor:
        return torch.from_numpy(images).permute(0, 3, 1, 2)
