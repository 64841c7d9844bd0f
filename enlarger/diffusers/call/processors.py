"""`image_processor` and `mask_processor` of the pipelines, for loops that are written by hand."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor

from enlarger.diffusers import image_processor
from enlarger.diffusers.call.masks import Box, apply_overlay, get_crop_region, read_mask
from enlarger.diffusers.types import PipelineImageInput
from enlarger.diffusion.listing import Array


@dataclass(frozen=True)
class VaeImageProcessor:
    """Pictures, or with `masks` masks, to tensors and back."""

    vae_scale_factor: int
    masks: bool = False

    def preprocess(
        self, image: PipelineImageInput, height: int | None = None, width: int | None = None, **_: object
    ) -> Tensor:
        """Pictures to (B, 3, H, W) in -1..1, masks to (B, 1, H, W) of 0 and 1."""
        size = None if height is None or width is None else (height, width)
        if self.masks:
            return read_mask(image, size or image_processor.lowered_size(image, self.vae_scale_factor))
        return image_processor.preprocess(image, self.vae_scale_factor, Image.Resampling.LANCZOS, size)

    def postprocess(self, image: Tensor, output_type: str = "pil", do_denormalize: object = None) -> Any:
        """(B, 3, H, W) about -1..1 to PIL images, an array, a tensor in 0..1, or as it is ("latent")."""
        return image if output_type == "latent" else image_processor.postprocess(image, output_type)

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
        return image_processor.numpy_to_pil(images)

    @staticmethod
    def pt_to_numpy(images: Tensor) -> Array:
        return images.cpu().permute(0, 2, 3, 1).float().numpy()

    @staticmethod
    def numpy_to_pt(images: Array) -> Tensor:
        return torch.from_numpy(images).permute(0, 3, 1, 2)
