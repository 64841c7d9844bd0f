"""The face for people who come from diffusers: their class names, keywords and defaults over our tasks.

A class here is a signature, a translation into one job, and the packaging of the result. Models are local folders. What
cannot be done raises `enlarger.errors.Unsupported` and names our way of doing it.
"""

from typing import Never

from enlarger.diffusers.call.processors import VaeImageProcessor
from enlarger.diffusers.models.modules import (
    AutoencoderKL,
    AutoencoderTiny,
    AutoModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    UNet2DConditionModel,
)
from enlarger.diffusers.models.modules import ModelView as ModelMixin
from enlarger.diffusers.models.tokenizer import CLIPTokenizer
from enlarger.diffusers.pipelines.auto_pipeline import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
)
from enlarger.diffusers.pipelines.latent_upscale import StableDiffusionLatentUpscalePipeline
from enlarger.diffusers.pipelines.pipeline_output import (
    ImagePipelineOutput,
    StableDiffusionPipelineOutput,
    StableDiffusionXLPipelineOutput,
)
from enlarger.diffusers.pipelines.pipeline_utils import DiffusionPipeline
from enlarger.diffusers.pipelines.stable_diffusion import StableDiffusionPipeline
from enlarger.diffusers.pipelines.stable_diffusion_depth2img import StableDiffusionDepth2ImgPipeline
from enlarger.diffusers.pipelines.stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from enlarger.diffusers.pipelines.stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from enlarger.diffusers.pipelines.stable_diffusion_upscale import StableDiffusionUpscalePipeline
from enlarger.diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipeline
from enlarger.diffusers.pipelines.stable_diffusion_xl_img2img import StableDiffusionXLImg2ImgPipeline
from enlarger.diffusers.pipelines.stable_diffusion_xl_inpaint import StableDiffusionXLInpaintPipeline
from enlarger.diffusers.schedulers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from enlarger.diffusers.schedulers.config import VERSION
from enlarger.diffusers.schedulers.config import ConfigMethods as ConfigMixin
from enlarger.diffusers.schedulers.scheduling_utils import Scheduler as SchedulerMixin
from enlarger.diffusers.unsupported import missing
from enlarger.diffusers.utils import logging

__all__ = [
    "AutoModel",
    "AutoPipelineForImage2Image",
    "AutoPipelineForInpainting",
    "AutoPipelineForText2Image",
    "AutoencoderKL",
    "AutoencoderTiny",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "ConfigMixin",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "DiffusionPipeline",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "ImagePipelineOutput",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "ModelMixin",
    "PNDMScheduler",
    "SchedulerMixin",
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionLatentUpscalePipeline",
    "StableDiffusionPipeline",
    "StableDiffusionPipelineOutput",
    "StableDiffusionUpscalePipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLPipelineOutput",
    "TCDScheduler",
    "UNet2DConditionModel",
    "UniPCMultistepScheduler",
    "VaeImageProcessor",
    "logging",
]


__version__ = VERSION  # of the diffusers whose files and names these are


def __getattr__(name: str) -> Never:
    """One sentence for the names of diffusers that are not here."""
    raise missing(name)
