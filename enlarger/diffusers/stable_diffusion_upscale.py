"""`StableDiffusionUpscalePipeline`: the x4 upscaler under diffusers' name and keywords."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from enlarger.checkpoint.config.schedulers import sampler_from_config
from enlarger.diffusers.arguments import (
    ArgumentError,
    Generators,
    Prompt,
    batch_size_of,
    check_callback_steps,
    check_latents,
    check_output_type,
    check_prompts,
    noise_from_generator,
)
from enlarger.diffusers.callbacks import every_n_steps
from enlarger.diffusers.image_processor import preprocess
from enlarger.diffusers.pipeline import accept_lora_scale
from enlarger.diffusers.schedulers import Scheduler
from enlarger.diffusers.text_pipeline import TextPipeline, condition_on_embeds
from enlarger.diffusers.timesteps import make_solver, retrieve_sigma_schedule
from enlarger.diffusion.guidance import Guidance
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from enlarger.tasks.sampling import SamplingPlan
from enlarger.tasks.upscale.pixel_x4 import PixelUpscaleJob, upscale_pixel_x4
from enlarger.text.tokenize import Tokenizer


class StableDiffusionUpscalePipeline(TextPipeline):
    """Pictures to pictures of four times the size.

    With several pictures and several results of each, prompts and pictures are paired a, a, b, b; diffusers pairs the
    pictures a, b, a, b there. There is no watermarker: that part is None.
    """

    COMPONENT_TYPES: ClassVar[Mapping[str, type[Any]]] = {
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
    low_res_scheduler: Scheduler

    def __init__(
        self, vae: AutoencoderKL, text_encoder: ClipText, tokenizer: Tokenizer, unet: UNet,
        low_res_scheduler: Scheduler, scheduler: Scheduler, safety_checker: Any = None, feature_extractor: Any = None,
        watermarker: None = None, max_noise_level: int = 350,
    ) -> None:  # fmt: skip
        components = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet}
        schedulers = {"low_res_scheduler": low_res_scheduler, "scheduler": scheduler}
        optional = {
            "safety_checker": safety_checker, "feature_extractor": feature_extractor, "watermarker": watermarker
        }  # fmt: skip
        self._set_components(components | schedulers | optional, {"max_noise_level": max_noise_level})

    @accept_lora_scale
    def __call__(
        self,
        prompt: Prompt | None = None,
        image: Any = None,
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
        callback: Callable[[int, Any, Tensor], None] | None = None,
        callback_steps: int = 1,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        clip_skip: int | None = None,
    ) -> Any:
        """Upscale by four. `noise_level`, 0 to 350, is the step of the low-resolution schedule whose noise the picture
        gets: more lets the network invent more. Arguments that cannot be raise ValueError."""
        assert cross_attention_kwargs is None, "`accept_lora_scale` has dealt with it"
        check_callback_steps(callback_steps)
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        check_output_type(output_type)
        self._check_noise_level(noise_level)
        images_per_prompt = 1 if num_images_per_prompt is None else num_images_per_prompt
        num_prompts = batch_size_of(prompt, prompt_embeds)
        low_res, batch_size = self._prepare_image(image, num_prompts), num_prompts * images_per_prompt
        check_latents(latents, (batch_size, self.vae.config.latent_channels, *low_res.shape[2:]))
        sampler, is_guided = self.scheduler.sampler(), guidance_scale > 1
        embeds = self.encode_prompt(
            prompt, self.device, images_per_prompt, is_guided, negative_prompt, prompt_embeds, negative_prompt_embeds,
            clip_skip=clip_skip,
        )  # fmt: skip
        plan = SamplingPlan(
            retrieve_sigma_schedule(sampler, num_inference_steps),
            make_solver(sampler, eta),
            noise_from_generator(generator, batch_size),
        )
        guidance = Guidance(guidance_scale if is_guided else 1.0)
        low_res_schedule = sampler_from_config(self.low_res_scheduler.to_dict()).schedule
        job = PixelUpscaleJob(
            condition_on_embeds(embeds, guidance), low_res, plan, noise_level, low_res_schedule, latents
        )
        callbacks = [] if callback is None else [every_n_steps(callback, callback_steps)]
        denoised = self._run_task(
            sampler,
            plan.sigma_schedule,
            callbacks,
            lambda on_step: upscale_pixel_x4(self._latent_diffusion(sampler), job, on_step),
        )
        return self._make_output(denoised, str(output_type), return_dict)

    def _check_noise_level(self, level: int) -> None:
        max_level = self.config["max_noise_level"]
        if level > max_level:
            raise ArgumentError(f"`noise_level` has to be <= {max_level} but is {level}")
        if level < 0:
            raise ArgumentError(f"`noise_level` has to be 0 or above but is {level}")

    def _prepare_image(self, image: Any, num_prompts: int) -> Tensor:
        """The pictures, in -1..1, one or as many as there are prompts."""
        if image is None:
            raise ArgumentError("`image` is missing; give a picture, see help(pipe.__call__)")
        low_res = preprocess(image, self.vae.downsample_factor)
        if low_res.shape[1] != 3:
            raise ArgumentError(
                f"`image` has {low_res.shape[1]} channels, expected 3: the x4 upscaler takes pictures; for latents use "
                "StableDiffusionLatentUpscalePipeline"
            )
        if len(low_res) not in (1, num_prompts):
            raise ArgumentError(
                f"`prompt` has batch size {num_prompts} and `image` has batch size {len(low_res)}; give as many"
            )
        return low_res
