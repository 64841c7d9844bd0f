"""What is raised below becomes the service's error body."""

import errno
import logging
from dataclasses import replace

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enlarger.service.logging_config import log_event
from enlarger.service.middleware.asgi import (
    get_header,
    request_state,
    send_problem,
)
from enlarger.service.problems import Problem, ProblemError, problem_from_exception

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


def error_handler(app: ASGIApp) -> ASGIApp:
    """Turns what is raised below into our error body; what was not foreseen is logged."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        started = is_suppressed = False

        async def send_unless_suppressed(message: Message) -> None:
            nonlocal started, is_suppressed
            is_suppressed = is_suppressed or _is_framework_error(message)
            if not is_suppressed:
                started = True
                await send(message)

        try:
            await app(scope, receive, send_unless_suppressed)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001  whatever it is, the client gets an answer
            problem = _log_and_convert(error, scope)
            if not started:
                await send_problem(send, problem)

    return middleware


def _is_framework_error(message: Message) -> bool:
    """Whether it begins the plain text that Starlette sends before it raises on what no handler took."""
    failed = message["type"] == "http.response.start" and message["status"] == 500
    return failed and (get_header(message, "content-type") or "").startswith("text/plain")


def _log_and_convert(error: Exception, scope: Scope) -> Problem:
    if isinstance(error, ProblemError):
        return error.problem
    request_id = request_state(scope).get("request_id")
    log_event("request failed", logging.ERROR, error, id=request_id)
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS:
        return Problem(500, "storage_full", "the disk of the service is full; try again when there is room")
    problem = problem_from_exception(error)
    return replace(problem, message=f"{problem.message} (request {request_id})")
