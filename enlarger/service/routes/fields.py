"""What requests for pictures may say: one pydantic model per body. Limits and help are those of `requests.py`."""

from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from enlarger.requests import GenerateRequest, InpaintRequest, Limits, RefineRequest, UpscaleRequest

SCHEDULERS = (
    "euler", "euler_ancestral", "ddim", "ddpm", "heun", "plms", "pndm", "lms", "dpm2", "dpm2_ancestral", "dpm_fast",
    "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_singlestep", "dpmpp_2m", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde",
    "unipc",
)  # fmt: skip
"""The names of the solvers, here because this process does without torch."""

SIZE = r"^(auto|[0-9]{1,5}x[0-9]{1,5})?$"
SIDE = "([89]|[1-9][0-9]{1,2}|[1-7][0-9]{3}|80[0-9]{2}|81[0-8][0-9]|819[0-2])"  # 8 to 8192, for the document
EXACT = {"pattern": f"^(auto|{SIDE}x{SIDE})?$"}
Resize = Literal["stretch", "crop", "pad"]
Switch = bool | None


def limits_of(kind: type, name: str) -> Limits:
    """The limits of a request's field."""
    return next(item.metadata["limits"] for item in fields(kind) if item.name == name)


def limited(kind: type, name: str, default: Any = None, help: str | None = None, **more: Any) -> Any:
    """A field of a body, with the help and the limits of a request's field."""
    limits = limits_of(kind, name)
    return Field(default, ge=limits.least, le=limits.most, description=help or limits.help, **more)


def say(help: str, **more: Any) -> Any:
    """A field of a body that may be left out."""
    return Field(None, description=help, **more)


class Body(BaseModel):
    """What every body has. Names it does not know are kept, for a warning in the reply; null is the same as absent."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    model: str | None = say("name of a model, or one of its other names; absent or empty: the first that can do it")
    n: int | None = limited(UpscaleRequest, "count", examples=[1])
    response_format: Literal["b64_json", "url"] | None = say("the picture itself, or an address that expires")
    output_format: Literal["png", "jpeg", "webp"] | None = say("file format of the pictures; png if absent")
    output_compression: int | None = say("quality of jpeg and webp, 100 is best; 95 if absent", ge=0, le=100)
    user: str | None = say("who the end user is; not looked at")


class Sampled(Body):
    """What every body has that a diffusion network answers. None stands for the model's own default."""

    negative_prompt: str | None = say("what the picture should not show")
    num_inference_steps: int | None = limited(UpscaleRequest, "steps")
    guidance_scale: float | None = limited(UpscaleRequest, "guidance", allow_inf_nan=False)
    seed: int | None = limited(
        UpscaleRequest, "seed", help="seed of the first picture, the others count on; random if absent"
    )
    scheduler: str | None = say(
        f"name of the solver: {', '.join(SCHEDULERS)}", json_schema_extra={"enum": [*SCHEDULERS, None]}
    )
    live: Switch = say("make small previews while a person watches the job")


class UpscaleForm(Sampled):
    """The form of `/v1/images/upscale`, beside its picture."""

    prompt: str | None = say("what the picture shows; may be empty")
    size: str | None = say(
        "WxH: what the input is resized to, before it is enlarged", pattern=SIZE, json_schema_extra=EXACT
    )
    resize_mode: Resize | None = say("how `size` is reached: stretch (if absent), crop or pad")
    scale: float | None = limited(
        UpscaleRequest, "by", allow_inf_nan=False, help="how many times wider and higher; 2 if absent"
    )
    detail: float | None = limited(UpscaleRequest, "detail", allow_inf_nan=False)
    restore: float | None = limited(UpscaleRequest, "restore", allow_inf_nan=False)
    consistent: Switch = say(limits_of(UpscaleRequest, "consistent").help)
    noise_level: float | None = limited(UpscaleRequest, "noise_level", allow_inf_nan=False)


class OpenAI(Sampled):
    """What generations and edits share."""

    size: str | None = say("WxH, exact, or auto", pattern=SIZE, json_schema_extra=EXACT, examples=["512x512"])
    quality: Literal["low", "medium", "high", "xhigh", "max", "standard", "hd", "auto"] | None = say("changes nothing")
    background: str | None = say("the pictures are opaque", json_schema_extra={"enum": ["opaque", "auto", None]})
    moderation: Literal["low", "auto"] | None = say("changes nothing")
    safety_identifier: str | None = say("who the end user is; not looked at")
    stream: Switch = say("answer with server-sent events")
    partial_images: int | None = say("pictures on the way to send with `stream`", ge=0, le=3)


class Generation(OpenAI):
    """The body of `/v1/images/generations`."""

    prompt: str = Field(description="what the picture shows", examples=["a lighthouse at dusk, oil on canvas"])
    style: Literal["vivid", "natural"] | None = say("changes nothing")
    refiner: Switch = say("let the model's refiner finish the picture")
    upscale: bool | float | None = say(
        "enlarge the picture by 2 (true), or by a number of 1 to 16", json_schema_extra={"minimum": 1, "maximum": 16}
    )


class Edit(OpenAI):
    """The form of `/v1/images/edits`, beside its files."""

    prompt: str = Field(description="what the edited part, or the whole picture, shows", examples=["a straw hat"])
    strength: float | None = limited(InpaintRequest, "strength", allow_inf_nan=False)
    mask_mode: Literal["auto", "alpha", "luminance", "inverted", "none"] | None = say(
        "what the mask means: auto takes transparency if it has any, else white is repainted; none is for a picture "
        "without a mask: all of it is remade, its transparent part too"
    )
    mask_resize: Switch = say("resize a mask of another size than the picture, instead of refusing it")
    resize_mode: Resize | None = say("how another `size` is reached: crop (if absent), stretch or pad")
    input_fidelity: Literal["high", "low"] | None = say("changes nothing; `strength` does")


def _no_files(schema: dict[str, Any]) -> None:
    """Files that are stored beforehand are known, to be refused with words; they are not offered."""
    del schema["properties"]["file_id"]
    schema["properties"]["image_url"] = {
        "type": "string",
        "description": schema["properties"]["image_url"]["description"],
    }
    schema["required"] = ["image_url"]


class Reference(BaseModel):
    """A picture of a JSON body: an address or the picture itself as `data:` URL."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, json_schema_extra=_no_files)

    image_url: str | None = say(
        "data: URL, or an address where fetching is switched on", examples=["data:image/png;base64,..."]
    )
    file_id: str | None = None


class EditJson(Edit):
    """The JSON body of `/v1/images/edits`."""

    images: list[Reference] = Field(description="one picture", min_length=1, json_schema_extra={"maxItems": 1})
    mask: Reference | None = say("which part is repainted")


class Variation(Sampled):
    """The form of `/v1/images/variations`, beside its picture."""

    size: str | None = say("WxH; the picture's own if absent", pattern=SIZE, json_schema_extra=EXACT)
    resize_mode: Resize | None = say("how another `size` is reached: crop (if absent), stretch or pad")
    strength: float | None = limited(RefineRequest, "strength", allow_inf_nan=False)


class Inpainting(Sampled):
    """The form of `/v1/images/inpainting`, beside its picture and mask."""

    prompt: str = Field(description="what the repainted part shows", examples=["a straw hat"])
    steps: int | None = limited(GenerateRequest, "steps", help="denoising steps; 25 if absent")
    size: str | None = say("WxH; the picture's own if absent", pattern=SIZE, json_schema_extra=EXACT)
    resize_mode: Resize | None = say("how another `size` is reached: crop (if absent), stretch or pad")
    strength: float | None = limited(InpaintRequest, "strength", allow_inf_nan=False)
    mask_mode: Literal["auto", "alpha", "luminance", "inverted"] | None = say("what the mask means; white is repainted")
    mask_resize: Switch = say("resize a mask of another size than the picture, instead of refusing it")
