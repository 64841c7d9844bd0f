"""The steps of a call as methods, for loops that are written by hand: checks, latents, timesteps."""

from collections.abc import Mapping
from inspect import signature
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.types import Device

from enlarger.diffusers.call import pictures
from enlarger.diffusers.call.arguments import (
    ArgumentError,
    Generators,
    check_callback_steps,
    check_latents,
    check_pooled,
    check_prompts,
    noise_from_generator,
    reject_unsupported,
)
from enlarger.diffusers.call.run import Run, between, last_part
from enlarger.diffusers.schedulers.scheduling_utils import Scheduler
from enlarger.diffusion.estimates import outside_precondition, variance_preserving
from enlarger.diffusion.listing import Array
from enlarger.diffusion.noise import PerSampleGenerators
from enlarger.tasks.latent_diffusion.conditioning import embed_guidance_scale
from enlarger.tasks.latent_diffusion.latent_diffusion import LatentDiffusion, expand_to_batch

PROMPTS = ("negative_prompt", "prompt_embeds", "negative_prompt_embeds")
IP = ("ip_adapter_image", "ip_adapter_image_embeds")
POOLED = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
TOLD = "callback_on_step_end_tensor_inputs"
BOTH = ("negative_prompt", "negative_prompt_2", *PROMPTS[1:])
SIZES = ("height", "width")
CHECKED: Mapping[str, tuple[str, ...]] = {  # what `check_inputs` of each class takes, in diffusers' order
    "StableDiffusionPipeline": ("prompt", *SIZES, "callback_steps", *PROMPTS, *IP, TOLD),
    "StableDiffusionImg2ImgPipeline": ("prompt", "strength", "callback_steps", *PROMPTS, *IP, TOLD),
    "StableDiffusionInpaintPipeline": (
        "prompt", "image", "mask_image", *SIZES, "strength", "callback_steps", "output_type", *PROMPTS, *IP, TOLD,
        "padding_mask_crop",
    ),
    "StableDiffusionDepth2ImgPipeline": ("prompt", "strength", "callback_steps", *PROMPTS, TOLD),
    "StableDiffusionLatentUpscalePipeline": ("prompt", "image", "callback_steps", *PROMPTS, *POOLED),
    "StableDiffusionUpscalePipeline": ("prompt", "image", "noise_level", "callback_steps", *PROMPTS),
    "StableDiffusionXLPipeline": ("prompt", "prompt_2", *SIZES, "callback_steps", *BOTH, *POOLED, *IP, TOLD),
    "StableDiffusionXLImg2ImgPipeline": (
        "prompt", "prompt_2", "strength", "num_inference_steps", "callback_steps", *BOTH, *IP, TOLD,
    ),
    "StableDiffusionXLInpaintPipeline": (
        "prompt", "prompt_2", "image", "mask_image", *SIZES, "strength", "callback_steps", "output_type", *BOTH, *IP,
        TOLD, "padding_mask_crop",
    ),
}  # fmt: skip
REQUIRED: Mapping[str, object] = {"height": 8, "width": 8, "strength": 1.0, "num_inference_steps": 1}


class StepMethods:
    """For the pipelines to inherit: what their calls do first, by diffusers' names."""

    UPCAST: ClassVar[bool]
    _callback_tensor_inputs: ClassVar[tuple[str, ...]]
    scheduler: Scheduler
    vae_scale_factor: Any
    _vae: Any
    _unet: Any
    _runtime: Any
    _tile_vae: Any
    dtype: Any

    def check_inputs(self, *values: object, **named: object) -> None:
        """Refuse the arguments that a call would refuse before its work; order and names are diffusers'."""
        names = next(CHECKED[each.__name__] for each in type(self).__mro__ if each.__name__ in CHECKED)
        if strange := [*values[len(names) :], *(set(named) - set(names))]:
            raise TypeError(f"check_inputs takes {', '.join(names)}; found {strange} besides")
        given = {**dict.fromkeys(names), **REQUIRED, **dict(zip(names, values, strict=False)), **named}
        height, width, strength, steps = (given[name] for name in REQUIRED)
        if not all(isinstance(side, Real) and float(side) > 0 and float(side) % 8 == 0 for side in (height, width)):
            raise ArgumentError(f"`height` and `width` have to be divisible by 8 but are {height} and {width}")
        if not isinstance(strength, Real) or not 0 <= float(strength) <= 1:
            raise ArgumentError(f"The value of strength should in [0.0, 1.0] but is {strength}")
        if not isinstance(steps, Integral) or int(steps) < 1:
            raise ArgumentError(f"`num_inference_steps` has to be a positive integer but is {steps}")
        if given["callback_steps"] is not None:
            check_callback_steps(given["callback_steps"])
        self._check_prompts(given)
        known, told = ["latents", *self._callback_tensor_inputs], given.get(TOLD)
        if isinstance(told, list | tuple) and (odd := [name for name in told if name not in known]):  # pyright: ignore[reportUnknownVariableType] - a caller's
            raise ArgumentError(f"`{TOLD}` has {odd}, expected some of {known}")
        reject_unsupported({name: given.get(name) for name in IP}, dict.fromkeys(IP, "there are no IP adapters"))

    def _check_prompts(self, given: Mapping[str, Any]) -> None:
        embeds, negative_embeds = given["prompt_embeds"], given["negative_prompt_embeds"]
        check_prompts(given["prompt"], given["negative_prompt"], embeds, negative_embeds)
        if "pooled_prompt_embeds" in given:
            for which, each in (("", embeds), ("negative_", negative_embeds)):
                if each is not None:
                    check_pooled(which, each, given[f"{which}pooled_prompt_embeds"])

    def _image_latents(self, image: Tensor, count: int, generator: Generators | None, dtype: torch.dtype) -> Tensor:
        """The latents of pictures in -1..1, for `count` results: a, b become a, a, b, b."""
        upcast = self.UPCAST and self._vae.config.force_upcast
        means_nothing = outside_precondition("epsilon", variance_preserving)
        networks = LatentDiffusion(self._unet, self._vae, means_nothing, self._runtime, upcast, self._tile_vae)
        noise = noise_from_generator(generator, count)
        if isinstance(noise, PerSampleGenerators) and image.shape[1] == 3:
            image = expand_to_batch(image, count)
        return expand_to_batch(networks.encode(image, noise), count).to(dtype)

    def get_timesteps(
        self, num_inference_steps: int, strength: float, device: Device = None, denoising_start: float | None = None
    ) -> tuple[Tensor, int]:
        """The last `strength` of the scheduler's list, or those from `denoising_start` on, and how many steps."""
        listed = self.scheduler.timesteps
        whole = Run(self.scheduler, 0, len(listed), num_inference_steps, {}, listed[0])
        run = last_part(whole, strength) if denoising_start is None else between(whole, denoising_start, None)
        self.scheduler.set_begin_index(run.begin)
        return run.timesteps.to(device) if device is not None else run.timesteps, run.steps

    def prepare_extra_step_kwargs(self, generator: Generators | None, eta: float) -> dict[str, Any]:
        """What the scheduler's `step` takes of these."""
        taken = signature(self.scheduler.step).parameters  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType] - each class has one
        return {name: value for name, value in (("eta", eta), ("generator", generator)) if name in taken}

    def get_guidance_scale_embedding(
        self, w: Tensor, embedding_dim: int = 512, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """What a network distilled with guidance is told of guidance scales less 1, (B,), as (B, embedding_dim)."""
        told = [embed_guidance_scale(float(each) + 1, 1, embedding_dim) for each in w]
        return torch.cat(told).to(dtype)

    @staticmethod
    def numpy_to_pil(images: Array) -> list[Image.Image]:
        """Arrays in 0..1 to PIL images."""
        return pictures.numpy_to_pil(images)

    def upcast_vae(self) -> None:
        """Have the autoencoder in float32."""
        self._vae.to(torch.float32)


class FromNoiseMethods(StepMethods):
    """For the pipelines that start from noise."""

    SIZED_IN_LATENTS: ClassVar[bool] = False  # whether `prepare_latents` is told the latents' height and width

    def prepare_latents(
        self, batch_size: int, num_channels_latents: int, height: int, width: int, dtype: torch.dtype, device: Device,
        generator: Generators | None, latents: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The noise that a run starts from, of pictures of a size, as the scheduler has it."""
        factor = 1 if self.SIZED_IN_LATENTS else self.vae_scale_factor
        shape = (batch_size, num_channels_latents, height // factor, width // factor)
        check_latents(latents, shape)
        if latents is None:
            latents = noise_from_generator(generator, shape[0])(torch.empty(shape, dtype=dtype, device=device))
        return latents.to(device) * self.scheduler.init_noise_sigma


class FromPictureMethods(StepMethods):
    """For the pipelines that start from a picture with noise."""

    def prepare_latents(
        self, image: Tensor, timestep: Tensor, batch_size: int, num_images_per_prompt: int, dtype: torch.dtype,
        device: Device, generator: Generators | None = None, add_noise: bool = True,
    ) -> Tensor:  # fmt: skip
        """The latents of pictures in -1..1, or latents, with the noise of a timestep."""
        count = batch_size * num_images_per_prompt
        latents = self._image_latents(image, count, generator, dtype).to(device)
        if not add_noise:
            return latents
        noise = noise_from_generator(generator, count)(latents)
        return self.scheduler.add_noise(latents, noise, timestep)


class MaskedMethods(StepMethods):
    """For the pipelines that repaint a part of a picture."""

    def prepare_latents(
        self, batch_size: int, num_channels_latents: int, height: int, width: int, dtype: torch.dtype, device: Device,
        generator: Generators | None, latents: Tensor | None = None, image: Tensor | None = None,
        timestep: Tensor | None = None, is_strength_max: bool = True, add_noise: bool = True,
        return_noise: bool = False, return_image_latents: bool = False,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """The latents that a run starts from; then, where asked for, their noise and the picture's latents."""
        shape = (batch_size, num_channels_latents, height // self.vae_scale_factor, width // self.vae_scale_factor)
        if not is_strength_max and (image is None or timestep is None):
            raise ArgumentError("`image` or `timestep` is missing; a strength below 1 starts from a picture")
        known: Tensor | None = None
        if not add_noise and image is None:
            raise ArgumentError("`image` is missing; without noise the latents are the picture's")
        needs_known = return_image_latents or not add_noise or (latents is None and not is_strength_max)
        if image is not None and needs_known:
            known = self._image_latents(image, batch_size, generator, dtype).to(device)
        drawn_like = torch.empty(shape, dtype=dtype, device=device)
        noise = noise_from_generator(generator, batch_size)(drawn_like) if latents is None else latents.to(device)
        if not add_noise:
            assert known is not None, "checked above"
            first = known
        elif latents is not None or is_strength_max:
            first = noise * self.scheduler.init_noise_sigma
        else:
            assert known is not None and timestep is not None, "checked above"
            first = self.scheduler.add_noise(known, noise, timestep)
        more = [noise] if return_noise else []
        return (first, *more, *([known] if return_image_latents and known is not None else []))

    def _encode_vae_image(self, image: Tensor, generator: Generators | None) -> Tensor:
        """The scaled latents of pictures in -1..1."""
        return self._image_latents(image, len(image), generator, image.dtype)

    def prepare_mask_latents(
        self, mask: Tensor, masked_image: Tensor | None, batch_size: int, height: int, width: int, dtype: torch.dtype,
        device: Device, generator: Generators | None, do_classifier_free_guidance: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """A mask (N, 1, H, W) and a masked picture in -1..1 at the latents' size, twice for guidance."""
        size = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        small = expand_to_batch(F.interpolate(mask, size), batch_size).to(device, dtype)
        both = 2 if do_classifier_free_guidance else 1
        if masked_image is None:
            return torch.cat([small] * both), None
        latents = self._image_latents(masked_image, batch_size, generator, dtype).to(device)
        return torch.cat([small] * both), torch.cat([latents] * both)
