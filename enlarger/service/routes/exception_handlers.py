"""Every error of the application in one form."""

import json
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path

from enlarger.service.problems import Problem, ProblemError
from enlarger.service.routes.request_body import problem_from_validation

ERROR_CODES = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large", 415: "unsupported_media_type"}


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A problem as an answer."""
    return JSONResponse(problem.body(), problem.status, headers=dict(headers or {}) | problem.headers())


def install_exception_handlers(app: FastAPI) -> None:
    """Give every error of the application the one form."""
    app.add_exception_handler(ProblemError, _handle_problem_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)


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
