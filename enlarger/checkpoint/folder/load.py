"""Reading a model in diffusers' folder layout."""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from enlarger.checkpoint.config import network_configs
from enlarger.checkpoint.config.strict_config import Json
from enlarger.checkpoint.load_module import load_module
from enlarger.checkpoint.taesd import tiny_config, tiny_json
from enlarger.checkpoint.tensors.safetensors_file import (
    SafetensorsCheckpoint,
    open_checkpoint,
    open_weights,
    weights_filenames,
)
from enlarger.errors import CheckpointError, EnlargerError, InputError
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.k_unet import KUNet, KUNetConfig
from enlarger.nn.taesd import AutoencoderTiny
from enlarger.nn.unet import UNet
from enlarger.nn.upscale_net import UpscaleNet, UpscaleNetConfig
from enlarger.strict_json import read_json
from enlarger.text.tokenize import Tokenizer

MODEL_INDEX_NAME = "model_index.json"
CONFIG_NAME = "config.json"
SCHEDULER_CONFIG_NAME = "scheduler_config.json"
NOISE_FREQUENCIES_NAME = "low_res_noise_embed.safetensors"  # of the original x2 upscaler; diffusers' folders lack it
TOKENIZER_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")


@dataclass(frozen=True)
class ComponentClass:
    """How a network that model_index.json names by its class is read and written."""

    library: str
    weights_stem: str  # of its weights' file names
    read_config: Callable[[Json], Any]  # config.json to a config
    write_config: Callable[[Any], Json]  # and back
    create: Callable[[Any], nn.Module]  # a config to the module


def _diffusers_component(
    read_config: Callable[[Json], Any], write_config: Callable[[Any], Json], create: Callable[[Any], nn.Module]
) -> ComponentClass:
    return ComponentClass("diffusers", "diffusion_pytorch_model", read_config, write_config, create)


def _enlarger_component(config_type: type[Any], create: Callable[[Any], nn.Module]) -> ComponentClass:
    """A network of this package, whose config file is its dataclass."""
    return ComponentClass(
        "enlarger",
        "diffusion_pytorch_model",
        network_configs.dataclass_reader(config_type),
        network_configs.dataclass_json,
        create,
    )


def _create_unet(config: Any) -> nn.Module:
    return KUNet(config) if isinstance(config, KUNetConfig) else UNet(config)


def _write_unet_config(config: Any) -> Json:
    return network_configs.k_unet_json(config) if isinstance(config, KUNetConfig) else network_configs.unet_json(config)


COMPONENT_CLASSES: dict[str, ComponentClass] = {
    "UNet2DConditionModel": _diffusers_component(network_configs.unet_config, _write_unet_config, _create_unet),
    "AutoencoderKL": _diffusers_component(
        network_configs.autoencoder_config, network_configs.autoencoder_json, AutoencoderKL
    ),
    "AutoencoderTiny": _diffusers_component(tiny_config, tiny_json, AutoencoderTiny),
    "CLIPTextModel": ComponentClass(
        "transformers", "model", network_configs.clip_text_config, network_configs.clip_text_json, ClipText
    ),
    "CLIPTextModelWithProjection": ComponentClass(
        "transformers", "model", network_configs.clip_projection_config, network_configs.clip_text_json, ClipText
    ),
    "UpscaleNet": _enlarger_component(UpscaleNetConfig, UpscaleNet),
}
"""The networks by the class names that model_index.json uses; a new one is one line here."""


@dataclass(frozen=True)
class PipelineComponents:
    """A model's parts: networks as modules, tokenizers, schedulers as the JSON that describes them."""

    path: Path  # where it was read
    index: Mapping[str, Any]  # model_index.json
    components: Mapping[str, Any]
    network_configs: Mapping[str, Json] = field(
        default_factory=dict[str, Json]
    )  # each network's config.json as it was read
    skipped: tuple[str, ...] = ()  # parts that lie in the folder and are not used here


def read_folder(
    path: str | Path,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    only: Collection[str] | None = None,
) -> PipelineComponents:
    """Read a folder with a `model_index.json` and one folder per part.

    `variant` chooses among weight files ("fp16"), `dtype` converts floating weights while reading, `only` names the
    parts to read. Raises `CheckpointError` naming the file for all that is missing, damaged or does not fit.
    """
    path = Path(path)
    index = _read_index(path)
    class_names = {name: value[1] for name, value in index.items() if _is_component(name, value)}
    unknown = sorted(set(only or ()) - set(class_names))
    if unknown:
        raise InputError(f"{path}: no part is called {', '.join(unknown)}; there are {', '.join(class_names)}.")
    requested = {name: class_name for name, class_name in class_names.items() if only is None or name in only}
    network_classes = {name: COMPONENT_CLASSES[kind] for name, kind in requested.items() if kind in COMPONENT_CLASSES}
    variants = _component_variants(path, network_classes, variant)
    loaded = {
        name: read_network(path / name, component, variants[name], dtype) for name, component in network_classes.items()
    }
    components: dict[str, Any] = {name: module for name, (module, _) in loaded.items()}
    for name, kind in requested.items():
        if kind in TOKENIZER_CLASSES:
            components[name] = Tokenizer.from_folder(_require_folder(path / name))
        elif kind.endswith("Scheduler"):
            components[name] = read_json(_require_folder(path / name) / SCHEDULER_CONFIG_NAME)
    skipped = tuple(name for name in requested if name not in components)
    ordered = {name: components[name] for name in requested if name in components}
    if only is None and (path / NOISE_FREQUENCIES_NAME).is_file():
        ordered["noise_frequencies"] = open_checkpoint(path / NOISE_FREQUENCIES_NAME).get_tensor(
            "weight", torch.float32
        )
    return PipelineComponents(path, index, ordered, {name: config for name, (_, config) in loaded.items()}, skipped)


def read_network(
    folder: Path, component: ComponentClass, variant: str | None = None, dtype: torch.dtype | None = None
) -> tuple[nn.Module, Json]:
    """One network and its config.json."""
    config = read_json(_require_folder(folder) / CONFIG_NAME)
    try:
        parsed_config = component.read_config(config)
    except EnlargerError as error:
        raise type(error)(f"{folder / CONFIG_NAME}: {error}") from error
    weights: SafetensorsCheckpoint = open_weights(folder, component.weights_stem, variant)
    return load_module(lambda: component.create(parsed_config), weights, dtype=dtype), config


def _read_index(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such folder. Nothing is downloaded: fetch the model first, then give its path."
        )
    if not (path / MODEL_INDEX_NAME).is_file():
        single = f" It has a {CONFIG_NAME}: give the folder above it." if (path / CONFIG_NAME).is_file() else ""
        raise CheckpointError(f"{path}: no {MODEL_INDEX_NAME}; expected a folder in diffusers' layout.{single}")
    return read_json(path / MODEL_INDEX_NAME)


def _is_component(name: str, value: Any) -> bool:
    """Parts are [library, class]; [null, null] is one that is left out, and the rest are settings."""
    if name.startswith("_") or not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], str):  # pyright: ignore[reportUnknownArgumentType] - JSON
        return False
    if set(name) & set("/\\:\0") or name.startswith("."):
        raise CheckpointError(f"{MODEL_INDEX_NAME}: part {name!r} is not the name of a folder inside the model.")
    return True


def _require_folder(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(f"{path}: this folder is missing; {MODEL_INDEX_NAME} lists it. Fetch the whole model.")
    return path


def _component_variants(
    path: Path, network_classes: Mapping[str, ComponentClass], variant: str | None
) -> dict[str, str | None]:
    """The variant of each part: parts without the wanted one are read plain, unless no part has it."""
    has_variant = {
        name: any((path / name / file).is_file() for file in weights_filenames(part.weights_stem, variant))
        for name, part in network_classes.items()
    }
    without_variant = [name for name in network_classes if not has_variant[name]]
    if variant is None or not any(has_variant.values()):
        return dict.fromkeys(network_classes, variant)
    if without_variant:
        warnings.warn(
            f"{path}: {', '.join(without_variant)} has no variant {variant!r}; read plain instead.", stacklevel=3
        )
    return {name: variant if has_variant[name] else None for name in network_classes}
