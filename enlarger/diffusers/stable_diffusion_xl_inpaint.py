"""`StableDiffusionXLInpaintPipeline`: repainting a part of pictures with SDXL."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from enlarger.diffusers.arguments import (
    ArgumentError,
    Generators,
    Prompt,
    check_latents,
    check_output_type,
    noise_from_generator,
    reject_unsupported,
)
from enlarger.diffusers.image_pipeline import masked_crop_region, per_sample_or_first
from enlarger.diffusers.masks import apply_overlay
from enlarger.diffusers.pipeline import accept_lora_scale, make_output
from enlarger.diffusers.text_pipeline import UNSUPPORTED_ADVICE
from enlarger.diffusers.xl_pipeline import (
    PromptArguments,
    SizeArguments,
    SizePair,
    XLImagePipeline,
    handoff_scale,
    make_guidance,
)
from enlarger.tasks.inpaint import InpaintJob, PreparedInpaint, prepare_inpaint
from enlarger.tasks.latent_diffusion import LatentDiffusion
from enlarger.tasks.sampling import SamplingPlan


class StableDiffusionXLInpaintPipeline(XLImagePipeline):
    """Pictures to pictures that are repainted where a mask is white, with a UNet of 9 channels or of 4.

    What the mask leaves black is kept in latents only; `padding_mask_crop` pastes the result back through the mask. An
    autoencoder's own mean and deviation of latents are heeded in the encoding too, unlike in diffusers.
    """

    EXTRA_CHANNELS: ClassVar[tuple[int, ...]] = (0, 5)

    @accept_lora_scale
    def __call__(
        self,
        prompt: Prompt | None = None,
        prompt_2: Prompt | None = None,
        image: Any = None,
        mask_image: Any = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 0.9999,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: Prompt | None = None,
        negative_prompt_2: Prompt | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        original_size: SizePair | None = None,
        crops_coords_top_left: SizePair = (0, 0),
        target_size: SizePair | None = None,
        negative_original_size: SizePair | None = None,
        negative_crops_coords_top_left: SizePair = (0, 0),
        negative_target_size: SizePair | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: Any,
    ) -> Any:
        """Repaint pictures, or latents (B, 4, h, w). `kwargs` are the older `callback` and `callback_steps`.

        The picture is resized to `height` and `width`, by default the checkpoint's own. Sizes that the network is told
        are as in `StableDiffusionXLImg2ImgPipeline`, so are `strength`, `denoising_start` and `denoising_end`; at
        strength 1 the start is pure noise. For masks, crops and `latents` see `StableDiffusionInpaintPipeline`.
        """
        assert cross_attention_kwargs is None, "`accept_lora_scale` has dealt with it"
        reject_unsupported(
            {"ip_adapter_image": ip_adapter_image, "ip_adapter_image_embeds": ip_adapter_image_embeds},
            UNSUPPORTED_ADVICE,
        )
        check_output_type(output_type)
        if latents is not None and denoising_start is not None:
            raise ArgumentError("found `latents` and `denoising_start`; give what the run starts from as `image` alone")
        size = self._size_or_default(height, width)
        crop_box = (
            None
            if padding_mask_crop is None
            else masked_crop_region(image, mask_image, size, padding_mask_crop, output_type)
        )
        prompts = PromptArguments(
            prompt, prompt_2, negative_prompt, negative_prompt_2, prompt_embeds, negative_prompt_embeds,
            pooled_prompt_embeds, negative_pooled_prompt_embeds, num_images_per_prompt, clip_skip,
        )  # fmt: skip
        size_arguments = SizeArguments(
            original_size, crops_coords_top_left, target_size, negative_original_size, negative_crops_coords_top_left,
            negative_target_size, (aesthetic_score, negative_aesthetic_score),
        )  # fmt: skip
        batch_size = prompts.batch_size()
        pictures, mask = self._prepare_image_and_mask(image, mask_image, crop_box, size, batch_size)
        latent_size = (size[0] // self.vae.downsample_factor, size[1] // self.vae.downsample_factor)
        check_latents(latents, (batch_size, self.vae.config.latent_channels, *latent_size))
        sampler = self.scheduler.sampler()
        denoising_bounds = (denoising_start, denoising_end)
        denoising_range = self._denoising_range(
            sampler, (num_inference_steps, timesteps, sigmas), strength, denoising_bounds, eta
        )
        plan = SamplingPlan(
            denoising_range.sigma_schedule,
            denoising_range.solver,
            per_sample_or_first(noise_from_generator(generator, batch_size)),
        )
        guidance = make_guidance(guidance_scale, guidance_rescale)
        uses_aesthetic_score = bool(self.config["requires_aesthetics_score"])
        conditioning, tensors = self._condition(
            prompts, guidance, size_arguments.for_image_to_image(size, uses_aesthetic_score)
        )
        tensor_inputs, is_noisy = callback_on_step_end_tensor_inputs, denoising_start is not None
        job = InpaintJob(
            conditioning,
            pictures,
            mask,
            plan,
            masked_image_latents,
            initial_noise=latents,
            is_noisy=is_noisy,
            from_pure_noise=not is_noisy and (strength == 1 or latents is not None),
            encode_masked_image="masked_image_latents" in tensor_inputs,
        )
        latent_diffusion = self._latent_diffusion(sampler, denoising_range.sigma_schedule)
        start = _prepare_start(latent_diffusion, job)
        mask_tensors = {"mask": start.mask, "masked_image_latents": start.masked_image_latents}
        doubled = {
            n: torch.cat([v, v]) if v is not None and guidance.scale != 1 else v for n, v in mask_tensors.items()
        }
        callbacks = self._step_callbacks(callback_on_step_end, tensor_inputs, tensors | doubled, kwargs)
        denoised = self._run_range(
            sampler, denoising_range, callbacks, lambda on_step: start.run(latent_diffusion, plan, on_step)
        )
        images = self._postprocess(denoised, str(output_type))
        images = images if crop_box is None else [apply_overlay(one, image, mask_image, crop_box) for one in images]
        return make_output(images, return_dict, (images,))


def _prepare_start(latent_diffusion: LatentDiffusion, job: InpaintJob) -> PreparedInpaint:
    """The job made ready; latents that another pipeline left are also what is kept, as they are."""
    if (
        job.image.shape[1] != 3
        and job.masked_image is None
        and latent_diffusion.unet_config.in_channels == job.image.shape[1]
    ):
        return replace(
            _prepare_start(latent_diffusion, replace(job, masked_image=job.image, encode_masked_image=False)),
            masked_image_latents=None,
        )
    start = prepare_inpaint(latent_diffusion, job)
    return replace(start, latents=start.latents * handoff_scale(job.plan.sigma_schedule)) if job.is_noisy else start
