"""`StableDiffusionInpaintPipeline`: repainting a part of pictures with SD1 and SD2."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from enlarger.diffusers.arguments import (
    Generators,
    Prompt,
    batch_size_of,
    check_latents,
    check_output_type,
    check_prompts,
    noise_from_generator,
    reject_unsupported,
)
from enlarger.diffusers.image_pipeline import (
    ImagePipeline,
    callback_tensors,
    check_strength,
    masked_crop_region,
    per_sample_or_first,
)
from enlarger.diffusers.masks import apply_overlay
from enlarger.diffusers.output import PipelineOutput
from enlarger.diffusers.pipeline import accept_lora_scale
from enlarger.diffusers.schedulers import Scheduler
from enlarger.diffusers.text_pipeline import UNSUPPORTED_ADVICE, condition_on_embeds
from enlarger.diffusion.guidance import Guidance
from enlarger.tasks.inpaint import InpaintJob, prepare_inpaint
from enlarger.tasks.sampling import SamplingPlan


class StableDiffusionInpaintPipeline(ImagePipeline):
    """Pictures to pictures that are repainted where a mask is white, with a UNet of 9 channels or of 4.

    What the mask leaves black is kept in latents only, and changes a little in pixels; `padding_mask_crop` pastes the
    result back through the mask. As in diffusers, PNDM leaves out its Runge-Kutta start here.
    """

    CHECKPOINT_KIND: ClassVar[str] = "an inpainting"
    EXTRA_CHANNELS: ClassVar[tuple[int, ...]] = (0, 5)

    def _set_components(self, components: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
        super()._set_components({**components, "scheduler": _skip_prk_steps(components["scheduler"])}, settings)

    @accept_lora_scale
    def __call__(
        self,
        prompt: Prompt | None = None,
        image: Any = None,
        mask_image: Any = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: Prompt | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> Any:
        """Repaint pictures, or latents (B, 4, h, w). `kwargs` are the older `callback` and `callback_steps`.

        The picture is resized to `height` and `width`, by default the checkpoint's own. For masks see
        `masks.read_mask`: each pixel is repainted or kept. `padding_mask_crop` repaints only the masked part with so
        many pixels around it, at full size, and pastes it back through the mask, which may be soft there. The last
        `strength` of the steps are made; below 1 the picture with noise is where they start, unless `latents` are
        given: those are the noise, and the start. Guidance at or below 1 runs the prompt alone. Arguments that cannot
        be raise ValueError.
        """
        assert cross_attention_kwargs is None, "`accept_lora_scale` has dealt with it"
        reject_unsupported(
            {"ip_adapter_image": ip_adapter_image, "ip_adapter_image_embeds": ip_adapter_image_embeds},
            UNSUPPORTED_ADVICE,
        )
        size = self._size_or_default(height, width)
        check_strength(strength)
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        check_output_type(output_type)
        crop_box = (
            None
            if padding_mask_crop is None
            else masked_crop_region(image, mask_image, size, padding_mask_crop, output_type)
        )
        images_per_prompt = 1 if num_images_per_prompt is None else num_images_per_prompt
        batch_size = batch_size_of(prompt, prompt_embeds) * images_per_prompt
        pictures, mask = self._prepare_image_and_mask(image, mask_image, crop_box, size, batch_size)
        latent_size = (size[0] // self.vae.downsample_factor, size[1] // self.vae.downsample_factor)
        check_latents(latents, (batch_size, self.vae.config.latent_channels, *latent_size))
        sampler = self.scheduler.sampler()
        denoising_range = self._range_by_strength(sampler, (num_inference_steps, timesteps, sigmas), strength, eta)
        plan = SamplingPlan(
            denoising_range.sigma_schedule,
            denoising_range.solver,
            per_sample_or_first(noise_from_generator(generator, batch_size)),
        )
        guidance = Guidance(max(guidance_scale, 1.0))
        embeds = self.encode_prompt(
            prompt,
            self.device,
            images_per_prompt,
            guidance_scale > 1,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            clip_skip=clip_skip,
        )
        tensor_inputs = callback_on_step_end_tensor_inputs
        job = InpaintJob(
            condition_on_embeds(embeds, guidance),
            pictures,
            mask,
            plan,
            masked_image_latents,
            from_pure_noise=strength == 1 or latents is not None,
            initial_noise=latents,
            encode_masked_image="masked_image_latents" in tensor_inputs,
        )
        latent_diffusion = self._latent_diffusion(sampler, denoising_range.sigma_schedule)
        start = prepare_inpaint(latent_diffusion, job)
        tensors = callback_tensors(embeds, mask=start.mask, masked_image_latents=start.masked_image_latents)
        callbacks = self._step_callbacks(callback_on_step_end, tensor_inputs, tensors, kwargs)
        denoised = self._run_range(
            sampler, denoising_range, callbacks, lambda on_step: start.run(latent_diffusion, plan, on_step)
        )
        result = self._make_output(denoised, str(output_type), True)
        images = (
            result.images
            if crop_box is None
            else [apply_overlay(one, image, mask_image, crop_box) for one in result.images]
        )
        flags = result.nsfw_content_detected
        return PipelineOutput(images, flags) if return_dict else (images, flags)


def _skip_prk_steps(scheduler: Scheduler) -> Scheduler:
    if not isinstance(scheduler, Scheduler) or scheduler.config.get("skip_prk_steps") is not False:  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        return scheduler
    warnings.warn(f"{scheduler}: outdated for inpainting; uses skip_prk_steps=True", stacklevel=3)
    return scheduler.with_config(skip_prk_steps=True)
