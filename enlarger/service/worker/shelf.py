"""The models of a worker: loaded when first needed, and the one unused for longest put away when memory runs short."""

import ctypes
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn

from enlarger.errors import Unsupported
from enlarger.runtime.runtime import Runtime
from enlarger.service.faults import refuse
from enlarger.service.settings import GIB, MIB, ModelSettings
from enlarger.service.worker.describe import TASKS, Described, described
from enlarger.tasks.depth import DepthToImage
from enlarger.tasks.enlarge import Upscaler, load_upscaler
from enlarger.tasks.generate import Generator
from enlarger.tasks.load import Task as AnyTask
from enlarger.tasks.load import load
from enlarger.tasks.model import Model
from enlarger.tasks.preview import Previewer, read_preview
from enlarger.tasks.reading import Checkpoint
from enlarger.tasks.refine import Refiner
from enlarger.tasks.repair import Repairer

C = ctypes.CDLL(None)  # this process, with the C library in it


class Tell(Protocol):
    """Says to the server what happened: the name of an event, and what belongs to it."""

    def __call__(self, event: str, **fields: Any) -> None: ...


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory, and the tiny decoder for its previews where there is one."""

    described: Described
    task: AnyTask
    previewer: Previewer | None
    bytes: int

    @property
    def name(self) -> str:
        return self.described.settings.name

    @property
    def model(self) -> Model:
        """The Stable Diffusion checkpoint; upscalers have none to share."""
        assert not isinstance(self.task, Upscaler)
        return self.task.model

    @property
    def refiner(self) -> Model:
        """The checkpoint, to finish what another one begins. Raises Unsupported for what is made for something else."""
        if isinstance(self.task, Upscaler):
            raise Unsupported(f"{self.name} is an upscaler, expected a refiner or a text-to-image model")
        return self.model.for_task("generate", "refine")

    def task_for(self, verb: str) -> AnyTask:
        """The model as the task of a verb, without copying anything. Raises Unsupported for what it cannot do."""
        known = TASKS[self.described.kind]
        if verb not in known:
            raise Unsupported(f"{self.name} cannot {verb}; it can {', '.join(known)}")
        if isinstance(self.task, Upscaler | DepthToImage):
            return self.task
        return {"generate": Generator, "refine": Refiner, "inpaint": Repairer}[verb](self.model)


class Shelf:
    """All models that can be asked for, and those that are loaded, the longest unused first."""

    def __init__(
        self, settings: Sequence[ModelSettings], device: torch.device, memory: float | None, tell: Tell
    ) -> None:
        self.device, self.tell = device, tell
        self.budget = None if memory is None else round(memory * GIB)
        self.known: dict[str, Described] = {one.name: described(one, device) for one in settings}
        self._loaded: dict[str, Loaded] = {}

    @property
    def loaded(self) -> Mapping[str, int]:
        """The bytes of each loaded model."""
        return {name: one.bytes for name, one in self._loaded.items()}

    @property
    def bundled(self) -> str | None:
        """What the model is called here that ships with the package."""
        return next((name for name, one in self.known.items() if one.settings.path == "bundled"), None)

    def take(self, *names: str) -> tuple[Loaded, ...]:
        """Models that work together, loaded where they are not.

        Raises what loading raises, and Refused for those that are larger than the memory.
        """
        for name in names:
            if name not in self._loaded:
                self._load(name, names)
            self._loaded[name] = self._loaded.pop(name)  # the last used is the last to go
        return tuple(self._loaded[name] for name in names)

    def unload(self, *names: str) -> None:
        """Put models away; those that are not loaded are left."""
        gone = [name for name in names if self._loaded.pop(name, None) is not None]
        if gone:
            release(self.device)
            self._say()

    def unload_others(self, *kept: str) -> None:
        """Put away all but some, and those to be kept always."""
        self.unload(*(name for name, one in self._loaded.items() if name not in kept and not _keep(one)))

    def _load(self, name: str, beside: Sequence[str]) -> None:
        if name not in self.known:
            raise refuse(404, "model_not_found", f"no model is called {name!r}; there are {', '.join(self.known)}")
        about = self.known[name]
        self.tell("loading", model=name)
        start = time.monotonic()
        self._make_room(name, about.bytes or 0, beside)
        task = _read(about.settings, self.device)
        runtime = Runtime(self.device)
        preview = about.settings.preview
        previewer = None if preview is None else read_preview(preview, torch.float32, runtime)
        size = size_of((task, previewer))
        self._make_room(name, size, beside)
        if not about.kind:  # its files have been mended since
            about = described(about.settings, self.device)
            self.known[name] = about
        self._loaded[name] = Loaded(about, task, previewer, size)
        self.tell("measured", what="model_load", model=name, seconds=time.monotonic() - start)
        self._say()

    def _make_room(self, name: str, size: int, beside: Sequence[str]) -> None:
        """Put away what has not been used for longest until `size` bytes more fit; never those that are at work."""
        if self.budget is None:
            return
        staying = {one.name: one.bytes for one in self._loaded.values() if one.name in beside or _keep(one)}
        if size + sum(staying.values()) > self.budget:
            others = f" beside {_mib(sum(staying.values()))} of {', '.join(staying)}" if staying else ""
            raise refuse(
                500, "out_of_memory",
                f"the weights of {name} take {_mib(size)}{others}, and at most {_mib(self.budget)} are kept; raise "
                "`memory` in the settings, or choose a lower precision",
            )  # fmt: skip
        movable = [other for other in self._loaded if other not in staying]
        while sum(self.loaded.values()) + size > self.budget:
            self.unload(movable.pop(0))

    def _say(self) -> None:
        self.tell("models", loaded=dict(self.loaded))
        self.tell("measured", what="memory", kind="models", bytes=sum(self.loaded.values()))


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"


def _keep(one: Loaded) -> bool:
    return one.described.settings.keep


def _read(settings: ModelSettings, device: torch.device) -> AnyTask:
    if settings.path == "bundled":
        return load_upscaler(None, str(device), offload=settings.offload)
    checkpoint = Checkpoint(
        settings.path, variant=settings.variant, prediction=settings.prediction, loras=settings.loras
    )
    return load(checkpoint, str(device), settings.precision, settings.offload)


def modules_in(value: Any) -> Iterator[nn.Module]:
    """The networks that a task, or anything made of dataclasses and tuples, holds."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, tuple):
        for item in cast("tuple[Any, ...]", value):
            yield from modules_in(item)
    elif is_dataclass(value):
        for item in fields(value):
            yield from modules_in(getattr(value, item.name))


def size_of(value: Any) -> int:
    """The bytes of all parameters and buffers in it, shared ones once."""
    tensors = {
        id(tensor): tensor.nbytes
        for module in modules_in(value)
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(tensors.values())


def trim() -> None:
    """Give freed memory back to the system. glibc keeps it for pieces of the same size, which do not come: pictures of
    many sizes would leave more and more of it."""
    if hasattr(C, "malloc_trim"):
        C.malloc_trim(0)


def release(device: torch.device) -> None:
    """Give back memory that nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
