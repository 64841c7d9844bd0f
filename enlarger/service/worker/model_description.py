"""What configured models are, from the names, shapes and JSON of their files; no weight is read."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from enlarger.checkpoint.components import COMPONENT_CLASSES, CONFIG_NAME
from enlarger.checkpoint.config.bundled_configs import family_configs
from enlarger.checkpoint.families import FAMILIES, KINDS, ModelKind
from enlarger.checkpoint.folder.describe import component_class_names, folder_kind
from enlarger.checkpoint.single_file.detect import PIXEL_NETWORK, detect
from enlarger.checkpoint.tensors.open import open_checkpoint, open_weights
from enlarger.checkpoint.tensors.pickle_guard import PickleCheckpoint
from enlarger.checkpoint.tensors.safetensors_file import SafetensorsCheckpoint
from enlarger.errors import CheckpointError, EnlargerError, InputError
from enlarger.hub.cache import resolve, snapshot_variant
from enlarger.requests import DEFAULTS
from enlarger.service.jobs.job import Task
from enlarger.service.jobs.model_registry import ModelState
from enlarger.service.settings import ModelSettings
from enlarger.strict_json import Json, is_array, read_json
from enlarger.tasks.loading.load import BUNDLED, BUNDLED_FOLDER, resolve_runtime

DEPTH_TASK: Task = "refine"  # of jobs: what the service calls `enlarger.depth`
EMA_PREFIX = "model_ema."  # a copy of the UNet in single files, which is not loaded


@dataclass(frozen=True)
class ModelDescription:
    """A model before it is loaded. `bytes` is what its weights will take in memory, None where that is not known."""

    settings: ModelSettings
    model_kind: ModelKind | None = None
    num_bytes: int | None = None
    error: str | None = None  # why it cannot be used
    default_size: tuple[int, int] | None = None  # of what it makes from text, in pixels

    @property
    def kind(self) -> str:
        """What the service calls its kind."""
        return "" if self.model_kind is None else self.model_kind.service_kind

    @property
    def verbs(self) -> dict[Task, str]:
        """The tasks of jobs that it can do, and the verb of its kind that does each."""
        names = () if self.model_kind is None else self.model_kind.tasks
        return {DEPTH_TASK if name == "depth" else cast("Task", name): name for name in names}

    @property
    def default_steps(self) -> dict[Task, int]:
        """The steps of each task where a request does not say."""
        if self.model_kind is None:
            return {}
        defaults: dict[Task, Mapping[str, Any]] = {
            task: DEFAULTS[self.model_kind.tasks[verb].defaults] for task, verb in self.verbs.items()
        }
        return {task: int(values["steps"]) for task, values in defaults.items() if "steps" in values}

    @property
    def unused_options(self) -> tuple[str, ...]:
        """The options that it has no use for."""
        return () if self.model_kind is None else self.model_kind.unused_options

    @property
    def state(self) -> ModelState:
        """What the server is told of it."""
        return ModelState(
            self.settings.name,
            self.kind,
            tuple(self.verbs),
            self.settings.aliases,
            error=self.error,
            unused_options=self.unused_options,
            default_size=self.default_size,
            default_steps=self.default_steps,
        )


def describe_model(settings: ModelSettings, device: torch.device, allow_pickle: bool = False) -> ModelDescription:
    """A model as far as its headers tell; its `error` says what is wrong with the files."""
    try:
        _check_settings(settings)
        _, dtype = resolve_runtime(str(device), settings.precision, settings.offload, settings.engine)
        if settings.path == BUNDLED:
            return ModelDescription(settings, KINDS[BUNDLED], _folder_bytes(BUNDLED_FOLDER, None, torch.float32))
        path = resolve(settings.path)
        if path.is_dir():
            variant = snapshot_variant(path) if settings.variant is None else settings.variant
            parts = {name: read_json(path / name / CONFIG_NAME) for name in ("unet", "vae") if (path / name).is_dir()}
            return ModelDescription(
                settings, folder_kind(path), _folder_bytes(path, variant, dtype), default_size=_default_size(parts)
            )
        return _describe_file(settings, path, dtype, allow_pickle)
    except (EnlargerError, OSError) as error:
        return ModelDescription(settings, error=str(error))
    except Exception as error:  # noqa: BLE001 - a damaged config must not cost the other models
        return ModelDescription(settings, error=f"its files cannot be understood ({type(error).__name__}: {error})")


def _check_settings(settings: ModelSettings) -> None:
    """Raises InputError for settings that would change nothing, or that name files which are not there."""
    inapplicable = {name: getattr(settings, name) for name in ("variant", "prediction", "preview")}
    given_names = [
        name for name, value in (inapplicable | {"loras": settings.loras or None}).items() if value is not None
    ]
    if settings.path == BUNDLED and given_names:
        raise InputError(f"{settings.name}: the bundled model has no {', '.join(given_names)}; leave that out")
    if settings.path == BUNDLED and settings.precision not in ("auto", "float32"):
        raise InputError(
            f"{settings.name}: precision is {settings.precision}, but the bundled model runs in float32; leave it out"
        )
    extra_files = [path for path, _ in settings.loras] + ([] if settings.preview is None else [settings.preview])
    missing = [path for path in extra_files if not Path(path).expanduser().exists()]
    if missing:
        raise CheckpointError(f"{missing[0]}: no such file; {settings.name} names it in its settings")


def _folder_bytes(path: Path, variant: str | None, dtype: torch.dtype) -> int:
    components = {
        name: COMPONENT_CLASSES[class_name]
        for name, class_name in component_class_names(path).items()
        if class_name in COMPONENT_CLASSES
    }
    return sum(
        _num_bytes(_open_component(path / name, part.weights_stem, variant), dtype) for name, part in components.items()
    )


def _open_component(folder: Path, stem: str, variant: str | None) -> SafetensorsCheckpoint:
    """A part's weights; parts without the variant are read plain."""
    if variant is None:
        return open_weights(folder, stem, None)
    try:
        return open_weights(folder, stem, variant)
    except CheckpointError:
        return open_weights(folder, stem, None)


def _default_size(configs: Mapping[str, Json]) -> tuple[int, int] | None:
    """The size that a model's `sample_size` stands for; None where its files do not say."""
    unet, vae = (configs.get(name, {}) for name in ("unet", "vae"))
    sample_size, stages = unet.get("sample_size"), vae.get("down_block_types")
    if not isinstance(sample_size, int) or not is_array(stages):
        return None
    side = sample_size << (len(stages) - 1)
    return side, side


def _describe_file(settings: ModelSettings, path: Path, dtype: torch.dtype, allow_pickle: bool) -> ModelDescription:
    tensors = open_checkpoint(path, allow_pickle=allow_pickle)
    detected = detect({name: tensors.shape(name) for name in tensors.keys()}, path)
    if detected.kind == PIXEL_NETWORK:
        return ModelDescription(settings, KINDS[PIXEL_NETWORK], _num_bytes(tensors, dtype))
    if detected.kind != "model" or detected.family is None:
        raise CheckpointError(
            f"{path}: holds {detected.description}, expected a whole model in one file. {detected.advice}".strip()
        )
    num_bytes = _num_bytes(tensors, dtype, lambda name: not name.startswith(EMA_PREFIX))
    size = _default_size(family_configs(detected.family))
    return ModelDescription(settings, FAMILIES[detected.family], num_bytes, default_size=size)


def _num_bytes(
    tensors: SafetensorsCheckpoint | PickleCheckpoint, dtype: torch.dtype, is_counted: Callable[[str], bool] = bool
) -> int:
    """Memory of the weights once they are read as `dtype`."""

    def sizes() -> Iterator[int]:
        for name in filter(is_counted, tensors.keys()):
            stored_dtype = tensors.dtype(name)
            yield math.prod(tensors.shape(name)) * (dtype if stored_dtype.is_floating_point else stored_dtype).itemsize

    return sum(sizes())
