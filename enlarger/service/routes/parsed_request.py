"""A body as a `JobSpec`: pure functions, without files and without the queue."""

import math
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from enlarger.errors import InputError
from enlarger.image.encode import check_side
from enlarger.requests import (
    DEFAULTS,
    MAX_LORA_SCALE,
    MAX_LORAS,
    RANDOM_SEED,
    RANDOM_SEED_RANGE,
    GenerateRequest,
    InpaintRequest,
    RefineRequest,
    UpscaleRequest,
)
from enlarger.sampler_names import SOLVERS, SPACINGS, parse_sampler, suggested_solver, suggested_spacing
from enlarger.service.jobs.job import JobSpec, OutputOptions, Task
from enlarger.service.jobs.model_registry import ModelState
from enlarger.service.problems import problem_error
from enlarger.service.routes.request_body import printable
from enlarger.service.routes.request_models import (
    AdaptedBody,
    Edit,
    Generation,
    Inpainting,
    OpenAIBody,
    SamplingBody,
    UpscaleForm,
    Variation,
)
from enlarger.service.settings import Bounds
from enlarger.strict_json import short_repr
from enlarger.target_size import scaled_side

ResizeMode = Literal["stretch", "crop", "pad"]
Size = tuple[int, int]  # width, height

MIN_SIDE, MAX_SIDE = 8, 8192
MAX_DEFAULT_STEPS = max(defaults.get("steps", 0) for defaults in DEFAULTS.values())
PREM_STEPS, PREM_GUIDANCE = 25, 7.5  # of the documented dialect, where the model takes them at all
EDIT_STRENGTH = 0.75  # without a mask: the prompt shows, and so does the picture
VARIATION_STRENGTH = 0.6
INPAINTING_STEPS = 25
DEFAULT_SCALE = 2.0
UPSCALE_FIELDS = ("detail", "restore", "consistent", "noise_level", "tile", "long_edge", "megapixels")
SIZE_OPTIONS = ("by", "size", "long_edge", "megapixels")
MAX_NAMES_SHOWN = 10
IGNORED_FIELDS = ("quality", "style", "moderation", "input_fidelity")  # OpenAI's, without a meaning here
IGNORED_VALUES = {"quality": ("auto",), "moderation": ("auto",)}


@dataclass(frozen=True)
class ParsedRequest:
    """A request, before its pictures are known."""

    task: Task
    options: Mapping[str, Any]
    output: OutputOptions
    url: bool = False  # answer addresses instead of pictures
    size: Size | None = None  # that the input is brought to, or that is generated
    mode: ResizeMode = "crop"  # how
    previews: int = 0
    live: bool = False
    notes: tuple[str, ...] = ()


def parse_upscale(body: UpscaleForm, bounds: Bounds, unused_options: Collection[str] = ()) -> ParsedRequest:
    """Of `/v1/images/upscale`. The documented dialect has defaults of its own, where the model uses them;
    with a `scale`, or without a `prompt`, it is LocalAI's: addresses are answered, and defaults are the model's."""
    has_target = any(value is not None for value in (body.target_size, body.long_edge, body.megapixels))
    is_documented_dialect = body.scale is None and body.prompt is not None and not has_target
    dialect_defaults = {"steps": min(PREM_STEPS, bounds.steps), "guidance": PREM_GUIDANCE}
    used_defaults = {name: value for name, value in dialect_defaults.items() if name not in unused_options}
    options = (
        (used_defaults if is_documented_dialect else {})
        | _sampling_options(body, bounds)
        | {"by": DEFAULT_SCALE if body.scale is None else float(body.scale)}
    )
    extras = {name: getattr(body, name) for name in UPSCALE_FIELDS} | {"size": body.target_size or None}
    url = body.response_format == "url" if body.response_format is not None else not is_documented_dialect
    size = _parse_size(body.size, bounds)
    if size is not None and size[0] * size[1] > bounds.upscale_pixels:
        expected = f"expected at most {bounds.upscale_pixels:,} pixels to enlarge"
        raise problem_error(400, "image_too_large", f"size is {body.size}, {expected}", "size")
    options |= _without_none(extras) | _prompt_option(body.prompt, bounds)
    return _parse("upscale", body, options, url=url, size=size, mode=body.resize_mode or "stretch")


def parse_generation(body: Generation, bounds: Bounds, refiner: str | None) -> ParsedRequest:
    """Of `/v1/images/generations`; `refiner` is the name of the model that finishes the picture."""
    size = _parse_size(body.size, bounds)
    width, height = (None, None) if size is None else size
    scale = upscale_factor(body.upscale)
    extras = {"width": width, "height": height, "refiner": refiner, "upscale": None if scale == 1 else scale}
    options = _sampling_options(body, bounds) | _prompt_option(body.prompt, bounds) | _without_none(extras)
    return _parse("generate", body, options, size=size, **_stream_options(body))


def parse_edit(body: Edit | Inpainting, bounds: Bounds, has_mask: bool) -> ParsedRequest:
    """Of `/v1/images/edits` and `/v1/images/inpainting`: under a mask, or of the whole picture."""
    strength = body.strength if has_mask or body.strength is not None else EDIT_STRENGTH
    options = (
        _sampling_options(body, bounds) | _prompt_option(body.prompt, bounds) | _without_none({"strength": strength})
    )
    if isinstance(body, Inpainting):
        steps = min(INPAINTING_STEPS, bounds.steps) if body.steps is None else body.steps
        options = {"steps": resolve_steps(steps, "steps", bounds)} | options
    extra = _stream_options(body) if isinstance(body, Edit) else {"url": body.response_format != "b64_json"}
    resize = {"size": _parse_size(body.size, bounds), "mode": body.resize_mode or "crop"}
    return _parse("inpaint" if has_mask else "refine", body, options, **resize, **extra)


def parse_variation(body: Variation, bounds: Bounds) -> ParsedRequest:
    """Of `/v1/images/variations`."""
    strength = VARIATION_STRENGTH if body.strength is None else body.strength
    options = _sampling_options(body, bounds) | {"prompt": "", "strength": strength}
    return _parse("refine", body, options, size=_parse_size(body.size, bounds), mode=body.resize_mode or "crop")


def build_job_spec(
    parsed: ParsedRequest,
    model: ModelState,
    bounds: Bounds,
    input_size: Size | None = None,
    notes: tuple[str, ...] = (),
) -> JobSpec:
    """The spec of a request, once the input's size is known. Raises ProblemError for what no request may say."""
    start_size = parsed.size if input_size is None else input_size
    if parsed.task == "generate" and start_size is None:
        start_size = model.default_size
    size = check_result_size(parsed, bounds, start_size)
    _check_options(parsed)
    image = None if parsed.task == "generate" else "image.png"
    mask = "mask.png" if parsed.task == "inpaint" else None
    all_notes = (*parsed.notes, *notes)
    return JobSpec(
        parsed.task, model.name, parsed.options, image, mask, size, model.default_steps.get(parsed.task, 1),
        parsed.output, parsed.previews, parsed.live, all_notes,
    )  # fmt: skip


def check_result_size(parsed: ParsedRequest, bounds: Bounds, start_size: Size | None) -> Size | None:
    """Width and height of the result, from what the work begins with; None where nobody knows. Raises ProblemError for
    more pixels than all results may have, and for a size that their format cannot hold."""
    size = result_size(parsed, start_size)
    if size is None:
        return None
    count = int(parsed.options.get("count", 1))
    if size[0] * size[1] * count > bounds.output_pixels:
        times = "" if count == 1 else f"{count} times "
        raise problem_error(
            400,
            "image_too_large",
            f"the result would have {times}{size[0]}x{size[1]} pixels, expected at most {bounds.output_pixels:,}; "
            "ask for less, or give a smaller picture",
            "scale" if parsed.task == "upscale" else "size",
        )
    _check_format(parsed.output.format, size)
    return size


def _check_format(file_format: str, size: Size) -> None:
    """Raises ProblemError for a result that its format cannot hold."""
    try:
        check_side(file_format.upper(), size)
    except InputError as error:
        raise problem_error(400, "image_too_large", str(error), "output_format") from error


def result_size(parsed: ParsedRequest, start_size: Size | None) -> Size | None:
    """Width and height of the result, from what the work begins with; None where nobody knows."""
    if start_size is None:
        return None
    if parsed.task == "upscale":
        sizes = {name: value for name, value in parsed.options.items() if name in SIZE_OPTIONS}
        height, width = _upscale_target(sizes, start_size)
        return width, height
    scale = float(parsed.options.get("upscale", 1)) if parsed.task == "generate" else 1.0
    return scaled_side(start_size[0], scale), scaled_side(start_size[1], scale)


def _upscale_target(sizes: Mapping[str, Any], start_size: Size) -> Size:
    """Height and width of an enlarged picture. Raises ProblemError for a size that it cannot have."""
    try:
        return UpscaleRequest(None, **sizes).target_size(start_size[1], start_size[0])
    except InputError as error:
        raise problem_error(400, "invalid_value", str(error), "scale") from error


def upscale_factor(upscale: bool | float | None) -> float:
    """How many times larger a generated picture is made."""
    if upscale is None or upscale is False:
        return 1.0
    if upscale is not True and not 1 <= upscale <= 16:
        raise problem_error(
            400, "invalid_value", f"upscale is {short_repr(upscale)}, expected true, or 1 to 16", "upscale"
        )
    return DEFAULT_SCALE if upscale is True else float(upscale)


def _parse(task: Task, body: SamplingBody, options: dict[str, Any], **extra: Any) -> ParsedRequest:
    output, output_notes = _parse_output(body)
    common: dict[str, Any] = {"url": body.response_format == "url", "live": body.live is True}
    return ParsedRequest(task, options, output, notes=(*output_notes, *_ignored_field_notes(body)), **(common | extra))


def _sampling_options(body: SamplingBody, bounds: Bounds) -> dict[str, Any]:
    """The options that all tasks share, by their names in `requests.py`."""
    count = 1 if body.n is None else body.n
    if count > bounds.count:
        raise problem_error(400, "invalid_value", f"n is {count}, expected 1 to {bounds.count}", "n")
    _check_sampler(body)
    seed = (
        int(body.seed) if body.seed is not None and body.seed != RANDOM_SEED else secrets.randbelow(RANDOM_SEED_RANGE)
    )
    negative = None if body.negative_prompt is None else _check_prompt(body.negative_prompt, "negative_prompt", bounds)
    options = {
        "negative": negative,
        "steps": resolve_steps(body.num_inference_steps, "num_inference_steps", bounds),
        "guidance": body.guidance_scale,
        "solver": body.scheduler,
        **(_adapter_options(body) if isinstance(body, AdaptedBody) else {}),
        "spacing": body.spacing,
    }
    return _without_none(options) | {"seed": seed, "count": count, "long_prompt": True}


def _adapter_options(body: AdaptedBody) -> dict[str, Any]:
    """What a request adds to its model."""
    loras, styles = (split_names(text) for text in (body.loras, body.styles))
    if len(loras) > MAX_LORAS:
        raise problem_error(
            400, "invalid_value", f"loras has {len(loras)} names, expected at most {MAX_LORAS}", "loras"
        )
    return {
        "loras": [_parse_lora(text) for text in loras] or None,
        "styles": styles or None,
        "clip_skip": body.clip_skip,
    }


def split_names(text: str | None) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _parse_lora(text: str) -> tuple[str, float]:
    """`name` or `name:0.8`."""
    name, colon, scale = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not abs(value) <= MAX_LORA_SCALE:
        expected = f"expected name:0.8, with a scale between {-MAX_LORA_SCALE:g} and {MAX_LORA_SCALE:g}"
        raise problem_error(400, "invalid_value", f"loras has {short_repr(text)}, {expected}", "loras")
    return name.strip(), value


def _check_sampler(body: SamplingBody) -> None:
    """Raises ProblemError for a solver or a spacing that has no such name."""
    for name, names in (("scheduler", (body.scheduler, None)), ("spacing", (None, body.spacing))):
        try:
            parse_sampler(*names)
        except InputError as error:
            value: str = getattr(body, name)
            kind, known = ("solver", SOLVERS) if name == "scheduler" else (name, SPACINGS)
            nearest = suggested_solver(value) if name == "scheduler" else suggested_spacing(value)
            expected = f"expected the name of a {kind}, one of {', '.join(known)}"
            raise problem_error(
                400, "invalid_value", f"{name} is {short_repr(value)}{nearest}, {expected}", name
            ) from error


def _without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given: 0, False and empty text are."""
    return {name: value for name, value in options.items() if value is not None}


def resolve_steps(steps: int | None, name: str, bounds: Bounds) -> int | None:
    """Those that were asked for; None stands for the model's own, unless these may be more than is allowed."""
    if steps is None:
        return None if bounds.steps >= MAX_DEFAULT_STEPS else bounds.steps
    if steps > bounds.steps:
        raise problem_error(400, "invalid_value", f"{name} is {steps}, expected 1 to {bounds.steps}", name)
    return steps


def _prompt_option(prompt: str | None, bounds: Bounds) -> dict[str, str]:
    return {} if prompt is None else {"prompt": _check_prompt(prompt, "prompt", bounds)}


def _check_prompt(text: str, name: str, bounds: Bounds) -> str:
    """A prompt that is not too long."""
    if len(text) > bounds.prompt:
        message = f"{name} has {len(text):,} characters, expected at most {bounds.prompt:,}"
        raise problem_error(400, "invalid_prompt", message, name)
    return text


def _parse_size(text: str | None, bounds: Bounds) -> Size | None:
    """Width and height; None for the model's or the picture's own."""
    if text is None or text in ("", "auto"):
        return None
    width, height = (int(part) for part in text.split("x"))
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in (width, height)):
        raise problem_error(
            400, "invalid_value", f"size is {text}, expected both sides between {MIN_SIDE} and {MAX_SIDE}", "size"
        )
    if width * height > bounds.output_pixels:
        raise problem_error(
            400, "image_too_large", f"size is {text}, expected at most {bounds.output_pixels:,} pixels", "size"
        )
    return width, height


def _parse_output(body: SamplingBody) -> tuple[OutputOptions, tuple[str, ...]]:
    """How results are written, and what to say about it."""
    file_format, quality = body.output_format or "png", body.output_compression
    if quality is None:
        return OutputOptions(file_format), ()
    if file_format == "png":
        return OutputOptions(file_format), ("output_compression changes nothing: png keeps every pixel as it is",)
    if quality == 0:
        return OutputOptions(file_format, 1), ("output_compression 0 is written as 1, the least there is",)
    return OutputOptions(file_format, quality), ()


def _stream_options(body: OpenAIBody) -> dict[str, Any]:
    """Partial pictures, for those that watch."""
    num_previews = 0 if body.partial_images is None else body.partial_images
    return {"previews": num_previews} if body.stream is True else {}


def _ignored_field_notes(body: SamplingBody) -> tuple[str, ...]:
    """What to say about fields that change nothing."""
    values = {name: getattr(body, name, None) for name in IGNORED_FIELDS}
    ignored = [
        name for name, value in values.items() if value is not None and value not in IGNORED_VALUES.get(name, ())
    ]
    notes = [f"{name} {values[name]} changes nothing here" for name in ignored]
    if isinstance(body, OpenAIBody) and body.partial_images is not None and body.stream is not True:
        notes.append("partial_images changes nothing without stream")
    unknown = sorted(body.model_extra or {})
    if unknown:
        names = ", ".join(printable(name) for name in unknown[:MAX_NAMES_SHOWN])
        rest = f" and {len(unknown) - MAX_NAMES_SHOWN} more" if len(unknown) > MAX_NAMES_SHOWN else ""
        notes.append(f"unknown fields change nothing: {names}{rest}")
    return tuple(notes)


def _check_options(parsed: ParsedRequest) -> None:
    """Raises ProblemError for options that the task's request does not take."""
    options = {name: value for name, value in parsed.options.items() if name != "refiner"}
    try:
        match parsed.task:
            case "upscale":
                UpscaleRequest(None, **options)
            case "generate":
                GenerateRequest(**options)
            case "refine":
                RefineRequest(None, **options)
            case "inpaint":
                InpaintRequest(None, **options)
    except InputError as error:
        raise problem_error(400, "invalid_value", str(error)) from error
