"""The face for people who come from diffusers: their class names, keywords and defaults over our tasks.

A class here is a signature, a translation into one job, and the packaging of the result. Models are local folders. What
cannot be done raises `enlarger.errors.Unsupported` and names our way of doing it.
"""

from enlarger.diffusers.latent_upscale import StableDiffusionLatentUpscalePipeline
from enlarger.diffusers.output import ImagePipelineOutput, StableDiffusionPipelineOutput
from enlarger.diffusers.schedulers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from enlarger.diffusers.stable_diffusion import StableDiffusionPipeline

__all__ = [
    "DDIMScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "ImagePipelineOutput",
    "PNDMScheduler",
    "StableDiffusionLatentUpscalePipeline",
    "StableDiffusionPipeline",
    "StableDiffusionPipelineOutput",
]
