"""`StableDiffusionDepth2ImgPipeline`: pictures to pictures of the same depth with SD2's depth checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.types import Device

from enlarger.checkpoint.components import PipelineComponents
from enlarger.diffusers.call.adapter_scale import accept_lora_scale
from enlarger.diffusers.call.arguments import (
    ArgumentError,
    Generators,
    Prompt,
    batch_size_of,
    check_output_type,
    check_prompts,
    images_per_prompt,
    noise_from_generator,
)
from enlarger.diffusers.call.callbacks import listeners
from enlarger.diffusers.call.live_values import channels_replaced
from enlarger.diffusers.call.pictures import lowered_size, preprocess
from enlarger.diffusers.call.run import last_part, listed
from enlarger.diffusers.call.steps_by_hand import FromPictureMethods
from enlarger.diffusers.models.foreign import with_extractor
from enlarger.diffusers.pipelines.image_pipeline import (
    ImagePipeline,
    callback_tensors,
    check_batch_size,
    check_strength,
)
from enlarger.diffusers.pipelines.pipeline_output import PipelineOutput
from enlarger.diffusers.pipelines.text_pipeline import TextPipeline, condition_on_embeds, correct_scheduler_config
from enlarger.diffusers.schedulers import Scheduler
from enlarger.diffusers.types import OnStepEnd, PipelineImageInput
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.unet import UNet
from enlarger.tasks.auxiliary.depth_estimator import DepthEstimator, normalise_depth, read_depth_map
from enlarger.tasks.image_to_image import ImageToImageJob, image_to_image
from enlarger.tasks.latent_diffusion.latent_diffusion import expand_to_batch as copies
from enlarger.text.tokenize import Tokenizer


class StableDiffusionDepth2ImgPipeline(FromPictureMethods, ImagePipeline):
    """Pictures to pictures like them, whose depth the network is condition_on_embeds.

    The folder's depth estimator is read where transformers is installed; `feature_extractor`, a part of it here, is
    None. Arrays keep their height and width, which diffusers swaps; a map without near and far is told as zeros, where
    diffusers divides by zero.
    """

    COMPONENT_TYPES: ClassVar[Mapping[str, type[object]]] = {
        **{
            name: TextPipeline.COMPONENT_TYPES[name]
            for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
        },
        "depth_estimator": DepthEstimator,
        "feature_extractor": type(None),
    }
    OPTIONAL_COMPONENTS: ClassVar[frozenset[str]] = frozenset({"depth_estimator"})
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = (*ImagePipeline._callback_tensor_inputs, "depth_mask")
    CONFIG_KEYS: ClassVar[tuple[str, ...]] = ()
    CHECKPOINT_KIND: ClassVar[str] = "a depth"
    EXTRA_CHANNELS: ClassVar[tuple[int, ...]] = (1,)
    depth_estimator: DepthEstimator | None
    feature_extractor: Any

    def __init__(
        self, vae: AutoencoderKL, text_encoder: ClipText, tokenizer: Tokenizer, unet: UNet, scheduler: Scheduler,
        depth_estimator: DepthEstimator | None, feature_extractor: None,
    ) -> None:  # fmt: skip
        given = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet}
        depth = {"depth_estimator": depth_estimator, "feature_extractor": feature_extractor}
        self._set_components(given | depth | {"scheduler": correct_scheduler_config(scheduler)})

    @classmethod
    def _components_to_load(cls, path: Path) -> list[str]:
        return [name for name in super()._components_to_load(path) if name != "depth_estimator"]

    @classmethod
    def _vision_parts(
        cls, bundle: PipelineComponents, variant: str | None, given: Mapping[str, object]
    ) -> Mapping[str, object]:
        stated: Any = bundle.index.get("depth_estimator") or (None, None)
        if stated[1] is not None and "depth_estimator" not in given:
            return {**given, "depth_estimator": DepthEstimator.from_folder(bundle.path, variant=variant)}
        return given

    @accept_lora_scale
    def __call__(
        self,
        prompt: Prompt | None = None,
        image: PipelineImageInput | None = None,
        depth_map: Tensor | None = None,
        strength: float = 0.8,
        num_inference_steps: int | None = 50,
        guidance_scale: float | None = 7.5,
        negative_prompt: Prompt | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float | None = 0.0,
        generator: Generators | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, float] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **kwargs: object,
    ) -> Any:
        """Remake pictures with their depth kept. `kwargs` are the older `callback` and `callback_steps`.

        `depth_map` (N, H, W), near is large, in any unit and at any size, replaces the estimator, which latents as
        `image` (B, 4, h, w) need. For pictures see `pictures.preprocess`. Guidance at or below 1 runs the prompt alone.
        Arguments that cannot be raise ValueError.
        """
        assert cross_attention_kwargs is None, "`accept_lora_scale` has dealt with it"
        check_strength(strength)
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        output_type = check_output_type(output_type)
        each = images_per_prompt(num_images_per_prompt)
        count = batch_size_of(prompt, prompt_embeds) * each
        pictures = self._prepare_images(image, count)
        run = last_part(listed(self.scheduler, (num_inference_steps, None, None), eta or 0.0), strength)
        method = run.method(noise_from_generator(generator, count), self.dtype)
        guidance = self._guidance(1.0 if guidance_scale is None else guidance_scale)
        embeds = self.encode_prompt(
            prompt, self.device, each, self.do_classifier_free_guidance, negative_prompt, prompt_embeds,
            negative_prompt_embeds, clip_skip=clip_skip,
        )  # fmt: skip
        depth = self._depth_latents(image, depth_map, pictures, count).to(self._runtime.device, self.dtype)
        tensors = callback_tensors(embeds, depth_mask=depth)
        calls = listeners(self, callback_on_step_end, callback_on_step_end_tensor_inputs, tensors, kwargs)
        job = ImageToImageJob(condition_on_embeds(embeds, guidance).with_fields(concat=depth), pictures, method)
        networks = self._latent_diffusion(
            run, calls, channels_replaced(["depth_mask"], self._vae.config.latent_channels)
        )
        made = self._run_task(run, calls, lambda on_step: image_to_image(networks, job, on_step))
        images = self._postprocess(made, output_type)
        return PipelineOutput(images) if return_dict else (images,)

    def prepare_depth_map(
        self, image: PipelineImageInput, depth_map: Any, batch_size: int, do_classifier_free_guidance: bool,
        dtype: torch.dtype, device: Device,
    ) -> Tensor:  # fmt: skip
        """What the network is told of depth, for loops by hand: (batch_size, 1, h, w) in -1..1, twice for guidance."""
        found = self._estimate_depth(image) if depth_map is None else read_depth_map(depth_map)
        size = lowered_size(image, self.vae_scale_factor)
        inner = size[0] // self.vae_scale_factor, size[1] // self.vae_scale_factor
        made = copies(normalise_depth(found, inner), batch_size).to(device, dtype)
        return torch.cat([made] * 2) if do_classifier_free_guidance else made

    def _depth_latents(self, image: PipelineImageInput | None, given: Any, pictures: Tensor, count: int) -> Tensor:
        """What the network is condition_on_embeds of depth, (count, 1, h, w) in -1..1."""
        latent = pictures.shape[1] == self._vae.config.latent_channels
        factor = 1 if latent else self._vae.downsample_factor
        if given is None and latent:
            raise ArgumentError("`image` is latents, whose depth cannot be seen; give `depth_map`")
        found = self._estimate_depth(image) if given is None else read_depth_map(given)
        check_batch_size("depth_map", len(found), count)
        return copies(normalise_depth(found, (pictures.shape[2] // factor, pictures.shape[3] // factor)), count)

    def _estimate_depth(self, image: PipelineImageInput | None) -> Tensor:
        """The depth of each picture at its own size, (N, 1, h, w)."""
        if self.depth_estimator is None:
            raise ArgumentError("`depth_map` is missing, and this pipeline has no depth estimator; give a map")
        estimator = with_extractor(replace(self.depth_estimator, runtime=self._runtime), self.feature_extractor)
        images: list[Any] = list(image) if isinstance(image, list | tuple) else [image]  # pyright: ignore[reportUnknownArgumentType] - anything
        return torch.cat([estimator(preprocess(one, 1)) for one in images])
