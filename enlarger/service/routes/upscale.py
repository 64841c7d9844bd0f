"""`POST /v1/images/upscale`, in the documented dialect and in LocalAI's."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from enlarger.service.dependencies import get_service
from enlarger.service.jobs.job import JobSpec
from enlarger.service.jobs.model_registry import ModelState
from enlarger.service.routes import examples, openapi
from enlarger.service.routes.image_sources import form_image
from enlarger.service.routes.job_response import find_idempotent_job, respond
from enlarger.service.routes.parsed_request import ParsedRequest, build_job_spec, check_result_size, parse_upscale
from enlarger.service.routes.request_body import read_body, validate_body
from enlarger.service.routes.request_headers import read_request_headers
from enlarger.service.routes.request_models import UpscaleForm
from enlarger.service.routes.response_models import Images
from enlarger.service.routes.workspace import ImageSource, Workspace, fit_for, open_workspace, resize_notes
from enlarger.service.settings import Bounds

router = APIRouter(tags=["images"])
IMAGE_FILE = {"image": "the picture to enlarge: PNG, JPEG, WebP, AVIF, TIFF, BMP or GIF"}


@router.post(
    "/v1/images/upscale",
    summary="Enlarge a picture",
    response_model=None,
    responses=openapi.image_responses(Images, examples.IMAGES),
    openapi_extra=openapi.request_body(openapi.form_body(UpscaleForm, examples.UPSCALE, IMAGE_FILE, ("image",))),
)
async def upscale(request: Request) -> Response:
    """The result is exactly `scale` times as wide and high as the input, after `size`. Two dialects meet here: with a
    `prompt` and no `scale` the pictures are in the answer, and steps and guidance are 25 and 7.5 where a model takes
    them; else addresses are answered, as LocalAI does, and defaults are the model's. `response_format` decides both."""
    service = get_service(request)
    bounds = service.settings.bounds
    async with read_body(request, allow_form=True, allow_json=False) as request_body:
        body, source = validate_body(UpscaleForm, request_body), form_image(request_body)
        request_headers = await read_request_headers(request, request_body)
        model = service.jobs.model_for("upscale", body.model or None)
        bounds = bounds.for_kind(model.kind)
        parsed = parse_upscale(body, bounds, model.unused_options)
        job = await find_idempotent_job(service, request_headers)
        if job is None:
            async with open_workspace(service, request_headers.owner) as workspace:
                spec = await build_upscale_spec(workspace, parsed, bounds, model, source)
            job = await workspace.submit(spec, request_headers)
    return await respond(request, job, request_headers, parsed.url)


async def build_upscale_spec(
    workspace: Workspace, parsed: ParsedRequest, bounds: Bounds, model: ModelState, source: ImageSource
) -> JobSpec:
    """The spec of an upscale, with the picture decoded."""
    check_result_size(parsed, bounds, parsed.size)  # before the picture is read and brought to that size
    fit = fit_for(parsed)
    max_pixels = min(bounds.pixels, bounds.upscale_pixels) if fit is None else bounds.pixels
    decoded = await workspace.decode_image(source, max_pixels, fit)
    return build_job_spec(parsed, model, bounds, (decoded.width, decoded.height), resize_notes(fit, decoded))
