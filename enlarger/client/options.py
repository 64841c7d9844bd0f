"""The options that a service takes, by the library's names and types; `enlarger.requests` says what each one means."""

from typing import Literal, TypedDict


class ImageOptions(TypedDict, total=False):
    """What every task takes. None, or no mention, is the model's own default."""

    negative: str
    steps: int | None
    guidance: float | None
    seed: int
    count: int
    solver: str | None
    spacing: str | None


class UpscaleOptions(ImageOptions, total=False):
    """Options of `UpscaleRequest`."""

    prompt: str
    noise_level: float | None
    detail: float | None
    restore: float | None
    consistent: bool | None
    size: str | None
    long_edge: int | None
    megapixels: float | None
    tile: bool | None


class GenerateOptions(ImageOptions, total=False):
    """Options of `GenerateRequest`; width and height go together."""

    width: int | None
    height: int | None
    upscale: float


class RefineOptions(ImageOptions, total=False):
    """Options of `RefineRequest`."""

    strength: float


class InpaintOptions(ImageOptions, total=False):
    """Options of `InpaintRequest`."""

    strength: float
    mask_mode: Literal["white", "alpha", "auto"]
    mask_resize: bool
