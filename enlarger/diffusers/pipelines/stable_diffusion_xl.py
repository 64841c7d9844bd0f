"""`StableDiffusionXLPipeline`: text to pictures with SDXL under diffusers' name and keywords."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from enlarger.diffusers.call.adapter_scale import accept_lora_scale
from enlarger.diffusers.call.arguments import (
    Generators,
    Prompt,
    check_latents,
    check_output_type,
    noise_from_generator,
    reject_unsupported,
)
from enlarger.diffusers.call.callbacks import listeners
from enlarger.diffusers.call.steps_by_hand import FromNoiseMethods
from enlarger.diffusers.pipelines import __getattr__ as __getattr__  # the names of diffusers' package
from enlarger.diffusers.pipelines.text_pipeline import UNSUPPORTED_ADVICE
from enlarger.diffusers.pipelines.xl_pipeline import PromptArguments, SizeArguments, SizePair, XLPipeline
from enlarger.diffusers.schedulers import Scheduler
from enlarger.diffusers.types import OnStepEnd
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from enlarger.tasks.latent_diffusion.conditioning import MicroConditioning
from enlarger.tasks.text_to_image import TextToImageJob, text_to_image
from enlarger.text.tokenize import Tokenizer


class StableDiffusionXLPipeline(FromNoiseMethods, XLPipeline):
    """Text to pictures, or to latents that the refiner takes over from.

    In a batch the sizes of the negative prompt are told to its own branch; diffusers mixes both up there.
    """

    def __init__(
        self, vae: AutoencoderKL, text_encoder: ClipText | None, text_encoder_2: ClipText | None,
        tokenizer: Tokenizer | None, tokenizer_2: Tokenizer | None, unet: UNet, scheduler: Scheduler,
        image_encoder: None = None, feature_extractor: None = None, force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ) -> None:  # fmt: skip
        given = {"vae": vae, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2, "tokenizer": tokenizer}
        given |= {"tokenizer_2": tokenizer_2, "unet": unet, "scheduler": scheduler}
        given |= {"image_encoder": image_encoder, "feature_extractor": feature_extractor}
        settings = {"force_zeros_for_empty_prompt": force_zeros_for_empty_prompt, "add_watermarker": add_watermarker}
        self._set_components(given, settings)

    def _get_add_time_ids(
        self, original_size: SizePair, crops_coords_top_left: SizePair, target_size: SizePair, dtype: torch.dtype,
        text_encoder_projection_dim: int | None = None,
    ) -> Tensor:  # fmt: skip
        """The sizes as the network takes them, (1, 6)."""
        return MicroConditioning(original_size, crops_coords_top_left, target_size).time_ids().to(dtype)

    @accept_lora_scale
    def __call__(
        self,
        prompt: Prompt | None = None,
        prompt_2: Prompt | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
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
        clip_skip: int | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: object,
    ) -> Any:
        """Make pictures. `kwargs` are the older `callback` and `callback_steps`.

        Sizes are (height, width) in pixels: of the picture that the network shall think of as the original, where it
        was cropped, and its target. `denoising_end` stops after that share of the training time, with noise left in
        the latents. The rest is as in `StableDiffusionPipeline`.
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
            original_size,
            crops_coords_top_left,
            target_size,
            negative_original_size,
            negative_crops_coords_top_left,
            negative_target_size,
        )
        count = words.batch_size()
        height, width = self._size_or_default(height, width, latents)
        size = (height // self._vae.downsample_factor, width // self._vae.downsample_factor)
        check_latents(latents, (count, self._vae.config.latent_channels, *size))
        run = self._denoising_range((num_inference_steps, timesteps, sigmas), 1.0, (None, denoising_end), eta)
        guidance = self._guidance(guidance_scale, guidance_rescale)
        conditioning, tensors = self._condition(words, guidance, stated.for_text_to_image((height, width)))
        calls = listeners(self, callback_on_step_end, callback_on_step_end_tensor_inputs, tensors, kwargs)
        job = TextToImageJob(
            conditioning, size, run.method(noise_from_generator(generator, count), self.dtype), latents
        )
        networks = self._latent_diffusion(run, calls, self._replaced())
        made = self._run_task(run, calls, lambda on_step: text_to_image(networks, job, on_step))
        return self._finish_output(made, output_type, return_dict)
