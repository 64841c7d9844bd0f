"""The parts of a pipeline under diffusers' and transformers' names."""

from enlarger.diffusers.models.modules import (
    AutoencoderKL,
    AutoencoderTiny,
    AutoModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    UNet2DConditionModel,
)
from enlarger.diffusers.models.tokenizer import CLIPTokenizer

__all__ = [
    "AutoModel",
    "AutoencoderKL",
    "AutoencoderTiny",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "UNet2DConditionModel",
]
