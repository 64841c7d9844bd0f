"""`StableDiffusionInpaintPipeline`: repainting a part of pictures with SD1 and SD2."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from enlarger.diffusers.call.adapter_scale import accept_lora_scale
from enlarger.diffusers.call.arguments import (
    Generators,
    Prompt,
    batch_size_of,
    check_latents,
    check_output_type,
    check_prompts,
    images_per_prompt,
    noise_from_generator,
    reject_unsupported,
)
from enlarger.diffusers.call.callbacks import Listeners, listeners
from enlarger.diffusers.call.live_values import mask_followed, masks_replaced, tokens_replaced, with_own_mask
from enlarger.diffusers.call.run import last_part, listed
from enlarger.diffusers.call.steps_by_hand import MaskedMethods
from enlarger.diffusers.pipelines.image_pipeline import (
    ImagePipeline,
    callback_tensors,
    check_strength,
    masked_crop,
    per_sample_or_first,
)
from enlarger.diffusers.pipelines.pipeline_output import PipelineOutput
from enlarger.diffusers.pipelines.text_pipeline import UNSUPPORTED_ADVICE, condition_on_embeds
from enlarger.diffusers.schedulers import Scheduler
from enlarger.diffusers.types import OnStepEnd, PipelineImageInput
from enlarger.diffusion.sample import OnStep
from enlarger.tasks.inpaint import InpaintJob, prepare_inpaint
from enlarger.tasks.latent_diffusion.sampling import sample_latents


class StableDiffusionInpaintPipeline(MaskedMethods, ImagePipeline):
    """Pictures to pictures that are repainted where a mask is white, with a UNet of 9 channels or of 4.

    What the mask leaves black is kept in latents only, and changes a little in pixels; `padding_mask_crop` pastes the
    result back through the mask. As in diffusers, PNDM leaves out its Runge-Kutta start here.
    """

    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = (
        *ImagePipeline._callback_tensor_inputs,
        "mask",
        "masked_image_latents",
    )
    CHECKPOINT_KIND: ClassVar[str] = "an inpainting"
    EXTRA_CHANNELS: ClassVar[tuple[int, ...]] = (0, 5)

    def _set_components(self, parts: Mapping[str, object], settings: Mapping[str, object] | None = None) -> None:
        super()._set_components({**parts, "scheduler": _skip_prk_steps(parts["scheduler"])}, settings)

    @accept_lora_scale
    def __call__(
        self,
        prompt: Prompt | None = None,
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
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
        ip_adapter_image: object = None,
        ip_adapter_image_embeds: object = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, float] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: object,
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
        output_type = check_output_type(output_type)
        crop = (
            None if padding_mask_crop is None else masked_crop(image, mask_image, size, padding_mask_crop, output_type)
        )
        each = images_per_prompt(num_images_per_prompt)
        count = batch_size_of(prompt, prompt_embeds) * each
        pictures, mask = self._prepare_image_and_mask(image, mask_image, crop, size, count)
        inner = (size[0] // self._vae.downsample_factor, size[1] // self._vae.downsample_factor)
        check_latents(latents, (count, self._vae.config.latent_channels, *inner))
        run = last_part(listed(self.scheduler, (num_inference_steps, timesteps, sigmas), eta), strength)
        method = run.method(per_sample_or_first(noise_from_generator(generator, count)), self.dtype)
        guidance = self._guidance(guidance_scale)
        embeds = self.encode_prompt(
            prompt, self.device, each, self.do_classifier_free_guidance, negative_prompt, prompt_embeds,
            negative_prompt_embeds, clip_skip=clip_skip,
        )  # fmt: skip
        names = callback_on_step_end_tensor_inputs
        job = InpaintJob(
            condition_on_embeds(embeds, guidance), pictures, mask, method, masked_image_latents,
            from_pure_noise=strength == 1 or latents is not None, initial_noise=latents,
            encode_masked_image="masked_image_latents" in names,
        )  # fmt: skip
        ready = prepare_inpaint(self._latent_diffusion(run, Listeners()), job)
        tensors = callback_tensors(embeds, mask=ready.mask, masked_image_latents=ready.masked_image_latents)
        calls = listeners(self, callback_on_step_end, names, tensors, kwargs)
        networks = self._latent_diffusion(run, calls, masks_replaced(self._unet, tokens_replaced))
        experts = [networks.expert(ready.conditioning)]
        region = with_own_mask(ready.known_region)

        def task(on_step: OnStep) -> Tensor:
            follow = mask_followed(on_step, region, calls.replaced)
            return sample_latents(experts, ready.latents, method, networks.runtime, follow, region)

        made = self._run_task(run, calls, task)
        result = self._make_output(made, output_type, True)
        images = result.images if crop is None else crop.overlay(result.images)
        flags = result.nsfw_content_detected
        return PipelineOutput(images, flags) if return_dict else (images, flags)


def _skip_prk_steps(scheduler: object) -> object:
    if not isinstance(scheduler, Scheduler) or scheduler.config.get("skip_prk_steps") is not False:
        return scheduler
    warnings.warn(f"{scheduler}: outdated for inpainting; uses skip_prk_steps=True", stacklevel=3)
    return scheduler.with_config(skip_prk_steps=True)
