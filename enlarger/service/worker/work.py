"""Jobs computed: alone or in a batch, again with less at a time where memory does not suffice, and never in vain."""

import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from enlarger import __version__
from enlarger.errors import Cancelled, CheckpointError, NonFinite
from enlarger.requests import GenerateRequest, UpscaleRequest
from enlarger.service.faults import Fault, Refused, fault_of
from enlarger.service.jobs import DONE
from enlarger.service.worker.previews import Previews, Size, Wish, painter_of
from enlarger.service.worker.recipes import recipe_for, recipe_of
from enlarger.service.worker.results import clear, finish, save, sized
from enlarger.service.worker.shelf import Loaded, Shelf, Tell, release
from enlarger.service.worker.wanted import Wanted, refiner_of, wanted_of
from enlarger.service.worker.watching import Running, Watcher
from enlarger.tasks.enlarge import Upscaler
from enlarger.tasks.generate import Generator as TextToImage
from enlarger.tasks.together import batches, together

NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")  # torch's words where it is a RuntimeError

MESSAGE = 1000  # characters of an error that are passed on


@dataclass(frozen=True, eq=False)
class Tools:
    """What the jobs of one run work with: the model, and the task that it does."""

    loaded: Loaded
    task: Any  # a request and a watcher in, a `Result` or `Repair` out
    seconds: float  # that loading took

    def compute(self, requests: Sequence[Any], watch: Watcher) -> list[Any]:
        """The result of each request; several are one batch."""
        if isinstance(self.task, Upscaler | TextToImage):
            return together(self.task, requests, watch)
        return [self.task(request, watch) for request in requests]

    def batches(self, requests: Sequence[Any]) -> list[tuple[int, ...]]:
        """Which requests can be computed in one batch."""
        if isinstance(self.task, Upscaler | TextToImage):
            return batches(self.task, requests)
        return [(i,) for i in range(len(requests))]


@dataclass(frozen=True, eq=False)
class Piece:
    """A job ready to be computed, and what came of it so far."""

    job: Running
    wanted: Wanted
    previews: Previews
    made: list[Any] = field(default_factory=list[Any])  # a result for each request


@dataclass(frozen=True, eq=False)
class Bench:
    """Where jobs are worked on, one run after another."""

    shelf: Shelf
    tell: Tell

    def run(self, jobs: Sequence[Running]) -> None:
        """Do all jobs of a run; each ends in some way, whatever happens."""
        waiting = [job for job in jobs if self._begun(job)]
        alike: dict[tuple[str, str, str], list[Running]] = {}
        for job in waiting:
            key = (job.ask.task, job.ask.model, str(job.ask.options.get("refiner")))
            alike.setdefault(key, []).append(job)
        for several in alike.values():
            with self._guarding(several):
                self._run_alike(several)
        for kind, size in memory_of(self.shelf.device).items():
            self.tell("measured", what="memory", kind=kind, bytes=size)

    def _begun(self, job: Running) -> bool:
        """Tell that a job has started; one that was completed before its worker died is done at once."""
        job.tell("started")
        if (job.folder / DONE).exists():
            job.end("done")
        return job.wanted()

    def _run_alike(self, jobs: Sequence[Running]) -> None:
        tools, pieces = self._tools(jobs[0]), list[Piece]()
        for job in jobs:
            with self._guarding([job]):
                if job.wanted():
                    wanted = wanted_of(job.ask, tools.loaded, job.folder)
                    pieces.append(Piece(job, wanted, _previews(tools.loaded, job, wanted)))
        single = [piece for piece in pieces if piece.wanted.shareable]
        groups = tools.batches([piece.wanted.requests[0] for piece in single]) if single else []
        for group in groups:
            self._run_together(tools, [single[i] for i in group])
        for piece in pieces:
            if piece not in single:
                self._run_together(tools, [piece])

    def _tools(self, job: Running) -> Tools:
        """The job's model, and what helps it, loaded."""
        start = time.monotonic()
        about = self.shelf.known.get(job.ask.model)
        refiner = None if about is None else refiner_of(job.ask, about.settings)
        enlarger = self.shelf.bundled if job.ask.options.get("upscale", 1) != 1 else None
        names = [job.ask.model, *(name for name in (refiner, enlarger) if name is not None)]
        try:
            models = self.shelf.take(*names)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            models = None
        if models is None:
            self._make_room(names, "load")
            models = self.shelf.take(*names)
        helpers = dict(zip(names, models, strict=True))
        task = models[0].task_for(job.ask.task)
        if isinstance(task, TextToImage):
            refiners = () if refiner is None else (helpers[refiner].refiner,)
            upscaler = None if enlarger is None else helpers[enlarger].task
            assert upscaler is None or isinstance(upscaler, Upscaler)
            task = replace(task, refiners=refiners, upscaler=upscaler)
        return Tools(models[0], task, time.monotonic() - start)

    def _run_together(self, tools: Tools, pieces: Sequence[Piece], again: bool = False) -> None:
        """Compute and deliver one batch. What fails in a batch is tried one by one; what memory does not suffice for,
        once more with all other models put away. `again`: that has been done."""
        jobs = [piece.job for piece in pieces]
        with self._guarding(jobs):
            error = self._attempt(tools, pieces)
            if error is None:
                return
            short = is_out_of_memory(error)
            alone = len(pieces) == 1
            if short:
                self._make_room([tools.loaded.name], "none" if again else "retry" if alone else "single")
            if alone and (again or not short):
                raise error
            del error
            for piece in pieces:
                piece.made.clear()
                self._run_together(tools, [piece], again=alone or short)

    def _attempt(self, tools: Tools, pieces: Sequence[Piece]) -> Exception | None:
        """Compute and deliver; gives back what went wrong, without the frames that hold on to memory."""
        try:
            start = time.monotonic()
            for piece in pieces:
                piece.previews.begin(piece.wanted.image)
            said = self._compute(tools, pieces)
            seconds = time.monotonic() - start
            for piece in pieces:
                with self._guarding([piece.job]):
                    if piece.job.wanted():
                        self._deliver(tools, piece, seconds, said)
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001 - looked at by the caller
            return error if len(pieces) == 1 and not is_out_of_memory(error) else error.with_traceback(None)
        return None

    def _compute(self, tools: Tools, pieces: Sequence[Piece]) -> tuple[str, ...]:
        """All pictures of one job, or the one picture of each of several; gives what was warned of."""
        self.tell("measured", what="batch", size=len(pieces))
        turns = len(pieces[0].wanted.requests)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for turn in range(turns):
                self._compute_turn(tools, pieces, turn, turns)
        return tuple(dict.fromkeys(str(one.message) for one in caught if one.category is UserWarning))

    def _compute_turn(self, tools: Tools, pieces: Sequence[Piece], turn: int, turns: int) -> None:
        previews = [piece.previews for piece in pieces]
        watcher = Watcher(self.tell, [piece.job for piece in pieces], previews, turn, turns)
        try:
            results = tools.compute([piece.wanted.requests[turn] for piece in pieces], watcher)
        except NonFinite:
            self.tell("measured", what="nonfinite", stage=watcher.stage or "start")
            raise
        for piece, result in zip(pieces, results, strict=True):
            piece.made.append(result)
        self._measure_stages(pieces[0].job, dict(watcher.close()))

    def _measure_stages(self, job: Running, stages: dict[str, float]) -> None:
        for stage, seconds in stages.items():
            self.tell("measured", what="stage", task=job.ask.task, model=job.ask.model, stage=stage, seconds=seconds)

    def _deliver(self, tools: Tools, piece: Piece, seconds: float, said: Sequence[str]) -> None:
        """Write the job's files and, last, what is said of them."""
        start, job, wanted = time.monotonic(), piece.job, piece.wanted
        images: list[Image.Image] = [image for result in piece.made for image in result.images]
        flags = [flag for result in piece.made for flag in (result.flagged or (None,) * len(result.images))]
        recipe = recipe_of(__version__, job.ask.task, job.ask.model, wanted.options, wanted.seeds, wanted.input)
        notes = [*job.ask.notes, *wanted.notes, *said, *(note for result in piece.made for note in result.notes)]
        files: list[dict[str, Any]] = []
        for k, image in enumerate(images):
            exact, scaled = sized(image, job.ask.size)
            about, lost = save(exact, k, job.folder, job.ask.output, recipe_for(recipe, k))
            files.append(about | {"flagged": flags[k]})
            notes += [*scaled, *lost]
        if not job.wanted():
            clear(job.folder)
            return
        worst = [one for one in (getattr(result, "consistency", None) for result in piece.made) if one is not None]
        encode = time.monotonic() - start
        finish(
            job.folder,
            {
                "images": files, "model": job.ask.model, "notes": list(dict.fromkeys(notes)),
                "consistency": max(worst, default=None), "changed": _changed(piece.made), "tokens": wanted.tokens,
                "timings": {"load": tools.seconds, "inference": seconds, "encode": encode}, "recipe": recipe,
            },
        )  # fmt: skip
        self._measure_stages(job, {"encode": encode})
        job.end("done")

    def _make_room(self, kept: Sequence[str], fallback: str) -> None:
        """Put away all models but some, after memory ran out."""
        self.tell("measured", what="oom", fallback=fallback)
        self.shelf.unload_others(*kept)
        release(self.shelf.device)

    @contextmanager
    def _guarding(self, jobs: Sequence[Running]) -> Generator[None]:
        """Whatever is raised ends the jobs, and nothing else."""
        try:
            yield
        except Cancelled:
            for job in jobs:
                job.end("canceled")
        except Exception as error:  # noqa: BLE001 - one job must not cost the others
            fault = fault_for(error)
            if fault.status >= 500:
                log("job failed", error)
            for job in (job for job in jobs if not job.over):
                clear(job.folder)
                said = fault.message.replace(f"{job.folder}/", "")
                said = said if len(said) <= MESSAGE else f"{said[:MESSAGE]} ..."
                job.end("failed", fault=replace(fault, message=said).to_json())


def fault_for(error: BaseException) -> Fault:
    """The fault of what a task raised; memory that ran out is known by torch's words too."""
    return fault_of(MemoryError() if is_out_of_memory(error) else error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had too little memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)


def log(event: str, error: BaseException) -> None:
    """One line of JSON on standard error: where it happened. What was said only where no prompt can be in it."""
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    safe = isinstance(error, CheckpointError | Refused | OSError) or is_out_of_memory(error)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    about = {"time": now, "level": "error", "event": event, "error": type(error).__name__, "frames": frames}
    sys.stderr.write(json.dumps(about | ({"message": str(error)} if safe else {})) + "\n")
    sys.stderr.flush()


def _previews(loaded: Loaded, job: Running, wanted: Wanted) -> Previews:
    """What is shown of a job while it is computed."""
    full, drawn = _sizes(wanted)
    doubling = isinstance(wanted.requests[0], UpscaleRequest)
    wish = Wish(job.ask.previews, job.ask.live, full if job.ask.size is None else job.ask.size, drawn, doubling)

    def show(file: str, index: int | None) -> None:
        job.tell("preview", file=file, index=index)

    return Previews(job.folder, wish, painter_of(loaded), show, lambda error: log("preview failed", error))


def _sizes(wanted: Wanted) -> tuple[Size | None, Size | None]:
    """The size of the result, and that of what the network draws or begins with; None where latents tell."""
    request, image, scale = wanted.requests[0], wanted.image, 1.0
    if isinstance(request, GenerateRequest):
        drawn, scale = (int(wanted.options["width"]), int(wanted.options["height"])), request.upscale
    elif image is None or getattr(request, "crop", None) is not None or getattr(request, "expand", "") != "":
        return None, None
    else:
        drawn, scale = image.size, request.by if isinstance(request, UpscaleRequest) else 1.0
    return (round(drawn[0] * scale), round(drawn[1] * scale)), drawn


def memory_of(device: torch.device) -> dict[str, int]:
    """Bytes in use, by kind: of the process, and of the device where it counts them."""
    pages = Path("/proc/self/statm")
    found = {"process": int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")} if pages.exists() else {}
    if device.type == "cuda":
        found |= {"allocated": torch.cuda.memory_allocated(device), "reserved": torch.cuda.memory_reserved(device)}
    return found


def _changed(results: Sequence[Any]) -> list[dict[str, Any]] | None:
    """What inpainting changed, by picture; None for other tasks."""
    found = [one for result in results for one in getattr(result, "changed", ())]
    return [{"pixels": one.pixels, "box": one.box} for one in found] or None
