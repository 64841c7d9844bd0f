"""The models of a worker: loaded when first needed, and the one unused for longest dropped when memory runs short."""

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from enlarger.checkpoint.model_folder import ModelFolder
from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.runtime.mapped_file import changed_files
from enlarger.runtime.runtime import Runtime
from enlarger.service.problems import problem_error
from enlarger.service.settings import GIB, MIB, ModelSettings
from enlarger.service.worker.model_description import ModelDescription, describe_model
from enlarger.service.workers.messages import Event, LoadedModels, MemoryUse, ModelLoading, ModelLoadTime
from enlarger.tasks.auxiliary.preview import Previewer, load_previewer
from enlarger.tasks.loading.load import BUNDLED, Checkpoint, LoadedModel, load_model
from enlarger.tasks.loading.stable_diffusion import StableDiffusion

NO_FOLDER = ModelFolder(Path())  # with nothing in it
LIBC = ctypes.CDLL(None)  # this process, with the C library in it


SendEvent = Callable[[Event], None]  # says to the server what happened


@dataclass(frozen=True, eq=False)
class CachedModel:
    """A model in memory, and the tiny decoder for its previews where there is one."""

    description: ModelDescription
    loaded: LoadedModel
    previewer: Previewer | None
    num_bytes: int

    @property
    def name(self) -> str:
        return self.description.settings.name

    @property
    def model(self) -> Any:
        """The Stable Diffusion checkpoint, or the upscaler; either has a tokenizer, a sampler and a vae."""
        return self.loaded.model

    @property
    def is_outdated(self) -> bool:
        """Whether a file that its weights lie in was written to: they are others now, or gone."""
        return any(changed_files(module) for module in modules_in((*self.loaded.tasks.values(), self.previewer)))

    @property
    def refiner(self) -> StableDiffusion:
        """The checkpoint, to finish what another one begins. Raises Unsupported for what is made for something else."""
        if not isinstance(self.model, StableDiffusion):
            raise Unsupported(f"{self.name} is an upscaler, expected a refiner or a text-to-image model")
        return self.model.require_task("generate", "refine")

    def task_for(self, task: str) -> Any:
        """What does a job's task with this model. Raises Unsupported for a task that it cannot do."""
        verbs = self.description.verbs
        if task not in verbs:
            raise Unsupported(f"{self.name} cannot {task}; it can {', '.join(verbs)}")
        return self.loaded.tasks[verbs[task]]


class ModelCache:
    """All models that can be asked for, and those that are loaded, the longest unused first."""

    def __init__(
        self,
        settings: Sequence[ModelSettings],
        device: torch.device,
        memory: float | None,
        send: SendEvent,
        folder: ModelFolder = NO_FOLDER,
    ) -> None:
        self.device, self.send, self.folder = device, send, folder
        self.budget = None if memory is None else round(memory * GIB)
        self.descriptions: dict[str, ModelDescription] = {
            one.name: describe_model(one, device, folder.allow_pickle) for one in settings
        }
        self._models: dict[str, CachedModel] = {}

    @property
    def loaded_bytes(self) -> Mapping[str, int]:
        """The bytes of each loaded model."""
        return {name: one.num_bytes for name, one in self._models.items()}

    @property
    def bundled_name(self) -> str | None:
        """What the model is called here that ships with the package."""
        return next((name for name, one in self.descriptions.items() if one.settings.path == BUNDLED), None)

    def get(self, *names: str) -> tuple[CachedModel, ...]:
        """Models that work together, loaded where they are not, and anew where their files were written to.

        Raises what loading raises, and ProblemError for those that are larger than the memory.
        """
        for name in names:
            if name in self._models and self._models[name].is_outdated:
                self.unload(name)
            if name not in self._models:
                self._load(name, names)
            self._models[name] = self._models.pop(name)  # the last used is the last to go
        return tuple(self._models[name] for name in names)

    def unload(self, *names: str) -> None:
        """Drop models; those that are not loaded are left."""
        unloaded = [name for name in names if self._models.pop(name, None) is not None]
        if unloaded:
            empty_cache(self.device)
            self._report()

    def unload_others(self, *in_use: str) -> None:
        """Drop all but some, and those that are never unloaded."""
        self.unload(*(name for name, one in self._models.items() if name not in in_use and not _is_pinned(one)))

    def _load(self, name: str, in_use: Sequence[str]) -> None:
        if name not in self.descriptions:
            raise problem_error(
                404, "model_not_found", f"no model is called {name!r}; there are {', '.join(self.descriptions)}"
            )
        description = self.descriptions[name]
        self.send(ModelLoading(model=name))
        start = time.monotonic()
        self._evict_until_fits(name, description.num_bytes or 0, in_use)
        loaded = _load(description.settings, self.device, self.folder)
        runtime = Runtime(self.device)
        preview = description.settings.preview
        previewer = None if preview is None else load_previewer(preview, torch.float32, runtime)
        size = weight_bytes((*loaded.tasks.values(), previewer))
        self._evict_until_fits(name, size, in_use)
        if not description.kind:  # its files have been mended since
            description = describe_model(description.settings, self.device, self.folder.allow_pickle)
            self.descriptions[name] = description
        self._models[name] = CachedModel(description, loaded, previewer, size)
        self.send(ModelLoadTime(model=name, seconds=time.monotonic() - start))
        self._report()

    def _evict_until_fits(self, name: str, size: int, in_use: Sequence[str]) -> None:
        """Drop what has not been used for longest until `size` bytes more fit; never those that are at work."""
        if self.budget is None:
            return
        pinned = {one.name: one.num_bytes for one in self._models.values() if one.name in in_use or _is_pinned(one)}
        if size + sum(pinned.values()) > self.budget:
            others = f" beside {_mib(sum(pinned.values()))} of {', '.join(pinned)}" if pinned else ""
            raise problem_error(
                500,
                "out_of_memory",
                f"the weights of {name} take {_mib(size)}{others}, and at most {_mib(self.budget)} are kept; raise "
                "`memory` in the settings, or choose a lower precision",
            )
        evictable = [other for other in self._models if other not in pinned]
        while sum(self.loaded_bytes.values()) + size > self.budget:
            self.unload(evictable.pop(0))

    def _report(self) -> None:
        self.send(LoadedModels(loaded=dict(self.loaded_bytes)))
        self.send(MemoryUse(kind="models", bytes=sum(self.loaded_bytes.values())))


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"


def _is_pinned(model: CachedModel) -> bool:
    return model.description.settings.keep


def _load(settings: ModelSettings, device: torch.device, folder: ModelFolder) -> LoadedModel:
    checkpoint = Checkpoint(
        settings.path,
        variant=settings.variant,
        prediction=settings.prediction,
        allow_pickle=folder.allow_pickle and Path(settings.path).is_file(),
        loras=settings.loras,
        models=folder,
        mmap=settings.mmap,
    )
    try:
        return load_model(checkpoint, str(device), settings.precision, settings.offload, engine=settings.engine)
    except (InputError, Unsupported) as error:  # what is served is not of the caller's choosing
        raise CheckpointError(str(error)) from error


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


def weight_bytes(value: Any) -> int:
    """The bytes of all parameters and buffers in it, shared ones once."""
    tensors = {
        id(tensor): tensor.nbytes
        for module in modules_in(value)
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(tensors.values())


def trim_heap() -> None:
    """Give freed memory back to the system. glibc keeps it for pieces of the same size, which do not come: pictures of
    many sizes would leave more and more of it."""
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)


def empty_cache(device: torch.device) -> None:
    """Give back memory that nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
