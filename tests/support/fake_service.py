"""A service without processes: the queue and the decoder in memory, for tests of the routes."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from PIL import Image

from enlarger.checkpoint.families import KINDS
from enlarger.service.dependencies import Service
from enlarger.service.jobs.admission import Reservation, Reservations
from enlarger.service.jobs.events import EventFeed, EventLogs
from enlarger.service.jobs.job import RESULT_FILE, Idempotency, Job, JobProgress, JobSpec, JobStatus, Task, job_folder
from enlarger.service.jobs.model_registry import ModelState
from enlarger.service.jobs.store import JobPage
from enlarger.service.metrics import Metrics
from enlarger.service.problems import Problem, ProblemError, problem_error
from enlarger.service.routes import install_routes
from enlarger.service.settings import ModelSettings, Settings
from enlarger.service.uploads.body_parser import parse_body
from enlarger.service.uploads.body_spool import BodySpool
from enlarger.service.uploads.fetch import UrlFetcher
from enlarger.service.uploads.masks import Fit, apply_fit, read_mask
from enlarger.service.uploads.messages import DecodedImage, ParsedBody, ParseRequest

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
UNUSED_OPTIONS = {kind.service_kind: kind.unused_options for kind in KINDS.values()}
SIDE = 64  # of what the models generate where nothing was asked for


@dataclass
class FakeJobManager:
    """Runs each job at once, or, while `held`, when it is let go."""

    settings: Settings
    known: dict[str, Job] = field(default_factory=dict[str, Job])
    held: bool = False
    problem: Problem | None = None
    state: str = "READY"
    is_open: bool = True
    seconds_to_wait: float = 0.0
    canceled: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    event_logs: EventLogs = field(default_factory=EventLogs)
    progress_by_job: dict[str, JobProgress] = field(default_factory=dict[str, JobProgress])
    loaded: set[str] = field(default_factory=set[str])
    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    @property
    def is_ready(self) -> bool:
        return self.state in ("READY", "BUSY") and self.is_open

    def expected_wait(self, owner: str = "") -> float:
        return self.seconds_to_wait

    def set_open(self, is_open: bool) -> None:
        self.is_open = is_open

    async def cancel_any(self, id: str | None) -> bool:
        for each in [id] if id is not None else list(self.known):
            await self.cancel(each, "operator")
        return id is None or id in self.known

    def check_capacity(self, owner: str, max_wait: float | None = None) -> None:
        if sum(not job.is_finished for job in self.known.values()) >= self.settings.queue:
            raise problem_error(429, "queue_full", "the queue is full", retry_after=2)

    def reserve(self, owner: str, max_wait: float | None = None) -> Reservation:
        self.check_capacity(owner, max_wait)
        return Reservations().reserve(owner)

    async def submit(
        self, spec: JobSpec, *, id: str, owner: str = "", attached: bool = False,
        idempotency: Idempotency | None = None, reservation: Reservation | None = None,
    ) -> Job:  # fmt: skip
        folder = job_folder(self.settings.data, id)
        assert folder.is_dir()
        earlier = None if idempotency is None else await self.find_repeated(owner, idempotency)
        if earlier is not None:
            rmtree(folder)
            return earlier
        try:
            self.check_capacity(owner)
        except ProblemError:
            rmtree(folder)
            raise
        key, fingerprint = (None, None) if idempotency is None else (idempotency.key, idempotency.fingerprint)
        job = Job(id, spec, "queued", time.time(), owner, attached, key, fingerprint)
        self.known[id] = job
        self.event_logs.publish(id, "queued", {"status": "queued", "position": 1})
        task = asyncio.get_running_loop().create_task(self._run(id))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return job

    async def find_repeated(self, owner: str, idempotency: Idempotency) -> Job | None:
        jobs = (job for job in self.known.values() if (job.owner, job.idempotency_key) == (owner, idempotency.key))
        job = next(jobs, None)
        if job is not None and job.fingerprint != idempotency.fingerprint:
            raise problem_error(400, "idempotency_key_reused", "use a new key for each", "Idempotency-Key")
        return job

    async def cancel_request(self, owner: str, idempotency_key: str) -> Job | None:
        jobs = (job for job in self.known.values() if (job.owner, job.idempotency_key) == (owner, idempotency_key))
        job = next(jobs, None)
        return None if job is None else await self.cancel(job.id)

    async def get(self, id: str) -> Job | None:
        return self.known.get(id)

    async def wait(self, id: str) -> Job:
        while not (job := self.known[id]).is_finished:
            await asyncio.sleep(0.002)
        return job

    async def events(self, id: str, after: int = 0) -> AsyncIterator[Any]:
        event_log = self.event_logs.find(id)
        if event_log is not None:
            async for event in event_log.subscribe(after):
                yield event

    def feed(self) -> AbstractContextManager[EventFeed]:
        return self.event_logs.feed()

    async def cancel(self, id: str, cause: str = "client") -> Job | None:
        job = self.known.get(id)
        if job is None or job.is_finished:
            return job
        self.canceled.append((id, cause))
        return self._end(id, "canceled", problem=Problem(499, "canceled", "the job was canceled"))

    async def delete(self, id: str) -> None:
        self.known.pop(id, None)
        rmtree(job_folder(self.settings.data, id))

    def progress(self, job: Job) -> JobProgress:
        if job.is_finished:
            return replace(self.progress_by_job.get(job.id, JobProgress(None)), position=None)
        return self.progress_by_job.get(job.id, JobProgress(1))

    def models(self) -> list[ModelState]:
        return [
            ModelState(
                one.name,
                *TASKS[one.name],
                one.aliases,
                1000 if one.name in self.loaded else None,
                unused_options=UNUSED_OPTIONS[TASKS[one.name][0]],
            )
            for one in self.settings.known_models
        ]

    def model_for(self, task: Task, name: str | None) -> ModelState:
        if not self.is_ready:
            raise problem_error(503, "model_loading", "the models are being read", retry_after=5)
        able = [one for one in self.models() if task in one.tasks]
        if name is None:
            return able[0]
        found = next((one for one in self.models() if name in (one.name, *one.aliases)), None)
        if found is None:
            raise problem_error(404, "model_not_found", f"there is no model {name!r}", "model")
        if found not in able:
            raise problem_error(400, "unsupported", f"{name} cannot {task}", "model")
        return found

    async def load_model(self, name: str) -> None:
        self.loaded.add(name)

    async def unload_model(self, name: str) -> None:
        self.loaded.discard(name)

    def counts(self) -> dict[str, int]:
        return dict(Counter(job.status for job in self.known.values()))

    async def _run(self, id: str) -> None:
        while self.held:
            await asyncio.sleep(0.002)
        if self.known[id].is_finished:
            return
        job = self.known[id] = replace(self.known[id], status="running", started=time.time())
        folder = job_folder(self.settings.data, id)
        self.event_logs.publish(id, "started", {"status": "running", "position": 0})
        for index in range(max(job.spec.previews, 1)):
            about = {"stage": "denoise", "step": index + 1, "steps": 4, "progress": 0.25, "eta_seconds": 1.5}
            self.progress_by_job[id] = JobProgress(0, **about)
            self.event_logs.publish(id, "progress", about)
            if job.spec.previews or job.spec.live:
                name = f"preview-{index}.png"
                Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / name)
                self.progress_by_job[id] = JobProgress(0, **about, preview=name)
                self.event_logs.publish(id, "preview", {"file": name, "index": index if job.spec.previews else None})
        if self.problem is not None:
            self._end(id, "failed", problem=self.problem)
        else:
            done = write_result(job.spec, folder)
            (folder / RESULT_FILE).write_text(json.dumps(done))
            self._end(id, "succeeded", result=done)

    def _end(self, id: str, status: JobStatus, **more: Any) -> Job:
        job = self.known[id] = replace(self.known[id], status=status, finished=time.time(), **more)
        self.event_logs.publish(id, status, {"status": status})
        return job

    async def list(
        self, owner: str, status: JobStatus | None = None, limit: int = 100, after: str | None = None
    ) -> JobPage:
        mine = [job for job in self.known.values() if job.owner == owner and status in (None, job.status)][::-1]
        ids = [job.id for job in mine]
        older = mine if after is None else mine[ids.index(after) + 1 if after in ids else len(mine) :]
        return JobPage(tuple(older[:limit]), len(older) > limit)


def write_result(spec: JobSpec, folder: Path) -> dict[str, Any]:
    """Results as a worker writes them: each of one colour, made of its seed."""
    size = spec.size or (SIDE, SIDE)
    images = []
    for index in range(spec.options["count"]):
        seed = spec.options["seed"] + index
        file = folder / f"result-{index}.{spec.output.format}"
        Image.new("RGB", size, (seed % 256, index, 0)).save(file, spec.output.format)
        about = {"file": file.name, "width": size[0], "height": size[1], "seed": seed, "flagged": None}
        images.append(about | {"format": spec.output.format, "bytes": file.stat().st_size})
    input_info = None if spec.image is None else {"sha256": "0" * 64, "width": 8, "height": 8}
    return {
        "images": images,
        "model": spec.model,
        "notes": ["a note of the worker"],
        "consistency": 0.5,
        "changed": None,
        "tokens": 5,
        "timings": {"load": 0.0, "inference": 0.1, "encode": 0.01},
        "recipe": {"task": spec.task, "options": dict(spec.options), "input": input_info},
    }


def open_image(source: Path, param: str) -> Image.Image:
    """A picture, in memory. Raises ProblemError."""
    try:
        with Image.open(source) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        raise problem_error(400, "image_parse_error", f"{param}: cannot be decoded", param) from error


class FakeDecoder:
    """Decodes in this process."""

    confinement = ("landlock", "seccomp")

    async def parse_body(self, request: ParseRequest, owner: str) -> ParsedBody:
        return parse_body(request)

    async def decode_image(
        self, source: Path, out: Path, *, max_pixels: int, param: str = "image", fit: Fit | None = None, owner: str = ""
    ) -> DecodedImage:
        image = open_image(source, param)
        if image.width * image.height > max_pixels:
            raise problem_error(400, "image_too_large", f"{param}: too many pixels", param)
        return self._write(image, source, out, fit)

    async def decode_mask(
        self, source: Path, out: Path, *, size: tuple[int, int], mode: str = "auto", resize: bool = False,
        fit: Fit | None = None, param: str = "mask", owner: str = "",
    ) -> DecodedImage:  # fmt: skip
        image = open_image(source, param)
        if image.size != size and not resize:
            raise problem_error(400, "mask_size_mismatch", f"{param}: has another size", param)
        return self._write(read_mask(image, mode, []).resize(size), source, out, fit)

    async def decode_alpha_mask(
        self, source: Path, out: Path, *, fit: Fit | None = None, owner: str = ""
    ) -> DecodedImage:
        return self._write(
            open_image(source, "image").getchannel("A").point(lambda value: 255 - value), source, out, fit
        )

    def _write(self, image: Image.Image, source: Path, out: Path, fit: Fit | None) -> DecodedImage:
        fitted_image = image if fit is None else apply_fit(image, fit)
        fitted_image.save(out, "PNG")
        clear = "A" in image.getbands() and cast("tuple[int, int]", image.getchannel("A").getextrema())[0] < 255
        digest = sha256(source.read_bytes()).hexdigest()
        return DecodedImage(
            fitted_image.width,
            fitted_image.height,
            image.format or "PNG",
            fitted_image.mode,
            (),
            digest,
            clear,
            image.size,
        )


@dataclass(frozen=True)
class FakeService:
    """An application and what is behind it."""

    app: FastAPI
    queue: FakeJobManager
    settings: Settings

    @property
    def leftover_files(self) -> list[str]:
        """What lies in the folders of jobs and uploads."""
        places = (self.settings.data / "jobs", self.settings.data / "spool")
        return [entry.name for place in places if place.is_dir() for entry in place.iterdir()]


def fake_service(data: Path, **settings: Any) -> FakeService:
    """The routes, as the application has them, over fakes."""
    service_settings = Settings(data=data, models=MODELS, **settings)
    queue = FakeJobManager(service_settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        for task in queue.tasks:
            task.cancel()

    app = FastAPI(title="enlarger", version="0", docs_url=None, redoc_url=None, lifespan=lifespan)
    uploads = (BodySpool(service_settings), FakeDecoder(), UrlFetcher(service_settings))
    parts: Any = (service_settings, queue, *uploads, Metrics())
    app.state.service = Service(*parts)
    install_routes(app)
    return FakeService(app, queue, service_settings)


@contextmanager
def serve_in_thread(app: FastAPI) -> Iterator[str]:
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
