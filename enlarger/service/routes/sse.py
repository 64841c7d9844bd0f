"""Server-sent events: their text, and a job's events as such."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from starlette.responses import Response, StreamingResponse

from enlarger.service.dependencies import Service
from enlarger.service.jobs.job import Job, JobEvent, JobStatus, job_folder
from enlarger.service.problems import Problem, ProblemError, wait_timeout
from enlarger.service.routes import responses
from enlarger.service.routes.base64_stream import file_sizes, fill_placeholders, new_nonce, placeholder
from enlarger.service.routes.job_response import run_in_background
from enlarger.strict_json import Json

KEEP_ALIVE_SECONDS = 15.0  # seconds between two signs of life
PROGRESS_FIELDS = ("status", "position", "progress", "stage", "step", "steps", "eta_seconds")
EVENT_STATUS: Mapping[str, JobStatus] = {
    "queued": "queued",
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "canceled",
}

DRAINING = Problem(503, "draining", "the service ends before the job does; ask for it anew")

EventPrefix = Literal["image_generation", "image_edit"]
Item = TypeVar("Item")


def format_event(data: Mapping[str, Any], kind: str | None = None, number: int | None = None) -> str:
    """One event. JSON holds no line breaks, so that one line of data is enough."""
    prefix = ("" if number is None else f"id: {number}\n") + ("" if kind is None else f"event: {kind}\n")
    return f"{prefix}data: {json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(',', ':'))}\n\n"


def format_comment(text: str) -> str:
    """A line that clients skip."""
    return f": {' '.join(text.split())}\n\n"


def event_stream_response(events: AsyncIterator[str | bytes]) -> Response:
    """The answer that sends events as they come."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, 200, headers, media_type="text/event-stream")


async def with_keep_alive(
    items: AsyncIterator[Item], seconds: float = KEEP_ALIVE_SECONDS
) -> AsyncGenerator[Item | None]:
    """The items as they come; None whenever there was none for so long."""
    next_item = asyncio.ensure_future(anext(items, None))
    try:
        while True:
            done, _ = await asyncio.wait({next_item}, timeout=seconds)
            if not done:
                yield None
                continue
            item = next_item.result()
            if item is None:
                return
            yield item
            next_item = asyncio.ensure_future(anext(items, None))
    finally:
        next_item.cancel()


async def job_events(service: Service, job: Job, after: int, base_url: str) -> AsyncGenerator[str]:
    """What happens to a job, until it is over; the last event is the whole job."""
    async with aclosing(with_keep_alive(service.jobs.events(job.id, after))) as events:
        async for event in events:
            if event is None:
                yield format_comment("alive")
            elif event.is_last:
                finished = await service.jobs.get(job.id) or job
                yield format_event(_job_json(service, finished, base_url), event.kind, event.number)
            else:
                yield format_event(event_json(event, job.id, base_url), event.kind, event.number)


async def owner_events(service: Service, owner: str, base_url: str) -> AsyncGenerator[str]:
    """What happens to all jobs of an owner from now on; the last event of each is the whole job."""
    with service.jobs.feed() as feed:
        yield format_comment("alive")  # whoever reads it misses nothing from here on
        async with aclosing(with_keep_alive(feed.events())) as events:
            async for item in events:
                if item is None:
                    yield format_comment("alive")
                    continue
                id, event = item
                job = await service.jobs.get(id)
                if job is not None and job.owner == owner:
                    about = (
                        _job_json(service, job, base_url)
                        if event.is_last
                        else {"id": id} | event_json(event, id, base_url)
                    )
                    yield format_event(about, event.kind)


def _job_json(service: Service, job: Job, base_url: str) -> Json:
    return responses.job_json(job, service.jobs.progress(job), base_url)


def event_json(event: JobEvent, id: str, base_url: str) -> Json:
    """What an event says of a job, by the names of its JSON."""
    fields = {name: event.data[name] for name in PROGRESS_FIELDS if name in event.data}
    fields.setdefault("status", EVENT_STATUS.get(event.kind, "running"))
    if event.kind == "preview":
        fields["preview_url"] = responses.preview_url(base_url, id)
    return fields


@dataclass(frozen=True)
class ImageStream:
    """A job whose pictures are streamed."""

    service: Service
    job: Job
    event_prefix: EventPrefix
    base_url: str
    include_urls: bool  # addresses are wanted besides

    async def iter_events(self) -> AsyncGenerator[str | bytes]:
        """Partial pictures and the finished ones, as OpenAI's clients read them; progress in comments."""
        queue, finished = self.service.jobs, False
        seconds = self.service.settings.bounds.request_seconds
        deadline = time.monotonic() + seconds
        try:
            async with aclosing(with_keep_alive(queue.events(self.job.id))) as events:
                async for event in events:
                    finished = finished or (event is not None and event.is_last)
                    async for text in self._format_event(event):
                        yield text
                    if not finished and time.monotonic() > deadline:
                        yield format_event(wait_timeout(seconds).body(), "error")
                        return
            if not finished:
                yield format_event(DRAINING.body(), "error")
        finally:
            if not finished and self.job.attached:
                run_in_background(queue.cancel(self.job.id, "disconnect"))

    async def _format_event(self, event: JobEvent | None) -> AsyncGenerator[str | bytes]:
        if event is None:
            yield format_comment("alive")
        elif event.is_last:
            async for text in self._final_events():
                yield text
        elif event.kind == "preview" and event.data.get("index") is not None:
            async for text in self._partial_image_event(event):
                yield text
        else:
            yield format_comment(format_progress(event))

    async def _partial_image_event(self, event: JobEvent) -> AsyncGenerator[str | bytes]:
        """A picture on the way; it is a PNG whatever the result will be. One that is gone again is left out."""
        file = job_folder(self.service.settings.data, self.job.id) / event.data["file"]
        if await asyncio.to_thread(file.is_file):
            nonce = new_nonce()
            data = self._event_fields("partial_image", nonce, 0, "png") | {"partial_image_index": event.data["index"]}
            async for chunk in fill_placeholders(format_event(data, data["type"]).encode(), nonce, [file]):
                yield chunk

    async def _final_events(self) -> AsyncGenerator[str | bytes]:
        """Each finished picture, or the error."""
        job = await self.service.jobs.get(self.job.id) or self.job
        try:
            result, files = responses.result_of_job(job), responses.result_files(job, self.service.settings.data)
            await asyncio.to_thread(file_sizes, files)
        except ProblemError as error:
            yield format_event(error.problem.body(), "error")
            return
        response = responses.images_json(job, self.base_url)
        for index, (image, file) in enumerate(zip(result.images, files, strict=True)):
            nonce = new_nonce()
            data = self._event_fields("completed", nonce, 0, image.format, f"{image.width}x{image.height}")
            address = {"url": response["data"][index]["url"]} if self.include_urls else {}
            extras = {"usage": responses.usage_json(replace(result, images=(image,))), "enlarger": response["enlarger"]}
            async for chunk in fill_placeholders(
                format_event(data | extras | address, data["type"]).encode(), nonce, [file]
            ):
                yield chunk

    def _event_fields(self, event: str, nonce: str, index: int, file_format: str, size: str | None = None) -> Json:
        """What both kinds of event say."""
        known_size = self.job.spec.size
        return {
            "type": f"{self.event_prefix}.{event}",
            "b64_json": placeholder(nonce, index),
            "created_at": int(time.time()),
            "size": size or ("auto" if known_size is None else f"{known_size[0]}x{known_size[1]}"),
            "quality": "auto",
            "background": "opaque" if self.job.spec.task == "generate" else "auto",
            "output_format": file_format,
        }


def format_progress(event: JobEvent) -> str:
    """How far a job is, for a person who reads the stream."""
    data = event.data
    step = f" {data['step']}/{data['steps']}" if data.get("steps") else ""
    eta = "" if data.get("eta_seconds") is None else f" eta {data['eta_seconds']:.1f}"
    return f"{data.get('stage') or event.kind}{step}{eta}"
