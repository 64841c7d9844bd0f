"""What the service is and how it is: health, metrics, models."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, PlainTextResponse, Response

from enlarger import __version__
from enlarger.service.core import Service, service_of
from enlarger.service.faults import Fault, refuse
from enlarger.service.queue.state import ModelState
from enlarger.service.routes import examples, openapi
from enlarger.service.routes.answers import Health, Info, LlamaUnready, ModelList, ModelReply, Readiness, Truth, Unready
from enlarger.service.routes.fields import SCHEDULERS
from enlarger.service.routes.incoming import printable

public = APIRouter(tags=["status"])  # without a key
router = APIRouter(tags=["status"])
STARTED = int(time.time())
RETRY_SECONDS = 5

Name = Annotated[str, Path(description="a model's `id`, or one of its other names", examples=["bundled"])]
REFUSALS = openapi.errors(*openapi.READING)
ONE = {200: openapi.one(ModelReply, "the model", examples.MODEL)}


BEGUN = {202: ONE[200] | {"description": "the model as it is now; the workers have been told"}}


@public.get("/v1/", summary="The service is there", response_model=Truth)
async def there() -> Response:
    """Always the same, from the first moment on."""
    return JSONResponse({"status": True})


@public.get("/healthz", summary="The service lives", response_model=Health)
async def live() -> Response:
    """200 while models load, too."""
    return JSONResponse({"status": "ok"})


@public.get(
    "/readyz",
    summary="The service takes requests",
    response_model=Readiness,
    responses={503: {"model": Unready, "description": "not yet, or no longer"}},
)
async def ready(request: Request) -> Response:
    """503 while it starts, while it ends, and where no model can be used."""
    queue = service_of(request).queue
    if queue.ready:
        return JSONResponse({"status": "ready", "state": queue.state})
    fault = _unready(queue.state)
    return JSONResponse(fault.body() | {"state": queue.state}, 503, fault.headers())


@public.get(
    "/health",
    summary="Health, as llama.cpp says it",
    response_model=Health,
    responses={503: {"model": LlamaUnready, "description": "not ready"}},
)
async def health(request: Request) -> Response:
    """503 while models load."""
    queue = service_of(request).queue
    if queue.ready:
        return JSONResponse({"status": "ok"})
    said = "Loading model" if queue.state == "STARTING" else _unready(queue.state).message
    error = {"code": 503, "message": said, "type": "unavailable_error"}
    return JSONResponse({"error": error}, 503, {"Retry-After": str(RETRY_SECONDS)})


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_model=None,
    response_class=PlainTextResponse,
    responses={
        200: {"description": "the figures", "content": {"text/plain": {"example": examples.METRICS}}},
        **REFUSALS,
    },
)
async def metrics(request: Request) -> Response:
    """Seconds, bytes and counts; nothing of prompts or pictures."""
    return Response(service_of(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/info", summary="What this service is", response_model=Info, responses=REFUSALS)
async def info(request: Request) -> Response:
    """Version, devices, models and limits."""
    service = service_of(request)
    settings = service.settings
    found: dict[str, Any] = {
        "name": "enlarger",
        "version": __version__,
        "state": service.queue.state,
        "devices": list(settings.devices),
        "models": [_json(model) for model in service.queue.models()],
        "limits": settings.bounds.model_dump() | {"queue": settings.queue, "job_minutes": settings.job_minutes},
        "keys": bool(settings.keys),
        "fetch": settings.fetch,
        "schedulers": list(SCHEDULERS),
    }
    return JSONResponse(found)


@router.get("/v1/models", summary="List models", response_model=ModelList, responses=REFUSALS)
async def models(request: Request) -> Response:
    """All that can be asked for, loaded or not."""
    return JSONResponse({"object": "list", "data": [_json(one) for one in service_of(request).queue.models()]})


@router.get(
    "/v1/models/{id:path}",
    summary="One model",
    response_model=ModelReply,
    responses={**ONE, **REFUSALS, **openapi.errors(404)},
)
async def model(request: Request, id: Name) -> Response:
    """By its name or one of its other names."""
    return JSONResponse(_json(_named(service_of(request), id)))


@router.post(
    "/v1/models/{id:path}/load",
    status_code=202,
    summary="Load a model's weights",
    response_model=ModelReply,
    responses={**BEGUN, **REFUSALS, **openapi.errors(404)},
)
async def load(request: Request, id: Name) -> Response:
    """So that later requests do not wait for it; `loaded_bytes` shows when it is. Others go if memory is short."""
    service = service_of(request)
    name = _named(service, id).name
    await service.queue.load(name)
    return JSONResponse(_json(_named(service, name)), 202)


@router.post(
    "/v1/models/{id:path}/unload",
    status_code=202,
    summary="Drop a model's weights",
    response_model=ModelReply,
    responses={**BEGUN, **REFUSALS, **openapi.errors(404)},
)
async def unload(request: Request, id: Name) -> Response:
    """They are read again when the model is asked for."""
    service = service_of(request)
    name = _named(service, id).name
    await service.queue.unload(name)
    return JSONResponse(_json(_named(service, name)), 202)


def _unready(state: str) -> Fault:
    if state == "STARTING":
        return Fault(503, "model_loading", "the service is starting: models are being read", retry_after=RETRY_SECONDS)
    return Fault(503, "unavailable", f"the service takes no requests: it is {state}", retry_after=RETRY_SECONDS)


def _named(service: Service, name: str) -> ModelState:
    """A model by name or by another of its names."""
    known = service.queue.models()
    for one in known:
        if name == one.name or name in one.aliases:
            return one
    there = ", ".join(one.name for one in known) or "none yet"
    raise refuse(404, "model_not_found", f"there is no model {printable(name)!r}; there are: {there}", "model")


def _json(model: ModelState) -> dict[str, Any]:
    more = {
        "kind": model.kind,
        "tasks": list(model.tasks),
        "aliases": list(model.aliases),
        "loaded_bytes": model.loaded,
        "error": model.error,
    }
    return {"id": model.name, "object": "model", "created": STARTED, "owned_by": "enlarger", "enlarger": more}
