"""From a job to its answer: at once as a job, later as pictures; a client that goes away takes its job along."""

import asyncio
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from enlarger.service.core import Service, service_of
from enlarger.service.faults import refuse
from enlarger.service.jobs import Job
from enlarger.service.queue.queue import Queue
from enlarger.service.routes import replies
from enlarger.service.routes.asks import Wish
from enlarger.service.routes.background import in_background
from enlarger.service.routes.order import Order, check_same
from enlarger.service.routes.pieces import encode, filled, length, new_mark, sizes_of


async def earlier(service: Service, order: Order, wishes: tuple[Wish, ...], seeded: bool) -> Job | None:
    """The job that this request began before, told by its Idempotency-Key."""
    job = None if order.key is None else await service.queue.find_key(order.owner, order.key)
    return None if job is None else check_same(job, wishes, seeded)


async def answered(request: Request, job: Job, order: Order, url: bool) -> Response:
    """The answer of a job that was submitted."""
    service, base = service_of(request), replies.base_of(request)
    if order.later:
        return accepted(service, job, base)
    over = await waited(request, service.queue, job)
    if url:
        return JSONResponse(replies.images_json(over, base))
    return await whole(service, over, base)


def accepted(service: Service, job: Job, base: str) -> Response:
    """202: where to ask for the job."""
    headers = {"Location": f"{base}/v1/jobs/{job.id}", "Preference-Applied": "respond-async"}
    return JSONResponse(replies.job_json(job, service.queue.standing(job), base), 202, headers)


async def whole(service: Service, job: Job, base: str) -> Response:
    """The pictures themselves, sent piece by piece."""
    mark = new_mark()
    text = encode(replies.images_json(job, base, mark))
    files = replies.files_of(job, service.settings.data)
    size = length(text, mark, await asyncio.to_thread(sizes_of, files))
    headers = {"Content-Length": str(size)}
    return StreamingResponse(filled(text, mark, files), 200, headers, media_type="application/json")


async def waited(request: Request, queue: Queue, job: Job) -> Job:
    """The job when it is over. An attached one is canceled if its client goes away, or if the handler ends."""
    over = asyncio.ensure_future(queue.wait(job.id))
    gone = asyncio.ensure_future(_gone(request))
    tasks: set[asyncio.Future[Any]] = {over, gone}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if over.done():
            return over.result()
        raise refuse(499, "client_closed", "the client went away before its pictures were done")
    finally:
        if not over.done() and job.attached:
            in_background(queue.cancel(job.id, "disconnect"))
        for task in tasks:
            task.cancel()


async def _gone(request: Request) -> None:
    """Ends when the client does."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
