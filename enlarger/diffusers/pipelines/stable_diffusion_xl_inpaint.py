"""`StableDiffusionXLInpaintPipeline`: repainting a part of pictures with SDXL."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from enlarger.diffusers.call.adapter_scale import accept_lora_scale
from enlarger.diffusers.call.arguments import (
    ArgumentError,
    Generators,
    Prompt,
    check_latents,
    check_output_type,
    noise_from_generator,
    reject_unsupported,
)
from enlarger.diffusers.call.callbacks import Listeners, listeners
from enlarger.diffusers.call.live_values import mask_followed, masks_replaced, with_own_mask
from enlarger.diffusers.call.steps_by_hand import MaskedMethods
from enlarger.diffusers.pipelines.image_pipeline import masked_crop, per_sample_or_first
from enlarger.diffusers.pipelines.pipeline_output import make_output
from enlarger.diffusers.pipelines.text_pipeline import UNSUPPORTED_ADVICE
from enlarger.diffusers.pipelines.xl_pipeline import (
    PromptArguments,
    SizeArguments,
    SizePair,
    XLImagePipeline,
    handoff_scale,
)
from enlarger.diffusers.types import OnStepEnd, PipelineImageInput
from enlarger.diffusion.sample import OnStep
from enlarger.tasks.inpaint import InpaintJob, PreparedInpaint, prepare_inpaint
from enlarger.tasks.latent_diffusion.latent_diffusion import LatentDiffusion
from enlarger.tasks.latent_diffusion.sampling import sample_latents


class StableDiffusionXLInpaintPipeline(MaskedMethods, XLImagePipeline):
    """Pictures to pictures that are repainted where a mask is white, with a UNet of 9 channels or of 4.

    What the mask leaves black is kept in latents only; `padding_mask_crop` pastes the result back through the mask. An
    autoencoder's own mean and deviation of latents are heeded in the encoding too, unlike in diffusers.
    """

    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = (
        *XLImagePipeline._callback_tensor_inputs,
        "mask",
        "masked_image_latents",
    )
    EXTRA_CHANNELS: ClassVar[tuple[int, ...]] = (0, 5)

    @accept_lora_scale
    def __call__(
        self,
        prompt: Prompt | None = None,
        prompt_2: Prompt | None = None,
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
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
        ip_adapter_image: object = None,
        ip_adapter_image_embeds: object = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, float] | None = None,
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
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: object,
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
        output_type = check_output_type(output_type)
        if latents is not None and denoising_start is not None:
            raise ArgumentError("found `latents` and `denoising_start`; give what the run starts from as `image` alone")
        size = self._size_or_default(height, width)
        crop = (
            None if padding_mask_crop is None else masked_crop(image, mask_image, size, padding_mask_crop, output_type)
        )
        words = PromptArguments(
            prompt, prompt_2, negative_prompt, negative_prompt_2, prompt_embeds, negative_prompt_embeds,
            pooled_prompt_embeds, negative_pooled_prompt_embeds, num_images_per_prompt, clip_skip,
        )  # fmt: skip
        stated = SizeArguments(
            original_size, crops_coords_top_left, target_size, negative_original_size, negative_crops_coords_top_left,
            negative_target_size, (aesthetic_score, negative_aesthetic_score),
        )  # fmt: skip
        count = words.batch_size()
        pictures, mask = self._prepare_image_and_mask(image, mask_image, crop, size, count)
        inner = (size[0] // self._vae.downsample_factor, size[1] // self._vae.downsample_factor)
        check_latents(latents, (count, self._vae.config.latent_channels, *inner))
        ends = (denoising_start, denoising_end)
        run = self._denoising_range((num_inference_steps, timesteps, sigmas), strength, ends, eta)
        method = run.method(per_sample_or_first(noise_from_generator(generator, count)), self.dtype)
        guidance = self._guidance(guidance_scale, guidance_rescale)
        scored = bool(self.config["requires_aesthetics_score"])
        guided, tensors = self._condition(words, guidance, stated.for_image_to_image(size, scored))
        names, noisy = callback_on_step_end_tensor_inputs, denoising_start is not None
        job = InpaintJob(
            guided, pictures, mask, method, masked_image_latents, initial_noise=latents, is_noisy=noisy,
            from_pure_noise=not noisy and (strength == 1 or latents is not None),
            encode_masked_image="masked_image_latents" in names,
        )  # fmt: skip
        ready = _prepare_start(self._latent_diffusion(run, Listeners()), job)
        seen = {"mask": ready.mask, "masked_image_latents": ready.masked_image_latents}
        both = {n: torch.cat([v, v]) if v is not None and guidance.scale != 1 else v for n, v in seen.items()}
        calls = listeners(self, callback_on_step_end, names, tensors | both, kwargs)
        networks = self._latent_diffusion(run, calls, masks_replaced(self._unet, self._replaced()))
        experts = [networks.expert(ready.conditioning)]
        region = with_own_mask(ready.known_region)

        def task(on_step: OnStep) -> Tensor:
            follow = mask_followed(on_step, region, calls.replaced)
            return sample_latents(experts, ready.latents, method, networks.runtime, follow, region)

        made = self._run_task(run, calls, task)
        images = self._postprocess(made, output_type)
        images = images if crop is None else crop.overlay(images)
        return make_output(images, return_dict, (images,))


def _prepare_start(networks: LatentDiffusion, job: InpaintJob) -> PreparedInpaint:
    """The job made ready; latents that another pipeline left are also what is kept, as they are."""
    if job.image.shape[1] != 3 and job.masked_image is None and networks.unet_config.in_channels == job.image.shape[1]:
        return replace(
            _prepare_start(networks, replace(job, masked_image=job.image, encode_masked_image=False)),
            masked_image_latents=None,
        )
    ready = prepare_inpaint(networks, job)
    return replace(ready, latents=ready.latents * handoff_scale(job.plan.sigma_schedule)) if job.is_noisy else ready
