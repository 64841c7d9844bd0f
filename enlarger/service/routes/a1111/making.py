"""`/sdapi/v1/txt2img`, `img2img` and the extras: pictures made."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from enlarger.service.dependencies import Service, get_service
from enlarger.service.jobs.job import Job
from enlarger.service.problems import ProblemError, problem_error
from enlarger.service.routes import responses
from enlarger.service.routes.a1111.info import generation_info
from enlarger.service.routes.a1111.models import checkpoint_for, upscaler_for
from enlarger.service.routes.a1111.payloads import (
    ExtraBatch,
    Extras,
    ExtraSingle,
    ImageToImage,
    PngInfo,
    Sampling,
    TextToImage,
    read_payload,
)
from enlarger.service.routes.a1111.session import get_session
from enlarger.service.routes.a1111.translate import (
    RESIZE_MODES,
    in_their_names,
    parse_extras,
    parse_image_to_image,
    parse_text_to_image,
    request_options,
)
from enlarger.service.routes.base64_stream import (
    content_length,
    encode_json,
    file_sizes,
    fill_placeholders,
    new_nonce,
    placeholder,
)
from enlarger.service.routes.job_response import run_in_background, wait_for_job
from enlarger.service.routes.parsed_request import build_job_spec, check_result_size
from enlarger.service.routes.request_body import RequestBody, read_body
from enlarger.service.routes.request_headers import RequestHeaders, read_request_headers
from enlarger.service.routes.workspace import open_workspace, resize_notes
from enlarger.service.uploads.masks import Fit

router = APIRouter(prefix="/sdapi/v1", include_in_schema=False)
MAX_EXTRAS = 16  # pictures of one extra-batch-images


@router.post("/txt2img")
async def txt2img(request: Request) -> Response:
    """Pictures of a prompt."""
    service, session = get_service(request), get_session(request)
    bounds = service.settings.bounds
    async with read_body(request, allow_form=False, allow_json=True, dialect="a1111") as request_body:
        body = read_payload(TextToImage, request_body)
        request_headers = await _read_headers(request, request_body, session.options)
        options = request_options(body, session.options)
        model = checkpoint_for(service, "generate", options)
        with in_their_names():
            spec = build_job_spec(parse_text_to_image(body, options, bounds), model, bounds)
        async with open_workspace(service, request_headers.owner) as workspace:
            job = await workspace.submit(spec, request_headers)
    return await _pictures(request, body, await _finished(request, job))


@router.post("/img2img")
async def img2img(request: Request) -> Response:
    """Pictures of a picture, all of it or under a mask."""
    service, session = get_service(request), get_session(request)
    bounds = service.settings.bounds
    async with read_body(request, allow_form=False, allow_json=True, dialect="a1111") as request_body:
        body = read_payload(ImageToImage, request_body)
        images, masks = (request_body.files.get(name, ()) for name in ("init_images", "mask"))
        _check_count(len(images), 1, "init_images")
        request_headers = await _read_headers(request, request_body, session.options)
        options = request_options(body, session.options)
        model = checkpoint_for(service, "inpaint" if masks else "refine", options)
        with in_their_names():
            parsed = parse_image_to_image(body, options, bounds, bool(masks))
            check_result_size(parsed, bounds, (body.width, body.height))
            async with open_workspace(service, request_headers.owner) as workspace:
                fit = Fit(body.width, body.height, RESIZE_MODES[body.resize_mode])
                decoded = await workspace.decode_image(images[0], bounds.pixels, fit)
                notes = resize_notes(fit, decoded)
                if masks:
                    mode = "inverted" if body.inpainting_mask_invert else "luminance"
                    notes += (await workspace.decode_mask(masks[0], decoded, mode, True, fit)).notes
                spec = build_job_spec(parsed, model, bounds, (decoded.width, decoded.height), notes)
            job = await workspace.submit(spec, request_headers)
    return await _pictures(request, body, await _finished(request, job))


@router.post("/extra-single-image")
async def extra_single_image(request: Request) -> Response:
    """A picture enlarged."""
    return await _stream({"html_info": ""}, "image", await _enlarge(request, ExtraSingle, "image", 1))


@router.post("/extra-batch-images")
async def extra_batch_images(request: Request) -> Response:
    """Several pictures enlarged."""
    return await _stream({"html_info": ""}, "images", await _enlarge(request, ExtraBatch, "imageList", MAX_EXTRAS))


@router.post("/png-info")
async def png_info(request: Request) -> Response:
    """The texts of a picture's file."""
    service = get_service(request)
    async with read_body(request, allow_form=False, allow_json=True, dialect="a1111") as request_body:
        read_payload(PngInfo, request_body)
        images = request_body.files.get("image", ())
        _check_count(len(images), 1, "image")
        owner = (await read_request_headers(request, request_body)).owner
        texts = await service.decoder.read_texts(images[0], owner=owner)
    return JSONResponse({"info": texts.get("parameters", ""), "items": texts, "parameters": {}})


async def _enlarge(request: Request, kind: type[Extras], field: str, most: int) -> list[Path]:
    """The results for each picture of a field. The body is let go of before they are waited for, where there is room
    for all of their jobs."""
    service, unanswered = get_service(request), get_session(request).jobs
    waiting, finished = list[Job](), list[Job]()
    try:
        async with read_body(request, allow_form=False, allow_json=True, dialect="a1111") as request_body:
            body = read_payload(kind, request_body)
            images = request_body.files.get(field, ())
            _check_count(len(images), most, field)
            request_headers = await _read_headers(request, request_body)
            if request_headers.idempotency is not None and len(images) > 1:
                found = f"found Idempotency-Key with {len(images)} pictures"
                raise problem_error(400, "unsupported", f"{found}; send one picture, or no key", "Idempotency-Key")
            for image in images:
                waiting.append(await _submit_where_room(request, body, image, request_headers, waiting, finished))
                unanswered.append(waiting[-1].id)
        while waiting:
            finished.append(await _finish_first(request, waiting))
        return [file for job in finished for file in responses.result_files(job, service.settings.data)]
    finally:
        for job in waiting:  # another one was refused, or failed
            unanswered.remove(job.id)
            if job.attached:
                run_in_background(service.jobs.cancel(job.id, "disconnect"))


async def _read_headers(
    request: Request, body: RequestBody, session: Mapping[str, Any] | None = None
) -> RequestHeaders:
    """The headers of a request, which is answered with its pictures, whatever it prefers."""
    return replace(await read_request_headers(request, body, session=session), respond_async=False)


async def _submit_extra(service: Service, body: Extras, image: Path, request_headers: RequestHeaders) -> Job:
    """The job of one picture."""
    model = upscaler_for(service, body.upscaler_1)
    bounds = service.settings.bounds.for_kind(model.kind)
    async with open_workspace(service, request_headers.owner) as workspace:
        decoded = await workspace.decode_image(image, min(bounds.pixels, bounds.upscale_pixels), None)
        size = (decoded.width, decoded.height)
        with in_their_names():
            parsed = parse_extras(body, model, size, bounds)
            spec = build_job_spec(parsed, model, bounds, size, decoded.notes)
        return await workspace.submit(spec, request_headers)


async def _submit_where_room(
    request: Request, body: Extras, image: Path, headers: RequestHeaders, waiting: list[Job], finished: list[Job]
) -> Job:
    """The job of one picture, once there is room for it: until then jobs of this request are waited for, if any are
    left."""
    service = get_service(request)
    while True:
        try:
            if waiting:
                service.jobs.check_capacity(waiting[0].owner)  # before the picture is decoded
            return await _submit_extra(service, body, image, headers)
        except ProblemError as error:
            if not waiting or error.problem.status != 429:
                raise
            finished.append(await _finish_first(request, waiting))


async def _finish_first(request: Request, waiting: list[Job]) -> Job:
    """The first of these jobs, which leaves them, once it has succeeded. Raises ProblemError where it has not."""
    job = await wait_for_job(request, get_service(request).jobs, waiting[0])
    get_session(request).jobs.remove(waiting.pop(0).id)
    responses.result_of_job(job)
    return job


async def _finished(request: Request, job: Job) -> Job:
    """The job once it is over; until then it is one that `/interrupt` ends and `/progress` tells of."""
    jobs = get_session(request).jobs
    jobs.append(job.id)
    try:
        return await wait_for_job(request, get_service(request).jobs, job)
    finally:
        jobs.remove(job.id)


async def _pictures(request: Request, body: Sampling, job: Job) -> Response:
    """The answer of txt2img and img2img."""
    files = responses.result_files(job, get_service(request).settings.data)
    reply = {"parameters": body.echo, "info": json.dumps(generation_info(job, body))}
    return await _stream(reply, "images", files if body.send_images else [])


async def _stream(reply: dict[str, Any], name: str, files: Sequence[Path]) -> Response:
    """JSON with pictures in it, sent in chunks: a list of them in `images`, one in `image`."""
    nonce = new_nonce()
    pictures = [placeholder(nonce, index) for index in range(len(files))]
    text = encode_json({name: pictures if name == "images" else pictures[0]} | reply)
    size = content_length(text, nonce, await asyncio.to_thread(file_sizes, files))
    headers = {"Content-Length": str(size)}
    return StreamingResponse(fill_placeholders(text, nonce, files), 200, headers, media_type="application/json")


def _check_count(count: int, most: int, name: str) -> None:
    if not 1 <= count <= most:
        expected = "1" if most == 1 else f"1 to {most}"
        raise problem_error(400, "invalid_value", f"{name} has {count} pictures, expected {expected}", name)
