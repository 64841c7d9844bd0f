"""A component of a model from somewhere else: another model's, its own folder, or a file of it alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import nn

from enlarger.checkpoint.components import COMPONENT_CLASSES, MODEL_INDEX_NAME
from enlarger.checkpoint.config.bundled_configs import family_configs
from enlarger.checkpoint.folder.load import read_folder, read_network
from enlarger.checkpoint.load_module import check_unquantised, load_module, to_current_key
from enlarger.checkpoint.single_file.detect import detect
from enlarger.checkpoint.single_file.infer_config import infer_config
from enlarger.checkpoint.single_file.key_mapping import convert_from_original
from enlarger.checkpoint.single_file.key_rules import KeySource, RemappedTensors, Shape
from enlarger.checkpoint.tensors.open import LazyTensors, open_checkpoint
from enlarger.errors import CheckpointError
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.strict_json import Json

ComponentSource = str | Path | nn.Module
TEXT_ENCODER_MARKER = "text_model.embeddings.token_embedding.weight"  # of a whole CLIP model's text half too
TEXT_PROJECTION = "text_projection.weight"
X4_VAE_LEVELS = 3
CLASS_NAMES = {
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}


def read_component_override(
    source: ComponentSource,
    component: str,
    base_config: Json,
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
    *,
    mmap: bool = True,
) -> tuple[nn.Module, Json]:
    """The network `component` (one of `CLASS_NAMES`) of a model's folder, of its own folder, or of a single file.

    `base_config` is that of the model that it will serve; shapes that differ replace its settings.
    """
    if isinstance(source, nn.Module):
        return source, {}
    path, class_name = Path(source), CLASS_NAMES[component]
    if path.is_dir():
        if (path / MODEL_INDEX_NAME).is_file():
            pipeline = read_folder(path, dtype=dtype, only=[component], mmap=mmap)
            return pipeline.components[component], dict(pipeline.network_configs[component])
        return read_network(path, COMPONENT_CLASSES[class_name], dtype=dtype, mmap=mmap)
    tensors = open_checkpoint(path, allow_pickle=allow_pickle, mmap=mmap)
    check_unquantised(tensors)
    weights = _remap_component(tensors, component)
    if component == "text_encoder_2" and TEXT_PROJECTION not in weights.keys():
        raise CheckpointError(f"{path}: has no {TEXT_PROJECTION}, expected SDXL's second text encoder with it.")
    config = infer_config(component, _shapes(weights), base_config)
    parsed_config = COMPONENT_CLASSES[class_name].read_config(config)
    return load_module(lambda: COMPONENT_CLASSES[class_name].create(parsed_config), weights, str, dtype), config


def read_vae_file(
    path: str | Path, *, dtype: torch.dtype | None = None, allow_pickle: bool = False, family: str | None = None
) -> AutoencoderKL:
    """The autoencoder in a file: alone (such as vae-ft-mse-840000-ema-pruned) or in a whole model, in either layout.

    No file says how it scales its latents: that is `family`'s ("sd1", "sdxl", "x4" and so on), by default the x4
    upscaler's for three levels and Stable Diffusion 1's for others. Raises `CheckpointError` for anything else.
    """
    weights = _remap_component(open_checkpoint(Path(path), allow_pickle=allow_pickle), "vae")
    shapes = _shapes(weights)
    levels = {name.split(".")[2] for name in shapes if name.startswith("encoder.down_blocks.")}
    family = family if family is not None else "x4" if len(levels) == X4_VAE_LEVELS else "sd1"
    config = infer_config("vae", shapes, family_configs(family)["vae"])
    parsed_config = COMPONENT_CLASSES["AutoencoderKL"].read_config(config)
    return cast(AutoencoderKL, load_module(lambda: AutoencoderKL(parsed_config), weights, str, dtype))


def _shapes(weights: RemappedTensors) -> Mapping[str, Shape]:
    return {name: weights.shape(name) for name in weights.keys()}


def _remap_component(tensors: LazyTensors, component: str) -> RemappedTensors:
    """The weights of one component, under our names, wherever they lie in the file."""
    names = tensors.keys()
    if component != "vae" and TEXT_ENCODER_MARKER in names:
        text_keys = [name for name in names if name.startswith("text_model.") and not name.endswith("position_ids")]
        text_keys += [TEXT_PROJECTION] if component == "text_encoder_2" and TEXT_PROJECTION in names else []
        return RemappedTensors(tensors, {name.removeprefix("text_model."): KeySource(name) for name in text_keys})
    detected = detect({name: tensors.shape(name) for name in names}, tensors.path)
    if detected.layout == "text" and component == "text_encoder_2":
        return convert_from_original("text_2", tensors, key_prefix=detected.key_prefix).components[component]
    if component not in detected.components or detected.layout is None:
        raise CheckpointError(
            f"{tensors.path}: holds {detected.description}, expected a {component.replace('_', ' ')}."
        )
    if detected.layout != "diffusers":
        return convert_from_original(detected.layout, tensors, key_prefix=detected.key_prefix).components[component]
    diffusers_keys = {to_current_key(name): KeySource(name) for name in names}
    return RemappedTensors(tensors, {name: place for name, place in diffusers_keys.items() if name is not None})
