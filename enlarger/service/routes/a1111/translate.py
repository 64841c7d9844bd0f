"""AUTOMATIC1111's bodies as this service's own, so that one place checks them and one knows what they mean."""

import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel

from enlarger.service.jobs.model_registry import ModelState
from enlarger.service.problems import ProblemError
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
)
from enlarger.service.routes.request_body import RequestBody, validate_body
from enlarger.service.routes.request_models import Edit, Generation, UpscaleForm
from enlarger.service.settings import Bounds
from enlarger.strict_json import short_repr

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
}
Body = TypeVar("Body", bound=BaseModel)


def request_options(body: Sampling, session_options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a request: those that were set, and over them its own."""
    return dict(session_options) | check_options(body.override_settings, "override_settings")


def parse_text_to_image(body: TextToImage, options: Mapping[str, Any], bounds: Bounds) -> ParsedRequest:
    """Of txt2img. With `enable_hr` the picture is enlarged by the bundled model and remade in windows."""
    hires: dict[str, Any] = {}
    if body.enable_hr:
        if body.hr_upscaler not in HIRES_UPSCALERS:
            found = f"hr_upscaler is {short_repr(body.hr_upscaler)}"
            raise unsupported("hr_upscaler", f"{found}, expected {HIRES_UPSCALERS[0]}, the model that enlarges here")
        hires = {"tile": True, "upscale_strength": body.denoising_strength}
        hires |= {"upscale_steps": body.hr_second_pass_steps or None}
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
    target: dict[str, Any] = {"scale": body.upscaling_resize}
    wanted = (body.upscaling_resize_w, body.upscaling_resize_h)
    if body.resize_mode == 1 and body.upscaling_crop:
        target = {"target_size": f"{wanted[0]}x{wanted[1]}"}
    elif body.resize_mode == 1:
        target = {"scale": max(goal / side for goal, side in zip(wanted, size, strict=True))}
    return parse_upscale(_make(UpscaleForm, **target), bounds, model.unused_options)


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
