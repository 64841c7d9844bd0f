"""Jobs: where they stand, their events, their end; and the pictures that they made."""

import asyncio
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from enlarger.service.core import Service, owner_of, service_of
from enlarger.service.faults import refuse
from enlarger.service.jobs import Event, Job, Status, folder_of, is_id
from enlarger.service.routes import examples, openapi, replies
from enlarger.service.routes.answers import Deleted, JobList, JobReply, QueueReply
from enlarger.service.routes.incoming import printable
from enlarger.service.routes.pieces import read_pieces, sizes_of
from enlarger.service.routes.stream import job_events, streamed

router = APIRouter(tags=["jobs"])
shared = APIRouter(tags=["jobs"])  # for whoever knows an address
KINDS = get_args(Event.__annotations__["kind"])
MOST_LISTED = 1000
MOST_NUMBER = 2**53
NUMBER = "^[0-9]{0,15}$"

Id = Annotated[str, Path(description="the job's `id`", examples=[examples.ID])]
ONE = {200: openapi.one(JobReply, "the job", examples.JOB)}
REFUSALS = openapi.errors(400, *openapi.READING, 404)


@router.get("/v1/jobs", summary="List jobs", response_model=JobList, responses=openapi.errors(400, *openapi.READING))
async def list_jobs(
    request: Request,
    status: Annotated[Status | None, Query(description="only those that are so")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED, description="how many at most")] = 100,
) -> Response:
    """The jobs of this key, or of everybody where there are no keys, the newest first."""
    service, base = service_of(request), replies.base_of(request)
    jobs = await service.queue.list(owner_of(request), status, limit)
    return JSONResponse({"object": "list", "data": [_json(service, job, base) for job in jobs]})


@router.get("/v1/jobs/{id}", summary="Where a job stands", response_model=JobReply, responses={**ONE, **REFUSALS})
async def get_job(request: Request, id: Id) -> Response:
    """A finished job has its result, with addresses, or its error."""
    service = service_of(request)
    return JSONResponse(_json(service, await _own(request, id), replies.base_of(request)))


@router.get(
    "/v1/jobs/{id}/events",
    summary="What happens to a job",
    response_model=None,
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "a stream that ends with the job",
            "content": openapi.event_stream(examples.EVENTS, *KINDS),
        },
        **REFUSALS,
    },
)
async def events(
    request: Request,
    id: Id,
    after: Annotated[int, Query(ge=0, le=MOST_NUMBER, description="number of the last event that was seen")] = 0,
    last: Annotated[str, Header(alias="Last-Event-ID", pattern=NUMBER, description="the same; it wins")] = "",
) -> Response:
    """Server-sent events, from the first that was not seen. Data are the fields of the job that changed; the last event
    (`succeeded`, `failed`, `canceled`) has the whole job."""
    service, job = service_of(request), await _own(request, id)
    start = int(last) if last else after
    return streamed(job_events(service, job, start, replies.base_of(request)))


@router.post("/v1/jobs/{id}/cancel", summary="Cancel a job", response_model=JobReply, responses={**ONE, **REFUSALS})
async def cancel(request: Request, id: Id) -> Response:
    """One that waits ends at once, one that runs within a step; one that is over stays as it is."""
    service, job = service_of(request), await _own(request, id)
    now = job if job.over else await service.queue.cancel(job.id)
    return JSONResponse(_json(service, now or job, replies.base_of(request)))


@router.delete("/v1/jobs/{id}", summary="Delete a job", response_model=Deleted, responses=REFUSALS)
async def delete(request: Request, id: Id) -> Response:
    """It is canceled if it is not over, and its pictures are removed."""
    service, job = service_of(request), await _own(request, id)
    if not job.over:
        await service.queue.cancel(job.id)
    await service.queue.forget(job.id)
    return JSONResponse({"id": job.id, "object": "job", "deleted": True})


@router.get(
    "/v1/jobs/{id}/preview",
    summary="A preview of a job's picture",
    response_model=None,
    response_class=Response,
    responses={200: {"description": "the newest preview", **openapi.picture("image/png")}, **REFUSALS},
)
async def preview(request: Request, id: Id) -> Response:
    """Small, and coarse if the model has no preview decoder; 404 while there is none."""
    service, job = service_of(request), await _own(request, id)
    name = service.queue.standing(job).preview
    if name is None:
        raise refuse(404, "preview_not_found", f"job {id} has no preview; it must run, and have been asked for `live`")
    file = folder_of(service.settings.data, job.id) / name
    try:
        content = await asyncio.to_thread(file.read_bytes)
    except FileNotFoundError as error:
        raise refuse(404, "preview_not_found", f"the preview of job {id} is gone") from error
    return Response(content, media_type="image/png", headers={"Cache-Control": "no-store"})


@router.get(
    "/v1/queue",
    summary="How busy the service is",
    response_model=QueueReply,
    responses=openapi.errors(*openapi.READING),
)
async def queue(request: Request) -> Response:
    """Jobs by status, how many may wait, and how long a new one would."""
    service = service_of(request)
    found = {
        "state": service.queue.state,
        "counts": service.queue.counts(),
        "capacity": service.settings.queue,
        "expected_wait_seconds": service.queue.expected_wait,
    }
    return JSONResponse(found)


@shared.get(
    "/v1/images/{id}/content",
    summary="A finished picture",
    response_model=None,
    response_class=Response,
    responses={
        200: {"description": "the file", **openapi.picture(*replies.MEDIA.values())},
        304: {"description": "the picture that `If-None-Match` names"},
        **openapi.errors(400, 403, 404, 500, 503),
    },
)
async def content(
    request: Request,
    id: Id,
    variant: Annotated[int, Query(ge=0, le=MOST_NUMBER, description="which one of several, from 0")] = 0,
    download: Annotated[bool, Query(description="let browsers save it instead of showing it")] = False,
) -> Response:
    """Whoever knows the address may have the picture, until it expires."""
    service = service_of(request)
    job = await service.queue.get(id) if is_id(id) else None
    if job is None:
        raise _absent(id)
    images = replies.result_of(job)["images"]
    if variant >= len(images):
        message = f"variant is {variant}, but job {id} has {len(images)} pictures, counted from 0"
        raise refuse(404, "job_not_found", message, "variant")
    file = replies.files_of(job, service.settings.data)[variant]
    size = (await asyncio.to_thread(sizes_of, [file]))[0]
    headers = _headers(job, variant, images[variant]["format"], download) | {"Content-Length": str(size)}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers={"ETag": headers["ETag"]})
    media = replies.MEDIA[images[variant]["format"]]
    return StreamingResponse(read_pieces(file), headers=headers, media_type=media)


def _headers(job: Job, variant: int, form: str, download: bool) -> dict[str, str]:
    """What a browser may do with a picture: show or save it, and never take it for a page."""
    end = {"jpeg": "jpg"}.get(form, form)
    name = f"enlarger-{job.id[:8]}-{variant}.{end}"
    return {
        "Content-Disposition": f'{"attachment" if download else "inline"}; filename="{name}"',
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, max-age=3600, immutable",
        "ETag": f'"{job.id}-{variant}"',
    }


def _json(service: Service, job: Job, base: str) -> dict[str, Any]:
    return replies.job_json(job, service.queue.standing(job), base)


async def _own(request: Request, id: str) -> Job:
    """A job of the one who asks. Raises Refused for others' as for those that are not there."""
    job = await service_of(request).queue.get(id) if is_id(id) else None
    if job is None or job.owner != owner_of(request):
        raise _absent(id)
    return job


def _absent(id: str) -> Exception:
    return refuse(404, "job_not_found", f"there is no job {printable(id)!r}, or it has expired", "id")
