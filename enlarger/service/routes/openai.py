"""OpenAI's images: generations, edits and variations; and LocalAI's inpainting."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from enlarger.service.dependencies import Service, get_service
from enlarger.service.jobs.job import Job, JobSpec
from enlarger.service.problems import problem_error
from enlarger.service.routes import examples, openapi, responses
from enlarger.service.routes.image_sources import form_image, form_images, json_images
from enlarger.service.routes.job_response import find_idempotent_job, respond
from enlarger.service.routes.parsed_request import (
    ParsedRequest,
    build_job_spec,
    check_result_size,
    parse_edit,
    parse_generation,
    parse_variation,
)
from enlarger.service.routes.request_body import read_body, validate_body
from enlarger.service.routes.request_headers import RequestHeaders, read_request_headers
from enlarger.service.routes.request_models import Edit, EditJson, Generation, Inpainting, OpenAIBody, Variation
from enlarger.service.routes.response_models import Images
from enlarger.service.routes.sse import EventPrefix, ImageStream, event_stream_response
from enlarger.service.routes.workspace import ImageSource, Workspace, fit_for, open_workspace, resize_notes
from enlarger.strict_json import short_repr

router = APIRouter(tags=["images"])
IMAGE_FILE = {"image": "the picture: PNG, JPEG, WebP, AVIF, TIFF, BMP or GIF; `image[]` is understood too"}
IMAGE_AND_MASK_FILES = IMAGE_FILE | {
    "mask": "what is repainted, see `mask_mode`; without it, what is transparent of the picture, or all"
}
INPAINTING_FILES = IMAGE_FILE | {"mask": "what is repainted: white"}
ImageSources = tuple[ImageSource, ImageSource | None]


@router.post(
    "/v1/images/generations",
    summary="Make pictures from text",
    response_model=None,
    responses=openapi.image_responses(Images, examples.IMAGES, examples.GENERATION_STREAM, "image_generation"),
    openapi_extra=openapi.request_body(openapi.json_body(Generation, examples.GENERATION)),
)
async def generations(request: Request) -> Response:
    """Pictures of exactly `size`; with `upscale` that many times larger. With `stream` the answer is a stream of events
    `image_generation.partial_image` and `image_generation.completed`."""
    service = get_service(request)
    bounds = service.settings.bounds
    async with read_body(request, allow_form=False, allow_json=True) as request_body:
        body = validate_body(Generation, request_body)
        request_headers = await read_request_headers(request, request_body, body.stream is True)
        _check_supported(body)
        model = service.jobs.model_for("generate", body.model or None)
        parsed = parse_generation(body, bounds, _refiner_name(service, model.name) if body.refiner is True else None)
        job = await find_idempotent_job(service, request_headers)
        if job is None:
            async with open_workspace(service, request_headers.owner) as workspace:
                spec = build_job_spec(parsed, model, bounds)
            job = await workspace.submit(spec, request_headers)
    return await _respond(request, job, request_headers, parsed.url)


@router.post(
    "/v1/images/edits",
    summary="Repaint a part of a picture, or all of it",
    response_model=None,
    responses=openapi.image_responses(Images, examples.IMAGES, examples.EDIT_STREAM, "image_edit"),
    openapi_extra=openapi.request_body(
        openapi.form_body(Edit, examples.EDIT, IMAGE_AND_MASK_FILES, ("image",)),
        openapi.json_body(EditJson, examples.EDIT_JSON),
    ),
)
async def edits(request: Request) -> Response:
    """What the mask covers is repainted, and not one pixel else. Without a mask it is what is transparent of the
    picture; without that the whole picture is remade, `strength` (here 0.75 if absent) away from what it was."""
    service = get_service(request)
    async with read_body(request, allow_form=True, allow_json=True) as request_body:
        if request_body.is_form:
            body, sources = validate_body(Edit, request_body), form_images(request_body)
        else:
            body = validate_body(EditJson, request_body)
            sources = json_images(body, request_body)
        request_headers = await read_request_headers(request, request_body, body.stream is True)
        _check_supported(body)
        job, parsed = await _submit_edit(service, request_headers, body, sources)
    return await _respond(request, job, request_headers, parsed.url, "image_edit")


@router.post(
    "/v1/images/inpainting",
    summary="Repaint a part of a picture, as LocalAI does",
    response_model=None,
    responses=openapi.image_responses(Images, examples.IMAGES),
    openapi_extra=openapi.request_body(
        openapi.form_body(Inpainting, examples.EDIT, INPAINTING_FILES, ("image", "mask"))
    ),
)
async def inpainting(request: Request) -> Response:
    """As edits with a mask; addresses are answered if `response_format` does not say otherwise."""
    service = get_service(request)
    async with read_body(request, allow_form=True, allow_json=False) as request_body:
        body, sources = validate_body(Inpainting, request_body), form_images(request_body)
        request_headers = await read_request_headers(request, request_body)
        if sources[1] is None:
            raise problem_error(
                400, "missing_parameter", "mask is missing; send it as a file, white is repainted", "mask"
            )
        job, parsed = await _submit_edit(service, request_headers, body, sources)
    return await respond(request, job, request_headers, parsed.url)


@router.post(
    "/v1/images/variations",
    summary="Make variations of a picture",
    response_model=None,
    responses=openapi.image_responses(Images, examples.IMAGES),
    openapi_extra=openapi.request_body(openapi.form_body(Variation, examples.VARIATION, IMAGE_FILE, ("image",))),
)
async def variations(request: Request) -> Response:
    """The picture is remade without a prompt, `strength` (0.6 if absent) away from what it was."""
    service = get_service(request)
    bounds = service.settings.bounds
    async with read_body(request, allow_form=True, allow_json=False) as request_body:
        body, source = validate_body(Variation, request_body), form_image(request_body)
        request_headers = await read_request_headers(request, request_body)
        model = service.jobs.model_for("refine", body.model or None)
        parsed = parse_variation(body, bounds)
        check_result_size(parsed, bounds, parsed.size)
        job = await find_idempotent_job(service, request_headers)
        if job is None:
            async with open_workspace(service, request_headers.owner) as workspace:
                decoded = await workspace.decode_image(source, bounds.pixels, fit_for(parsed))
                size, notes = (decoded.width, decoded.height), resize_notes(fit_for(parsed), decoded)
                spec = build_job_spec(parsed, model, bounds, size, notes)
            job = await workspace.submit(spec, request_headers)
    return await respond(request, job, request_headers, parsed.url)


async def _submit_edit(
    service: Service, request_headers: RequestHeaders, body: Edit | Inpainting, sources: ImageSources
) -> tuple[Job, ParsedRequest]:
    """The job of an edit. Whether it has a mask can depend on the picture, which is decoded first."""
    bounds = service.settings.bounds
    with_mask, without_mask = (parse_edit(body, bounds, mask) for mask in (True, False))
    check_result_size(with_mask, bounds, with_mask.size)
    job = await find_idempotent_job(service, request_headers)
    if job is None:
        async with open_workspace(service, request_headers.owner) as workspace:
            spec = await _build_edit_spec(workspace, body, sources, with_mask, without_mask)
        job = await workspace.submit(spec, request_headers)
    return job, with_mask


async def _build_edit_spec(
    workspace: Workspace,
    body: Edit | Inpainting,
    sources: ImageSources,
    with_mask: ParsedRequest,
    without_mask: ParsedRequest,
) -> JobSpec:
    """The spec of an edit, with picture and mask decoded."""
    image, mask = sources
    if mask is not None and body.mask_mode == "none":
        raise problem_error(
            400, "invalid_value", "mask_mode is none, but there is a mask; leave one of them out", "mask_mode"
        )
    queue, bounds, fit = workspace.service.jobs, workspace.service.settings.bounds, fit_for(with_mask)
    if mask is not None:
        queue.model_for("inpaint", body.model or None)  # before any work
    decoded = await workspace.decode_image(image, bounds.pixels, fit)
    notes, parsed = resize_notes(fit, decoded), with_mask
    if mask is not None:
        resize = body.mask_resize is True
        notes += (await workspace.decode_mask(mask, decoded, body.mask_mode or "auto", resize, fit)).notes
    elif decoded.has_transparency and body.mask_mode != "none":
        notes += (await workspace.decode_alpha_mask(fit)).notes
    else:
        parsed = without_mask
    model = queue.model_for(parsed.task, body.model or None)
    return build_job_spec(parsed, model, bounds, (decoded.width, decoded.height), notes)


async def _respond(
    request: Request,
    job: Job,
    request_headers: RequestHeaders,
    url: bool,
    event_prefix: EventPrefix = "image_generation",
) -> Response:
    if not request_headers.stream:
        return await respond(request, job, request_headers, url)
    image_stream = ImageStream(get_service(request), job, event_prefix, responses.get_base_url(request), url)
    return event_stream_response(image_stream.iter_events())


def _check_supported(body: OpenAIBody) -> None:
    """Raises ProblemError for what no model here can do."""
    if body.background == "transparent":
        message = "background is transparent, but the models here paint every pixel; expected opaque or auto"
        raise problem_error(400, "unsupported", message, "background")
    if body.background not in (None, "opaque", "auto"):
        message = f"background is {short_repr(body.background)}, expected opaque or auto"
        raise problem_error(400, "invalid_value", message, "background")
    for name in ("upscale", "refiner"):
        if (body.model_extra or {}).get(name) not in (None, False, "", "false"):
            message = f"{name} is for generations alone; send the result of an edit to /v1/images/upscale"
            raise problem_error(400, "unsupported", message, name)


def _refiner_name(service: Service, model: str) -> str:
    """The model that finishes what another begins."""
    name = next((one.refiner for one in service.settings.known_models if one.name == model), None)
    if name is None:
        message = f"refiner is true, but the settings give {model} no refiner; set `refiner` of the model, or leave it"
        raise problem_error(400, "unsupported", message, "refiner")
    return name
