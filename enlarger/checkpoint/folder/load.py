"""Reading a model in diffusers' folder layout."""

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from enlarger.checkpoint.components import (
    COMPONENT_CLASSES,
    CONFIG_NAME,
    MODEL_INDEX_NAME,
    NOISE_FREQUENCIES_NAME,
    SCHEDULER_CONFIG_NAME,
    ComponentClass,
    PipelineComponents,
)
from enlarger.checkpoint.load_module import load_module
from enlarger.checkpoint.tensors.open import open_checkpoint, open_weights, weights_filenames
from enlarger.checkpoint.tensors.safetensors_file import SafetensorsCheckpoint
from enlarger.errors import CheckpointError, EnlargerError, InputError
from enlarger.strict_json import Json, printable_name, read_json
from enlarger.text.tokenize import Tokenizer

TOKENIZER_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")


def read_folder(
    path: str | Path,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    only: Collection[str] | None = None,
    *,
    mmap: bool = True,
) -> PipelineComponents:
    """Read a folder with a `model_index.json` and one folder per component.

    `variant` chooses among weight files ("fp16"), `dtype` converts floating weights while reading, `only` names the
    components to read. With `mmap` weights of that type stay in their files, see `load_module`. Raises
    `CheckpointError` naming the file for all that is missing, damaged or does not fit.
    """
    path = Path(path)
    index = _read_index(path)
    class_names = {name: value[1] for name, value in index.items() if _is_component(name, value)}
    unknown = sorted(set(only or ()) - set(class_names))
    if unknown:
        raise InputError(f"{path}: no component is called {', '.join(unknown)}; there are {', '.join(class_names)}.")
    requested = {name: class_name for name, class_name in class_names.items() if only is None or name in only}
    network_classes = {name: COMPONENT_CLASSES[kind] for name, kind in requested.items() if kind in COMPONENT_CLASSES}
    variants = _component_variants(path, network_classes, variant)
    loaded = {
        name: read_network(path / name, component, variants[name], dtype, mmap=mmap)
        for name, component in network_classes.items()
    }
    components: dict[str, Any] = {name: module for name, (module, _) in loaded.items()}
    for name, kind in requested.items():
        if kind in TOKENIZER_CLASSES:
            components[name] = Tokenizer.from_folder(_require_folder(path / name))
        elif kind.endswith("Scheduler"):
            components[name] = _read_scheduler(_require_folder(path / name) / SCHEDULER_CONFIG_NAME, kind)
    skipped = tuple(name for name in requested if name not in components)
    ordered = {name: components[name] for name in requested if name in components}
    if only is None and (path / NOISE_FREQUENCIES_NAME).is_file():
        ordered["noise_frequencies"] = open_checkpoint(path / NOISE_FREQUENCIES_NAME).get_tensor(
            "weight", torch.float32
        )
    return PipelineComponents(path, index, ordered, {name: config for name, (_, config) in loaded.items()}, skipped)


def read_network(
    folder: Path,
    component: ComponentClass,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    *,
    mmap: bool = True,
) -> tuple[nn.Module, Json]:
    """One network and its config.json."""
    config = read_json(_require_folder(folder) / CONFIG_NAME)
    try:
        parsed_config = component.read_config(config)
    except EnlargerError as error:
        raise type(error)(f"{folder / CONFIG_NAME}: {error}") from error
    weights: SafetensorsCheckpoint = open_weights(folder, component.weights_stem, variant, mmap=mmap)
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
    """Components are [library, class]; [null, null] is one that is left out, and the rest are settings."""
    if name.startswith("_") or not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], str):  # pyright: ignore[reportUnknownArgumentType] - JSON
        return False
    if set(name) & set("/\\:\0") or name.startswith("."):
        raise CheckpointError(f"{MODEL_INDEX_NAME}: component {name!r} is not the name of a folder inside the model.")
    return True


def _read_scheduler(path: Path, class_name: str) -> Json:
    """A scheduler's file; where it names another class than model_index.json, that is taken, as diffusers does."""
    config = read_json(path)
    stated = config.get("_class_name")
    if stated not in (None, class_name):
        warnings.warn(
            f"{path}: names {printable_name(str(stated))}, {MODEL_INDEX_NAME} {printable_name(class_name)}; the latter "
            "is taken.",
            stacklevel=3,
        )
    return config if stated == class_name else config | {"_class_name": class_name}


def _require_folder(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(f"{path}: this folder is missing; {MODEL_INDEX_NAME} lists it. Fetch the whole model.")
    return path


def _component_variants(
    path: Path, network_classes: Mapping[str, ComponentClass], variant: str | None
) -> dict[str, str | None]:
    """The variant of each network: those without the wanted one are read plain, unless none has it."""
    has_variant = {
        name: any((path / name / file).is_file() for file in weights_filenames(component.weights_stem, variant))
        for name, component in network_classes.items()
    }
    without_variant = [name for name in network_classes if not has_variant[name]]
    if variant is None or not any(has_variant.values()):
        return dict.fromkeys(network_classes, variant)
    if without_variant:
        warnings.warn(
            f"{path}: {', '.join(without_variant)} has no variant {variant!r}; read plain instead.", stacklevel=3
        )
    return {name: variant if has_variant[name] else None for name in network_classes}
