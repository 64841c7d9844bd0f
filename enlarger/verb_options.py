"""The options of the public functions by name and type, for editors; `requests.py` has their meaning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from enlarger.requests import Profile


class _CommonOptions(TypedDict, total=False):
    """What all verbs take besides what they name themselves."""

    negative: str | Sequence[str]
    steps: int | None
    guidance: float | None
    seed: int | Sequence[int] | None
    count: int
    solver: str | None
    spacing: str | None
    long_prompt: bool
    memory: str | float | None


class _SamplingOptions(_CommonOptions, total=False):
    """What the verbs take that make pictures of prompts."""

    rescale: float
    clip_skip: int | None
    loras: Sequence[tuple[str | Path, float]]
    styles: str | Sequence[str]


class UpscaleOptions(_CommonOptions, total=False):
    """Options of `enlarger.upscale`; `UpscaleRequest` has their meaning, limits and defaults."""

    prompt: str | Sequence[str]
    noise_level: float | None
    profile: Profile | None
    detail: float | None
    restore: float | None
    consistent: bool | None
    tile: bool | None
    size: str | None
    long_edge: int | None
    megapixels: float | None


class GenerateOptions(_SamplingOptions, total=False):
    """Options of `enlarger.generate`; `GenerateRequest` has their meaning, limits and defaults."""

    width: int | None
    height: int | None
    handoff: float | Sequence[float] | None
    score: float
    negative_score: float
    upscale: float
    upscale_steps: int | None
    tile: bool | None
    watermark: bool | None
    upscale_strength: float | None


class RefineOptions(_SamplingOptions, total=False):
    """Options of `enlarger.refine`; `RefineRequest` has their meaning, limits and defaults."""

    strength: float
    score: float
    negative_score: float
    by: float | None
    tile: bool | None
    watermark: bool | None


class DepthOptions(_SamplingOptions, total=False):
    """Options of `enlarger.depth`; `DepthRequest` has their meaning, limits and defaults."""

    strength: float


class InpaintOptions(_SamplingOptions, total=False):
    """Options of `enlarger.inpaint`; `InpaintRequest` has their meaning, limits and defaults."""

    prompt: str | Sequence[str]
    strength: float
    mask_mode: str
    mask_resize: bool
    preserve: str
    feather: int
    crop: int | None
    expand: str | int | Sequence[int]
    fill: str | None


class UpscalerOptions(UpscaleOptions, total=False):
    """Options of a loaded upscaler that is called with a picture."""

    by: float


class InpainterOptions(InpaintOptions, total=False):
    """Options of a loaded inpainter that is called with a picture."""

    mask: Any


class RefinerOptions(RefineOptions, total=False):
    """Options of a loaded refiner that is called with a picture."""

    prompt: str | Sequence[str]


class DepthToImageOptions(DepthOptions, total=False):
    """Options of a loaded depth model that is called with a picture."""

    prompt: str | Sequence[str]
    depth: Any
