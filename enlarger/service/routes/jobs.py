"""Jobs: where they stand, their events, their end; and the pictures that they made."""

import asyncio
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from enlarger.service.dependencies import Service, get_owner, get_service
from enlarger.service.jobs.job import EventKind, Job, JobStatus, is_job_id, job_folder
from enlarger.service.problems import problem_error
from enlarger.service.routes import examples, openapi, responses
from enlarger.service.routes.base64_stream import file_sizes, read_chunks
from enlarger.service.routes.request_body import printable
from enlarger.service.routes.request_headers import IDEMPOTENCY_KEY_PATTERN
from enlarger.service.routes.response_models import CanceledRequest, Deleted, JobList, JobReply, QueueReply
from enlarger.service.routes.sse import event_stream_response, job_events, owner_events

router = APIRouter(tags=["jobs"])
public_router = APIRouter(tags=["jobs"])  # for whoever knows an address
EVENT_KINDS = get_args(EventKind)
MAX_LISTED = 1000
MAX_NUMBER = 2**53
NUMBER_PATTERN = "^[0-9]{0,15}$"

JobId = Annotated[str, Path(description="the job's `id`", examples=[examples.ID])]
JOB_RESPONSE = {200: openapi.ok_response(JobReply, "the job", examples.JOB)}
ERROR_RESPONSES = openapi.error_responses(400, *openapi.READ_STATUSES, 404)


@router.get(
    "/v1/jobs",
    summary="List jobs",
    response_model=JobList,
    responses=openapi.error_responses(400, *openapi.READ_STATUSES, 404),
)
async def list_jobs(
    request: Request,
    status: Annotated[JobStatus | None, Query(description="only those that are so")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="how many at most")] = 100,
    after: Annotated[str, Query(max_length=64, description="`id` of the last job of the page before")] = "",
) -> Response:
    """The jobs of this key, or of everybody where there are no keys, the newest first. Pages are bounded in bytes, too:
    `has_more` says whether there are older jobs than those here. 404 where `after` has expired: ask after one before
    it."""
    service, base_url = get_service(request), responses.get_base_url(request)
    page = await service.jobs.list(get_owner(request), status, limit, after or None)
    data = [_job_json(service, job, base_url) for job in page.jobs]
    return JSONResponse({"object": "list", "data": data, "has_more": page.has_more})


@router.get(
    "/v1/jobs/events",
    summary="What happens to all jobs",
    response_model=None,
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "a stream without an end",
            "content": openapi.event_stream_content(examples.ALL_EVENTS, *EVENT_KINDS),
        },
        **openapi.error_responses(*openapi.READ_STATUSES),
    },
)
async def all_events(request: Request) -> Response:
    """Server-sent events of the jobs of this key, or of everybody where there are no keys, from now on: one stream
    instead of one for each job. Data are the job's `id` and the fields that changed; its last event has it whole."""
    service = get_service(request)
    return event_stream_response(owner_events(service, get_owner(request), responses.get_base_url(request)))


@router.get(
    "/v1/jobs/{id}",
    summary="Where a job stands",
    response_model=JobReply,
    responses={**JOB_RESPONSE, **ERROR_RESPONSES},
)
async def get_job(request: Request, id: JobId) -> Response:
    """A finished job has its result, with addresses, or its error."""
    service = get_service(request)
    return JSONResponse(_job_json(service, await _owned_job(request, id), responses.get_base_url(request)))


@router.get(
    "/v1/jobs/{id}/events",
    summary="What happens to a job",
    response_model=None,
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "a stream that ends with the job",
            "content": openapi.event_stream_content(examples.EVENTS, *EVENT_KINDS),
        },
        **ERROR_RESPONSES,
    },
)
async def events(
    request: Request,
    id: JobId,
    after: Annotated[int, Query(ge=0, le=MAX_NUMBER, description="number of the last event that was seen")] = 0,
    last_event_id: Annotated[
        str, Header(alias="Last-Event-ID", pattern=NUMBER_PATTERN, description="the same; it wins")
    ] = "",
) -> Response:
    """Server-sent events, from the first that was not seen. Data are the fields of the job that changed; the last event
    (`succeeded`, `failed`, `canceled`) has the whole job."""
    service, job = get_service(request), await _owned_job(request, id)
    start = int(last_event_id) if last_event_id else after
    return event_stream_response(job_events(service, job, start, responses.get_base_url(request)))


@router.post(
    "/v1/jobs/cancel",
    summary="Cancel a request",
    response_model=CanceledRequest,
    responses=openapi.error_responses(400, *openapi.READ_STATUSES),
)
async def cancel_request(
    request: Request,
    idempotency_key: Annotated[
        str, Query(pattern=IDEMPOTENCY_KEY_PATTERN, description="the Idempotency-Key that the request was sent with")
    ],
) -> Response:
    """For a client that gives up before it has heard of its job: that is canceled, and where there is none yet the
    request will get none."""
    service = get_service(request)
    job = await service.jobs.cancel_request(get_owner(request), idempotency_key)
    found = None if job is None else _job_json(service, job, responses.get_base_url(request))
    return JSONResponse({"object": "request", "canceled": True, "job": found})


@router.post(
    "/v1/jobs/{id}/cancel",
    summary="Cancel a job",
    response_model=JobReply,
    responses={**JOB_RESPONSE, **ERROR_RESPONSES},
)
async def cancel(request: Request, id: JobId) -> Response:
    """One that waits ends at once, one that runs within a step; one that is over stays as it is."""
    service, job = get_service(request), await _owned_job(request, id)
    canceled = job if job.is_finished else await service.jobs.cancel(job.id)
    return JSONResponse(_job_json(service, canceled or job, responses.get_base_url(request)))


@router.delete("/v1/jobs/{id}", summary="Delete a job", response_model=Deleted, responses=ERROR_RESPONSES)
async def delete(request: Request, id: JobId) -> Response:
    """It is canceled if it is not over, and its pictures are removed."""
    service, job = get_service(request), await _owned_job(request, id)
    if not job.is_finished:
        await service.jobs.cancel(job.id)
    await service.jobs.delete(job.id)
    return JSONResponse({"id": job.id, "object": "job", "deleted": True})


@router.get(
    "/v1/jobs/{id}/preview",
    summary="A preview of a job's picture",
    response_model=None,
    response_class=Response,
    responses={200: {"description": "the newest preview", **openapi.image_content("image/png")}, **ERROR_RESPONSES},
)
async def preview(request: Request, id: JobId) -> Response:
    """Small, and coarse if the model has no preview decoder; 404 while there is none."""
    service, job = get_service(request), await _owned_job(request, id)
    name = service.jobs.progress(job).preview
    if name is None:
        raise problem_error(
            404, "preview_not_found", f"job {id} has no preview; it must run, and have been asked for `live`"
        )
    file = job_folder(service.settings.data, job.id) / name
    try:
        content = await asyncio.to_thread(file.read_bytes)
    except FileNotFoundError as error:
        raise problem_error(404, "preview_not_found", f"the preview of job {id} is gone") from error
    return Response(content, media_type="image/png", headers={"Cache-Control": "no-store"})


@router.get(
    "/v1/queue",
    summary="How busy the service is",
    response_model=QueueReply,
    responses=openapi.error_responses(*openapi.READ_STATUSES),
)
async def queue(request: Request) -> Response:
    """Jobs by status, how many may wait, and how long a new one would."""
    return JSONResponse(queue_json(request))


@public_router.get(
    "/v1/images/{id}/content",
    summary="A finished picture",
    response_model=None,
    response_class=Response,
    responses={
        200: {"description": "the file", **openapi.image_content(*responses.MEDIA_TYPES.values())},
        304: {"description": "the picture that `If-None-Match` names"},
        **openapi.error_responses(400, 403, 404, 500, 503),
    },
)
async def content(
    request: Request,
    id: JobId,
    variant: Annotated[int, Query(ge=0, le=MAX_NUMBER, description="which one of several, from 0")] = 0,
    download: Annotated[bool, Query(description="let browsers save it instead of showing it")] = False,
) -> Response:
    """Whoever knows the address may have the picture, until it expires."""
    service = get_service(request)
    job = await service.jobs.get(id) if is_job_id(id) else None
    if job is None:
        raise _job_not_found(id)
    images = responses.result_of_job(job).images
    if variant >= len(images):
        message = f"variant is {variant}, but job {id} has {len(images)} pictures, counted from 0"
        raise problem_error(404, "job_not_found", message, "variant")
    file = responses.result_files(job, service.settings.data)[variant]
    size = (await asyncio.to_thread(file_sizes, [file]))[0]
    headers = _content_headers(job, variant, images[variant].format, download) | {"Content-Length": str(size)}
    if responses.names_etag(request.headers.get("if-none-match"), headers["ETag"]):
        kept = {name: headers[name] for name in ("ETag", "Cache-Control") if name in headers}
        return Response(status_code=304, headers=kept)
    media_type = responses.MEDIA_TYPES[images[variant].format]
    return StreamingResponse(read_chunks(file), headers=headers, media_type=media_type)


def queue_json(request: Request) -> dict[str, Any]:
    """How busy the service is, to whoever asks."""
    service, owner = get_service(request), get_owner(request)
    return {
        "state": service.jobs.state,
        "counts": service.jobs.counts(),
        "capacity": service.settings.queue,
        "expected_wait_seconds": service.jobs.expected_wait(owner),
    }


def _content_headers(job: Job, variant: int, file_format: str, download: bool) -> dict[str, str]:
    """What a browser may do with a picture: show or save it, and never take it for a page."""
    extension = {"jpeg": "jpg"}.get(file_format, file_format)
    name = f"enlarger-{job.id[:8]}-{variant}.{extension}"
    return {
        "Content-Disposition": f'{"attachment" if download else "inline"}; filename="{name}"',
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, max-age=3600, immutable",
        "ETag": f'"{job.id}-{variant}"',
    }


def _job_json(service: Service, job: Job, base_url: str) -> dict[str, Any]:
    return responses.job_json(job, service.jobs.progress(job), base_url)


async def _owned_job(request: Request, id: str) -> Job:
    """A job of the one who asks. Raises ProblemError for others' as for those that are not there."""
    job = await get_service(request).jobs.get(id) if is_job_id(id) else None
    if job is None or job.owner != get_owner(request):
        raise _job_not_found(id)
    return job


def _job_not_found(id: str) -> Exception:
    return problem_error(404, "job_not_found", f"there is no job {printable(id)!r}, or it has expired", "id")
