"""AUTOMATIC1111's bodies as this service's own, so that one place checks them and one knows what they mean."""

import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel

from enlarger.errors import InputError
from enlarger.service.jobs.model_registry import ModelState
from enlarger.service.problems import ProblemError, problem_error
from enlarger.service.routes.a1111.payloads import (
    Extras,
    ImageToImage,
    Sampling,
    TextToImage,
    check_options,
    unsupported,
)
from enlarger.service.routes.a1111.samplers import sampler_options
from enlarger.service.routes.parsed_request import (
    RANDOM_SEED_RANGE,
    ParsedRequest,
    ResizeMode,
    parse_edit,
    parse_generation,
    parse_upscale,
    resolve_steps,
)
from enlarger.service.routes.request_body import RequestBody, validate_body
from enlarger.service.routes.request_models import Edit, Generation, UpscaleForm
from enlarger.service.settings import Bounds
from enlarger.strict_json import short_repr
from enlarger.target_size import MAX_FACTOR, MAX_SIDE, check_factor, fitting_size

RESIZE_MODES: Mapping[int, ResizeMode] = {0: "stretch", 1: "crop", 2: "pad"}
FILLS = {0: "blur", 1: "original", 2: "noise"}
HIRES_UPSCALERS = ("enlarger", "bundled", "Enlarger")
THEIR_NAMES = {  # of our fields, for messages
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "n": "batch_size x n_iter",
    "strength": "denoising_strength",
    "scale": "upscaling_resize",
    "size": "width x height",
    "upscale": "hr_scale",
    "upscale_strength": "denoising_strength",
    "target_size": "upscaling_resize_w x upscaling_resize_h",
    "feather": "mask_blur",
    "crop": "inpaint_full_res_padding",
    "clip_skip": "CLIP_stop_at_last_layers",
}
Body = TypeVar("Body", bound=BaseModel)


def request_options(body: Sampling, session_options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a request: those that were set, and over them its own."""
    return dict(session_options) | check_options(body.override_settings, "override_settings")


def parse_text_to_image(body: TextToImage, options: Mapping[str, Any], bounds: Bounds) -> ParsedRequest:
    """Of txt2img. With `enable_hr` the picture is enlarged by the bundled model and remade in windows."""
    hires = _hires_options(body, bounds) if body.enable_hr else {}
    upscale = {"upscale": body.hr_scale} if body.enable_hr else {}
    ours = _make(Generation, **_shared(body, options), **upscale)
    return _with_options(parse_generation(ours, bounds, None), body, hires)


def parse_image_to_image(
    body: ImageToImage, options: Mapping[str, Any], bounds: Bounds, has_mask: bool
) -> ParsedRequest:
    """Of img2img, with or without a mask."""
    if body.resize_mode not in RESIZE_MODES:
        raise unsupported("resize_mode", f"resize_mode is {body.resize_mode}, expected 0, 1 or 2")
    masked: dict[str, Any] = {}
    if has_mask:
        if body.inpainting_fill not in FILLS:
            raise unsupported("inpainting_fill", f"inpainting_fill is {body.inpainting_fill}, expected 0, 1 or 2")
        masked = {"fill": FILLS[body.inpainting_fill], "feather": 4 if body.mask_blur is None else body.mask_blur}
        masked |= {"crop": body.inpaint_full_res_padding if body.inpaint_full_res else None}
    ours = _make(
        Edit,
        **_shared(body, options),
        strength=body.denoising_strength,
        resize_mode=RESIZE_MODES[body.resize_mode],
    )
    return _with_options(parse_edit(ours, bounds, has_mask), body, masked)


def parse_extras(body: Extras, model: ModelState, size: tuple[int, int], bounds: Bounds) -> ParsedRequest:
    """Of an extra, once its picture's size (width, height) is known."""
    if body.resize_mode not in (0, 1):
        raise unsupported("resize_mode", f"resize_mode is {body.resize_mode}, expected 0 or 1")
    target = {"scale": body.upscaling_resize} if body.resize_mode == 0 else _extras_target(body, size)
    return parse_upscale(_make(UpscaleForm, **target), bounds, model.unused_options)


def _extras_target(body: Extras, size: tuple[int, int]) -> dict[str, Any]:
    """What upscaling_resize_w and upscaling_resize_h ask for. Raises ProblemError, in their names."""
    wanted = (body.upscaling_resize_w, body.upscaling_resize_h)
    for name, side in zip(("upscaling_resize_w", "upscaling_resize_h"), wanted, strict=True):
        if not 1 <= side <= MAX_SIDE:
            raise problem_error(400, "invalid_value", f"{name} is {side}, expected 1 to {MAX_SIDE}", name)
    width, height = size
    factor = max(wanted[0] / width, wanted[1] / height)
    try:
        if body.upscaling_crop:
            fitting_size(wanted, height, width)
        else:
            check_factor(factor, height, width)
    except InputError as error:
        text = str(error).replace("size is", f"{THEIR_NAMES['target_size']} is", 1)
        raise problem_error(400, "invalid_value", text, "upscaling_resize_w") from error
    return {"target_size": f"{wanted[0]}x{wanted[1]}"} if body.upscaling_crop else {"scale": factor}


def _hires_options(body: TextToImage, bounds: Bounds) -> dict[str, Any]:
    """The options of the second pass. Raises ProblemError, in their names."""
    if body.hr_upscaler not in HIRES_UPSCALERS:
        found = f"hr_upscaler is {short_repr(body.hr_upscaler)}"
        raise unsupported("hr_upscaler", f"{found}, expected {HIRES_UPSCALERS[0]}, the model that enlarges here")
    if not 1 < body.hr_scale <= MAX_FACTOR:
        found = f"hr_scale is {body.hr_scale:g}"
        raise problem_error(
            400,
            "invalid_value",
            f"{found}, expected more than 1, up to {MAX_FACTOR}; or leave enable_hr out",
            "hr_scale",
        )
    steps = None if body.hr_second_pass_steps == 0 else body.hr_second_pass_steps
    if steps is not None:
        steps = resolve_steps(steps, "hr_second_pass_steps", bounds)
    return {"tile": True, "upscale_strength": body.denoising_strength, "upscale_steps": steps}


@contextmanager
def in_their_names() -> Generator[None]:
    """Problems of our fields are raised in the names of theirs."""
    try:
        yield
    except ProblemError as error:
        problem = error.problem
        name = None if problem.param is None else THEIR_NAMES.get(problem.param)
        if problem.param is None or name is None:
            raise
        message = problem.message.replace(problem.param, name, 1)
        raise ProblemError(replace(problem, message=message, param=name)) from error


def _shared(body: Sampling, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our body that txt2img and img2img set alike."""
    seed = secrets.randbelow(RANDOM_SEED_RANGE) if body.seed < 0 else body.seed
    clip_skip = options.get("CLIP_stop_at_last_layers")
    return {
        "prompt": body.prompt,
        "negative_prompt": body.negative_prompt,
        "seed": seed,
        "n": body.batch_size * body.n_iter,
        "num_inference_steps": body.steps,
        "guidance_scale": body.cfg_scale,
        "size": f"{body.width}x{body.height}",
        "clip_skip": None if clip_skip in (None, 1) else clip_skip,
    }


def _make(kind: type[Body], **values: Any) -> Body:
    """One of our bodies; None stands for a field that is not given."""
    given = {name: value for name, value in values.items() if value is not None}
    return validate_body(kind, RequestBody(given, {}, is_form=False))


def _with_options(parsed: ParsedRequest, body: Sampling, more: Mapping[str, Any]) -> ParsedRequest:
    """With what our bodies have no field for."""
    options = {"styles": body.styles or None, **sampler_options(body), **more}
    given = {name: value for name, value in options.items() if value is not None}
    return replace(parsed, options={**parsed.options, **given})
