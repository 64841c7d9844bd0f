"""What can be asked for: one frozen dataclass per task, with every default, limit and help text.

The Python functions, the command line and the service are made from these; no default is written anywhere else.
"""

import io
import math
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from enlarger.errors import InputError
from enlarger.field_types import check_types, is_list
from enlarger.memory_size import parse_memory
from enlarger.sampler_names import SOLVERS, SPACINGS, parse_sampler
from enlarger.target_size import check_factor, fitting_size, parse_size, scaled_side

Profile = Literal["diffusers", "original"]


@dataclass(frozen=True)
class OptionLimits:
    """The help and the allowed values of one option."""

    help: str
    least: float = -math.inf
    most: float = math.inf
    choices: tuple[str, ...] = ()
    check: Callable[[Any, str], object] | None = None  # of value and name; raises InputError for what it cannot read


def option(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field that knows its help and its limits."""
    return field(default=default, metadata={"limits": OptionLimits(help, **limits)})


PROMPT_HELP = "what the picture shows"
NEGATIVE_HELP = "what it should not show"
STEPS_HELP = "denoising steps"
GUIDANCE_HELP = "classifier-free guidance scale"
RESCALE_HELP = "share of the conditional branch's contrast to restore"
RANDOM_SEED = -1  # stands for one that is drawn
RANDOM_SEED_RANGE = 2**32
SEED_HELP = f"seed of the first picture; the others count on; {RANDOM_SEED} draws one, and the result says which"
COUNT_HELP = "pictures to make of each input or prompt"
SOLVER_HELP = f"{', '.join(SOLVERS)}, or a name of A1111's, such as 'DPM++ 2M Karras'"
SPACING_HELP = f"of the noise levels: {', '.join(SPACINGS)}; if not said, the model's own"
SCORE_HELP = "aesthetic score that the SDXL refiner aims at"
NEGATIVE_SCORE_HELP = "aesthetic score that it keeps away from"
MAX_SEED = 2**64 - 1  # the last that torch's generators take
MAX_EXPAND = 8192  # pixels on one side
TILE_HELP = "denoise in overlapping windows; if not said, what would take more memory than allowed"
MEMORY_HELP = (
    "that all of it may take, as 4GB, 512MB or 50%; a plain number is GiB; if not said, what the machine has: sets "
    "windows and tiles"
)
CLIP_SKIP_HELP = "layer of the text encoder to read, counted from its end: 1 is the last, 2 the one before"
WATERMARK_HELP = "SDXL's invisible watermark; if not said, SDXL's pictures get it, as in its reference code"
LONG_PROMPT_HELP = "encode prompts over 75 tokens in chunks instead of cutting them"


MAX_LORA_SCALE = 10.0  # either sign
MAX_LORAS = 16  # of one picture
DEFAULT_BY = 2.0
OTHER_SIZES = ("size", "long_edge", "megapixels")  # any of them stands instead of `by`
DEFAULT_UPSCALE_STRENGTH = 0.3


@dataclass(frozen=True)
class UpscaleRequest:
    """Enlarge pictures. None means the model's own default (`DEFAULTS`)."""

    image: Any  # what `image.picture.read_picture` takes, or `Latents`; one or several
    by: float = option(DEFAULT_BY, "how many times wider and higher", least=1, most=16)
    size: str | None = option(None, "of the result in pixels, as 3000x2000, instead of by")
    long_edge: int | None = option(None, "of the result in pixels, instead of by", least=1, most=65_536)
    megapixels: float | None = option(None, "of the result, instead of by", least=0.01, most=1000)
    prompt: str | Sequence[str] = option("", "what the picture shows; models without a text encoder refuse it")
    negative: str | Sequence[str] = option("", "what it should not show; needs guidance other than 1")
    steps: int | None = option(None, STEPS_HELP, least=1, most=1000)
    guidance: float | None = option(None, GUIDANCE_HELP, least=-100, most=100)
    seed: int | Sequence[int] | None = option(0, SEED_HELP, least=RANDOM_SEED, most=MAX_SEED)
    count: int = option(1, COUNT_HELP, least=1, most=64)
    noise_level: float | None = option(
        None, "noise added to the input: up to 10 for x2; whole numbers up to 350 for x4", least=0, most=1000
    )
    solver: str | None = option(None, SOLVER_HELP)
    spacing: str | None = option(None, SPACING_HELP)
    profile: Profile | None = option(
        None,
        "numbers and defaults of which code; if not said, x2 takes 12 steps of unipc",
        choices=("diffusers", "original"),
    )
    detail: float | None = option(None, "bundled model: 0 is most faithful, 1 full texture", least=0, most=1)
    restore: float | None = option(
        None, "bundled model: how much JPEG, noise and blur to clean away, 0 none", least=0, most=1
    )
    consistent: bool | None = option(
        None,
        "make the result's half-size copy equal to the input; the bundled model does so with photos, from --by 1.5 on",
    )
    long_prompt: bool = option(False, LONG_PROMPT_HELP)
    tile: bool | None = option(None, TILE_HELP)
    memory: str | float | None = option(None, MEMORY_HELP, check=parse_memory)

    def __post_init__(self) -> None:
        check_limits(self)
        hold_pipes(self)
        object.__setattr__(self, "seed", draw_random_seeds(self.seed))
        parse_sampler(self.solver, self.spacing)  # raises for what is none
        given = [name for name in OTHER_SIZES if getattr(self, name) is not None]
        given += ["by"] if given and self.by != DEFAULT_BY else []
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} are given, expected one of them: each says how large to go")
        if self.size is not None:
            parse_size(self.size)

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for a picture of that size; halves of a pixel are rounded up.

        Raises InputError for a size of another shape than the picture's, for a smaller one, and for one over 16 times
        as large.
        """
        factor = self.by
        if self.long_edge is not None:
            factor = self.long_edge / max(height, width)
        elif self.megapixels is not None:
            factor = math.sqrt(self.megapixels * 1e6 / (height * width))
        elif self.size is not None:
            return fitting_size(parse_size(self.size), height, width)
        check_factor(factor, height, width)
        return scaled_side(height, factor), scaled_side(width, factor)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What every request has that makes pictures of prompts; fields, and nothing else, are inherited."""

    negative: str | Sequence[str] = option("", NEGATIVE_HELP)
    steps: int | None = option(None, STEPS_HELP, least=1, most=1000)
    guidance: float | None = option(None, GUIDANCE_HELP, least=-100, most=100)
    rescale: float = option(0.0, RESCALE_HELP, least=0, most=1)
    seed: int | Sequence[int] | None = option(0, SEED_HELP, least=RANDOM_SEED, most=MAX_SEED)
    count: int = option(1, COUNT_HELP, least=1, most=64)
    solver: str | None = option(None, SOLVER_HELP)
    spacing: str | None = option(None, SPACING_HELP)
    long_prompt: bool = option(False, LONG_PROMPT_HELP)
    clip_skip: int | None = option(None, CLIP_SKIP_HELP, least=1, most=12)
    loras: Sequence[tuple[str | Path, float]] = ()  # names in the folder of models, or files as `Path`, with scales
    styles: str | Sequence[str] = ()  # names in the file of styles
    memory: str | float | None = option(None, MEMORY_HELP, check=parse_memory)

    def __post_init__(self) -> None:
        check_limits(self)
        hold_pipes(self)
        object.__setattr__(self, "seed", draw_random_seeds(self.seed))
        parse_sampler(self.solver, self.spacing)  # raises for what is none


@dataclass(frozen=True)
class GenerateRequest(SamplingOptions):
    """Make pictures from text. None means the model's own default (`DEFAULTS`)."""

    prompt: str | Sequence[str]
    width: int | None = option(None, "pixels", least=8, most=8192)
    height: int | None = option(None, "pixels", least=8, most=8192)
    handoff: float | Sequence[float] | None = option(
        None, "noise level below which the refiner works; by default that of diffusers' 0.8", least=0, most=1000
    )  # one per refiner
    score: float = option(6.0, SCORE_HELP, least=0, most=10)
    negative_score: float = option(2.5, NEGATIVE_SCORE_HELP, least=0, most=10)
    upscale: float = option(1.0, "how many times larger to enlarge the picture; 1 leaves it", least=1, most=16)
    upscale_steps: int | None = option(None, "denoising steps of the enlarging", least=1, most=1000)
    tile: bool | None = option(None, "remake the enlarged picture with the model, in overlapping windows (hires fix)")
    upscale_strength: float | None = option(
        None, "share of the way back to noise of that remaking; 0.3 if absent", least=0, most=1
    )
    watermark: bool | None = option(None, WATERMARK_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.upscale == 1 and self.upscale_steps is not None:
            raise InputError(f"upscale_steps is {self.upscale_steps}, but upscale is 1; give upscale, or leave both")
        if self.upscale == 1 and self.tile:
            raise InputError("tile is for the enlarged picture, but upscale is 1; give upscale, or leave both")
        if self.upscale_strength is not None and not self.tile:
            raise InputError(f"upscale_strength is {self.upscale_strength}, but tile is not set; set it, or leave both")


@dataclass(frozen=True)
class RefineRequest(SamplingOptions):
    """Remake pictures from noisy copies of themselves. None means the model's own default (`DEFAULTS`)."""

    image: Any  # what `image.picture.read_picture` takes, or `Latents`; one or several
    prompt: str | Sequence[str] = option("", PROMPT_HELP)
    strength: float = option(0.3, "share of the way back to noise: 0 keeps the picture, 1 forgets it", least=0, most=1)
    score: float = option(6.0, SCORE_HELP, least=0, most=10)
    negative_score: float = option(2.5, NEGATIVE_SCORE_HELP, least=0, most=10)
    by: float | None = option(
        None, "how many times larger to make the picture first, with the bundled model", least=1, most=16
    )
    tile: bool | None = option(None, TILE_HELP)
    watermark: bool | None = option(None, WATERMARK_HELP)


@dataclass(frozen=True)
class DepthRequest(SamplingOptions):
    """Remake pictures with their depth kept. None means the model's own default (`DEFAULTS`)."""

    image: Any  # what `image.picture.read_picture` takes; one or several
    prompt: str | Sequence[str] = option("", PROMPT_HELP)
    depth: Any = None  # one map per picture, near is large, any scale; None: the checkpoint's own estimator
    strength: float = option(0.8, "share of the way back to noise: 0 keeps the picture, 1 forgets it", least=0, most=1)


@dataclass(frozen=True)
class InpaintRequest(SamplingOptions):
    """Repaint what a mask covers. None means the model's own default (`DEFAULTS`)."""

    image: Any  # what `image.picture.read_picture` takes; one or several
    mask: Any = None  # likewise, of the picture's size; None: only what `expand` adds
    prompt: str | Sequence[str] = option("", PROMPT_HELP)
    strength: float = option(1.0, "share of the way back to noise under the mask", least=0, most=1)
    mask_mode: str = option(
        "auto", "what is repainted: white, transparent (alpha), or told by the mask", choices=("white", "alpha", "auto")
    )
    mask_resize: bool = option(False, "resize a mask of another size than the picture, instead of refusing it")
    preserve: str = option(
        "exact", "exact: not one byte outside the mask changes; none: as decoded", choices=("exact", "none")
    )
    feather: int = option(4, "pixels inside the mask's edge over which old and new mix", least=0, most=512)
    crop: int | None = option(
        None, "work on the mask's surroundings alone, with that many pixels of margin", least=0, most=8192
    )
    expand: str | int | Sequence[int] = option("", "pixels to add around: 64, or left,top,right,bottom as 0,0,256,0")
    fill: str | None = option(None, "what lies under the mask at first", choices=("original", "noise", "blur", "patch"))

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.sides  # raises for what it cannot read

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """What `expand` adds, in pixels: left, top, right, bottom. Raises InputError if it is something else."""
        if self.expand == "":
            return (0, 0, 0, 0)
        parts = self.expand.split(",") if isinstance(self.expand, str) else _as_list(self.expand)
        numbers = [int(part) if re.fullmatch(r"\s*[0-9]{1,5}\s*", str(part)) else -1 for part in parts]
        if len(numbers) not in (1, 4) or not all(0 <= number <= MAX_EXPAND for number in numbers):
            raise InputError(
                f"expand is {self.expand!r:.40}, expected one whole number of 0 to {MAX_EXPAND}, or four: "
                "left,top,right,bottom"
            )
        left, top, right, bottom = numbers * 4 if len(numbers) == 1 else numbers
        return left, top, right, bottom


DEFAULTS: dict[str, dict[str, Any]] = {
    "upscale/x2": {"steps": 12, "guidance": 9.0, "solver": "unipc", "noise_level": 0.0},
    "upscale/diffusers": {"steps": 75, "guidance": 9.0, "solver": "euler", "noise_level": 0.0},
    "upscale/original": {"steps": 50, "guidance": 1.0, "solver": "dpm_adaptive", "noise_level": 0.0},
    "upscale/x4": {"steps": 75, "guidance": 9.0, "noise_level": 20},
    "upscale/pixel": {},
    "upscale/bundled": {"detail": 0.0, "restore": 0.0},
    "generate": {"steps": 50, "guidance": 7.5},
    "generate/xl": {"steps": 50, "guidance": 5.0},
    "refine": {"steps": 50, "guidance": 7.5},
    "refine/xl": {"steps": 50, "guidance": 5.0},
    "depth": {"steps": 50, "guidance": 7.5},
    "inpaint": {"steps": 50, "guidance": 7.5, "fill": "original"},
    "inpaint/expand": {"fill": "patch"},
}
"""What None stands for, by task and model or profile."""

DEFAULT_HANDOFF = 0.2
"""The share of the training time that is the refiner's, where no `handoff` is given: diffusers' 0.8."""

X2_MAX_NOISE_LEVEL = 10.0
"""The highest `noise_level` of the x2 upscaler; the x4 upscaler's folder states its own."""

Request = TypeVar("Request")


def make_request(request_type: type[Request], **options: Any) -> Request:
    """A request of options by name; InputError for one that it does not have."""
    try:
        return request_type(**options)
    except TypeError as error:
        raise InputError(f"{error}; the options are those of {request_type.__name__}") from error


def check_limits(request: Any) -> None:
    """Raise InputError for a value of another type than its field's, or outside its limits."""
    limited = {item.name: item.metadata["limits"] for item in fields(request) if "limits" in item.metadata}
    for name, limits in limited.items():
        value = getattr(request, name)
        if limits.choices and value is not None and value not in limits.choices:
            raise InputError(f"{name} is {value!r}, expected one of {', '.join(limits.choices)}")
        if limits.check is not None and value is not None:
            limits.check(value, name)
    check_types(request)
    for name, limits in limited.items():
        for number in _as_list(getattr(request, name)) if limits.least != -math.inf else ():
            if number is not None and not limits.least <= number <= limits.most:  # as it is: no float holds every seed
                raise InputError(f"{name} is {number}, expected {limits.least:g} to {limits.most:g}")


def hold_pipes(request: Any) -> None:
    """Read what of a request's pictures can be read only once, so that its plan and its run see the same."""
    for name in ("image", "mask", "depth"):
        value: Any = getattr(request, name, None)
        held = [_held(one) for one in _as_list(value)]
        if any(one is not before for one, before in zip(held, _as_list(value), strict=True)):
            object.__setattr__(request, name, held if is_list(value) else held[0])


def _held(source: Any) -> Any:
    if not hasattr(source, "read") or isinstance(source, io.TextIOBase) or source.seekable():
        return source
    held = io.BytesIO(source.read())
    held.name = getattr(source, "name", "")
    return held


def with_defaults(request: Any, name: str) -> dict[str, Any]:
    """The request's options as a dictionary, with None replaced by the defaults of `name`."""
    defaults = DEFAULTS[name]
    values = {item.name: getattr(request, item.name) for item in fields(request)}
    return {key: defaults.get(key) if value is None else value for key, value in values.items()}


def without_idle_factor(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without `by` where another of them says how large to go: then it is a default that does nothing."""
    has_size = any(options.get(name) is not None for name in OTHER_SIZES)
    return {name: value for name, value in options.items() if name != "by" or not has_size}


def one_per_image(value: Any, count: int, name: str) -> list[Any]:
    """A value for each of `count` images: one is repeated, a sequence must have as many."""
    values = _as_list(value)
    if len(values) not in (1, count):
        raise InputError(f"{len(values)} values of {name} for {count} images; give one or {count}")
    return values * count if len(values) == 1 else values


def draw_random_seeds(seed: int | Sequence[int] | None) -> int | Sequence[int]:
    """The seeds, with one drawn for None and wherever `RANDOM_SEED` stands."""
    if isinstance(seed, Sequence):
        return [secrets.randbelow(RANDOM_SEED_RANGE) if one == RANDOM_SEED else one for one in seed]
    return secrets.randbelow(RANDOM_SEED_RANGE) if seed in (None, RANDOM_SEED) else seed


def as_request(kind: type[Request], source: Any, options: Mapping[str, Any], field_name: str = "image") -> Request:
    """The request that was given, or one made of its first field and options. InputError for both together."""
    if not isinstance(source, kind):
        return make_request(kind, **{field_name: source}, **options)
    if options:
        raise InputError(f"found a {kind.__name__} and {', '.join(options)} beside it; put them into the request")
    return source


def seeds_for(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """One seed per image: a single seed counts on from image to image."""
    assert seed is not None, "a request has drawn one"
    if not isinstance(seed, Sequence):
        if seed + count - 1 > MAX_SEED:
            raise InputError(f"seed is {seed} for {count} pictures, the last seed is {MAX_SEED}; give a smaller one")
        return [seed + i for i in range(count)]
    if len(seed) != count:
        raise InputError(f"{len(seed)} seeds for {count} images; give one seed, or one per image")
    return list(seed)


def _as_list(value: Any) -> list[Any]:
    """The items of a list or tuple; anything else, text too, is one item."""
    return list(value) if is_list(value) else [value]
