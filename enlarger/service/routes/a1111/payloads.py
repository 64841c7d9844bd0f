"""The bodies of AUTOMATIC1111's API, with its names and defaults; what is not supported is refused by its name."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field

from enlarger.requests import GenerateRequest, InpaintRequest
from enlarger.service.problems import ProblemError, problem_error
from enlarger.service.routes.request_body import RequestBody, check_text, printable, validate_body
from enlarger.service.routes.request_models import limited_field, limits_of
from enlarger.strict_json import short_repr

NEUTRAL: Mapping[str, tuple[object, ...]] = {  # fields that are not supported, and the values that ask for nothing
    "restore_faces": (False,),
    "tiling": (False,),
    "save_images": (False,),
    "subseed_strength": (0,),
    "seed_resize_from_h": (-1, 0),
    "seed_resize_from_w": (-1, 0),
    "script_name": ("", "None"),
    "script_args": ([],),
    "s_churn": (0,),
    "s_tmin": (0,),
    "s_tmax": (0,),
    "s_noise": (1,),
    "refiner_checkpoint": ("", "None"),
    "disable_extra_networks": (False,),
    "firstpass_image": (),
    "hr_checkpoint_name": ("", "Use same checkpoint"),
    "hr_sampler_name": ("", "Use same sampler"),
    "hr_scheduler": ("", "Use same scheduler"),
    "hr_prompt": ("",),
    "hr_negative_prompt": ("",),
    "hr_resize_x": (0,),
    "hr_resize_y": (0,),
    "firstphase_width": (0,),
    "firstphase_height": (0,),
    "initial_noise_multiplier": (1,),
    "inpainting_initial_noise_multiplier": (1,),
    "mask_blur_x": (4,),
    "mask_blur_y": (4,),
    "mask_round": (True,),
    "latent_mask": (),
    "gfpgan_visibility": (0,),
    "codeformer_visibility": (0,),
    "extras_upscaler_2_visibility": (0,),
    "upscale_first": (False,),
}
WITHOUT_EFFECT = frozenset(  # they say how files are kept, or weigh what the fields above ask for
    {
        *("do_not_save_samples", "do_not_save_grid", "override_settings_restore_afterwards", "force_task_id"),
        *("subseed", "refiner_switch_at", "comments", "infotext", "image_cfg_scale", "codeformer_weight"),
        *("upscaler_2", "show_extras_results", "include_init_images", "sampler_index"),
    }
)
LAYER = "CLIP_stop_at_last_layers"  # of the text encoder
OPTIONS = ("sd_model_checkpoint", LAYER)  # of /sdapi/v1/options that can be set
PICTURES = ("init_images", "mask", "image", "imageList")
NEUTRAL_OPTIONS: Mapping[str, tuple[object, ...]] = {
    "sd_vae": ("Automatic", "None", ""),
    "samples_format": ("png",),
    "return_grid": (False,),
    "do_not_show_images": (False,),
    "samples_save": (False,),
    "grid_save": (False,),
}
Body = TypeVar("Body", bound="Payload")


class Payload(BaseModel):
    """What every body is: names that are not here are unsupported, and null is the same as absent."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def echo(self) -> dict[str, Any]:
        """The body as it is answered, without its pictures."""
        return self.model_dump()


class Sampling(Payload):
    """What txt2img and img2img share."""

    prompt: str = ""
    negative_prompt: str = ""
    styles: list[str] = Field(default=[], max_length=50)
    seed: int = -1
    sampler_name: str | None = None
    sampler_index: str | None = None  # what the name was called once
    scheduler: str | None = None
    batch_size: int = Field(default=1, ge=1)
    n_iter: int = Field(default=1, ge=1)
    steps: int = Field(default=50, ge=1)
    cfg_scale: float = Field(default=7.0, allow_inf_nan=False)
    width: int = 512
    height: int = 512
    eta: float | None = None
    override_settings: dict[str, Any] = {}
    alwayson_scripts: dict[str, Any] = {}
    send_images: bool = True


class TextToImage(Sampling):
    """The body of `/sdapi/v1/txt2img`."""

    denoising_strength: float | None = limited_field(GenerateRequest, "upscale_strength")
    enable_hr: bool = False
    hr_scale: float = Field(default=2.0, allow_inf_nan=False)
    hr_upscaler: str | None = None
    hr_second_pass_steps: int = Field(default=0, ge=0)


class ImageToImage(Sampling):
    """The body of `/sdapi/v1/img2img`; its pictures are files by the time it is read."""

    denoising_strength: float = limited_field(InpaintRequest, "strength", 0.75)
    resize_mode: int = 0
    mask_blur: int | None = limited_field(InpaintRequest, "feather")
    inpainting_fill: int = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = limited_field(InpaintRequest, "crop", 0)
    inpainting_mask_invert: int = 0
    init_images: list[None] | None = None
    mask: None = None


class Extras(Payload):
    """What extra-single-image and extra-batch-images share."""

    resize_mode: int = 0
    upscaling_resize: float = Field(default=2.0, allow_inf_nan=False)
    upscaling_resize_w: int = 512
    upscaling_resize_h: int = 512
    upscaling_crop: bool = True
    upscaler_1: str = "None"


class ExtraSingle(Extras):
    """The body of `/sdapi/v1/extra-single-image`."""

    image: None = None


class ExtraBatch(Extras):
    """The body of `/sdapi/v1/extra-batch-images`."""

    imageList: list[None] = []


class PngInfo(Payload):
    """The body of `/sdapi/v1/png-info`."""

    image: None = None


def read_payload(kind: type[Body], request_body: RequestBody) -> Body:
    """A body, checked. Raises ProblemError, one sentence, for the first field that is wrong or not supported."""
    _check_pictures(kind, request_body.files)
    values = {name: value for name, value in request_body.values.items() if value is not None}
    for name, value in values.items():
        _check_value(name, value)
    for name, value in values.items():
        if name in kind.model_fields or name in WITHOUT_EFFECT:
            continue
        if name not in NEUTRAL:
            raise unsupported(name, f"the field {short_repr(printable(name))} is not known here; leave it out")
        if value not in NEUTRAL[name]:
            raise unsupported(name, f"{name} is {short_repr(value)}, which is not supported here; leave it out")
    body = validate_body(kind, RequestBody(values, request_body.files, request_body.is_form))
    for name, script in getattr(body, "alwayson_scripts", {}).items():
        if not _is_off(script):
            raise unsupported("alwayson_scripts", f"the script {short_repr(name)} is not here; leave it out")
    return body


def check_options(options: Mapping[str, Any], param: str | None = None) -> dict[str, Any]:
    """Those of the options that this service has. Raises ProblemError for one that it cannot set."""
    for name, value in options.items():
        if name not in OPTIONS and value not in NEUTRAL_OPTIONS.get(name, ()):
            settable = ", ".join(OPTIONS)
            raise unsupported(param or name, f"the option {short_repr(printable(name))} cannot be set, only {settable}")
    skip, limits = options.get(LAYER), limits_of(GenerateRequest, "clip_skip")
    is_layer = isinstance(skip, int) and not isinstance(skip, bool) and limits.least <= skip <= limits.most
    if skip is not None and not is_layer:
        text = f"{LAYER} is {short_repr(skip)}, expected {limits.least:g} to {limits.most:g}"
        raise problem_error(400, "invalid_value", text, param or LAYER)
    return {name: options[name] for name in OPTIONS if options.get(name) is not None}


def unsupported(param: str, message: str) -> ProblemError:
    return problem_error(400, "unsupported", message, printable(param))


def _check_pictures(kind: type[Payload], found: Iterable[str]) -> None:
    """Raises ProblemError for a picture in a field that a body does not have."""
    expected = " and ".join(name for name in PICTURES if name in kind.model_fields) or "no picture"
    for name in found:
        if name not in kind.model_fields:
            raise unsupported(name, f"found a picture in {name}, which is not taken here; expected {expected}")


def _check_value(name: str, value: object) -> None:
    """Raises ProblemError for a number that is not finite and a text that is none, wherever they are in a field; a
    body is not deep."""
    if isinstance(value, str):
        check_text(value, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise problem_error(400, "invalid_value", f"{name} holds {value}, expected a finite number", printable(name))
    elif isinstance(value, dict):
        for key, one in cast("dict[str, object]", value).items():
            check_text(key, name)
            _check_value(name, one)
    elif isinstance(value, list):
        for one in cast("list[object]", value):
            _check_value(name, one)


def _is_off(script: object) -> bool:
    """Whether a script is named only to say that it is not used."""
    return isinstance(script, dict) and script in ({}, {"args": []}, {"args": [False]})
