"""Reading a model in diffusers' folder layout."""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from enlarger.checkpoint import configs
from enlarger.checkpoint.build import build
from enlarger.checkpoint.files import Weights, open_file, open_weights, weight_names
from enlarger.checkpoint.preview import tiny_config, tiny_json
from enlarger.checkpoint.settings import Json
from enlarger.errors import CheckpointError, EnlargerError, InputError
from enlarger.jsonfile import read_json
from enlarger.nn.autoencoder import AutoencoderKL
from enlarger.nn.clip_text import ClipText
from enlarger.nn.k_unet import KUNet, KUNetConfig
from enlarger.nn.preview import AutoencoderTiny
from enlarger.nn.unet import UNet
from enlarger.nn.upscale_net import UpscaleNet, UpscaleNetConfig
from enlarger.text.tokenize import Tokenizer

INDEX = "model_index.json"
CONFIG = "config.json"
SCHEDULER = "scheduler_config.json"
FREQUENCIES = "low_res_noise_embed.safetensors"  # of the original x2 upscaler; diffusers' folders lack it
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")


@dataclass(frozen=True)
class Component:
    """How a network that model_index.json names by its class is read and written."""

    library: str
    stem: str  # of its weights' file names
    read: Callable[[Json], Any]  # config.json to a config
    write: Callable[[Any], Json]  # and back
    make: Callable[[Any], nn.Module]  # a config to the module


def _diffusers(
    read: Callable[[Json], Any], write: Callable[[Any], Json], make: Callable[[Any], nn.Module]
) -> Component:
    return Component("diffusers", "diffusion_pytorch_model", read, write, make)


def _ours(kind: type[Any], make: Callable[[Any], nn.Module]) -> Component:
    """A network of this package, whose config file is its dataclass."""
    return Component("enlarger", "diffusion_pytorch_model", configs.plain_reader(kind), configs.plain_json, make)


def _make_unet(config: Any) -> nn.Module:
    return KUNet(config) if isinstance(config, KUNetConfig) else UNet(config)


def _write_unet(config: Any) -> Json:
    return configs.k_unet_json(config) if isinstance(config, KUNetConfig) else configs.unet_json(config)


COMPONENTS: dict[str, Component] = {
    "UNet2DConditionModel": _diffusers(configs.unet_config, _write_unet, _make_unet),
    "AutoencoderKL": _diffusers(configs.autoencoder_config, configs.autoencoder_json, AutoencoderKL),
    "AutoencoderTiny": _diffusers(tiny_config, tiny_json, AutoencoderTiny),
    "CLIPTextModel": Component("transformers", "model", configs.clip_text_config, configs.clip_text_json, ClipText),
    "CLIPTextModelWithProjection": Component(
        "transformers", "model", configs.clip_projection_config, configs.clip_text_json, ClipText
    ),
    "UpscaleNet": _ours(UpscaleNetConfig, UpscaleNet),
}
"""The networks by the class names that model_index.json uses; a new one is one line here."""


@dataclass(frozen=True)
class Bundle:
    """A model's parts: networks as modules, tokenizers, schedulers as the JSON that describes them."""

    path: Path  # where it was read
    index: Mapping[str, Any]  # model_index.json
    components: Mapping[str, Any]
    configs: Mapping[str, Json] = field(default_factory=dict[str, Json])  # each network's config.json as it was read
    skipped: tuple[str, ...] = ()  # parts that lie in the folder and are not used here


def read_folder(
    path: str | Path,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    only: Collection[str] | None = None,
) -> Bundle:
    """Read a folder with a `model_index.json` and one folder per part.

    `variant` chooses among weight files ("fp16"), `dtype` converts floating weights while reading, `only` names the
    parts to read. Raises `CheckpointError` naming the file for all that is missing, damaged or does not fit.
    """
    path = Path(path)
    index = _read_index(path)
    parts = {name: value[1] for name, value in index.items() if _is_part(name, value)}
    unknown = sorted(set(only or ()) - set(parts))
    if unknown:
        raise InputError(f"{path}: no part is called {', '.join(unknown)}; there are {', '.join(parts)}.")
    wanted = {name: kind for name, kind in parts.items() if only is None or name in only}
    networks = {name: COMPONENTS[kind] for name, kind in wanted.items() if kind in COMPONENTS}
    variants = _variants(path, networks, variant)
    read = {name: read_network(path / name, part, variants[name], dtype) for name, part in networks.items()}
    components: dict[str, Any] = {name: module for name, (module, _) in read.items()}
    for name, kind in wanted.items():
        if kind in TOKENIZERS:
            components[name] = Tokenizer.from_folder(_folder(path / name))
        elif kind.endswith("Scheduler"):
            components[name] = read_json(_folder(path / name) / SCHEDULER)
    skipped = tuple(name for name in wanted if name not in components)
    ordered = {name: components[name] for name in wanted if name in components}
    if only is None and (path / FREQUENCIES).is_file():
        ordered["noise_frequencies"] = open_file(path / FREQUENCIES).read("weight", torch.float32)
    return Bundle(path, index, ordered, {name: config for name, (_, config) in read.items()}, skipped)


def read_network(
    folder: Path, part: Component, variant: str | None = None, dtype: torch.dtype | None = None
) -> tuple[nn.Module, Json]:
    """One network and its config.json."""
    config = read_json(_folder(folder) / CONFIG)
    try:
        made = part.read(config)
    except EnlargerError as error:
        raise type(error)(f"{folder / CONFIG}: {error}") from error
    weights: Weights = open_weights(folder, part.stem, variant)
    return build(lambda: part.make(made), weights, dtype=dtype), config


def _read_index(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such folder. Nothing is downloaded: fetch the model first, then give its path."
        )
    if not (path / INDEX).is_file():
        single = f" It has a {CONFIG}: give the folder above it." if (path / CONFIG).is_file() else ""
        raise CheckpointError(f"{path}: no {INDEX}; expected a folder in diffusers' layout.{single}")
    return read_json(path / INDEX)


def _is_part(name: str, value: Any) -> bool:
    """Parts are [library, class]; [null, null] is one that is left out, and the rest are settings."""
    if name.startswith("_") or not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], str):  # pyright: ignore[reportUnknownArgumentType] - JSON
        return False
    if set(name) & set("/\\:\0") or name.startswith("."):
        raise CheckpointError(f"{INDEX}: part {name!r} is not the name of a folder inside the model.")
    return True


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(f"{path}: this folder is missing; {INDEX} lists it. Fetch the whole model.")
    return path


def _variants(path: Path, networks: Mapping[str, Component], variant: str | None) -> dict[str, str | None]:
    """The variant of each part: parts without the wanted one are read plain, unless no part has it."""
    has = {
        name: any((path / name / file).is_file() for file in weight_names(part.stem, variant))
        for name, part in networks.items()
    }
    without = [name for name in networks if not has[name]]
    if variant is None or not any(has.values()):
        return dict.fromkeys(networks, variant)
    if without:
        warnings.warn(f"{path}: {', '.join(without)} has no variant {variant!r}; read plain instead.", stacklevel=3)
    return {name: variant if has[name] else None for name in networks}
