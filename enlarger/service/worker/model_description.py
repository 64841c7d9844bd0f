"""What configured models are, from the names, shapes and JSON of their files; no weight is read."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from enlarger.checkpoint.components import COMPONENT_CLASSES, CONFIG_NAME, MODEL_INDEX_NAME
from enlarger.checkpoint.single_file.detect import detect
from enlarger.checkpoint.tensors.open import open_checkpoint, open_weights
from enlarger.checkpoint.tensors.pickle_guard import PickleCheckpoint
from enlarger.checkpoint.tensors.safetensors_file import SafetensorsCheckpoint
from enlarger.errors import CheckpointError, EnlargerError, InputError, Unsupported
from enlarger.hub.cache import resolve, snapshot_variant
from enlarger.runtime.runtime import resolve_dtype
from enlarger.service.jobs.job import Task
from enlarger.service.jobs.model_registry import ModelState
from enlarger.service.settings import ModelSettings
from enlarger.strict_json import read_json
from enlarger.tasks.stable_diffusion import takes_aesthetic_score, trained_task
from enlarger.tasks.upscale.upscale import BUNDLED_FOLDER

BASE_TASKS: tuple[Task, ...] = ("generate", "refine", "inpaint")
TASKS_BY_KIND: Mapping[str, tuple[Task, ...]] = {
    "bundled": ("upscale",),
    "x2": ("upscale",),
    "x4": ("upscale",),
    "sd": BASE_TASKS,
    "sdxl": BASE_TASKS,
    "sd-inpaint": ("inpaint",),
    "sdxl-inpaint": ("inpaint",),
    "sdxl-refiner": ("refine",),
    "depth": ("refine",),
}
"""What can be asked of each kind of model."""
UPSCALER_KINDS = {
    "CompactUpscale": "bundled",
    "StableDiffusionLatentUpscalePipeline": "x2",
    "StableDiffusionUpscalePipeline": "x4",
}
FAMILY_KINDS = {  # of single files
    "sd1": "sd", "sd2": "sd", "sdxl": "sdxl", "sd1_inpainting": "sd-inpaint", "sd2_inpainting": "sd-inpaint",
    "sdxl_inpainting": "sdxl-inpaint", "sdxl_refiner": "sdxl-refiner", "sd2_depth": "depth", "x2": "x2", "x4": "x4",
}  # fmt: skip
EMA_PREFIX = "model_ema."  # a copy of the UNet in single files, which is not loaded


@dataclass(frozen=True)
class ModelDescription:
    """A model before it is loaded. `bytes` is what its weights will take in memory, None where that is not known."""

    settings: ModelSettings
    kind: str = ""
    num_bytes: int | None = None
    error: str | None = None  # why it cannot be used

    @property
    def state(self) -> ModelState:
        """What the server is told of it."""
        tasks = TASKS_BY_KIND.get(self.kind, ())
        return ModelState(self.settings.name, self.kind, tasks, self.settings.aliases, error=self.error)


def describe_model(settings: ModelSettings, device: torch.device) -> ModelDescription:
    """A model as far as its headers tell; its `error` says what is wrong with the files."""
    try:
        _check_settings(settings)
        dtype = resolve_dtype(settings.precision, device)
        if settings.path == "bundled":
            return ModelDescription(settings, "bundled", _folder_bytes(BUNDLED_FOLDER, None, torch.float32))
        path = resolve(settings.path)
        if path.is_dir():
            variant = snapshot_variant(path) if settings.variant is None else settings.variant
            return ModelDescription(settings, _folder_kind(path), _folder_bytes(path, variant, dtype))
        return ModelDescription(settings, *_describe_file(path, dtype))
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
    if settings.path == "bundled" and given_names:
        raise InputError(f"{settings.name}: the bundled model has no {', '.join(given_names)}; leave that out")
    if settings.path == "bundled" and settings.precision not in ("auto", "float32"):
        raise InputError(
            f"{settings.name}: precision is {settings.precision}, but the bundled model runs in float32; leave it out"
        )
    extra_files = [path for path, _ in settings.loras] + ([] if settings.preview is None else [settings.preview])
    missing = [path for path in extra_files if not Path(path).expanduser().exists()]
    if missing:
        raise CheckpointError(f"{missing[0]}: no such file; {settings.name} names it in its settings")


def _folder_kind(path: Path) -> str:
    if not (path / MODEL_INDEX_NAME).is_file():
        raise CheckpointError(
            f"{path}: no {MODEL_INDEX_NAME}; expected a model's folder in diffusers' layout, or a single file"
        )
    index = read_json(path / MODEL_INDEX_NAME)
    name = str(index.get("_class_name"))
    if name in UPSCALER_KINDS:
        return UPSCALER_KINDS[name]
    components = _components(index)
    encoders = [part for part in ("text_encoder", "text_encoder_2") if part in components]
    if components.get("unet") != "UNet2DConditionModel" or components.get("vae") != "AutoencoderKL" or not encoders:
        raise Unsupported(f"{path}: holds a {name}, expected a checkpoint of the Stable Diffusion family")
    unet, vae, text_encoder = (
        _component_config(path / part, components[part]) for part in ("unet", "vae", encoders[-1])
    )
    return _kind_from_configs(unet, vae.latent_channels, text_encoder.projection_dim, path)


def _components(index: Mapping[str, Any]) -> dict[str, str]:
    """The classes of the parts that a model_index.json lists, each [library, class]; [null, null] is left out."""
    listed: dict[str, Any] = {name: value for name, value in index.items() if isinstance(value, list)}
    return {name: str(value[-1]) for name, value in listed.items() if value and value[-1] is not None}


def _component_config(folder: Path, kind: str) -> Any:
    """A part's config.json as its network's config."""
    return COMPONENT_CLASSES[kind].read_config(read_json(folder / CONFIG_NAME))


def _kind_from_configs(unet: Any, latent_channels: int, projection_dim: int | None, path: Path) -> str:
    verb = trained_task(unet, latent_channels, takes_aesthetic_score(unet, projection_dim))
    family = "sd" if unet.time_id_channels is None else "sdxl"
    kinds = {"generate": family, "inpaint": f"{family}-inpaint", "refine": "sdxl-refiner", "depth": "depth"}
    if verb not in kinds:
        raise Unsupported(f"{path}: its UNet takes {unet.in_channels} channels, which no known task gives it")
    return kinds[verb]


def _folder_bytes(path: Path, variant: str | None, dtype: torch.dtype) -> int:
    components = {
        name: COMPONENT_CLASSES[kind]
        for name, kind in _components(read_json(path / MODEL_INDEX_NAME)).items()
        if kind in COMPONENT_CLASSES
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


def _describe_file(path: Path, dtype: torch.dtype) -> tuple[str, int]:
    tensors = open_checkpoint(path)
    detected = detect({name: tensors.shape(name) for name in tensors.keys()}, path)
    if detected.kind != "model" or detected.family is None:
        raise CheckpointError(
            f"{path}: holds {detected.description}, expected a whole model in one file. {detected.advice}".strip()
        )
    return FAMILY_KINDS[detected.family], _num_bytes(tensors, dtype, lambda name: not name.startswith(EMA_PREFIX))


def _num_bytes(
    tensors: SafetensorsCheckpoint | PickleCheckpoint, dtype: torch.dtype, is_counted: Callable[[str], bool] = bool
) -> int:
    """Memory of the weights once they are read as `dtype`."""

    def sizes() -> Iterator[int]:
        for name in filter(is_counted, tensors.keys()):
            stored_dtype = tensors.dtype(name)
            yield math.prod(tensors.shape(name)) * (dtype if stored_dtype.is_floating_point else stored_dtype).itemsize

    return sum(sizes())
