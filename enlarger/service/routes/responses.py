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

from enlarger.service.jobs.job import Job, job_folder
from enlarger.service.jobs.state import JobProgress
from enlarger.service.problems import Problem, ProblemError, problem_error
from enlarger.service.routes.base64_stream import placeholder
from enlarger.service.routes.custom_openapi import install_openapi
from enlarger.service.routes.request_body import problem_from_validation

ERROR_CODES = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large", 415: "unsupported_media_type"}
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
CANCELED = Problem(499, "canceled", "the job was canceled before it was done; ask for it anew")
TOKEN_SIDE = 16  # pixels: one image token for CELL x CELL


def get_base_url(request: Request) -> str:
    """Where this service is, as the client calls it; without a slash at the end."""
    return str(request.base_url).rstrip("/")


def job_json(job: Job, progress: JobProgress, base_url: str) -> dict[str, Any]:
    """A job, whole."""
    succeeded = job.status == "succeeded"
    problem = problem_of_job(job)
    preview = None if progress.preview is None else preview_url(base_url, job.id)
    return {
        "id": job.id,
        "object": "job",
        "status": job.status,
        "task": job.spec.task,
        "model": job.spec.model,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "position": None if job.is_finished else progress.position,
        "progress": 1.0 if succeeded else progress.progress,
        "stage": None if job.is_finished else progress.stage,
        "step": None if job.is_finished else progress.step,
        "steps": None if job.is_finished else progress.steps,
        "eta_seconds": None if job.is_finished else progress.eta_seconds,
        "preview_url": preview,
        "result": images_json(job, base_url) if succeeded else None,
        "error": None if problem is None else problem.body()["error"],
    }


def preview_url(base_url: str, id: str) -> str:
    return f"{base_url}/v1/jobs/{id}/preview"


def content_url(base_url: str, id: str, index: int, count: int) -> str:
    """The address of a result."""
    return f"{base_url}/v1/images/{id}/content" + (f"?variant={index}" if count > 1 else "")


def problem_of_job(job: Job) -> Problem | None:
    """Why a job gave nothing."""
    if job.status not in ("failed", "canceled"):
        return None
    return CANCELED if job.problem is None else job.problem


def images_json(job: Job, base_url: str, nonce: str | None = None) -> dict[str, Any]:
    """What a finished job made. With a mark the pictures are there, as slots to fill, instead of their addresses."""
    result = result_of_job(job)
    count = len(result["images"])
    sizes = {f"{image['width']}x{image['height']}" for image in result["images"]}
    return {
        "created": int(job.created if job.finished is None else job.finished),
        "data": [
            (
                {"url": content_url(base_url, job.id, index, count)}
                if nonce is None
                else {"b64_json": placeholder(nonce, index)}
            )
            | _image_json(image)
            for index, image in enumerate(result["images"])
        ],
        "background": "opaque" if job.spec.task == "generate" else None,
        "output_format": job.spec.output.format,
        "quality": None,
        "size": sizes.pop() if len(sizes) == 1 else None,
        "usage": usage_json(result),
        "enlarger": _extras_json(job, result),
    }


def result_of_job(job: Job) -> Mapping[str, Any]:
    """What the worker wrote. Raises Refused for a job without it."""
    problem = problem_of_job(job)
    if problem is not None:
        raise ProblemError(problem)
    if job.result is None:
        raise problem_error(404, "job_not_found", f"job {job.id} is {job.status}, it has no pictures yet")
    return job.result


def result_files(job: Job, data: Path) -> list[Path]:
    """The files of the pictures."""
    folder = job_folder(data, job.id)
    return [folder / image["file"] for image in result_of_job(job)["images"]]


def _image_json(image: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: image.get(name) for name in ("width", "height", "seed", "format", "flagged")}
    return {"revised_prompt": None, **fields}


def usage_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens of the prompt, of the input and of the results."""
    recipe: Mapping[str, Any] | None = result.get("recipe")
    input_size: Mapping[str, Any] | None = None if recipe is None else recipe.get("input")
    image, text = 0 if input_size is None else _image_tokens(input_size), int(result.get("tokens", 0))
    output_tokens = sum(_image_tokens(image) for image in result["images"])
    return {
        "input_tokens": text + image,
        "input_tokens_details": {"text_tokens": text, "image_tokens": image},
        "output_tokens": output_tokens,
        "total_tokens": text + image + output_tokens,
    }


def _image_tokens(size: Mapping[str, Any]) -> int:
    return -(-int(size["width"]) // TOKEN_SIDE) * -(-int(size["height"]) // TOKEN_SIDE)


def _extras_json(job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    seeds = [image["seed"] for image in result["images"] if image.get("seed") is not None]
    queue_timing = {} if job.started is None else {"queue": round(max(job.started - job.created, 0.0), 6)}
    return {
        "id": job.id,
        "model": job.spec.model,
        "seed": seeds[0] if seeds else None,
        "seeds": seeds,
        "recipe": result.get("recipe"),
        "timings": queue_timing | dict(result.get("timings") or {}),
        "consistency": result.get("consistency"),
        "changed": result.get("changed"),
        "warnings": list(dict.fromkeys((*job.spec.notes, *result.get("notes", ())))),
    }


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A fault as an answer."""
    return JSONResponse(problem.body(), problem.status, headers=dict(headers or {}) | problem.headers())


def install_exception_handlers(app: FastAPI) -> None:
    """Give every error of the application the one form."""
    app.add_exception_handler(ProblemError, _handle_problem_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    install_openapi(app)


async def _handle_problem_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return problem_response(error.problem)


async def _handle_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem_response(problem_from_validation(error.errors()))


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    """The framework's own: paths that are not there, methods that they do not take, bodies over the limit."""
    assert isinstance(error, HTTPException)
    status, path = error.status_code, json.dumps(request.url.path[:200])
    code = ERROR_CODES.get(status, "invalid_value" if status < 500 else "internal")
    if status == 404:
        return problem_response(Problem(404, code, f"there is nothing at {path}; /openapi.json lists what there is"))
    if status == 405:
        allowed = ", ".join(sorted(allowed_methods(request)))
        message = f"found {request.method} on {path}, expected {allowed or 'another method'}"
        return problem_response(Problem(405, code, message), {"Allow": allowed})
    return problem_response(Problem(status, code, str(error.detail)), error.headers)


def allowed_methods(request: Request) -> set[str]:
    """The methods that a path takes, over all routes of its template; of several templates the longest is meant."""
    methods: dict[str, set[str]] = {}
    for route in iter_route_contexts(request.app.routes):
        if route.path is not None and compile_path(route.path)[0].match(request.url.path):
            methods.setdefault(route.path, set()).update(route.methods or ())
    return methods[max(methods, key=len)] if methods else set()
