"""Enlarge pictures with latent diffusion. The public names; each is imported when first used, and torch only then."""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from enlarger.errors import (
    Cancelled,
    CheckpointError,
    EnlargerError,
    InputError,
    NonFinite,
    OutOfMemory,
    ServiceError,
    Unsupported,
)

if TYPE_CHECKING:
    from enlarger.checkpoint.model_folder import ModelFolder, read_model_folder
    from enlarger.client.client import AsyncClient, Client
    from enlarger.requests import DepthRequest, GenerateRequest, InpaintRequest, RefineRequest, UpscaleRequest
    from enlarger.tasks.depth import DepthToImage, depth, load_depth
    from enlarger.tasks.image_to_image import Refiner, load_refiner, refine
    from enlarger.tasks.inpaint import Inpainter, InpaintResult, inpaint, load_inpainter
    from enlarger.tasks.inputs import Latents
    from enlarger.tasks.latent_diffusion.sampling import SamplingReport
    from enlarger.tasks.loading.load import Checkpoint, load
    from enlarger.tasks.planning.ask import plan
    from enlarger.tasks.results.result import Progress, Result
    from enlarger.tasks.text_to_image import Generator, generate, load_generator
    from enlarger.tasks.upscale.upscale import load_upscaler, upscale
    from enlarger.tasks.upscale.upscaler import Upscaler

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Checkpoint",
    "CheckpointError",
    "Client",
    "DepthRequest",
    "DepthToImage",
    "EnlargerError",
    "GenerateRequest",
    "Generator",
    "InpaintRequest",
    "InpaintResult",
    "Inpainter",
    "InputError",
    "Latents",
    "ModelFolder",
    "NonFinite",
    "OutOfMemory",
    "Progress",
    "RefineRequest",
    "Refiner",
    "Result",
    "SamplingReport",
    "ServiceError",
    "Unsupported",
    "UpscaleRequest",
    "Upscaler",
    "__version__",
    "depth",
    "generate",
    "inpaint",
    "load",
    "load_depth",
    "load_generator",
    "load_inpainter",
    "load_refiner",
    "load_upscaler",
    "plan",
    "read_model_folder",
    "refine",
    "upscale",
]

_LAZY_IMPORTS = {
    "AsyncClient": "enlarger.client.client",
    "Checkpoint": "enlarger.tasks.loading.load",
    "Client": "enlarger.client.client",
    "DepthRequest": "enlarger.requests",
    "DepthToImage": "enlarger.tasks.depth",
    "GenerateRequest": "enlarger.requests",
    "Generator": "enlarger.tasks.text_to_image",
    "InpaintRequest": "enlarger.requests",
    "InpaintResult": "enlarger.tasks.inpaint",
    "Inpainter": "enlarger.tasks.inpaint",
    "Latents": "enlarger.tasks.inputs",
    "ModelFolder": "enlarger.checkpoint.model_folder",
    "Progress": "enlarger.tasks.results.result",
    "RefineRequest": "enlarger.requests",
    "Refiner": "enlarger.tasks.image_to_image",
    "Result": "enlarger.tasks.results.result",
    "SamplingReport": "enlarger.tasks.latent_diffusion.sampling",
    "UpscaleRequest": "enlarger.requests",
    "Upscaler": "enlarger.tasks.upscale.upscaler",
    "depth": "enlarger.tasks.depth",
    "generate": "enlarger.tasks.text_to_image",
    "inpaint": "enlarger.tasks.inpaint",
    "load": "enlarger.tasks.loading.load",
    "load_depth": "enlarger.tasks.depth",
    "load_generator": "enlarger.tasks.text_to_image",
    "load_inpainter": "enlarger.tasks.inpaint",
    "load_refiner": "enlarger.tasks.image_to_image",
    "load_upscaler": "enlarger.tasks.upscale.upscale",
    "plan": "enlarger.tasks.planning.ask",
    "read_model_folder": "enlarger.checkpoint.model_folder",
    "refine": "enlarger.tasks.image_to_image",
    "upscale": "enlarger.tasks.upscale.upscale",
}

RENAMED = {"Plan": "SamplingReport", "Repair": "InpaintResult", "Repairer": "Inpainter"}
"""Names that were replaced, each with the one to use instead; they go with version 0.2."""


def __getattr__(name: str) -> Any:
    if name in RENAMED:
        message = f"enlarger.{name} is now called enlarger.{RENAMED[name]}; the old name goes with version 0.2"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        name = RENAMED[name]
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module 'enlarger' has no attribute {name!r}; it has {', '.join(__all__)}")
    try:
        return getattr(import_module(_LAZY_IMPORTS[name]), name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("enlarger."):
            raise
        raise ImportError(f"enlarger.{name} is not in enlarger-client, only the client is; install enlarger") from error


def __dir__() -> list[str]:
    return sorted(__all__)
