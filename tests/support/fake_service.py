"""A service without processes: the queue and the decoder in memory, for tests of the routes."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from PIL import Image

from enlarger.service.core import Service
from enlarger.service.faults import Fault, Refused, refuse
from enlarger.service.jobs import DONE, Ask, Job, Status, Task, folder_of
from enlarger.service.pictures.decode import Decoded
from enlarger.service.pictures.fetch import Fetcher
from enlarger.service.pictures.masks import Fit, fitted, read_mask
from enlarger.service.queue.claims import Claim, Claims
from enlarger.service.queue.events import Boards
from enlarger.service.queue.state import ModelState, Standing
from enlarger.service.routes import replies, routers
from enlarger.service.settings import ModelSettings, Settings

MODELS = (
    ModelSettings(name="tiny-sd", path="tiny-sd", aliases=("dall-e-2",), refiner="tiny-refiner"),
    ModelSettings(name="tiny-refiner", path="tiny-refiner"),
    ModelSettings(name="bundled", path="bundled"),
    ModelSettings(name="tiny-x2", path="tiny-x2"),
)
TASKS: dict[str, tuple[str, tuple[Task, ...]]] = {
    "tiny-sd": ("sd", ("generate", "refine", "inpaint")),
    "tiny-refiner": ("sdxl-refiner", ("refine",)),
    "bundled": ("bundled", ("upscale",)),
    "tiny-x2": ("x2", ("upscale",)),
}
SIDE = 64  # of what the models generate where nothing was asked for


@dataclass
class FakeQueue:
    """Runs each job at once, or, while `held`, when it is let go."""

    settings: Settings
    known: dict[str, Job] = field(default_factory=dict[str, Job])
    held: bool = False
    fails: Fault | None = None
    state: str = "READY"
    expected_wait: float = 0.0
    canceled: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    boards: Boards = field(default_factory=Boards)
    standings: dict[str, Standing] = field(default_factory=dict[str, Standing])
    loaded: set[str] = field(default_factory=set[str])
    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    @property
    def ready(self) -> bool:
        return self.state in ("READY", "BUSY")

    def check_room(self, owner: str, patience: float | None = None) -> None:
        if sum(not job.over for job in self.known.values()) >= self.settings.queue:
            raise refuse(429, "queue_full", "the queue is full", retry_after=2)

    def claim(self, owner: str, patience: float | None = None) -> Claim:
        self.check_room(owner, patience)
        return Claims().take(owner)

    async def submit(
        self, ask: Ask, *, id: str, owner: str = "", attached: bool = False, key: str | None = None,
        claim: Claim | None = None,
    ) -> Job:  # fmt: skip
        folder = folder_of(self.settings.data, id)
        assert folder.is_dir()
        earlier = None if key is None else await self.find_key(owner, key)
        if earlier is not None:
            rmtree(folder)
            return earlier
        try:
            self.check_room(owner)
        except Refused:
            rmtree(folder)
            raise
        job = Job(id, ask, "queued", time.time(), owner, attached, key)
        self.known[id] = job
        self.boards.publish(id, "queued", {"status": "queued", "position": 1})
        task = asyncio.get_running_loop().create_task(self._run(id))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return job

    async def find_key(self, owner: str, key: str) -> Job | None:
        return next((job for job in self.known.values() if (job.owner, job.key) == (owner, key)), None)

    async def get(self, id: str) -> Job | None:
        return self.known.get(id)

    async def wait(self, id: str) -> Job:
        while not (job := self.known[id]).over:
            await asyncio.sleep(0.002)
        return job

    async def events(self, id: str, after: int = 0) -> AsyncIterator[Any]:
        board = self.boards.find(id)
        if board is not None:
            async for event in board.follow(after):
                yield event

    async def cancel(self, id: str, cause: str = "client") -> Job | None:
        job = self.known.get(id)
        if job is None or job.over:
            return job
        self.canceled.append((id, cause))
        return self._end(id, "canceled", fault=Fault(499, "canceled", "the job was canceled"))

    async def forget(self, id: str) -> None:
        self.known.pop(id, None)
        rmtree(folder_of(self.settings.data, id))

    def standing(self, job: Job) -> Standing:
        if job.over:
            return replace(self.standings.get(job.id, Standing(None)), position=None)
        return self.standings.get(job.id, Standing(1))

    def models(self) -> list[ModelState]:
        return [
            ModelState(one.name, *TASKS[one.name], one.aliases, 1000 if one.name in self.loaded else None)
            for one in self.settings.known_models
        ]

    def model_for(self, task: Task, name: str | None) -> ModelState:
        if not self.ready:
            raise refuse(503, "model_loading", "the models are being read", retry_after=5)
        able = [one for one in self.models() if task in one.tasks]
        if name is None:
            return able[0]
        found = next((one for one in self.models() if name in (one.name, *one.aliases)), None)
        if found is None:
            raise refuse(404, "model_not_found", f"there is no model {name!r}", "model")
        if found not in able:
            raise refuse(400, "unsupported", f"{name} cannot {task}", "model")
        return found

    async def load(self, name: str) -> None:
        self.loaded.add(name)

    async def unload(self, name: str) -> None:
        self.loaded.discard(name)

    def counts(self) -> dict[str, int]:
        return dict(Counter(job.status for job in self.known.values()))

    async def _run(self, id: str) -> None:
        while self.held:
            await asyncio.sleep(0.002)
        if self.known[id].over:
            return
        job = self.known[id] = replace(self.known[id], status="running", started=time.time())
        folder = folder_of(self.settings.data, id)
        self.boards.publish(id, "started", {"status": "running", "position": 0})
        for index in range(max(job.ask.previews, 1)):
            about = {"stage": "denoise", "step": index + 1, "steps": 4, "progress": 0.25, "eta_seconds": 1.5}
            self.standings[id] = Standing(0, **about)
            self.boards.publish(id, "progress", about)
            if job.ask.previews or job.ask.live:
                name = f"preview-{index}.png"
                Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / name)
                self.standings[id] = Standing(0, **about, preview=name)
                self.boards.publish(id, "preview", {"file": name, "index": index if job.ask.previews else None})
        if self.fails is not None:
            self._end(id, "failed", fault=self.fails)
        else:
            done = done_of(job.ask, folder)
            (folder / DONE).write_text(json.dumps(done))
            self._end(id, "succeeded", result=done)

    def _end(self, id: str, status: Status, **more: Any) -> Job:
        job = self.known[id] = replace(self.known[id], status=status, finished=time.time(), **more)
        self.boards.publish(id, status, {"status": status})
        return job

    async def list(self, owner: str, status: Status | None = None, limit: int = 100) -> list[Job]:
        mine = [job for job in self.known.values() if job.owner == owner and status in (None, job.status)]
        return mine[::-1][:limit]


def done_of(ask: Ask, folder: Path) -> dict[str, Any]:
    """Results as a worker writes them: each of one colour, made of its seed."""
    size = ask.size or (SIDE, SIDE)
    images = []
    for index in range(ask.options["count"]):
        seed = ask.options["seed"] + index
        file = folder / f"result-{index}.{ask.output.format}"
        Image.new("RGB", size, (seed % 256, index, 0)).save(file, ask.output.format)
        about = {"file": file.name, "width": size[0], "height": size[1], "seed": seed, "flagged": None}
        images.append(about | {"format": ask.output.format, "bytes": file.stat().st_size})
    given = None if ask.image is None else {"sha256": "0" * 64, "width": 8, "height": 8}
    return {
        "images": images,
        "model": ask.model,
        "notes": ["a note of the worker"],
        "consistency": 0.5,
        "changed": None,
        "tokens": 5,
        "timings": {"load": 0.0, "inference": 0.1, "encode": 0.01},
        "recipe": {"task": ask.task, "options": dict(ask.options), "input": given},
    }


def opened(source: Path, param: str) -> Image.Image:
    """A picture, in memory. Raises Refused."""
    try:
        with Image.open(source) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        raise refuse(400, "image_parse_error", f"{param}: cannot be decoded", param) from error


class FakeDecoder:
    """Decodes in this process."""

    async def picture(
        self, source: Path, out: Path, *, most: int, param: str = "image", fit: Fit | None = None
    ) -> Decoded:
        image = opened(source, param)
        if image.width * image.height > most:
            raise refuse(400, "image_too_large", f"{param}: too many pixels", param)
        return self._write(image, source, out, fit)

    async def mask(
        self, source: Path, out: Path, *, size: tuple[int, int], mode: str = "auto", resize: bool = False,
        fit: Fit | None = None, param: str = "mask",
    ) -> Decoded:  # fmt: skip
        image = opened(source, param)
        if image.size != size and not resize:
            raise refuse(400, "mask_size_mismatch", f"{param}: has another size", param)
        return self._write(read_mask(image, mode, []).resize(size), source, out, fit)

    async def mask_of_picture(self, source: Path, out: Path, *, fit: Fit | None = None) -> Decoded:
        return self._write(opened(source, "image").getchannel("A").point(lambda value: 255 - value), source, out, fit)

    def _write(self, image: Image.Image, source: Path, out: Path, fit: Fit | None) -> Decoded:
        made = image if fit is None else fitted(image, fit)
        made.save(out, "PNG")
        clear = "A" in image.getbands() and cast("tuple[int, int]", image.getchannel("A").getextrema())[0] < 255
        digest = sha256(source.read_bytes()).hexdigest()
        return Decoded(made.width, made.height, image.format or "PNG", made.mode, (), digest, clear, image.size)


class FakeMetrics:
    """Measures nothing."""

    def render(self) -> bytes:
        return b"# TYPE enlarger_queue_size gauge\nenlarger_queue_size 0.0\n"


@dataclass(frozen=True)
class Fake:
    """An application and what is behind it."""

    app: FastAPI
    queue: FakeQueue
    settings: Settings

    @property
    def left(self) -> list[str]:
        """What lies in the folders of jobs and uploads."""
        places = (self.settings.data / "jobs", self.settings.data / "spool")
        return [entry.name for place in places if place.is_dir() for entry in place.iterdir()]


def fake_service(data: Path, **settings: Any) -> Fake:
    """The routes, as the application has them, over fakes."""
    given = Settings(data=data, models=MODELS, **settings)
    queue = FakeQueue(given)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        for task in queue.tasks:
            task.cancel()

    app = FastAPI(title="enlarger", version="0", docs_url=None, redoc_url=None, lifespan=lifespan)
    parts: Any = (given, queue, FakeDecoder(), Fetcher(given), FakeMetrics())
    app.state.service = Service(*parts)
    for router in routers():
        app.include_router(router)
    replies.install(app)
    return Fake(app, queue, given)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The application on a free port, in a thread; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
