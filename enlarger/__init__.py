"""Enlarge pictures with latent diffusion. The public names; each is imported when first used, and torch only then."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from enlarger.errors import (
    Cancelled,
    CheckpointError,
    EnlargerError,
    InputError,
    NonFinite,
    ServiceError,
    Unsupported,
)
from enlarger.requests import DepthRequest, GenerateRequest, InpaintRequest, RefineRequest, UpscaleRequest

if TYPE_CHECKING:
    from enlarger.client.client import AsyncClient, Client
    from enlarger.tasks.depth import DepthToImage, depth, load_depth
    from enlarger.tasks.experts import SamplingReport
    from enlarger.tasks.generate import Generator, generate, load_generator
    from enlarger.tasks.latents import Latents
    from enlarger.tasks.load import load
    from enlarger.tasks.loading import Checkpoint
    from enlarger.tasks.refine import Refiner, load_refiner, refine
    from enlarger.tasks.repair import Inpainter, InpaintResult, inpaint, load_inpainter
    from enlarger.tasks.result import Progress, Result
    from enlarger.tasks.upscale.upscale import Upscaler, load_upscaler, upscale

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
    "NonFinite",
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
    "refine",
    "upscale",
]

_LAZY_IMPORTS = {
    "AsyncClient": "enlarger.client.client",
    "Checkpoint": "enlarger.tasks.loading",
    "Client": "enlarger.client.client",
    "DepthToImage": "enlarger.tasks.depth",
    "Generator": "enlarger.tasks.generate",
    "InpaintResult": "enlarger.tasks.repair",
    "Inpainter": "enlarger.tasks.repair",
    "Latents": "enlarger.tasks.latents",
    "Progress": "enlarger.tasks.result",
    "Refiner": "enlarger.tasks.refine",
    "Result": "enlarger.tasks.result",
    "SamplingReport": "enlarger.tasks.experts",
    "Upscaler": "enlarger.tasks.upscale.upscale",
    "depth": "enlarger.tasks.depth",
    "generate": "enlarger.tasks.generate",
    "inpaint": "enlarger.tasks.repair",
    "load": "enlarger.tasks.load",
    "load_depth": "enlarger.tasks.depth",
    "load_generator": "enlarger.tasks.generate",
    "load_inpainter": "enlarger.tasks.repair",
    "load_refiner": "enlarger.tasks.refine",
    "load_upscaler": "enlarger.tasks.upscale.upscale",
    "refine": "enlarger.tasks.refine",
    "upscale": "enlarger.tasks.upscale.upscale",
}

RENAMED = {"Plan": "SamplingReport", "Repair": "InpaintResult", "Repairer": "Inpainter"}
"""Names of version 0.1, which go with the next."""


def __getattr__(name: str) -> Any:
    name = RENAMED.get(name, name)
    if name not in _LAZY_IMPORTS:
        raise AttributeError(f"module 'enlarger' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_LAZY_IMPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
