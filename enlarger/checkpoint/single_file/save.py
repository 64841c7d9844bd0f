"""Writing a whole model as one file in the original code's layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from enlarger.checkpoint.components import COMPONENT_CLASSES, PipelineComponents, network_class_name
from enlarger.checkpoint.families import FAMILIES, detect_unet_family
from enlarger.checkpoint.folder.save import PROVENANCE_KEYS
from enlarger.checkpoint.single_file.buffers import original_buffers
from enlarger.checkpoint.single_file.key_mapping import LAYOUTS, convert_to_original
from enlarger.checkpoint.single_file.load import CONFIGS_METADATA_KEY, INDEX_METADATA_KEY, MODELSPEC_PREDICTION_KEY
from enlarger.checkpoint.tensors.save_safetensors import save_safetensors
from enlarger.errors import InputError
from enlarger.strict_json import Json


def pipeline_family(pipeline: PipelineComponents) -> str:
    """The family of a loaded model, by its UNet's shapes and its text encoders."""
    components = pipeline.components
    if not isinstance(components.get("unet"), nn.Module):
        raise InputError(f"{pipeline.path}: has no UNet; expected a model of Stable Diffusion.")
    shapes = {name: tuple(tensor.shape) for name, tensor in components["unet"].state_dict().items()}
    text_family = None
    if "text_encoder_2" in components:
        text_family = "sdxl" if "text_encoder" in components else "sdxl_refiner"
    return detect_unet_family(shapes, text_family)


def original_state_dict(pipeline: PipelineComponents) -> dict[str, Tensor]:
    """All that an original single file of this model holds: weights, and the constants that its code expects.

    What Stable Diffusion never reads of open_clip's tower (its last layer, its projection) is in no pipeline and is
    left out, which the original loaders allow. The x2 upscaler's file has neither autoencoder nor text encoder.
    """
    layout = FAMILIES[pipeline_family(pipeline)].layout
    component_keys, tensors = dict[str, list[str]](), dict[str, Tensor]()
    for component in LAYOUTS[layout]:
        network = pipeline.components.get(component)
        if network is None:
            if component != "noise_frequencies":
                raise InputError(f"{pipeline.path}: has no {component}, which a single file of this family holds.")
            continue
        weights = {"weight": network} if isinstance(network, Tensor) else cast("nn.Module", network).state_dict()
        component_keys[component] = list(weights)
        tensors |= convert_to_original(layout, component, weights)
    return tensors | original_buffers(layout, component_keys, pipeline.components)


def save_single_file(
    pipeline: PipelineComponents, path: str | Path, dtype: torch.dtype | None = None, *, overwrite: bool = False
) -> Path:
    """Write a model as one safetensors file in the layout of its family's original code.

    It appears whole or not at all. `dtype` converts floating weights. The metadata of the file that the pipeline
    was read from stay, and are joined by what shapes cannot say. Raises `InputError` for other networks,
    and where something is already, unless `overwrite`.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path}: already exists; choose another place or allow overwriting.")
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: ends in {path.suffix!r}, expected .safetensors, the one format that is written.")
    save_safetensors(path, original_state_dict(pipeline), dtype, file_metadata(pipeline))
    return path


def file_metadata(pipeline: PipelineComponents) -> dict[str, str]:
    """What a single file says about itself: what it was read with, its family, its prediction and its configs."""
    read_metadata: Mapping[str, str] = pipeline.index.get(INDEX_METADATA_KEY, {})
    scheduler: Json = pipeline.components.get("scheduler", {})
    prediction_type = scheduler.get("prediction_type", "epsilon")
    modelspec = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": FAMILIES[pipeline_family(pipeline)].modelspec,
    }
    modelspec[MODELSPEC_PREDICTION_KEY] = "v" if prediction_type == "v_prediction" else str(prediction_type)
    return {
        **modelspec,
        **read_metadata,
        MODELSPEC_PREDICTION_KEY: modelspec[MODELSPEC_PREDICTION_KEY],
        CONFIGS_METADATA_KEY: json.dumps(_component_configs(pipeline), separators=(",", ":")),
    }


def _component_configs(pipeline: PipelineComponents) -> dict[str, Any]:
    """The JSON files that a folder of this model would have."""
    configs: dict[str, Any] = {"model_index": {n: v for n, v in pipeline.index.items() if n != INDEX_METADATA_KEY}}
    for name, component in pipeline.components.items():
        if isinstance(component, dict):
            configs[name] = component
        elif isinstance(component, nn.Module):
            read_config = {n: v for n, v in pipeline.network_configs.get(name, {}).items() if n not in PROVENANCE_KEYS}
            configs[name] = read_config | COMPONENT_CLASSES[network_class_name(component)].write_config(
                component.config
            )
    return configs
