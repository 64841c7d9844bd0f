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
    from enlarger.tasks.enlarge import Upscaler, load_upscaler, upscale
    from enlarger.tasks.experts import Plan
    from enlarger.tasks.generate import Generator, generate, load_generator
    from enlarger.tasks.latents import Latents
    from enlarger.tasks.load import load
    from enlarger.tasks.parts import Progress, Result
    from enlarger.tasks.reading import Checkpoint
    from enlarger.tasks.refine import Refiner, load_refiner, refine
    from enlarger.tasks.repair import Repair, Repairer, inpaint, load_inpainter

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
    "InputError",
    "Latents",
    "NonFinite",
    "Plan",
    "Progress",
    "RefineRequest",
    "Refiner",
    "Repair",
    "Repairer",
    "Result",
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

_LATER = {
    "AsyncClient": "enlarger.client.client",
    "Checkpoint": "enlarger.tasks.reading",
    "Client": "enlarger.client.client",
    "DepthToImage": "enlarger.tasks.depth",
    "Generator": "enlarger.tasks.generate",
    "Latents": "enlarger.tasks.latents",
    "Plan": "enlarger.tasks.experts",
    "Progress": "enlarger.tasks.parts",
    "Refiner": "enlarger.tasks.refine",
    "Repair": "enlarger.tasks.repair",
    "Repairer": "enlarger.tasks.repair",
    "Result": "enlarger.tasks.parts",
    "Upscaler": "enlarger.tasks.enlarge",
    "depth": "enlarger.tasks.depth",
    "generate": "enlarger.tasks.generate",
    "inpaint": "enlarger.tasks.repair",
    "load": "enlarger.tasks.load",
    "load_depth": "enlarger.tasks.depth",
    "load_generator": "enlarger.tasks.generate",
    "load_inpainter": "enlarger.tasks.repair",
    "load_refiner": "enlarger.tasks.refine",
    "load_upscaler": "enlarger.tasks.enlarge",
    "refine": "enlarger.tasks.refine",
    "upscale": "enlarger.tasks.enlarge",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'enlarger' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
