"""`StableDiffusionLatentUpscalePipeline`: the x2 latent upscaler under diffusers' name and keywords."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.types import Device

from enlarger.diffusers.call.arguments import (
    ArgumentError,
    Generators,
    Prompt,
    as_list,
    batch_size_of,
    check_callback_steps,
    check_latents,
    check_output_type,
    check_pooled,
    check_prompts,
    negative_prompts_for,
    noise_from_generator,
)
from enlarger.diffusers.call.callbacks import CallbackRunner, listeners
from enlarger.diffusers.call.pictures import LATENT_CHANNELS
from enlarger.diffusers.call.run import listed
from enlarger.diffusers.call.steps_by_hand import FromNoiseMethods
from enlarger.diffusers.pipelines.pipeline_output import make_output
from enlarger.diffusers.pipelines.pipeline_utils import Pipeline
from enlarger.diffusers.pipelines.text_pipeline import PooledEmbeds, text_features
from enlarger.diffusers.schedulers import Scheduler
from enlarger.diffusers.schedulers.dpm import IntegratedScheduler
from enlarger.diffusers.types import OlderCallback, PipelineImageInput
from enlarger.diffusion.guidance import Guidance
from enlarger.diffusion.precondition import Precondition, karras, karras_as_diffusers
from enlarger.diffusion.sampler import Sampler
from enlarger.diffusion.schedule import scaled_linear
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.k_unet import KUNet
from enlarger.tasks.upscale.latent_x2 import LatentUpscaleJob, LatentUpscaler
from enlarger.text.encode import encode_prompts
from enlarger.text.tokenize import Tokenizer

log = logging.getLogger(__name__)
X2_SCHEDULE = scaled_linear(0.00085, 0.012)  # of a sampler that is not asked here


class StableDiffusionLatentUpscalePipeline(FromNoiseMethods, Pipeline):
    """Latents or pictures to pictures of twice the size.

    What the network predicts is part of the model, so `prediction_type` of a swapped scheduler does not matter here,
    and schedulers that diffusers' pipeline cannot run (Euler ancestral, DDIM, PNDM) work too. The one exception is
    "sample" with DPM-Solver, UniPC or DEIS: that is diffusers' picture, which is not the model's.
    """

    COMPONENT_TYPES: ClassVar[Mapping[str, type[object]]] = {
        "vae": AutoencoderKL,
        "text_encoder": ClipText,
        "tokenizer": Tokenizer,
        "unet": KUNet,
        "scheduler": Scheduler,
    }
    SIZED_IN_LATENTS: ClassVar[bool] = True
    RESAMPLE: ClassVar[str] = "bicubic"
    unet: Any

    def __init__(
        self, vae: AutoencoderKL, text_encoder: ClipText, tokenizer: Tokenizer, unet: KUNet, scheduler: Scheduler
    ) -> None:
        given = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet}
        super().__init__(given | {"scheduler": scheduler})

    def __call__(
        self,
        prompt: Prompt | None = None,
        image: PipelineImageInput | None = None,
        num_inference_steps: int = 75,
        guidance_scale: float = 9.0,
        negative_prompt: Prompt | None = None,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback: OlderCallback | None = None,
        callback_steps: int = 1,
    ) -> Any:
        """Upscale by two. Latents of Stable Diffusion have 4 channels; see `pictures.preprocess` for pictures.

        Guidance at or below 1 runs the prompt alone, at 0 the empty prompt. Arguments that cannot be raise ValueError.
        """
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        check_pooled("", prompt_embeds, pooled_prompt_embeds)
        check_pooled("negative_", negative_prompt_embeds, negative_pooled_prompt_embeds)
        check_callback_steps(callback_steps)
        output_type = check_output_type(output_type)
        count = batch_size_of(prompt, prompt_embeds)
        low = self._prepare_image(image, count)
        run = listed(self.scheduler, (num_inference_steps, None, None))
        method = run.method(noise_from_generator(generator, count), self.dtype)
        check_latents(latents, (count, LATENT_CHANNELS, *(2 * side for side in self._latent_size(low))))
        guided = guidance_scale > 1
        embeds = self.encode_prompt(
            [""] * count if guidance_scale == 0 and prompt is not None else prompt,
            self.device,
            guided,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
        )
        guidance = Guidance(guidance_scale if guided else 1.0)
        job = LatentUpscaleJob(
            low,
            text_features(embeds),
            method.sigma_schedule,
            method.solver,
            method.noise,
            guidance,
            initial_noise=latents,
        )
        upscaler = LatentUpscaler(
            self._tokenizer,
            self._text_encoder,
            self._unet,
            self._vae,
            Sampler(X2_SCHEDULE),
            self._runtime,
            tile_vae=self._tile_vae,
            precondition=self._precondition(),
        )
        heard = listeners(self, None, (), {}, {"callback": callback, "callback_steps": callback_steps})
        with self.progress_bar(total=run.steps) as bar:
            denoised = upscaler.upscale_latents(job, CallbackRunner(run, self.dtype, bar, heard).on_step())
        images = self._postprocess(denoised, output_type)
        return make_output(images, return_dict, (images,))

    def encode_prompt(
        self,
        prompt: Prompt | None,
        device: Device,
        do_classifier_free_guidance: bool,
        negative_prompt: Prompt | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
    ) -> PooledEmbeds:
        """(prompt, negative prompt, pooled prompt, pooled negative prompt) as features; those given are kept."""
        count = batch_size_of(prompt, prompt_embeds)
        if prompt_embeds is None or pooled_prompt_embeds is None:
            assert prompt is not None, "either a prompt or both of its embeddings"
            prompt_embeds, pooled_prompt_embeds = self._encode(as_list(prompt), device)
        if do_classifier_free_guidance and (negative_prompt_embeds is None or negative_pooled_prompt_embeds is None):
            negatives = negative_prompts_for(prompt, negative_prompt, count)
            negative_prompt_embeds, negative_pooled_prompt_embeds = self._encode(negatives, device)
        return prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds

    def _precondition(self) -> Precondition:
        """The model's; diffusers' where it runs a scheduler of unit variance, which is said."""
        scheduler = self.scheduler
        if not isinstance(scheduler, IntegratedScheduler) or scheduler.config["prediction_type"] != "sample":
            return karras()
        log.warning(
            "%s with prediction_type 'sample' gives diffusers' picture, whose latents the x2 upscaler was not trained "
            "on; set prediction_type to 'original_sample' for the model's own, or use EulerDiscreteScheduler",
            type(scheduler).__name__,
        )
        return karras_as_diffusers()

    def _encode(self, texts: list[str], device: Device) -> tuple[Tensor, Tensor]:
        with self._runtime.hold(self._text_encoder) as encoder:
            found = encode_prompts(self._tokenizer, encoder, texts, layer="last")
        return found.tokens.to(device), found.pooled.to(device)

    def _prepare_image(self, image: PipelineImageInput | None, count: int) -> Tensor:
        if image is None:
            raise ArgumentError("`image` is missing; give a picture or latents, see help(pipe.__call__)")
        low = self._read_pictures(image)
        if len(low) != count:
            raise ArgumentError(f"`prompt` has batch size {count} and `image` has batch size {len(low)}; give as many")
        if low.shape[1] != LATENT_CHANNELS and low.shape[1] != 3:
            raise ArgumentError(f"`image` has {low.shape[1]} channels, expected 3 of a picture or 4 of latents")
        height, width = self._latent_size(low)
        if (
            height % (self._unet.size_multiple // 2)
            or width % (self._unet.size_multiple // 2)
            or min(height, width) < self._unet.size_multiple
        ):
            multiple = (
                self._unet.size_multiple // 2 * (1 if low.shape[1] == LATENT_CHANNELS else self._vae.downsample_factor)
            )
            raise ArgumentError(
                f"`image` is {low.shape[3]} x {low.shape[2]}, expected multiples of {multiple} and at least "
                f"{2 * multiple}; resize it, or use enlarger.upscale, which takes any size"
            )
        return low

    def _latent_size(self, low: Tensor) -> tuple[int, int]:
        factor = 1 if low.shape[1] == LATENT_CHANNELS else self._vae.downsample_factor
        return low.shape[2] // factor, low.shape[3] // factor
