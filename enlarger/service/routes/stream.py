"""Server-sent events: their text, and a job's events as such."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from starlette.responses import Response, StreamingResponse

from enlarger.service.core import Service
from enlarger.service.faults import Fault, Refused
from enlarger.service.jobs import Event, Job, Status, folder_of
from enlarger.service.routes import replies
from enlarger.service.routes.background import in_background
from enlarger.service.routes.pieces import filled, new_mark, sizes_of, slot

KEEP_ALIVE = 15.0  # seconds between two signs of life
CHANGING = ("status", "position", "progress", "stage", "step", "steps", "eta_seconds")
STATUS: Mapping[str, Status] = {
    "queued": "queued",
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "canceled",
}

LEFT = Fault(503, "draining", "the service ends before the job does; ask for it anew")

Kind = Literal["image_generation", "image_edit"]
Item = TypeVar("Item")


def event_text(data: Mapping[str, Any], kind: str | None = None, number: int | None = None) -> str:
    """One event. JSON holds no line breaks, so that one line of data is enough."""
    head = ("" if number is None else f"id: {number}\n") + ("" if kind is None else f"event: {kind}\n")
    return f"{head}data: {json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(',', ':'))}\n\n"


def comment(text: str) -> str:
    """A line that clients skip."""
    return f": {' '.join(text.split())}\n\n"


def streamed(texts: AsyncIterator[str | bytes]) -> Response:
    """The answer that sends events as they come."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(texts, 200, headers, media_type="text/event-stream")


async def alive(items: AsyncIterator[Item], seconds: float = KEEP_ALIVE) -> AsyncGenerator[Item | None]:
    """The items as they come; None whenever there was none for so long."""
    coming = asyncio.ensure_future(anext(items, None))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=seconds)
            if not done:
                yield None
                continue
            item = coming.result()
            if item is None:
                return
            yield item
            coming = asyncio.ensure_future(anext(items, None))
    finally:
        coming.cancel()


async def job_events(service: Service, job: Job, after: int, base: str) -> AsyncGenerator[str]:
    """What happens to a job, until it is over; the last event is the whole job."""
    async with aclosing(alive(service.queue.events(job.id, after))) as events:
        async for event in events:
            if event is None:
                yield comment("alive")
            elif event.last:
                over = await service.queue.get(job.id) or job
                yield event_text(replies.job_json(over, service.queue.standing(over), base), event.kind, event.number)
            else:
                yield event_text(changes(event, job.id, base), event.kind, event.number)


def changes(event: Event, id: str, base: str) -> dict[str, Any]:
    """What an event says of a job, by the names of its JSON."""
    said = {name: event.data[name] for name in CHANGING if name in event.data}
    said.setdefault("status", STATUS.get(event.kind, "running"))
    if event.kind == "preview":
        said["preview_url"] = replies.preview_url(base, id)
    return said


@dataclass(frozen=True)
class Watched:
    """A job whose pictures are streamed."""

    service: Service
    job: Job
    kind: Kind
    base: str
    url: bool  # addresses are wanted besides

    async def texts(self) -> AsyncGenerator[str | bytes]:
        """Partial pictures and the finished ones, as OpenAI's clients read them; progress in comments."""
        queue, over = self.service.queue, False
        try:
            async with aclosing(alive(queue.events(self.job.id))) as events:
                async for event in events:
                    over = over or (event is not None and event.last)
                    async for text in self._texts_of(event):
                        yield text
            if not over:
                yield event_text(LEFT.body(), "error")
        finally:
            if not over and self.job.attached:
                in_background(queue.cancel(self.job.id, "disconnect"))

    async def _texts_of(self, event: Event | None) -> AsyncGenerator[str | bytes]:
        if event is None:
            yield comment("alive")
        elif event.last:
            async for text in self._end():
                yield text
        elif event.kind == "preview" and event.data.get("index") is not None:
            async for text in self._partial(event):
                yield text
        else:
            yield comment(progress_text(event))

    async def _partial(self, event: Event) -> AsyncGenerator[str | bytes]:
        """A picture on the way; it is a PNG whatever the result will be. One that is gone again is left out."""
        file = folder_of(self.service.settings.data, self.job.id) / event.data["file"]
        if await asyncio.to_thread(file.is_file):
            mark = new_mark()
            data = self._about("partial_image", mark, 0, "png") | {"partial_image_index": event.data["index"]}
            async for piece in filled(event_text(data, data["type"]).encode(), mark, [file]):
                yield piece

    async def _end(self) -> AsyncGenerator[str | bytes]:
        """Each finished picture, or the error."""
        job = await self.service.queue.get(self.job.id) or self.job
        try:
            done, files = replies.result_of(job), replies.files_of(job, self.service.settings.data)
            await asyncio.to_thread(sizes_of, files)
        except Refused as error:
            yield event_text(error.fault.body(), "error")
            return
        whole = replies.images_json(job, self.base)
        for index, (image, file) in enumerate(zip(done["images"], files, strict=True)):
            mark = new_mark()
            data = self._about("completed", mark, 0, image["format"], f"{image['width']}x{image['height']}")
            address = {"url": whole["data"][index]["url"]} if self.url else {}
            more = {"usage": replies.usage_json({**done, "images": [image]}), "enlarger": whole["enlarger"]}
            async for piece in filled(event_text(data | more | address, data["type"]).encode(), mark, [file]):
                yield piece

    def _about(self, what: str, mark: str, index: int, form: str, size: str | None = None) -> dict[str, Any]:
        """What both kinds of event say."""
        known = self.job.ask.size
        return {
            "type": f"{self.kind}.{what}",
            "b64_json": slot(mark, index),
            "created_at": int(time.time()),
            "size": size or ("auto" if known is None else f"{known[0]}x{known[1]}"),
            "quality": "auto",
            "background": "opaque" if self.job.ask.task == "generate" else "auto",
            "output_format": form,
        }


def progress_text(event: Event) -> str:
    """How far a job is, for a person who reads the stream."""
    data = event.data
    step = f" {data['step']}/{data['steps']}" if data.get("steps") else ""
    eta = "" if data.get("eta_seconds") is None else f" eta {data['eta_seconds']:.1f}"
    return f"{data.get('stage') or event.kind}{step}{eta}"
