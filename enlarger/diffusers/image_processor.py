"""Pictures in and out of the pipelines, where diffusers has them."""

from enlarger.diffusers.call.processors import VaeImageProcessor
from enlarger.diffusers.types import PipelineImageInput

__all__ = ["PipelineImageInput", "VaeImageProcessor"]
