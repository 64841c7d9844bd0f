"""What a pipeline says of its last call, or of the one that runs, and what callbacks may change of it."""

from typing import Any, ClassVar

from enlarger.diffusers.processor import VaeImageProcessor


class RunState:
    """For the pipelines to inherit."""

    DISTILLABLE: ClassVar[bool] = False
    unet: Any
    vae_scale_factor: Any
    _interrupt: bool
    _guidance_scale: float
    _guidance_rescale: float
    _num_timesteps: int

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
    def num_timesteps(self) -> int:
        """Calls of the network in the last run."""
        return self._num_timesteps

    @property
    def image_processor(self) -> VaeImageProcessor:
        """Pictures to tensors and back, by hand."""
        return VaeImageProcessor(self.vae_scale_factor)

    @property
    def mask_processor(self) -> VaeImageProcessor:
        """Masks to tensors, by hand."""
        return VaeImageProcessor(self.vae_scale_factor, masks=True)
