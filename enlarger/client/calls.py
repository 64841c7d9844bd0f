"""What is asked of the service: each method's HTTP request, made from the library's options. Nothing is sent here."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any
from urllib.parse import quote

from enlarger.client.pictures import Source, file_of
from enlarger.errors import InputError, Unsupported
from enlarger.requests import GenerateRequest, InpaintRequest, RefineRequest, UpscaleRequest, request_of

NAMES = {  # the library's names as those of HTTP
    "by": "scale",
    "negative": "negative_prompt",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "count": "n",
    "solver": "scheduler",
    **{name: name for name in ("prompt", "seed", "noise_level", "detail", "restore", "consistent", "strength", "upscale")},
}
ELSEWHERE = frozenset({"image", "mask", "mask_mode", "width", "height", "long_prompt"})  # handled apart
MODES = {"auto": "auto", "alpha": "alpha", "white": "luminance"}
IMAGES = "/v1/images"


@dataclass(frozen=True)
class Call:
    """One HTTP request: what is sent, without how."""

    method: str
    path: str
    json: Mapping[str, Any] | None = None
    form: Mapping[str, str] | None = None
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def upscale(image: Source, by: float, model: str | None, options: Mapping[str, Any]) -> Call:
    """Enlarge a picture."""
    said = said_of(request_of(UpscaleRequest, image=None, by=by, **options))
    return _form("upscale", said, model, {"image": file_of(image)})


def generate(prompt: str, model: str | None, refiner: bool, options: Mapping[str, Any]) -> Call:
    """Make pictures of a prompt."""
    request = request_of(GenerateRequest, prompt=prompt, **options)
    said = said_of(request) | _size(request) | _named(model) | ({"refiner": True} if refiner else {})
    return Call("POST", f"{IMAGES}/generations", json=said)


def inpaint(image: Source, mask: Source, prompt: str, model: str | None, options: Mapping[str, Any]) -> Call:
    """Repaint what a mask covers."""
    if mask is None:  # pyright: ignore[reportUnnecessaryComparison] - callers may be untyped
        raise InputError("mask is missing; give a picture whose white is repainted")
    request = request_of(InpaintRequest, image=None, mask=None, prompt=prompt, **options)
    said = said_of(request) | {"mask_mode": MODES[request.mask_mode]}
    return _form("edits", said, model, {"image": file_of(image), "mask": file_of(mask, "mask")})


def refine(image: Source, prompt: str, model: str | None, options: Mapping[str, Any]) -> Call:
    """Remake a whole picture."""
    said = said_of(request_of(RefineRequest, image=None, prompt=prompt, **options)) | {"mask_mode": "none"}
    return _form("edits", said, model, {"image": file_of(image)})


def later(call: Call, key: str) -> Call:
    """The same call, answered at once with a job; sent twice, it is one job."""
    return Call(
        call.method, call.path, call.json, call.form, call.files, {"Prefer": "respond-async", "Idempotency-Key": key}
    )


def job(id: str) -> Call:
    """Where a job stands."""
    return Call("GET", f"/v1/jobs/{quote(id, safe='')}")


def jobs(status: str | None) -> Call:
    """The jobs of this key, all or those of a status."""
    return Call("GET", "/v1/jobs" if status is None else f"/v1/jobs?status={quote(status, safe='')}")


def events(id: str, after: str | None) -> Call:
    """What happens to a job, as a stream, after an event that has been seen."""
    headers = {"Accept": "text/event-stream"} | ({} if after is None else {"Last-Event-ID": after})
    return Call("GET", f"{job(id).path}/events", headers=headers)


def cancel(id: str) -> Call:
    """End a job."""
    return Call("POST", f"{job(id).path}/cancel")


def content(address: str) -> Call:
    """A result. Only the path of its address is used: the key goes to no other host, whatever the address says."""
    start = address.find("/v1/")
    if start < 0:
        raise InputError(f"the service answered the address {address!r}, expected one with /v1/")
    return Call("GET", address[start:])


def said_of(request: Any) -> dict[str, Any]:
    """The options of a request, by their names in HTTP. Raises Unsupported for those that a service does not take."""
    said: dict[str, Any] = {}
    for item in fields(request):
        value = getattr(request, item.name)
        if item.name in ELSEWHERE or value is None:
            continue
        if item.name not in NAMES:
            _check_left(item.name, value, None if item.default is MISSING else item.default)
        elif isinstance(value, (list, tuple)):
            raise InputError(f"{item.name} has several values, expected one; ask a service for each picture alone")
        elif item.name in ("prompt", "negative") and value == "" and item.default == "":
            continue
        else:
            said[NAMES[item.name]] = value
    return {name: value for name, value in said.items() if (name, value) != ("upscale", 1.0)}


def _check_left(name: str, value: Any, default: Any) -> None:
    if value != default:
        raise Unsupported(f"{name} is {value!r}, but a service does not take it; leave it at {default!r}")


def _size(request: GenerateRequest) -> dict[str, str]:
    width, height = request.width, request.height
    if (width is None) != (height is None):
        raise InputError(f"width is {width} and height is {height}; give both, or neither")
    return {} if width is None else {"size": f"{width}x{height}"}


def _named(model: str | None) -> dict[str, str]:
    return {} if model is None else {"model": model}


def _form(route: str, said: Mapping[str, Any], model: str | None, files: Mapping[str, bytes]) -> Call:
    form = {name: value if isinstance(value, str) else json.dumps(value) for name, value in said.items()}
    form |= {"response_format": "url"} | _named(model)
    if route == "edits":
        form.setdefault("prompt", "")
    return Call("POST", f"{IMAGES}/{route}", form=form, files=files)
