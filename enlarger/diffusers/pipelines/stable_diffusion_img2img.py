"""`StableDiffusionImg2ImgPipeline`: pictures to pictures like them with SD1 and SD2."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from enlarger.diffusers.call.adapter_scale import accept_lora_scale
from enlarger.diffusers.call.arguments import (
    Generators,
    Prompt,
    batch_size_of,
    check_output_type,
    check_prompts,
    images_per_prompt,
    noise_from_generator,
    reject_unsupported,
)
from enlarger.diffusers.call.run import last_part, listed
from enlarger.diffusers.call.steps_by_hand import FromPictureMethods
from enlarger.diffusers.pipelines.image_pipeline import ImagePipeline, check_strength
from enlarger.diffusers.pipelines.text_pipeline import UNSUPPORTED_ADVICE, condition_on_embeds
from enlarger.diffusers.types import OnStepEnd, PipelineImageInput
from enlarger.tasks.image_to_image import ImageToImageJob, image_to_image


class StableDiffusionImg2ImgPipeline(FromPictureMethods, ImagePipeline):
    """Pictures, with noise, to pictures like them."""

    CHECKPOINT_KIND: ClassVar[str] = "an image-to-image"

    @accept_lora_scale
    def __call__(
        self,
        prompt: Prompt | None = None,
        image: PipelineImageInput | None = None,
        strength: float = 0.8,
        num_inference_steps: int | None = 50,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = 7.5,
        negative_prompt: Prompt | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float | None = 0.0,
        generator: Generators | None = None,
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
        """Remake pictures, or latents (B, 4, h, w). `kwargs` are the older `callback` and `callback_steps`.

        The last `strength` of the steps are made, of those that `timesteps` or `sigmas` list too. For pictures see
        `pictures.preprocess`. Guidance at or below 1 runs the prompt alone. Arguments that cannot be raise ValueError.
        """
        assert cross_attention_kwargs is None, "`accept_lora_scale` has dealt with it"
        reject_unsupported(
            {"ip_adapter_image": ip_adapter_image, "ip_adapter_image_embeds": ip_adapter_image_embeds},
            UNSUPPORTED_ADVICE,
        )
        check_strength(strength)
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        output_type = check_output_type(output_type)
        each = images_per_prompt(num_images_per_prompt)
        count = batch_size_of(prompt, prompt_embeds) * each
        pictures = self._prepare_images(image, count)
        run = last_part(listed(self.scheduler, (num_inference_steps, timesteps, sigmas), eta or 0.0), strength)
        method = run.method(noise_from_generator(generator, count), self.dtype)
        guidance = self._guidance(1.0 if guidance_scale is None else guidance_scale)
        embeds = self.encode_prompt(
            prompt, self.device, each, self.do_classifier_free_guidance, negative_prompt, prompt_embeds,
            negative_prompt_embeds, clip_skip=clip_skip,
        )  # fmt: skip
        calls = self._prompt_callbacks(callback_on_step_end, callback_on_step_end_tensor_inputs, embeds, kwargs)
        job = ImageToImageJob(condition_on_embeds(embeds, guidance), pictures, method)
        networks = self._latent_diffusion(run, calls)
        made = self._run_task(run, calls, lambda on_step: image_to_image(networks, job, on_step))
        return self._make_output(made, output_type, return_dict)
