"""`StableDiffusionXLImg2ImgPipeline`: pictures to pictures like them with SDXL, base or refiner."""

from collections.abc import Mapping, Sequence
from typing import Any

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
from enlarger.diffusers.call.callbacks import listeners
from enlarger.diffusers.call.pictures import Size
from enlarger.diffusers.call.steps_by_hand import FromPictureMethods
from enlarger.diffusers.pipelines.text_pipeline import UNSUPPORTED_ADVICE
from enlarger.diffusers.pipelines.xl_pipeline import (
    PromptArguments,
    SizeArguments,
    SizePair,
    XLImagePipeline,
    handoff_scale,
)
from enlarger.diffusers.types import OnStepEnd, PipelineImageInput
from enlarger.diffusion.noise import PerSampleGenerators
from enlarger.tasks.image_to_image import ImageToImageJob, image_to_image
from enlarger.tasks.latent_diffusion.latent_diffusion import LatentDiffusion
from enlarger.tasks.latent_diffusion.latent_diffusion import expand_to_batch as copies
from enlarger.tasks.latent_diffusion.sampling import SamplingPlan


class StableDiffusionXLImg2ImgPipeline(FromPictureMethods, XLImagePipeline):
    """Pictures, with noise, to pictures like them; or the rest of the way for latents that another pipeline left."""

    @accept_lora_scale
    def __call__(
        self,
        prompt: Prompt | None = None,
        prompt_2: Prompt | None = None,
        image: PipelineImageInput | None = None,
        strength: float = 0.3,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        guidance_scale: float = 5.0,
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
        """Remake pictures, or latents (B, 4, h, w). `kwargs` are the older `callback` and `callback_steps`.

        The last `strength` of the steps are made; with `denoising_start` instead those after that share of the training
        time, and no noise is added: `image` then is latents that another pipeline left there. `latents`, which have
        their noise already too, stand in for `image`. The refiner is told `aesthetic_score` in place of `target_size`.
        The rest is as in `StableDiffusionXLPipeline`.
        """
        assert cross_attention_kwargs is None, "`accept_lora_scale` has dealt with it"
        reject_unsupported(
            {"ip_adapter_image": ip_adapter_image, "ip_adapter_image_embeds": ip_adapter_image_embeds},
            UNSUPPORTED_ADVICE,
        )
        output_type = check_output_type(output_type)
        words = PromptArguments(
            prompt, prompt_2, negative_prompt, negative_prompt_2, prompt_embeds, negative_prompt_embeds,
            pooled_prompt_embeds, negative_pooled_prompt_embeds, num_images_per_prompt, clip_skip,
        )  # fmt: skip
        stated = SizeArguments(
            original_size, crops_coords_top_left, target_size, negative_original_size, negative_crops_coords_top_left,
            negative_target_size, (aesthetic_score, negative_aesthetic_score),
        )  # fmt: skip
        count = words.batch_size()
        pictures = self._prepare_images(image, count) if latents is None else self._check_noisy_latents(latents, count)
        ends = (denoising_start, denoising_end)
        run = self._denoising_range((num_inference_steps, timesteps, sigmas), strength, ends, eta)
        method = run.method(noise_from_generator(generator, count), self.dtype)
        guidance = self._guidance(guidance_scale, guidance_rescale)
        sizes = stated.for_image_to_image(self._pixel_size(pictures), bool(self.config["requires_aesthetics_score"]))
        conditioning, tensors = self._condition(words, guidance, sizes)
        calls = listeners(self, callback_on_step_end, callback_on_step_end_tensor_inputs, tensors, kwargs)
        networks = self._latent_diffusion(run, calls, self._replaced())
        noisy = latents is not None or denoising_start is not None
        start = _handoff_latents(networks, pictures, method, count) if noisy else pictures
        job = ImageToImageJob(conditioning, start, method, noisy)
        made = self._run_task(run, calls, lambda on_step: image_to_image(networks, job, on_step))
        return self._finish_output(made, output_type, return_dict)

    def _check_noisy_latents(self, latents: Tensor, count: int) -> Tensor:
        """Latents for each result."""
        if latents.ndim != 4:
            raise ArgumentError(f"`latents` has shape {tuple(latents.shape)}, expected (B, C, h, w)")
        check_latents(latents, (count, self._vae.config.latent_channels, *latents.shape[2:]))
        return latents

    def _pixel_size(self, pictures: Tensor) -> Size:
        """Height and width in pixels of pictures or latents."""
        factor = 1 if pictures.shape[1] == 3 else self._vae.downsample_factor
        return pictures.shape[2] * factor, pictures.shape[3] * factor


def _handoff_latents(networks: LatentDiffusion, pictures: Tensor, method: SamplingPlan, count: int) -> Tensor:
    """Latents in which the noise of the first level is taken to be."""
    each = copies(pictures, count) if isinstance(method.noise, PerSampleGenerators) else pictures
    return networks.encode(each, method.noise) * handoff_scale(method.sigma_schedule)
