"""What whoever runs the service may do: take no more jobs, take them again, and cancel anybody's."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import JSONResponse, Response

from enlarger.service.dependencies import get_owner, get_service
from enlarger.service.middleware.api_keys import owner_of_hash
from enlarger.service.problems import problem_error
from enlarger.service.routes import openapi
from enlarger.service.routes.jobs import queue_json
from enlarger.service.routes.request_body import printable
from enlarger.service.routes.response_models import QueueReply


def require_operator(request: Request) -> None:
    """Raise ProblemError 403 `operator_only` for a request without an operator's key."""
    operators = {owner_of_hash(key_hash) for key_hash in get_service(request).settings.operators}
    if get_owner(request) not in operators:
        text = "this is for operators; send a key of which the hash is in `operators` of the settings"
        raise problem_error(403, "operator_only", text)


ERROR_RESPONSES = openapi.error_responses(*openapi.READ_STATUSES)
router = APIRouter(tags=["operator"], dependencies=[Depends(require_operator)])


@router.post("/v1/operator/drain", summary="Take no more jobs", response_model=QueueReply, responses=ERROR_RESPONSES)
async def drain(request: Request) -> Response:
    """New ones are refused with `draining`, and `/readyz` says 503; what waits and runs goes on to its end."""
    get_service(request).jobs.set_open(False)
    return JSONResponse(queue_json(request))


@router.post("/v1/operator/resume", summary="Take jobs again", response_model=QueueReply, responses=ERROR_RESPONSES)
async def resume(request: Request) -> Response:
    """After a drain."""
    get_service(request).jobs.set_open(True)
    return JSONResponse(queue_json(request))


@router.post(
    "/v1/operator/cancel", summary="Cancel jobs of any key", response_model=QueueReply, responses=ERROR_RESPONSES
)
async def cancel(
    request: Request,
    id: Annotated[str | None, Query(description="this job alone; without it all that are not over")] = None,
) -> Response:
    """One that waits ends at once, one that runs within a step. Nothing is canceled where a name is not known."""
    unknown = sorted(set(request.query_params) - {"id"})
    if unknown or request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
        found = f"the query has {printable(unknown[0])!r}" if unknown else "the request has a body"
        raise problem_error(400, "unknown_parameter", f"{found}, expected ?id=JOB or nothing, which cancels all")
    if not await get_service(request).jobs.cancel_any(id):
        raise problem_error(
            404, "job_not_found", f"no job {printable(str(id))} waits or runs; nothing was canceled", "id"
        )
    return JSONResponse(queue_json(request))
