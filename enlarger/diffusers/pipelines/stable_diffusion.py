"""`StableDiffusionPipeline`: text to pictures with SD1 and SD2 under diffusers' name and keywords."""

from collections.abc import Mapping, Sequence
from typing import Any

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
from enlarger.diffusers.call.run import listed
from enlarger.diffusers.call.steps_by_hand import FromNoiseMethods
from enlarger.diffusers.pipelines import __getattr__ as __getattr__  # the names of diffusers' package
from enlarger.diffusers.pipelines.text_pipeline import UNSUPPORTED_ADVICE, TextPipeline, condition_on_embeds
from enlarger.diffusers.types import OnStepEnd
from enlarger.tasks.text_to_image import TextToImageJob, text_to_image


class StableDiffusionPipeline(FromNoiseMethods, TextPipeline):
    """Text to pictures."""

    @accept_lora_scale
    def __call__(
        self,
        prompt: Prompt | None = None,
        height: int | None = None,
        width: int | None = None,
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
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: object,
    ) -> Any:
        """Make pictures. `kwargs` are the older `callback` and `callback_steps`.

        `timesteps` and `sigmas` are falling lists that replace the scheduler's own; `sigmas` has one more than there
        are steps and mostly ends at 0. `eta` is DDIM's alone. Guidance at or below 1 runs the prompt alone. Arguments
        that cannot be raise ValueError.
        """
        assert cross_attention_kwargs is None, "`accept_lora_scale` has dealt with it"
        reject_unsupported(
            {"ip_adapter_image": ip_adapter_image, "ip_adapter_image_embeds": ip_adapter_image_embeds},
            UNSUPPORTED_ADVICE,
        )
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        output_type = check_output_type(output_type)
        height, width = self._size_or_default(height, width, latents)
        each = images_per_prompt(num_images_per_prompt)
        count = batch_size_of(prompt, prompt_embeds) * each
        size = (height // self._vae.downsample_factor, width // self._vae.downsample_factor)
        check_latents(latents, (count, self._vae.config.latent_channels, *size))
        run = listed(self.scheduler, (num_inference_steps, timesteps, sigmas), eta)
        method = run.method(noise_from_generator(generator, count), self.dtype)
        guidance = self._guidance(guidance_scale, guidance_rescale)
        embeds = self.encode_prompt(
            prompt, self.device, each, self.do_classifier_free_guidance, negative_prompt, prompt_embeds,
            negative_prompt_embeds, clip_skip=clip_skip,
        )  # fmt: skip
        calls = self._prompt_callbacks(callback_on_step_end, callback_on_step_end_tensor_inputs, embeds, kwargs)
        job = TextToImageJob(condition_on_embeds(embeds, guidance), size, method, latents)
        networks = self._latent_diffusion(run, calls)
        made = self._run_task(run, calls, lambda on_step: text_to_image(networks, job, on_step))
        return self._make_output(made, output_type, return_dict)
