"""What requests for pictures may say: one pydantic model per body. Limits and help are those of `requests.py`."""

from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from enlarger.requests import GenerateRequest, InpaintRequest, OptionLimits, RefineRequest, UpscaleRequest
from enlarger.sampler_names import MENU_NAMES, SOLVERS, SPACINGS

SIZE_PATTERN = r"^(auto|[0-9]{1,5}x[0-9]{1,5})?$"
SIDE_PATTERN = "([89]|[1-9][0-9]{1,2}|[1-7][0-9]{3}|80[0-9]{2}|81[0-8][0-9]|819[0-2])"  # 8 to 8192, for the document
EXACT_SIZE_SCHEMA = {"pattern": f"^(auto|{SIDE_PATTERN}x{SIDE_PATTERN})?$"}
ResizeMode = Literal["stretch", "crop", "pad"]
OptionalBool = bool | None


def limits_of(request_type: type, name: str) -> OptionLimits:
    """The limits of a request's field."""
    return next(item.metadata["limits"] for item in fields(request_type) if item.name == name)


def limited_field(request_type: type, name: str, default: Any = None, help: str | None = None, **extra: Any) -> Any:
    """A field of a body, with the help and the limits of a request's field."""
    limits = limits_of(request_type, name)
    return Field(default, ge=limits.least, le=limits.most, description=help or limits.help, **extra)


def optional_field(help: str, **extra: Any) -> Any:
    """A field of a body that may be left out."""
    return Field(None, description=help, **extra)


class BaseBody(BaseModel):
    """What every body has. Unknown names are collected, for a warning in the reply; null is the same as absent."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    model: str | None = optional_field(
        "name of a model, or one of its other names; absent or empty: the first that can do it"
    )
    n: int | None = limited_field(UpscaleRequest, "count", examples=[1])
    response_format: Literal["b64_json", "url"] | None = optional_field(
        "the picture itself, or an address that expires"
    )
    output_format: Literal["png", "jpeg", "webp"] | None = optional_field("file format of the pictures; png if absent")
    output_compression: int | None = optional_field("quality of jpeg and webp, 100 is best; 95 if absent", ge=0, le=100)
    user: str | None = optional_field("who the end user is; not looked at")


class SamplingBody(BaseBody):
    """What every body has that a diffusion network answers. None stands for the model's own default."""

    negative_prompt: str | None = optional_field("what the picture should not show")
    num_inference_steps: int | None = limited_field(UpscaleRequest, "steps")
    guidance_scale: float | None = limited_field(UpscaleRequest, "guidance", allow_inf_nan=False)
    seed: int | None = limited_field(
        UpscaleRequest, "seed", help="seed of the first picture, the others count on; random if absent or -1"
    )
    scheduler: str | None = optional_field(
        f"name of the solver: {', '.join(SOLVERS)}; or A1111's, such as DPM++ 2M Karras",
        json_schema_extra={"enum": [*SOLVERS, *MENU_NAMES, None]},
    )
    spacing: str | None = optional_field(
        "of the noise levels; the model's own if absent", json_schema_extra={"enum": [*SPACINGS, None]}
    )
    live: OptionalBool = optional_field("make small previews while a person watches the job")


class UpscaleForm(SamplingBody):
    """The form of `/v1/images/upscale`, beside its picture."""

    prompt: str | None = optional_field("what the picture shows; may be empty")
    size: str | None = optional_field(
        "WxH: what the input is resized to, before it is enlarged",
        pattern=SIZE_PATTERN,
        json_schema_extra=EXACT_SIZE_SCHEMA,
    )
    resize_mode: ResizeMode | None = optional_field("how `size` is reached: stretch (if absent), crop or pad")
    scale: float | None = limited_field(
        UpscaleRequest, "by", allow_inf_nan=False, help="how many times wider and higher; 2 if absent"
    )
    target_size: str | None = optional_field("WxH of the result, instead of scale", pattern=SIZE_PATTERN)
    long_edge: int | None = limited_field(UpscaleRequest, "long_edge", help="of the result, instead of scale")
    megapixels: float | None = limited_field(
        UpscaleRequest, "megapixels", allow_inf_nan=False, help="of the result, instead of scale"
    )
    tile: OptionalBool = optional_field(limits_of(UpscaleRequest, "tile").help)
    detail: float | None = limited_field(UpscaleRequest, "detail", allow_inf_nan=False)
    restore: float | None = limited_field(UpscaleRequest, "restore", allow_inf_nan=False)
    consistent: OptionalBool = optional_field(limits_of(UpscaleRequest, "consistent").help)
    noise_level: float | None = limited_field(UpscaleRequest, "noise_level", allow_inf_nan=False)


class AdaptedBody(SamplingBody):
    """What every body has whose pictures are made of a prompt: what it adds to the model from the folder of models."""

    loras: str | None = optional_field(
        "LoRAs, each with its scale, as `name:0.8, other:0.5`; `<lora:name:0.8>` in the prompt does the same",
        max_length=4000,
    )
    styles: str | None = optional_field("names of styles, as `oil, warm`", max_length=4000)
    clip_skip: int | None = limited_field(GenerateRequest, "clip_skip")


class OpenAIBody(AdaptedBody):
    """What generations and edits share."""

    size: str | None = optional_field(
        "WxH, exact, or auto", pattern=SIZE_PATTERN, json_schema_extra=EXACT_SIZE_SCHEMA, examples=["512x512"]
    )
    quality: Literal["low", "medium", "high", "xhigh", "max", "standard", "hd", "auto"] | None = optional_field(
        "changes nothing"
    )
    background: str | None = optional_field(
        "the pictures are opaque", json_schema_extra={"enum": ["opaque", "auto", None]}
    )
    moderation: Literal["low", "auto"] | None = optional_field("changes nothing")
    safety_identifier: str | None = optional_field("who the end user is; not looked at")
    stream: OptionalBool = optional_field("answer with server-sent events")
    partial_images: int | None = optional_field("pictures on the way to send with `stream`", ge=0, le=3)


class Generation(OpenAIBody):
    """The body of `/v1/images/generations`."""

    prompt: str = Field(description="what the picture shows", examples=["a lighthouse at dusk, oil on canvas"])
    style: Literal["vivid", "natural"] | None = optional_field("changes nothing")
    refiner: OptionalBool = optional_field("let the model's refiner finish the picture")
    upscale: bool | float | None = optional_field(
        "enlarge the picture by 2 (true), or by a number of 1 to 16", json_schema_extra={"minimum": 1, "maximum": 16}
    )


class Edit(OpenAIBody):
    """The form of `/v1/images/edits`, beside its files."""

    prompt: str = Field(description="what the edited part, or the whole picture, shows", examples=["a straw hat"])
    strength: float | None = limited_field(InpaintRequest, "strength", allow_inf_nan=False)
    mask_mode: Literal["auto", "alpha", "luminance", "inverted", "none"] | None = optional_field(
        "what the mask means: auto takes transparency if it has any, else white is repainted; none is for a picture "
        "without a mask: all of it is remade, its transparent part too"
    )
    mask_resize: OptionalBool = optional_field("resize a mask of another size than the picture, instead of refusing it")
    resize_mode: ResizeMode | None = optional_field("how another `size` is reached: crop (if absent), stretch or pad")
    input_fidelity: Literal["high", "low"] | None = optional_field("changes nothing; `strength` does")


def _hide_file_id(schema: dict[str, Any]) -> None:
    """Files that are stored beforehand are known, to be refused with a reason; they are not offered."""
    del schema["properties"]["file_id"]
    schema["properties"]["image_url"] = {
        "type": "string",
        "description": schema["properties"]["image_url"]["description"],
    }
    schema["required"] = ["image_url"]


class Reference(BaseModel):
    """A picture of a JSON body: an address or the picture itself as `data:` URL."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, json_schema_extra=_hide_file_id)

    image_url: str | None = optional_field(
        "data: URL, or an address where fetching is switched on", examples=["data:image/png;base64,..."]
    )
    file_id: str | None = None


class EditJson(Edit):
    """The JSON body of `/v1/images/edits`."""

    images: list[Reference] = Field(description="one picture", min_length=1, json_schema_extra={"maxItems": 1})
    mask: Reference | None = optional_field("which part is repainted")


class Variation(AdaptedBody):
    """The form of `/v1/images/variations`, beside its picture."""

    size: str | None = optional_field(
        "WxH; the picture's own if absent", pattern=SIZE_PATTERN, json_schema_extra=EXACT_SIZE_SCHEMA
    )
    resize_mode: ResizeMode | None = optional_field("how another `size` is reached: crop (if absent), stretch or pad")
    strength: float | None = limited_field(RefineRequest, "strength", allow_inf_nan=False)


class Inpainting(AdaptedBody):
    """The form of `/v1/images/inpainting`, beside its picture and mask."""

    prompt: str = Field(description="what the repainted part shows", examples=["a straw hat"])
    steps: int | None = limited_field(GenerateRequest, "steps", help="denoising steps; 25 if absent")
    size: str | None = optional_field(
        "WxH; the picture's own if absent", pattern=SIZE_PATTERN, json_schema_extra=EXACT_SIZE_SCHEMA
    )
    resize_mode: ResizeMode | None = optional_field("how another `size` is reached: crop (if absent), stretch or pad")
    strength: float | None = limited_field(InpaintRequest, "strength", allow_inf_nan=False)
    mask_mode: Literal["auto", "alpha", "luminance", "inverted"] | None = optional_field(
        "what the mask means; white is repainted"
    )
    mask_resize: OptionalBool = optional_field("resize a mask of another size than the picture, instead of refusing it")
