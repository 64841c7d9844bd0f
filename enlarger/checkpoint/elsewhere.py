"""A part of a model from somewhere else: another model's, a part's own folder, or a file of a part alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import nn

from enlarger.checkpoint.build import build, current_name
from enlarger.checkpoint.bundled import family_configs
from enlarger.checkpoint.detect import detect
from enlarger.checkpoint.files import Tensors, open_file
from enlarger.checkpoint.folder import COMPONENTS, INDEX, read_folder, read_network
from enlarger.checkpoint.measure import measured
from enlarger.checkpoint.names import convert
from enlarger.checkpoint.rules import Mapped, Place, Shape
from enlarger.errors import CheckpointError
from enlarger.jsonfile import Json
from enlarger.nn.autoencoder import AutoencoderKL

Source = str | Path | nn.Module
TEXT_FIRST = "text_model.embeddings.token_embedding.weight"  # of a whole CLIP model's text half too
X4_LEVELS = 3


def read_elsewhere(
    source: Source, component: str, base: Json, dtype: torch.dtype | None = None, allow_pickle: bool = False
) -> tuple[nn.Module, Json]:
    """The network `component` (vae, text_encoder) of a model's folder, of its own folder, or of a single file.

    `base` is the config of the model that it will serve; shapes that differ replace its settings.
    """
    if isinstance(source, nn.Module):
        return source, {}
    path = Path(source)
    kind = "AutoencoderKL" if component == "vae" else "CLIPTextModel"
    if path.is_dir():
        if (path / INDEX).is_file():
            bundle = read_folder(path, dtype=dtype, only=[component])
            return bundle.components[component], dict(bundle.configs[component])
        return read_network(path, COMPONENTS[kind], dtype=dtype)
    weights = _part_of(open_file(path, allow_pickle=allow_pickle), component)
    config = measured(component, _shapes(weights), base)
    made = COMPONENTS[kind].read(config)
    return build(lambda: COMPONENTS[kind].make(made), weights, str, dtype), config


def read_vae_file(
    path: str | Path, *, dtype: torch.dtype | None = None, allow_pickle: bool = False, family: str | None = None
) -> AutoencoderKL:
    """The autoencoder in a file: alone (such as vae-ft-mse-840000-ema-pruned) or in a whole model, in either layout.

    No file says how it scales its latents: that is `family`'s ("sd1", "sdxl", "x4" and so on), by default the x4
    upscaler's for three levels and Stable Diffusion 1's for others. Raises `CheckpointError` for anything else.
    """
    weights = _part_of(open_file(Path(path), allow_pickle=allow_pickle), "vae")
    shapes = _shapes(weights)
    levels = {name.split(".")[2] for name in shapes if name.startswith("encoder.down_blocks.")}
    family = family if family is not None else "x4" if len(levels) == X4_LEVELS else "sd1"
    config = measured("vae", shapes, family_configs(family)["vae"])
    made = COMPONENTS["AutoencoderKL"].read(config)
    return cast(AutoencoderKL, build(lambda: AutoencoderKL(made), weights, str, dtype))


def _shapes(weights: Mapped) -> Mapping[str, Shape]:
    return {name: weights.shape(name) for name in weights.names()}


def _part_of(tensors: Tensors, component: str) -> Mapped:
    """The weights of one component, under our names, wherever they lie in the file."""
    names = tensors.names()
    if component == "text_encoder" and TEXT_FIRST in names:
        inside = [name for name in names if name.startswith("text_model.") and not name.endswith("position_ids")]
        return Mapped(tensors, {name.removeprefix("text_model."): Place(name) for name in inside})
    found = detect({name: tensors.shape(name) for name in names}, tensors.path)
    if component not in found.components or found.layout is None:
        raise CheckpointError(f"{tensors.path}: holds {found.text}, expected a {component.replace('_', ' ')}.")
    if found.layout != "diffusers":
        return convert(found.layout, tensors, wrapper=found.wrapper).parts[component]
    ours = {current_name(name): Place(name) for name in names}
    return Mapped(tensors, {name: place for name, place in ours.items() if name is not None})
