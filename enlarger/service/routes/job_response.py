"""From a job to its answer: at once as a job, later as pictures; a client that goes away takes its job along."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from enlarger.service.dependencies import Service, get_service
from enlarger.service.jobs.job import Job
from enlarger.service.jobs.manager import JobManager
from enlarger.service.problems import ProblemError, problem_error, wait_timeout
from enlarger.service.routes import responses
from enlarger.service.routes.base64_stream import content_length, encode_json, file_sizes, fill_placeholders, new_nonce
from enlarger.service.routes.request_headers import RequestHeaders

_tasks: set[asyncio.Task[Any]] = set()  # the loop itself holds tasks weakly


async def find_idempotent_job(service: Service, request_headers: RequestHeaders) -> Job | None:
    """The job that this request began before, known by its Idempotency-Key."""
    if request_headers.idempotency is None:
        return None
    return await service.jobs.find_repeated(request_headers.owner, request_headers.idempotency)


async def respond(request: Request, job: Job, request_headers: RequestHeaders, url: bool) -> Response:
    """The answer of a job that was submitted."""
    service, base_url = get_service(request), responses.get_base_url(request)
    if request_headers.respond_async:
        try:
            await request_headers.check_client()
        except ProblemError:
            run_in_background(service.jobs.cancel(job.id, "disconnect"))
            raise
        return accepted_response(service, job, base_url)
    finished = await wait_for_job(request, service.jobs, job)
    if url:
        return JSONResponse(responses.images_json(finished, base_url))
    return await images_response(service, finished, base_url)


def accepted_response(service: Service, job: Job, base_url: str) -> Response:
    """202: where the job is found."""
    headers = {"Location": f"{base_url}/v1/jobs/{job.id}", "Preference-Applied": "respond-async"}
    return JSONResponse(responses.job_json(job, service.jobs.progress(job), base_url), 202, headers)


async def images_response(service: Service, job: Job, base_url: str) -> Response:
    """The pictures themselves, sent in chunks."""
    nonce = new_nonce()
    text = encode_json(responses.images_json(job, base_url, nonce))
    files = responses.result_files(job, service.settings.data)
    size = content_length(text, nonce, await asyncio.to_thread(file_sizes, files))
    headers = {"Content-Length": str(size)}
    return StreamingResponse(fill_placeholders(text, nonce, files), 200, headers, media_type="application/json")


async def wait_for_job(request: Request, queue: JobManager, job: Job) -> Job:
    """The job when it is over. An attached one is canceled if its client goes away, if this takes longer than
    `request_seconds`, or if the handler ends."""
    finished = asyncio.ensure_future(queue.wait(job.id))
    disconnected = asyncio.ensure_future(_wait_for_disconnect(request))
    tasks: set[asyncio.Future[Any]] = {finished, disconnected}
    seconds, cause = get_service(request).settings.bounds.request_seconds, "disconnect"
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if finished.done():
            return finished.result()
        if not done:
            cause = "timeout"
            raise ProblemError(wait_timeout(seconds))
        raise problem_error(499, "client_closed", "the client went away before its pictures were done")
    finally:
        if not finished.done() and job.attached:
            run_in_background(queue.cancel(job.id, cause))
        for task in tasks:
            task.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    """Ends when the client does."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def run_in_background(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run something to its end, whatever becomes of the caller."""
    task = asyncio.get_running_loop().create_task(coroutine)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
