"""Enlarge pictures with latent diffusion. The public names; each is imported when first used, and torch only then."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from enlarger.errors import Cancelled, CheckpointError, EnlargerError, InputError, NonFinite, Unsupported
from enlarger.requests import GenerateRequest, UpscaleRequest

if TYPE_CHECKING:
    from enlarger.tasks.enlarge import Upscaler, load_upscaler, upscale
    from enlarger.tasks.parts import Progress, Result
    from enlarger.tasks.generate import generate

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "CheckpointError",
    "EnlargerError",
    "GenerateRequest",
    "InputError",
    "NonFinite",
    "Progress",
    "Result",
    "Unsupported",
    "UpscaleRequest",
    "Upscaler",
    "__version__",
    "generate",
    "load_upscaler",
    "upscale",
]

_LATER = {
    "Progress": "enlarger.tasks.parts",
    "Result": "enlarger.tasks.parts",
    "Upscaler": "enlarger.tasks.enlarge",
    "generate": "enlarger.tasks.generate",
    "load_upscaler": "enlarger.tasks.enlarge",
    "upscale": "enlarger.tasks.enlarge",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'enlarger' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
