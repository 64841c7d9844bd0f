"""What a body asks for, as a job's `Ask`: pure functions, without files and without the queue."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from enlarger.errors import InputError
from enlarger.jsonfile import shown
from enlarger.requests import DEFAULTS, GenerateRequest, InpaintRequest, RefineRequest, UpscaleRequest
from enlarger.service.faults import refuse
from enlarger.service.jobs import Ask, Output, Task
from enlarger.service.routes.fields import (
    SCHEDULERS,
    Edit,
    Generation,
    Inpainting,
    OpenAI,
    Sampled,
    UpscaleForm,
    Variation,
)
from enlarger.service.routes.incoming import printable
from enlarger.service.settings import Bounds

Mode = Literal["stretch", "crop", "pad"]
Size = tuple[int, int]  # width, height

DRAWN_SEEDS = 2**32
LEAST_SIDE, MOST_SIDE = 8, 8192
MODEL_STEPS = max(defaults.get("steps", 0) for defaults in DEFAULTS.values())
PREM_STEPS, PREM_GUIDANCE = 25, 7.5  # of the documented dialect, where the model takes steps at all
EDIT_STRENGTH = 0.75  # without a mask: the prompt shows, and so does the picture
VARIATION_STRENGTH = 0.6
INPAINTING_STEPS = 25
TWICE = 2.0
NAMES_SHOWN = 10
IDLE = ("quality", "style", "moderation", "input_fidelity")  # OpenAI's, without a meaning here
HARMLESS = {"quality": ("auto",), "moderation": ("auto",)}


@dataclass(frozen=True)
class Wish:
    """What a body asks for, before its pictures are known."""

    task: Task
    options: Mapping[str, Any]
    output: Output
    url: bool = False  # answer addresses instead of pictures
    size: Size | None = None  # that the input is brought to, or that is generated
    mode: Mode = "crop"  # how
    previews: int = 0
    live: bool = False
    notes: tuple[str, ...] = ()


def upscale_wish(body: UpscaleForm, bounds: Bounds, kind: str | None) -> Wish:
    """Of `/v1/images/upscale`. The documented dialect has defaults of its own, for models that take steps; with a
    `scale`, or without a `prompt`, it is LocalAI's: addresses are answered, and defaults are the model's."""
    documented = body.scale is None and body.prompt is not None
    own = (
        {"steps": min(PREM_STEPS, bounds.steps), "guidance": PREM_GUIDANCE} if documented and kind != "bundled" else {}
    )
    options = own | _common(body, bounds) | {"by": TWICE if body.scale is None else float(body.scale)}
    extras = {"detail": body.detail, "restore": body.restore, "consistent": body.consistent, "noise_level": body.noise_level}
    url = body.response_format == "url" if body.response_format is not None else not documented
    size = _size(body.size, bounds)
    if size is not None and size[0] * size[1] > bounds.upscale_pixels:
        expected = f"expected at most {bounds.upscale_pixels:,} pixels to enlarge"
        raise refuse(400, "image_too_large", f"size is {body.size}, {expected}", "size")
    options |= _given(extras) | _prompt(body.prompt, bounds)
    return _wish("upscale", body, options, url=url, size=size, mode=body.resize_mode or "stretch")


def generation_wish(body: Generation, bounds: Bounds, refiner: str | None) -> Wish:
    """Of `/v1/images/generations`; `refiner` is the name of the model that finishes the picture."""
    size = _size(body.size, bounds)
    width, height = (None, None) if size is None else size
    times = factor_of(body.upscale)
    extras = {"width": width, "height": height, "refiner": refiner, "upscale": None if times == 1 else times}
    options = _common(body, bounds) | _prompt(body.prompt, bounds) | _given(extras)
    return _wish("generate", body, options, size=size, **_streamed(body))


def edit_wish(body: Edit | Inpainting, bounds: Bounds, masked: bool) -> Wish:
    """Of `/v1/images/edits` and `/v1/images/inpainting`: under a mask, or of the whole picture."""
    strength = body.strength if masked or body.strength is not None else EDIT_STRENGTH
    options = _common(body, bounds) | _prompt(body.prompt, bounds) | _given({"strength": strength})
    if isinstance(body, Inpainting):
        steps = min(INPAINTING_STEPS, bounds.steps) if body.steps is None else body.steps
        options = {"steps": _steps(steps, "steps", bounds)} | options
    more = _streamed(body) if isinstance(body, Edit) else {"url": body.response_format != "b64_json"}
    place = {"size": _size(body.size, bounds), "mode": body.resize_mode or "crop"}
    return _wish("inpaint" if masked else "refine", body, options, **place, **more)


def variation_wish(body: Variation, bounds: Bounds) -> Wish:
    """Of `/v1/images/variations`."""
    strength = VARIATION_STRENGTH if body.strength is None else body.strength
    options = _common(body, bounds) | {"prompt": "", "strength": strength}
    return _wish("refine", body, options, size=_size(body.size, bounds), mode=body.resize_mode or "crop")


def ask_of(wish: Wish, model: str, bounds: Bounds, picture: Size | None = None, notes: tuple[str, ...] = ()) -> Ask:
    """The ask of a wish, once the input picture's size is known. Raises Refused for what no request may say."""
    size = result_size(wish, picture)
    if size is not None and size[0] * size[1] > bounds.output_pixels:
        raise refuse(
            400,
            "image_too_large",
            f"the result would have {size[0]}x{size[1]} pixels, expected at most {bounds.output_pixels:,}; "
            "ask for less, or give a smaller picture",
            "scale" if wish.task == "upscale" else "size",
        )
    _check(wish)
    image = None if wish.task == "generate" else "image.png"
    mask = "mask.png" if wish.task == "inpaint" else None
    said = (*wish.notes, *notes)
    return Ask(wish.task, model, wish.options, image, mask, size, wish.output, wish.previews, wish.live, said)


def result_size(wish: Wish, picture: Size | None) -> Size | None:
    """Width and height of the result; None where the model decides."""
    start = wish.size if picture is None else picture
    times = float(wish.options.get({"upscale": "by", "generate": "upscale"}.get(wish.task, ""), 1))
    return None if start is None else (round(start[0] * times), round(start[1] * times))


def factor_of(upscale: bool | float | None) -> float:
    """How many times larger a generated picture is made."""
    if upscale is None or upscale is False:
        return 1.0
    if upscale is not True and not 1 <= upscale <= 16:
        raise refuse(400, "invalid_value", f"upscale is {shown(upscale)}, expected true, or 1 to 16", "upscale")
    return TWICE if upscale is True else float(upscale)


def _wish(task: Task, body: Sampled, options: dict[str, Any], **more: Any) -> Wish:
    output, said = _output(body)
    common: dict[str, Any] = {"url": body.response_format == "url", "live": body.live is True}
    return Wish(task, options, output, notes=(*said, *_idle(body)), **(common | more))


def _common(body: Sampled, bounds: Bounds) -> dict[str, Any]:
    """The options that all tasks share, by their names in `requests.py`."""
    count = 1 if body.n is None else body.n
    if count > bounds.count:
        raise refuse(400, "invalid_value", f"n is {count}, expected 1 to {bounds.count}", "n")
    if body.scheduler is not None and body.scheduler not in SCHEDULERS:
        expected = f"expected the name of a solver, one of {', '.join(SCHEDULERS)}"
        raise refuse(400, "invalid_value", f"scheduler is {shown(body.scheduler)}, {expected}", "scheduler")
    seed = secrets.randbelow(DRAWN_SEEDS) if body.seed is None else body.seed
    negative = None if body.negative_prompt is None else _checked(body.negative_prompt, "negative_prompt", bounds)
    options = {
        "negative": negative,
        "steps": _steps(body.num_inference_steps, "num_inference_steps", bounds),
        "guidance": body.guidance_scale,
        "solver": body.scheduler,
    }
    return _given(options) | {"seed": seed, "count": count, "long_prompt": True}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given: 0, False and empty text are."""
    return {name: value for name, value in options.items() if value is not None}


def _steps(steps: int | None, name: str, bounds: Bounds) -> int | None:
    """Those that were asked for; None stands for the model's own, unless these may be more than is allowed."""
    if steps is None:
        return None if bounds.steps >= MODEL_STEPS else bounds.steps
    if steps > bounds.steps:
        raise refuse(400, "invalid_value", f"{name} is {steps}, expected 1 to {bounds.steps}", name)
    return steps


def _prompt(prompt: str | None, bounds: Bounds) -> dict[str, str]:
    return {} if prompt is None else {"prompt": _checked(prompt, "prompt", bounds)}


def _checked(text: str, name: str, bounds: Bounds) -> str:
    """A prompt that is not too long."""
    if len(text) > bounds.prompt:
        message = f"{name} has {len(text):,} characters, expected at most {bounds.prompt:,}"
        raise refuse(400, "invalid_prompt", message, name)
    return text


def _size(text: str | None, bounds: Bounds) -> Size | None:
    """Width and height; None for the model's or the picture's own."""
    if text is None or text in ("", "auto"):
        return None
    width, height = (int(part) for part in text.split("x"))
    if not all(LEAST_SIDE <= side <= MOST_SIDE for side in (width, height)):
        raise refuse(
            400, "invalid_value", f"size is {text}, expected both sides between {LEAST_SIDE} and {MOST_SIDE}", "size"
        )
    if width * height > bounds.output_pixels:
        raise refuse(
            400, "image_too_large", f"size is {text}, expected at most {bounds.output_pixels:,} pixels", "size"
        )
    return width, height


def _output(body: Sampled) -> tuple[Output, tuple[str, ...]]:
    """How results are written, and what to say about it."""
    form, given = body.output_format or "png", body.output_compression
    if given is None:
        return Output(form), ()
    if form == "png":
        return Output(form), ("output_compression changes nothing: png keeps every pixel as it is",)
    if given == 0:
        return Output(form, 1), ("output_compression 0 is written as 1, the least there is",)
    return Output(form, given), ()


def _streamed(body: OpenAI) -> dict[str, Any]:
    """Partial pictures, for those that watch."""
    many = 0 if body.partial_images is None else body.partial_images
    return {"previews": many} if body.stream is True else {}


def _idle(body: Sampled) -> tuple[str, ...]:
    """What to say about fields that change nothing."""
    given = {name: getattr(body, name, None) for name in IDLE}
    idle = [name for name, value in given.items() if value is not None and value not in HARMLESS.get(name, ())]
    said = [f"{name} {given[name]} changes nothing here" for name in idle]
    if isinstance(body, OpenAI) and body.partial_images is not None and body.stream is not True:
        said.append("partial_images changes nothing without stream")
    unknown = sorted(body.model_extra or {})
    if unknown:
        names = ", ".join(printable(name) for name in unknown[:NAMES_SHOWN])
        more = f" and {len(unknown) - NAMES_SHOWN} more" if len(unknown) > NAMES_SHOWN else ""
        said.append(f"unknown fields change nothing: {names}{more}")
    return tuple(said)


def _check(wish: Wish) -> None:
    """Raises Refused for options that the task's request does not take."""
    options = {name: value for name, value in wish.options.items() if name != "refiner"}
    try:
        match wish.task:
            case "upscale":
                UpscaleRequest(None, **options)
            case "generate":
                GenerateRequest(**options)
            case "refine":
                RefineRequest(None, **options)
            case "inpaint":
                InpaintRequest(None, **options)
    except InputError as error:
        raise refuse(400, "invalid_value", str(error)) from error
