"""What the pipelines that start from pictures share: the pictures, the last part of the steps, and its callbacks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from enlarger.diffusers.call.arguments import ArgumentError
from enlarger.diffusers.call.masks import Box, apply_overlay, get_crop_region, resize_and_fill
from enlarger.diffusers.call.pictures import Size
from enlarger.diffusers.pipelines.text_pipeline import Embeds, TextPipeline
from enlarger.diffusers.types import PipelineImageInput
from enlarger.diffusion.noise import Noise, PerSampleGenerators


class ImagePipeline(TextPipeline):
    """The base of the Stable Diffusion 1 and 2 pipelines that take a picture and a strength.

    Pictures and prompts are paired a, a, b, b where there are several of both and several results of each; diffusers
    pairs the pictures a, b, a, b there, with other prompts than their own.
    """

    def _prepare_images(self, image: PipelineImageInput | None, count: int, size: Size | None = None) -> Tensor:
        """(N, 3, H, W) in -1..1, or latents as they are; N divides the number of results."""
        if image is None:
            raise ArgumentError("`image` is missing; give a picture or latents, see help(pipe.__call__)")
        pictures = self._read_pictures(image, Image.Resampling.LANCZOS, size)
        if pictures.shape[1] not in (3, self._vae.config.latent_channels):
            raise ArgumentError(f"`image` has {pictures.shape[1]} channels, expected 3 of a picture or 4 of latents")
        check_batch_size("image", len(pictures), count)
        return pictures

    def _prepare_image_and_mask(
        self,
        image: PipelineImageInput | None,
        mask: PipelineImageInput | None,
        crop: "MaskedCrop | None",
        size: Size,
        count: int,
    ) -> tuple[Tensor, Tensor]:
        """The pictures in -1..1 and their masks, 0 or 1, both of `size`."""
        if mask is None:
            raise ArgumentError("`mask_image` is missing; give a mask, white where the picture is repainted")
        if crop is not None:
            image, mask = (resize_and_fill(one.crop(crop.box), size) for one in (crop.image, crop.mask))
        pictures, masks = self._prepare_images(image, count, size), self._read_masks(mask, size)
        check_batch_size("mask_image", len(masks), count)
        inner = tuple(side // self._vae.downsample_factor for side in size)
        if pictures.shape[1] != 3 and tuple(pictures.shape[2:]) != inner:
            raise ArgumentError(f"`image` is latents {tuple(pictures.shape)}, expected {inner} of height and width")
        return pictures, masks


def check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise ArgumentError(f"The value of strength should in [0.0, 1.0] but is {strength}")


def check_batch_size(name: str, found: int, count: int) -> None:
    """Each of the things given is for as many results as any other."""
    if count % found:
        raise ArgumentError(f"Cannot duplicate `{name}` of batch size {found} to {count} results; give one per prompt")


def callback_tensors(embeds: Embeds, **more: Tensor | None) -> dict[str, Tensor | None]:
    """What callbacks may see: with guidance what the network is told is there twice, for the negative prompts first."""
    prompt, negative = embeds
    embeddings = prompt if negative is None else torch.cat([negative, prompt])
    both = {n: v if v is None or negative is None else torch.cat([v, v]) for n, v in more.items()}
    return {"prompt_embeds": embeddings, "negative_prompt_embeds": negative, **both}


@dataclass(frozen=True, eq=False)
class _PerSampleOrFirst:
    """One generator per result; for fewer pictures than results the first ones, as diffusers encodes them."""

    noise: PerSampleGenerators

    def __call__(self, like: Tensor) -> Tensor:
        return PerSampleGenerators(self.noise.generators[: len(like)])(like)


def per_sample_or_first(noise: Noise) -> Noise:
    """The noise of a run whose pictures may be fewer than its results."""
    return _PerSampleOrFirst(noise) if isinstance(noise, PerSampleGenerators) else noise


@dataclass(frozen=True, eq=False)
class MaskedCrop:
    """A part of a picture that is repainted by itself."""

    image: Image.Image
    mask: Image.Image
    box: Box

    def overlay(self, repainted: Sequence[Image.Image]) -> list[Image.Image]:
        """The picture with each of the results in its place."""
        return [apply_overlay(one, self.image, self.mask, self.box) for one in repainted]


def masked_crop(
    image: PipelineImageInput | None, mask: PipelineImageInput | None, size: Size, pad: int, output_type: str | None
) -> MaskedCrop:
    """The part of the picture to repaint. Raises ArgumentError for what cannot be cropped."""
    image, mask = _require_pil(image, "image"), _require_pil(mask, "mask image")
    if output_type != "pil":
        raise ArgumentError(f"The output type should be PIL when inpainting mask crop, but is {output_type}.")
    if image.size != mask.size:
        raise ArgumentError(f"`mask_image` is {mask.size}, expected the picture's {image.size} to crop both")
    return MaskedCrop(image, mask, get_crop_region(mask, size, pad))


def _require_pil(value: PipelineImageInput | None, name: str) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    kind = value.__class__
    raise ArgumentError(f"The {name} should be a PIL image when inpainting mask crop, but is of type {kind}.")
