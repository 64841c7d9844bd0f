"""Each method's HTTP request, made from the library's options. Nothing is sent here."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from urllib.parse import quote, urlencode

from enlarger.client.images import ImageSource, encode_image_file
from enlarger.client.options import GenerateOptions, InpaintOptions, RefineOptions, UpscaleOptions
from enlarger.errors import InputError, Unsupported
from enlarger.requests import GenerateRequest, InpaintRequest, RefineRequest, UpscaleRequest, make_request

HTTP_NAMES = {  # the library's names as those of HTTP
    "by": "scale",
    "negative": "negative_prompt",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "count": "n",
    "solver": "scheduler",
    "spacing": "spacing",
    **{name: name for name in ("prompt", "seed", "noise_level", "detail", "restore")},
    **{name: name for name in ("consistent", "strength", "upscale", "long_edge", "megapixels", "tile")},
    "size": "target_size",
}
FOR_UPSCALING = frozenset({"by", "size", "long_edge", "megapixels", "tile"})  # in `/v1/images/upscale` alone
HANDLED_SEPARATELY = frozenset(
    {"image", "mask", "mask_mode", "mask_resize", "width", "height", "long_prompt"}
)  # the service always encodes long prompts
MASK_MODES = {"auto": "auto", "alpha": "alpha", "white": "luminance"}
IMAGES_PATH = "/v1/images"


@dataclass(frozen=True)
class HttpRequest:
    """One HTTP request: what is sent, without how."""

    method: str
    path: str
    json: Mapping[str, object] | None = None
    form: Mapping[str, str] | None = None
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def upscale(image: ImageSource, by: float, model: str | None, options: UpscaleOptions) -> HttpRequest:
    """Enlarge a picture."""
    payload = http_options(make_request(UpscaleRequest, image=None, by=by, **options))
    return _multipart_request("upscale", payload, model, {"image": encode_image_file(image)})


def generate(prompt: str, model: str | None, refiner: bool, options: GenerateOptions) -> HttpRequest:
    """Make pictures of a prompt."""
    request = make_request(GenerateRequest, prompt=prompt, **options)
    payload = (
        http_options(request) | _size_field(request) | _model_field(model) | ({"refiner": True} if refiner else {})
    )
    return HttpRequest("POST", f"{IMAGES_PATH}/generations", json=payload)


def inpaint(
    image: ImageSource, mask: ImageSource, prompt: str, model: str | None, options: InpaintOptions
) -> HttpRequest:
    """Repaint what a mask covers."""
    if mask is None:  # pyright: ignore[reportUnnecessaryComparison] - callers may be untyped
        raise InputError("mask is missing; give a picture whose white is repainted")
    request = make_request(InpaintRequest, image=None, mask=None, prompt=prompt, **options)
    payload = http_options(request) | {"mask_mode": MASK_MODES[request.mask_mode]}
    payload |= {"mask_resize": True} if request.mask_resize else {}
    return _multipart_request(
        "edits", payload, model, {"image": encode_image_file(image), "mask": encode_image_file(mask, "mask")}
    )


def refine(image: ImageSource, prompt: str, model: str | None, options: RefineOptions) -> HttpRequest:
    """Remake a whole picture."""
    payload = http_options(make_request(RefineRequest, image=None, prompt=prompt, **options)) | {"mask_mode": "none"}
    return _multipart_request("edits", payload, model, {"image": encode_image_file(image)})


def as_async_job(request: HttpRequest, key: str) -> HttpRequest:
    """The same call, answered at once with a job; sent twice, it is one job."""
    return HttpRequest(
        request.method,
        request.path,
        request.json,
        request.form,
        request.files,
        {"Prefer": "respond-async", "Idempotency-Key": key},
    )


def job(id: str) -> HttpRequest:
    """The state of a job."""
    return HttpRequest("GET", f"/v1/jobs/{quote(id, safe='')}")


def jobs(status: str | None, after: str | None = None) -> HttpRequest:
    """A page of the jobs of this key, all or those of a status, older than one of them."""
    query = {name: value for name, value in (("status", status), ("after", after)) if value is not None}
    return HttpRequest("GET", "/v1/jobs" + (f"?{urlencode(query)}" if query else ""))


def events(id: str, last_event_id: str | None) -> HttpRequest:
    """What happens to a job, as a stream, after an event that has been seen."""
    headers = {"Accept": "text/event-stream"} | ({} if last_event_id is None else {"Last-Event-ID": last_event_id})
    return HttpRequest("GET", f"{job(id).path}/events", headers=headers)


def cancel(id: str) -> HttpRequest:
    """End a job."""
    return HttpRequest("POST", f"{job(id).path}/cancel")


def cancel_request(key: str) -> HttpRequest:
    """End a request that was sent with this key, whether it has a job by now or not."""
    return HttpRequest("POST", f"/v1/jobs/cancel?{urlencode({'idempotency_key': key})}")


def content(address: str) -> HttpRequest:
    """A result. Only the path of its address is used: the key goes to no other host, whatever the address says."""
    path_start = address.find("/v1/")
    if path_start < 0:
        raise InputError(f"the service answered the address {address!r}, expected one with /v1/")
    return HttpRequest("GET", address[path_start:])


def http_options(request: UpscaleRequest | GenerateRequest | InpaintRequest | RefineRequest) -> dict[str, object]:
    """The options of a request, by their names in HTTP. Raises Unsupported for those that a service does not take."""
    payload: dict[str, object] = {}
    is_upscale = isinstance(request, UpscaleRequest)
    for item in fields(request):
        value: object = getattr(request, item.name)
        if item.name in HANDLED_SEPARATELY or value is None:
            continue
        is_served = item.name in HTTP_NAMES and (is_upscale or item.name not in FOR_UPSCALING)
        if not is_served:
            _check_not_given(item.name, value, None if item.default is MISSING else item.default)
        elif isinstance(value, (list, tuple)):
            raise InputError(f"{item.name} has several values, expected one; send one request per picture")
        elif item.name in ("prompt", "negative") and value == "" and item.default == "":
            continue
        else:
            payload[HTTP_NAMES[item.name]] = value
    return {name: value for name, value in payload.items() if (name, value) != ("upscale", 1.0)}


def _check_not_given(name: str, value: object, default: object) -> None:
    if value != default:
        raise Unsupported(f"{name} is {value!r}, but a service does not take it; leave it at {default!r}")


def _size_field(request: GenerateRequest) -> dict[str, str]:
    width, height = request.width, request.height
    if (width is None) != (height is None):
        raise InputError(f"width is {width} and height is {height}; give both, or neither")
    return {} if width is None else {"size": f"{width}x{height}"}


def _model_field(model: str | None) -> dict[str, str]:
    return {} if model is None else {"model": model}


def _multipart_request(
    route: str, payload: Mapping[str, object], model: str | None, files: Mapping[str, bytes]
) -> HttpRequest:
    form = {name: value if isinstance(value, str) else json.dumps(value) for name, value in payload.items()}
    form |= {"response_format": "url"} | _model_field(model)
    if route == "edits":
        form.setdefault("prompt", "")
    return HttpRequest("POST", f"{IMAGES_PATH}/{route}", form=form, files=files)
