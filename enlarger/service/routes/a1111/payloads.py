"""The bodies of AUTOMATIC1111's API, with its names and defaults; what is not supported is refused by its name."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from enlarger.service.problems import ProblemError, problem_error
from enlarger.service.routes.request_body import RequestBody, printable, validate_body
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
OPTIONS = ("sd_model_checkpoint", "CLIP_stop_at_last_layers")  # of /sdapi/v1/options that can be set
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

    denoising_strength: float | None = None
    enable_hr: bool = False
    hr_scale: float = Field(default=2.0, allow_inf_nan=False)
    hr_upscaler: str | None = None
    hr_second_pass_steps: int = 0


class ImageToImage(Sampling):
    """The body of `/sdapi/v1/img2img`; its pictures are files by the time it is read."""

    denoising_strength: float = 0.75
    resize_mode: int = 0
    mask_blur: int | None = None
    inpainting_fill: int = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
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

    imageList: list[dict[str, str | None]] = []


class PngInfo(Payload):
    """The body of `/sdapi/v1/png-info`."""

    image: None = None


def read_payload(kind: type[Body], request_body: RequestBody) -> Body:
    """A body, checked. Raises ProblemError, one sentence, for the first field that is wrong or not supported."""
    values = {name: value for name, value in request_body.values.items() if value is not None}
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
    return {name: options[name] for name in OPTIONS if options.get(name) is not None}


def unsupported(param: str, message: str) -> ProblemError:
    return problem_error(400, "unsupported", message, printable(param))


def _is_off(script: object) -> bool:
    """Whether a script is named only to say that it is not used."""
    return isinstance(script, dict) and script in ({}, {"args": []}, {"args": [False]})
