"""What is answered: a job and what its worker wrote as JSON, and every error in one form."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path

from enlarger.service.faults import Fault, Refused, refuse
from enlarger.service.jobs import Job, folder_of
from enlarger.service.queue.state import Standing
from enlarger.service.routes.document import describe
from enlarger.service.routes.incoming import fault_of_errors
from enlarger.service.routes.pieces import slot

CODES = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large", 415: "unsupported_media_type"}
MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
CANCELED = Fault(499, "canceled", "the job was canceled before it was done; ask for it anew")
CELL = 16  # pixels: one image token for CELL x CELL


def base_of(request: Request) -> str:
    """Where this service is, as the client calls it; without a slash at the end."""
    return str(request.base_url).rstrip("/")


def job_json(job: Job, standing: Standing, base: str) -> dict[str, Any]:
    """A job, whole."""
    done = job.status == "succeeded"
    fault = fault_of_job(job)
    preview = None if standing.preview is None else preview_url(base, job.id)
    return {
        "id": job.id,
        "object": "job",
        "status": job.status,
        "task": job.ask.task,
        "model": job.ask.model,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "position": None if job.over else standing.position,
        "progress": 1.0 if done else standing.progress,
        "stage": None if job.over else standing.stage,
        "step": None if job.over else standing.step,
        "steps": None if job.over else standing.steps,
        "eta_seconds": None if job.over else standing.eta_seconds,
        "preview_url": preview,
        "result": images_json(job, base) if done else None,
        "error": None if fault is None else fault.body()["error"],
    }


def preview_url(base: str, id: str) -> str:
    return f"{base}/v1/jobs/{id}/preview"


def content_url(base: str, id: str, index: int, count: int) -> str:
    """The address of a result."""
    return f"{base}/v1/images/{id}/content" + (f"?variant={index}" if count > 1 else "")


def fault_of_job(job: Job) -> Fault | None:
    """Why a job gave nothing."""
    if job.status not in ("failed", "canceled"):
        return None
    return CANCELED if job.fault is None else job.fault


def images_json(job: Job, base: str, mark: str | None = None) -> dict[str, Any]:
    """What a finished job made. With a mark the pictures are there, as slots to fill, instead of their addresses."""
    done = result_of(job)
    count = len(done["images"])
    sizes = {f"{image['width']}x{image['height']}" for image in done["images"]}
    return {
        "created": int(job.created if job.finished is None else job.finished),
        "data": [
            ({"url": content_url(base, job.id, index, count)} if mark is None else {"b64_json": slot(mark, index)})
            | _picture(image)
            for index, image in enumerate(done["images"])
        ],
        "background": "opaque" if job.ask.task == "generate" else None,
        "output_format": job.ask.output.format,
        "quality": None,
        "size": sizes.pop() if len(sizes) == 1 else None,
        "usage": usage_json(done),
        "enlarger": _extras(job, done),
    }


def result_of(job: Job) -> Mapping[str, Any]:
    """What the worker wrote. Raises Refused for a job without it."""
    fault = fault_of_job(job)
    if fault is not None:
        raise Refused(fault)
    if job.result is None:
        raise refuse(404, "job_not_found", f"job {job.id} is {job.status}, it has no pictures yet")
    return job.result


def files_of(job: Job, data: Path) -> list[Path]:
    """The files of the pictures."""
    folder = folder_of(data, job.id)
    return [folder / image["file"] for image in result_of(job)["images"]]


def _picture(image: Mapping[str, Any]) -> dict[str, Any]:
    more = {name: image.get(name) for name in ("width", "height", "seed", "format", "flagged")}
    return {"revised_prompt": None, **more}


def usage_json(done: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens of the prompt, of the input and of the results."""
    recipe: Mapping[str, Any] | None = done.get("recipe")
    given: Mapping[str, Any] | None = None if recipe is None else recipe.get("input")
    image, text = 0 if given is None else _cells(given), int(done.get("tokens", 0))
    out = sum(_cells(image) for image in done["images"])
    return {
        "input_tokens": text + image,
        "input_tokens_details": {"text_tokens": text, "image_tokens": image},
        "output_tokens": out,
        "total_tokens": text + image + out,
    }


def _cells(size: Mapping[str, Any]) -> int:
    return -(-int(size["width"]) // CELL) * -(-int(size["height"]) // CELL)


def _extras(job: Job, done: Mapping[str, Any]) -> dict[str, Any]:
    seeds = [image["seed"] for image in done["images"] if image.get("seed") is not None]
    waited = {} if job.started is None else {"queue": round(max(job.started - job.created, 0.0), 6)}
    return {
        "id": job.id,
        "model": job.ask.model,
        "seed": seeds[0] if seeds else None,
        "seeds": seeds,
        "recipe": done.get("recipe"),
        "timings": waited | dict(done.get("timings") or {}),
        "consistency": done.get("consistency"),
        "changed": done.get("changed"),
        "warnings": list(dict.fromkeys((*job.ask.notes, *done.get("notes", ())))),
    }


def error_response(fault: Fault, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A fault as an answer."""
    return JSONResponse(fault.body(), fault.status, headers=dict(headers or {}) | fault.headers())


def install(app: FastAPI) -> None:
    """Give every error of the application the one form."""
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    describe(app)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error_response(error.fault)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(fault_of_errors(error.errors()))


async def _http(request: Request, error: Exception) -> Response:
    """The framework's own: paths that are not there, methods that they do not take, bodies over the limit."""
    assert isinstance(error, HTTPException)
    status, path = error.status_code, json.dumps(request.url.path[:200])
    code = CODES.get(status, "invalid_value" if status < 500 else "internal")
    if status == 404:
        return error_response(Fault(404, code, f"there is nothing at {path}; /openapi.json lists what there is"))
    if status == 405:
        allowed = ", ".join(sorted(methods_at(request)))
        message = f"found {request.method} on {path}, expected {allowed or 'another method'}"
        return error_response(Fault(405, code, message), {"Allow": allowed})
    return error_response(Fault(status, code, str(error.detail)), error.headers)


def methods_at(request: Request) -> set[str]:
    """The methods that a path takes, over all routes of its template; of several templates the longest is meant."""
    found: dict[str, set[str]] = {}
    for route in iter_route_contexts(request.app.routes):
        if route.path is not None and compile_path(route.path)[0].match(request.url.path):
            found.setdefault(route.path, set()).update(route.methods or ())
    return found[max(found, key=len)] if found else set()
