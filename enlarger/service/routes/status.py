"""What the service is and how it is: health, metrics, models."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, PlainTextResponse, Response

from enlarger import __version__
from enlarger.sampler_names import SOLVERS
from enlarger.service.dependencies import Service, get_service
from enlarger.service.jobs.model_registry import ModelState
from enlarger.service.problems import Problem, problem_error
from enlarger.service.routes import examples, openapi
from enlarger.service.routes.request_body import printable
from enlarger.service.routes.response_models import (
    Health,
    Info,
    LlamaUnready,
    ModelList,
    ModelReply,
    Readiness,
    RootStatus,
    Unready,
)
from enlarger.service.settings import Bounds

public_router = APIRouter(tags=["status"])  # without a key
router = APIRouter(tags=["status"])
STARTED_AT = int(time.time())
RETRY_SECONDS = 5

ModelName = Annotated[str, Path(description="a model's `id`, or one of its other names", examples=["bundled"])]
ERROR_RESPONSES = openapi.error_responses(*openapi.READ_STATUSES)
MODEL_RESPONSE = {200: openapi.ok_response(ModelReply, "the model", examples.MODEL)}


ACCEPTED_RESPONSE = {202: MODEL_RESPONSE[200] | {"description": "the model as it is now; the workers have been told"}}


@public_router.get("/v1/", summary="The service is there", response_model=RootStatus)
async def there() -> Response:
    """Always the same, from the first moment on."""
    return JSONResponse({"status": True})


@public_router.get("/healthz", summary="The service lives", response_model=Health)
async def live() -> Response:
    """200 while models load, too."""
    return JSONResponse({"status": "ok"})


@public_router.get(
    "/readyz",
    summary="The service takes requests",
    response_model=Readiness,
    responses={503: {"model": Unready, "description": "not yet, or no longer"}},
)
async def ready(request: Request) -> Response:
    """503 while it starts, while it ends, and where no model can be used."""
    queue = get_service(request).jobs
    if queue.is_ready:
        return JSONResponse({"status": "ready", "state": queue.state})
    problem = _unready_problem(queue.state)
    return JSONResponse(problem.body() | {"state": queue.state}, 503, problem.headers())


@public_router.get(
    "/health",
    summary="Health, as llama.cpp says it",
    response_model=Health,
    responses={503: {"model": LlamaUnready, "description": "not ready"}},
)
async def health(request: Request) -> Response:
    """503 while models load."""
    queue = get_service(request).jobs
    if queue.is_ready:
        return JSONResponse({"status": "ok"})
    message = "Loading model" if queue.state == "STARTING" else _unready_problem(queue.state).message
    error = {"code": 503, "message": message, "type": "unavailable_error"}
    return JSONResponse({"error": error}, 503, {"Retry-After": str(RETRY_SECONDS)})


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_model=None,
    response_class=PlainTextResponse,
    responses={
        200: {"description": "the figures", "content": {"text/plain": {"example": examples.METRICS}}},
        **ERROR_RESPONSES,
    },
)
async def metrics(request: Request) -> Response:
    """Seconds, bytes and counts; nothing of prompts or pictures."""
    return Response(get_service(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/info", summary="What this service is", response_model=Info, responses=ERROR_RESPONSES)
async def info(request: Request) -> Response:
    """Version, devices, models and limits."""
    service = get_service(request)
    settings = service.settings
    body: dict[str, Any] = {
        "name": "enlarger",
        "version": __version__,
        "state": service.jobs.state,
        "devices": list(settings.devices),
        "models": [_model_json(model, settings.bounds) for model in service.jobs.models()],
        "limits": settings.bounds.model_dump() | {"queue": settings.queue, "job_minutes": settings.job_minutes},
        "keys": bool(settings.keys),
        "fetch": settings.fetch,
        "decoder_confinement": list(service.decoder.confinement),
        "schedulers": list(SOLVERS),
    }
    return JSONResponse(body)


@router.get("/v1/models", summary="List models", response_model=ModelList, responses=ERROR_RESPONSES)
async def models(request: Request) -> Response:
    """All that can be asked for, loaded or not."""
    service = get_service(request)
    models = [_model_json(one, service.settings.bounds) for one in service.jobs.models()]
    return JSONResponse({"object": "list", "data": models})


@router.get(
    "/v1/models/{id:path}",
    summary="One model",
    response_model=ModelReply,
    responses={**MODEL_RESPONSE, **ERROR_RESPONSES, **openapi.error_responses(404)},
)
async def model(request: Request, id: ModelName) -> Response:
    """By its name or one of its other names."""
    service = get_service(request)
    return JSONResponse(_model_json(_find_model(service, id), service.settings.bounds))


@router.post(
    "/v1/models/{id:path}/load",
    status_code=202,
    summary="Load a model's weights",
    response_model=ModelReply,
    responses={**ACCEPTED_RESPONSE, **ERROR_RESPONSES, **openapi.error_responses(404)},
)
async def load(request: Request, id: ModelName) -> Response:
    """So that later requests do not wait for it; `loaded_bytes` shows when it is. Others go if memory is short."""
    service = get_service(request)
    name = _find_model(service, id).name
    await service.jobs.load_model(name)
    return JSONResponse(_model_json(_find_model(service, name), service.settings.bounds), 202)


@router.post(
    "/v1/models/{id:path}/unload",
    status_code=202,
    summary="Drop a model's weights",
    response_model=ModelReply,
    responses={**ACCEPTED_RESPONSE, **ERROR_RESPONSES, **openapi.error_responses(404)},
)
async def unload(request: Request, id: ModelName) -> Response:
    """They are read again when the model is asked for."""
    service = get_service(request)
    name = _find_model(service, id).name
    await service.jobs.unload_model(name)
    return JSONResponse(_model_json(_find_model(service, name), service.settings.bounds), 202)


def _unready_problem(state: str) -> Problem:
    if state == "STARTING":
        return Problem(
            503, "model_loading", "the service is starting: models are being read", retry_after=RETRY_SECONDS
        )
    if state in ("READY", "BUSY"):
        text = "no new jobs are taken: the service is stopping, or an operator drains it"
        return Problem(503, "draining", text, retry_after=RETRY_SECONDS)
    return Problem(503, "unavailable", f"the service takes no requests: it is {state}", retry_after=RETRY_SECONDS)


def _find_model(service: Service, name: str) -> ModelState:
    """A model by name or by another of its names."""
    model_states = service.jobs.models()
    for one in model_states:
        if name == one.name or name in one.aliases:
            return one
    available = ", ".join(one.name for one in model_states) or "none yet"
    raise problem_error(
        404, "model_not_found", f"there is no model {printable(name)!r}; there are: {available}", "model"
    )


def _model_json(model: ModelState, bounds: Bounds) -> dict[str, Any]:
    own = bounds.for_kind(model.kind)
    is_upscaler = model.tasks[:1] == ("upscale",)
    extras = {
        "kind": model.kind,
        "tasks": list(model.tasks),
        "aliases": list(model.aliases),
        "unused_options": list(model.unused_options),
        "input_pixels": min(own.pixels, own.upscale_pixels) if is_upscaler else own.pixels,
        "output_pixels": own.output_pixels,
        "loaded_bytes": model.loaded,
        "error": model.error,
    }
    return {"id": model.name, "object": "model", "created": STARTED_AT, "owned_by": "enlarger", "enlarger": extras}
