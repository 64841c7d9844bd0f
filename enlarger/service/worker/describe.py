"""What configured models are, from the names, shapes and JSON of their files; no weight is read."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from enlarger.checkpoint.detect import detect
from enlarger.checkpoint.files import Weights, open_file, open_weights
from enlarger.checkpoint.folder import COMPONENTS, CONFIG, INDEX
from enlarger.checkpoint.pickles import PickledWeights
from enlarger.errors import CheckpointError, EnlargerError, InputError, Unsupported
from enlarger.hub.cache import only_variant, resolve
from enlarger.jsonfile import read_json
from enlarger.runtime.runtime import pick_precision
from enlarger.service.settings import ModelSettings
from enlarger.tasks.enlarge import BUNDLED
from enlarger.tasks.model import is_scored, verb_of

BASE = ("generate", "refine", "inpaint")
TASKS: Mapping[str, tuple[str, ...]] = {
    "bundled": ("upscale",),
    "x2": ("upscale",),
    "x4": ("upscale",),
    "sd": BASE,
    "sdxl": BASE,
    "sd-inpaint": ("inpaint",),
    "sdxl-inpaint": ("inpaint",),
    "sdxl-refiner": ("refine",),
    "depth": ("refine",),
}
"""What can be asked of each kind of model."""
UPSCALERS = {
    "CompactUpscale": "bundled",
    "StableDiffusionLatentUpscalePipeline": "x2",
    "StableDiffusionUpscalePipeline": "x4",
}
FAMILIES = {  # of single files
    "sd1": "sd", "sd2": "sd", "sdxl": "sdxl", "sd1_inpainting": "sd-inpaint", "sd2_inpainting": "sd-inpaint",
    "sdxl_inpainting": "sdxl-inpaint", "sdxl_refiner": "sdxl-refiner", "sd2_depth": "depth", "x2": "x2", "x4": "x4",
}  # fmt: skip
AVERAGED = "model_ema."  # a copy of the UNet in single files, which is not loaded


@dataclass(frozen=True)
class Described:
    """A model before it is loaded. `bytes` is what its weights will take in memory, None where that is not known."""

    settings: ModelSettings
    kind: str = ""
    bytes: int | None = None
    error: str | None = None  # why it cannot be used

    def to_json(self) -> dict[str, Any]:
        tasks = list(TASKS.get(self.kind, ()))
        return {
            "name": self.settings.name, "kind": self.kind, "tasks": tasks, "aliases": list(self.settings.aliases),
            "error": self.error,
        }  # fmt: skip


def described(settings: ModelSettings, device: torch.device) -> Described:
    """A model as far as its headers tell; its `error` says what is wrong with the files."""
    try:
        _check(settings)
        dtype = pick_precision(settings.precision, device)
        if settings.path == "bundled":
            return Described(settings, "bundled", _folder_bytes(BUNDLED, None, torch.float32))
        path = resolve(settings.path)
        if path.is_dir():
            variant = only_variant(path) if settings.variant is None else settings.variant
            return Described(settings, _folder_kind(path), _folder_bytes(path, variant, dtype))
        return Described(settings, *_file(path, dtype))
    except (EnlargerError, OSError) as error:
        return Described(settings, error=str(error))
    except Exception as error:  # noqa: BLE001 - a damaged config must not cost the other models
        return Described(settings, error=f"its files cannot be understood ({type(error).__name__}: {error})")


def _check(settings: ModelSettings) -> None:
    """Raises InputError for settings that would change nothing, or that name files which are not there."""
    idle = {name: getattr(settings, name) for name in ("variant", "prediction", "preview")}
    given = [name for name, value in (idle | {"loras": settings.loras or None}).items() if value is not None]
    if settings.path == "bundled" and given:
        raise InputError(f"{settings.name}: the bundled model has no {', '.join(given)}; leave that out")
    if settings.path == "bundled" and settings.precision not in ("auto", "float32"):
        raise InputError(
            f"{settings.name}: precision is {settings.precision}, but the bundled model runs in float32; leave it out"
        )
    beside = [path for path, _ in settings.loras] + ([] if settings.preview is None else [settings.preview])
    missing = [path for path in beside if not Path(path).expanduser().exists()]
    if missing:
        raise CheckpointError(f"{missing[0]}: no such file; {settings.name} names it in its settings")


def _folder_kind(path: Path) -> str:
    if not (path / INDEX).is_file():
        raise CheckpointError(f"{path}: no {INDEX}; expected a model's folder in diffusers' layout, or a single file")
    index = read_json(path / INDEX)
    name = str(index.get("_class_name"))
    if name in UPSCALERS:
        return UPSCALERS[name]
    parts = _parts(index)
    encoders = [part for part in ("text_encoder", "text_encoder_2") if part in parts]
    if parts.get("unet") != "UNet2DConditionModel" or parts.get("vae") != "AutoencoderKL" or not encoders:
        raise Unsupported(f"{path}: holds a {name}, expected a checkpoint of the Stable Diffusion family")
    unet, vae, text = (_config(path / part, parts[part]) for part in ("unet", "vae", encoders[-1]))
    return _kind_of(unet, vae.latent_channels, text.projection, path)


def _parts(index: Mapping[str, Any]) -> dict[str, str]:
    """The classes of the parts that a model_index.json lists, each [library, class]; [null, null] is left out."""
    listed: dict[str, Any] = {name: value for name, value in index.items() if isinstance(value, list)}
    return {name: str(value[-1]) for name, value in listed.items() if value and value[-1] is not None}


def _config(folder: Path, kind: str) -> Any:
    """A part's config.json as its network's config."""
    return COMPONENTS[kind].read(read_json(folder / CONFIG))


def _kind_of(unet: Any, latent: int, pooled: int | None, path: Path) -> str:
    verb = verb_of(unet, latent, is_scored(unet, pooled))
    family = "sd" if unet.scalar_channels is None else "sdxl"
    kinds = {"generate": family, "inpaint": f"{family}-inpaint", "refine": "sdxl-refiner", "depth": "depth"}
    if verb not in kinds:
        raise Unsupported(f"{path}: its UNet takes {unet.in_channels} channels, which no known task gives it")
    return kinds[verb]


def _folder_bytes(path: Path, variant: str | None, dtype: torch.dtype) -> int:
    known = {name: COMPONENTS[kind] for name, kind in _parts(read_json(path / INDEX)).items() if kind in COMPONENTS}
    return sum(_bytes(_weights(path / name, part.stem, variant), dtype) for name, part in known.items())


def _weights(folder: Path, stem: str, variant: str | None) -> Weights:
    """A part's weights; parts without the variant are read plain."""
    if variant is None:
        return open_weights(folder, stem, None)
    try:
        return open_weights(folder, stem, variant)
    except CheckpointError:
        return open_weights(folder, stem, None)


def _file(path: Path, dtype: torch.dtype) -> tuple[str, int]:
    tensors = open_file(path)
    found = detect({name: tensors.shape(name) for name in tensors.names()}, path)
    if found.kind != "model" or found.family is None:
        raise CheckpointError(f"{path}: holds {found.text}, expected a whole model in one file. {found.advice}".strip())
    return FAMILIES[found.family], _bytes(tensors, dtype, lambda name: not name.startswith(AVERAGED))


def _bytes(tensors: Weights | PickledWeights, dtype: torch.dtype, counts: Callable[[str], bool] = bool) -> int:
    """Memory of the weights once they are read as `dtype`."""

    def sizes() -> Iterator[int]:
        for name in filter(counts, tensors.names()):
            own = tensors.dtype(name)
            yield math.prod(tensors.shape(name)) * (dtype if own.is_floating_point else own).itemsize

    return sum(sizes())
