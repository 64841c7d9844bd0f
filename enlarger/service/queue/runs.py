"""Giving jobs to workers, and hearing what becomes of them."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from enlarger.service.faults import Fault, Refused
from enlarger.service.jobs import DONE
from enlarger.service.queue.book import Book, Outcome, several
from enlarger.service.queue.catalogue import Catalogue
from enlarger.service.queue.line import Live
from enlarger.service.queue.state import Metrics
from enlarger.service.queue.sweep import read_done, remove_folder
from enlarger.service.queue.workers import Launch, Message, Worker
from enlarger.service.settings import Settings

log = logging.getLogger("enlarger.service.queue")
CANCELED = Fault(499, "canceled", "the job was canceled")
NO_WORKER = Fault(503, "no_worker", "no worker process can be started; the log of the service says why")
GPU_BATCH = 4  # jobs that run together by default, except on a CPU
PATIENCE = 1.0  # seconds until jobs are given out again that could not be marked as running


class Runs:
    """The workers of all devices, and what runs on them."""

    def __init__(self, settings: Settings, book: Book, catalogue: Catalogue) -> None:
        self.book, self.catalogue = book, catalogue
        self.workers: list[Worker] = []
        self.paused = False  # nothing new is begun
        self._settings = settings
        self._doomed: set[str] = set()  # forgotten while a worker still had their files

    def start(self, launch: Launch) -> None:
        self.workers = [Worker(device, launch, self) for device in self._settings.devices]
        for worker in self.workers:
            worker.start()

    async def stop(self) -> None:
        """End all workers."""
        self.paused = True
        await asyncio.gather(*(worker.stop() for worker in self.workers), return_exceptions=True)

    @property
    def hopeless(self) -> bool:
        """Whether no worker can be started."""
        return bool(self.workers) and all(worker.state == "defunct" for worker in self.workers)

    def dispatch(self) -> None:
        """Give idle workers what waits."""
        for worker in self.workers:
            if worker.state == "idle" and not self.paused:
                lives = self.book.line.take(self._batch(worker))
                if lives:
                    self.book.spawn(self._give(worker, worker.engage(), lives))
        self.book.workers = max(sum(worker.up for worker in self.workers), 1)
        self.book.changed()

    def cancel(self, id: str) -> None:
        """Stop what runs of a job; for everybody else it has ended already."""
        for worker in self.workers:
            worker.cancel(id)

    def doom(self, id: str) -> None:
        """Delete a forgotten job's files again once its worker has let go of them."""
        if any(id in worker.held for worker in self.workers):
            self._doomed.add(id)

    def _batch(self, worker: Worker) -> int:
        if self._settings.batch is not None:
            return self._settings.batch
        return 1 if worker.device == "cpu" else GPU_BATCH

    async def _give(self, worker: Worker, life: int, lives: list[Live]) -> None:
        try:
            begun = await self.book.begin(lives)
        except Refused as error:
            log.error("jobs cannot be begun: %s", error)
            self.book.line.put_first(several(lives))
            worker.run(life, [])
            asyncio.get_running_loop().call_later(PATIENCE, self.dispatch)
            return
        if not worker.run(life, [(live.job.id, live.job.ask) for live in begun]):
            await self._retry(begun, False)
        if not begun:
            self.dispatch()

    async def _retry(self, lives: Sequence[Live], blamed: bool) -> None:
        """Jobs whose worker is gone; the first of them comes to the front last, and so is the first again."""
        for live in reversed(lives):
            if not live.settled:
                await self.book.retry(live, blamed)
        self.dispatch()

    def said(self, worker: Worker, message: Message) -> None:
        """A message of a worker's process."""
        kind, id = message["event"], message.get("id")
        if kind == "ready":
            self.catalogue.describe(message["models"])
        elif kind == "idle":
            self.dispatch()
        elif kind == "loading":
            self._loading(worker)
        elif kind == "models":
            self._loaded(worker)
            self._models(worker, message["loaded"])
            for model, text in message.get("error", {}).items():
                log.error("the worker of %s cannot load %s: %s", worker.asked, model, text)
        elif kind == "measured":
            measure(self.book.metrics, message)
        elif id not in worker.held:
            log.warning("the worker of %s said %r of a job that it does not have", worker.asked, kind)
        elif kind in ("done", "failed", "canceled"):
            self._over(worker, id, message)
        else:
            self._moved(self.book.line.lives.get(id), message)

    def lost(self, worker: Worker, ids: Sequence[str], blamed: bool) -> None:
        """Jobs that a worker holds no more, without a word of their end."""
        for id in ids:
            self._clean(id)
        if not self.paused:
            self.book.spawn(self._retry(several(map(self.book.line.lives.get, ids)), blamed))

    def ended(self, worker: Worker) -> None:
        """A worker's process has ended."""
        self._models(worker, {})
        if worker.state != "defunct" and not self.paused:
            self.book.metrics.worker_restart()
        self.give_up()
        self.dispatch()

    def give_up(self) -> None:
        """Where no worker can be started, tell those who wait on a connection; the others' jobs stay for later."""
        for live in several(list(self.book.line.waiting.values())):
            if self.hopeless and live.job.attached:
                self.book.settle(live, Outcome("failed", fault=NO_WORKER))

    def _over(self, worker: Worker, id: str, message: Message) -> None:
        """A worker has let go of a job."""
        worker.release(id)
        self._clean(id)
        live = self.book.line.lives.get(id)
        if live is None or live.settled:
            return
        if message["event"] == "done":
            self.book.spawn(self._complete(live, time.monotonic()))
        elif message["event"] == "failed":
            self.book.settle(live, Outcome("failed", fault=_fault_in(message)))
        else:
            self.book.settle(live, Outcome("canceled", fault=CANCELED))

    async def _complete(self, live: Live, now: float) -> None:
        """A worker says that a job is done: its file says what came of it."""
        done = await asyncio.to_thread(read_done, self.book.data, live.job.id)
        if live.settled:
            return
        if done is None:
            fault = Fault(500, "internal", f"the worker left no readable {DONE}; the log of the service says why")
            self.book.settle(live, Outcome("failed", fault=fault))
            return
        if live.pace is not None:
            live.pace.end(now)
        ask, images = live.job.ask, done["images"]
        pixels = sum(int(image["width"]) * int(image["height"]) for image in images)
        self.book.metrics.images(ask.task, ask.model, len(images), pixels)
        self.book.settle(live, Outcome("succeeded", done))

    def _moved(self, live: Live | None, message: Message) -> None:
        """A worker tells how far a job has come."""
        if live is None or live.settled or live.pace is None:
            return
        kind, now = message["event"], time.monotonic()
        if kind == "started":
            live.pace.start(now)
        elif kind == "progress":
            live.pace.see(str(message["stage"]), int(message["done"]), int(message["total"]), now)
            self.book.tell(live, "progress")
        elif kind == "preview":
            live.preview = PurePath(message["file"]).name
            self.book.tell(live, "preview", {"file": live.preview, "index": message.get("index")})
        else:
            log.warning("a worker said %r, which is not known", kind)

    def _loading(self, worker: Worker) -> None:
        for live in several(map(self.book.line.lives.get, worker.held)):
            if live.pace is not None and not live.pace.moved:
                live.pace.stage = "loading"
                self.book.tell(live, "progress")

    def _loaded(self, worker: Worker) -> None:
        for live in several(map(self.book.line.lives.get, worker.held)):
            if live.pace is not None and live.pace.stage == "loading":
                live.pace.start(time.monotonic())

    def _models(self, worker: Worker, loaded: Mapping[str, int]) -> None:
        self.catalogue.load(worker, loaded)
        for state in self.catalogue.states():
            self.book.metrics.model_loaded(state.name, state.loaded is not None)

    def _clean(self, id: str) -> None:
        if id in self._doomed:
            self._doomed.remove(id)
            self.book.spawn(asyncio.to_thread(remove_folder, self.book.data, id))


def measure(metrics: Metrics, found: Message) -> None:
    """Pass on what a worker has measured."""
    what = found["what"]
    if what == "model_load":
        metrics.model_load(float(found["seconds"]))
    elif what == "stage":
        metrics.ran(found["task"], found["model"], found["stage"], float(found["seconds"]))
    elif what == "step":
        metrics.step(found["model"], float(found["seconds"]))
    elif what == "oom":
        metrics.oom(found["fallback"])
    elif what == "nonfinite":
        metrics.nonfinite(found["stage"])
    elif what == "batch":
        metrics.batch(int(found["size"]))
    elif what == "memory":
        metrics.memory(found["kind"], int(found["bytes"]))
    else:
        log.warning("a worker measured %r, which is not known", what)


def _fault_in(message: Message) -> Fault:
    try:
        return Fault.from_json(message["fault"])
    except (KeyError, TypeError):
        return Fault(500, "internal", "the worker failed without saying why; the log of the service may")
