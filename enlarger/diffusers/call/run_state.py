"""What a pipeline says of its last call, or of the one that runs, and what callbacks may change of it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from enlarger.diffusers.call.masks import read_mask
from enlarger.diffusers.call.pictures import Size, preprocess
from enlarger.diffusers.call.processors import VaeImageProcessor
from enlarger.diffusers.types import PipelineImageInput

BICUBIC = Image.Resampling.BICUBIC


class RunState:
    """For the pipelines to inherit."""

    DISTILLABLE: ClassVar[bool] = False
    RESAMPLE: ClassVar[str] = "lanczos"  # of `image_processor`
    unet: Any
    vae_scale_factor: Any
    _interrupt: bool
    _guidance_scale: float
    _guidance_rescale: float
    _num_timesteps: int
    _clip_skip: int | None = None
    _cross_attention_kwargs: Mapping[str, Any] | None = None
    _lora_scale: float = 1.0
    _image_processor: Any = None
    _mask_processor: Any = None

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked, by `pipe._interrupt = True`, to stop and decode_latents what there is."""
        return self._interrupt

    @property
    def guidance_scale(self) -> float:
        """That of the last call; callbacks may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        return self._guidance_rescale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the negative prompt has a branch of its own."""
        distilled: Any = None if self.unet is None else self.unet.config.get("time_cond_proj_dim")
        return self._guidance_scale > 1 and (distilled is None or not self.DISTILLABLE)

    @property
    def clip_skip(self) -> int | None:
        """That of the last call."""
        return self._clip_skip

    @property
    def cross_attention_kwargs(self) -> Mapping[str, Any] | None:
        """Those of the last call."""
        return self._cross_attention_kwargs

    @property
    def lora_scale(self) -> float:
        """What the last call multiplied the adapters by."""
        return self._lora_scale

    @property
    def num_timesteps(self) -> int:
        """Calls of the network in the last run."""
        return self._num_timesteps

    @property
    def image_processor(self) -> Any:
        """Pictures to tensors and back, by hand; one that is set reads the pictures of calls."""
        if self._image_processor is not None:
            return self._image_processor
        return VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, resample=self.RESAMPLE)

    @image_processor.setter
    def image_processor(self, processor: Any) -> None:
        self._image_processor = processor

    @property
    def mask_processor(self) -> Any:
        """Masks to tensors, by hand; one that is set reads the masks of calls."""
        made = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
        )
        return made if self._mask_processor is None else self._mask_processor

    @mask_processor.setter
    def mask_processor(self, processor: Any) -> None:
        self._mask_processor = processor

    def _read_pictures(
        self, image: PipelineImageInput, resample: Image.Resampling = BICUBIC, size: Size | None = None
    ) -> Tensor:
        """(B, 3, H, W) in -1..1, or latents, by the pipeline's processor."""
        if self._image_processor is None:
            return preprocess(image, self.vae_scale_factor, resample, size)
        height, width = (None, None) if size is None else size
        return self._image_processor.preprocess(image, height=height, width=width)

    def _read_masks(self, mask: PipelineImageInput, size: Size) -> Tensor:
        """(B, 1, H, W), by the pipeline's processor of masks."""
        if self._mask_processor is None:
            return read_mask(mask, size)
        return self._mask_processor.preprocess(mask, height=size[0], width=size[1])
