"""Writing a whole model as one file in the original code's layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from enlarger.checkpoint.constants import constants
from enlarger.checkpoint.families import FAMILIES, unet_family
from enlarger.checkpoint.folder import COMPONENTS, Bundle
from enlarger.checkpoint.names import LAYOUTS, restore
from enlarger.checkpoint.single import METADATA, OWN, STATED
from enlarger.checkpoint.tensorfile import save_tensors
from enlarger.checkpoint.write import OFFICIAL, PLACES
from enlarger.errors import InputError
from enlarger.jsonfile import Json

ARCHITECTURES = {  # what the "modelspec" that many programs read calls the families
    "sd1": "stable-diffusion-v1",
    "sd1_inpainting": "stable-diffusion-v1-inpainting",
    "sd2": "stable-diffusion-v2",
    "sd2_inpainting": "stable-diffusion-v2-inpainting",
    "sd2_depth": "stable-diffusion-v2-depth",
    "x4": "stable-diffusion-x4-upscaler",
    "x2": "stable-diffusion-x2-latent-upscaler",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl_inpainting": "stable-diffusion-xl-v1-inpainting",
    "sdxl_refiner": "stable-diffusion-xl-v1-refiner",
}


def bundle_family(bundle: Bundle) -> str:
    """The family of a loaded model, by its UNet's shapes and its text encoders."""
    parts = bundle.components
    if not isinstance(parts.get("unet"), nn.Module):
        raise InputError(f"{bundle.path}: has no UNet; expected a model of Stable Diffusion.")
    shapes = {name: tuple(tensor.shape) for name, tensor in parts["unet"].state_dict().items()}
    text = None
    if "text_encoder_2" in parts:
        text = "sdxl" if "text_encoder" in parts else "sdxl_refiner"
    return unet_family(shapes, text)


def original_tensors(bundle: Bundle) -> dict[str, Tensor]:
    """All that an original single file of this model holds: weights, and the constants that its code expects.

    What Stable Diffusion never reads of open_clip's tower (its last layer, its projection) is in no bundle and is left
    out, which the original loaders allow. The x2 upscaler's file has neither autoencoder nor text encoder.
    """
    layout = FAMILIES[bundle_family(bundle)].layout
    names, made = dict[str, list[str]](), dict[str, Tensor]()
    for component in LAYOUTS[layout]:
        part = bundle.components.get(component)
        if part is None:
            if component != "noise_frequencies":
                raise InputError(f"{bundle.path}: has no {component}, which a single file of this family holds.")
            continue
        weights = {"weight": part} if isinstance(part, Tensor) else cast("nn.Module", part).state_dict()
        names[component] = list(weights)
        made |= restore(layout, component, weights)
    return made | constants(layout, names, bundle.components)


def save_single_file(
    bundle: Bundle, path: str | Path, dtype: torch.dtype | None = None, *, overwrite: bool = False
) -> Path:
    """Write a model as one safetensors file in the layout of its family's original code.

    It appears whole or not at all. `dtype` converts floating weights. The metadata of the file that the bundle was read
    from are kept, and joined by what shapes cannot say. Raises `InputError` for other networks, and where something is
    already, unless `overwrite`.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path}: already exists; choose another place or allow overwriting.")
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: ends in {path.suffix!r}, expected .safetensors, the one format that is written.")
    save_tensors(path, original_tensors(bundle), dtype, file_metadata(bundle))
    return path


def file_metadata(bundle: Bundle) -> dict[str, str]:
    """What a single file says about itself: what it was read with, its family, its prediction and its configs."""
    kept: Mapping[str, str] = bundle.index.get(METADATA, {})
    scheduler: Json = bundle.components.get("scheduler", {})
    predicts = scheduler.get("prediction_type", "epsilon")
    stated = {"modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": ARCHITECTURES[bundle_family(bundle)]}
    stated[STATED] = "v" if predicts == "v_prediction" else str(predicts)
    return {**stated, **kept, STATED: stated[STATED], OWN: json.dumps(_configs(bundle), separators=(",", ":"))}


def _configs(bundle: Bundle) -> dict[str, Any]:
    """The JSON files that a folder of this model would have."""
    found: dict[str, Any] = {"model_index": {n: v for n, v in bundle.index.items() if n != METADATA}}
    for name, part in bundle.components.items():
        if isinstance(part, dict):
            found[name] = part
        elif isinstance(part, nn.Module):
            known = {n: v for n, v in bundle.configs.get(name, {}).items() if n not in PLACES}
            found[name] = known | COMPONENTS[_kind(part)].write(part.config)
    return found


def _kind(module: nn.Module) -> str:
    """The class by which model_index.json names a network."""
    config: Any = module.config
    kind = OFFICIAL.get(type(module).__name__, type(module).__name__)
    return f"{kind}WithProjection" if kind == "CLIPTextModel" and config.projection is not None else kind
