"""`StableDiffusionUpscalePipeline`: the x4 upscaler under diffusers' name and keywords."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from enlarger.diffusers.call.adapter_scale import accept_lora_scale
from enlarger.diffusers.call.arguments import (
    ArgumentError,
    Generators,
    Prompt,
    batch_size_of,
    check_callback_steps,
    check_latents,
    check_output_type,
    check_prompts,
    images_per_prompt,
    noise_from_generator,
)
from enlarger.diffusers.call.callbacks import listeners
from enlarger.diffusers.call.run import listed
from enlarger.diffusers.call.steps_by_hand import FromNoiseMethods
from enlarger.diffusers.pipelines.image_pipeline import per_sample_or_first
from enlarger.diffusers.pipelines.text_pipeline import TextPipeline, condition_on_embeds
from enlarger.diffusers.schedulers import Scheduler
from enlarger.diffusers.types import OlderCallback, PipelineImageInput
from enlarger.diffusion.listing import level_of
from enlarger.diffusion.schedule import NoiseSchedule
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from enlarger.tasks.upscale.pixel_x4 import PixelUpscaleJob, upscale_pixel_x4
from enlarger.text.tokenize import Tokenizer


class StableDiffusionUpscalePipeline(FromNoiseMethods, TextPipeline):
    """Pictures to pictures of four times the size.

    With several pictures and several results of each, prompts and pictures are paired a, a, b, b; diffusers pairs the
    pictures a, b, a, b there. There is no watermarker: that part is None.
    """

    COMPONENT_TYPES: ClassVar[Mapping[str, type[object]]] = {
        "vae": AutoencoderKL,
        "text_encoder": ClipText,
        "tokenizer": Tokenizer,
        "unet": UNet,
        "low_res_scheduler": Scheduler,
        "scheduler": Scheduler,
        "safety_checker": TextPipeline.COMPONENT_TYPES["safety_checker"],
        "feature_extractor": TextPipeline.COMPONENT_TYPES["feature_extractor"],
        "watermarker": type(None),
    }
    CONFIG_KEYS: ClassVar[tuple[str, ...]] = ("max_noise_level",)
    UPCAST: ClassVar[bool] = True
    CHECKPOINT_KIND: ClassVar[str] = "an x4 upscaler's"
    EXTRA_CHANNELS: ClassVar[tuple[int, ...]] = (3,)
    SIZED_IN_LATENTS: ClassVar[bool] = True
    RESAMPLE: ClassVar[str] = "bicubic"
    low_res_scheduler: Scheduler

    def __init__(
        self, vae: AutoencoderKL, text_encoder: ClipText, tokenizer: Tokenizer, unet: UNet,
        low_res_scheduler: Scheduler, scheduler: Scheduler, safety_checker: object = None,
        feature_extractor: object = None, watermarker: None = None, max_noise_level: int = 350,
    ) -> None:  # fmt: skip
        given = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet}
        schedulers = {"low_res_scheduler": low_res_scheduler, "scheduler": scheduler}
        absent = {"safety_checker": safety_checker, "feature_extractor": feature_extractor, "watermarker": watermarker}
        self._set_components(given | schedulers | absent, {"max_noise_level": max_noise_level})

    @accept_lora_scale
    def __call__(
        self,
        prompt: Prompt | None = None,
        image: PipelineImageInput | None = None,
        num_inference_steps: int = 75,
        guidance_scale: float = 9.0,
        noise_level: int = 20,
        negative_prompt: Prompt | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback: OlderCallback | None = None,
        callback_steps: int = 1,
        cross_attention_kwargs: Mapping[str, float] | None = None,
        clip_skip: int | None = None,
    ) -> Any:
        """Upscale by four. `noise_level`, 0 to 350, is the step of the low-resolution schedule whose noise the picture
        gets: more lets the network invent more. Arguments that cannot be raise ValueError."""
        assert cross_attention_kwargs is None, "`accept_lora_scale` has dealt with it"
        check_callback_steps(callback_steps)
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        output_type = check_output_type(output_type)
        self._check_noise_level(noise_level)
        each = images_per_prompt(num_images_per_prompt)
        prompts = batch_size_of(prompt, prompt_embeds)
        low, count = self._prepare_image(image, prompts), prompts * each
        check_latents(latents, (count, self._vae.config.latent_channels, *low.shape[2:]))
        guidance = self._guidance(guidance_scale)
        embeds = self.encode_prompt(
            prompt, self.device, each, self.do_classifier_free_guidance, negative_prompt, prompt_embeds,
            negative_prompt_embeds, clip_skip=clip_skip,
        )  # fmt: skip
        run = listed(self.scheduler, (num_inference_steps, None, None), eta)
        noise = noise_from_generator(generator, count)
        method = run.method(per_sample_or_first(noise) if len(low) == 1 else noise, self.dtype)
        schedule = NoiseSchedule(level_of(self.low_res_scheduler.alphas_cumprod))
        job = PixelUpscaleJob(condition_on_embeds(embeds, guidance), low, method, int(noise_level), schedule, latents)
        calls = listeners(self, None, (), {}, {"callback": callback, "callback_steps": callback_steps})
        networks = self._latent_diffusion(run, calls)
        made = self._run_task(run, calls, lambda on_step: upscale_pixel_x4(networks, job, on_step))
        return self._make_output(made, output_type, return_dict)

    def _check_noise_level(self, level: int) -> None:
        most = self.config["max_noise_level"]
        if level > most:
            raise ArgumentError(f"`noise_level` has to be <= {most} but is {level}")
        if level < 0:
            raise ArgumentError(f"`noise_level` has to be 0 or above but is {level}")

    def _prepare_image(self, image: PipelineImageInput | None, prompts: int) -> Tensor:
        """The pictures, in -1..1, one or as many as there are prompts."""
        if image is None:
            raise ArgumentError("`image` is missing; give a picture, see help(pipe.__call__)")
        low = self._read_pictures(image)
        if low.shape[1] != 3:
            raise ArgumentError(
                f"`image` has {low.shape[1]} channels, expected 3: the x4 upscaler takes pictures; for latents use "
                "StableDiffusionLatentUpscalePipeline"
            )
        if len(low) not in (1, prompts):
            raise ArgumentError(
                f"`prompt` has batch size {prompts} and `image` has batch size {len(low)}; give as many"
            )
        return low
