"""Writing a model in diffusers' folder layout, so that diffusers and transformers read it too."""

import json
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from enlarger.checkpoint.components import (
    COMPONENT_CLASSES,
    CONFIG_NAME,
    MODEL_INDEX_NAME,
    NOISE_FREQUENCIES_NAME,
    SCHEDULER_CONFIG_NAME,
    ComponentClass,
    PipelineComponents,
    network_class_name,
)
from enlarger.checkpoint.tensors.open import weights_filenames
from enlarger.checkpoint.tensors.save_safetensors import save_safetensors, saved_dtype
from enlarger.errors import InputError
from enlarger.strict_json import Json
from enlarger.text.tokenize import Tokenizer

DIFFUSERS_VERSION = "0.30.0"  # `_diffusers_version`: the release whose layout this is
PROVENANCE_KEYS = ("_name_or_path", "_commit_hash")  # where a config came from; of no use to who reads the copy


def save_folder(
    pipeline: PipelineComponents,
    path: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 10_000_000_000,
    *,
    variant: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write all components of a pipeline; those that were skipped in reading are copied from where it was read.

    The folder appears whole or not at all. `dtype` converts floating weights; weights over `max_shard_bytes` are
    split. Raises `InputError` if something is there already, unless `overwrite` replaces it.
    """
    path = Path(path)
    if path.exists() and not overwrite and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: already exists; choose another place or allow overwriting.")
    index = _model_index(pipeline)
    with atomic_folder(path) as folder:
        for name, component in pipeline.components.items():
            if isinstance(component, nn.Module):
                class_name = index[name][1]
                write_network(
                    folder / name,
                    class_name,
                    component,
                    pipeline.network_configs.get(name, {}),
                    dtype,
                    max_shard_bytes,
                    variant,
                )
            elif isinstance(component, Tensor):
                save_safetensors(folder / NOISE_FREQUENCIES_NAME, {"weight": component})
            else:
                _write_component(folder / name, component)
        for name in pipeline.skipped:
            if (pipeline.path / name).is_dir():
                shutil.copytree(pipeline.path / name, folder / name)
        _write_json(folder / MODEL_INDEX_NAME, index)
    return path


@contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """A new folder beside `path` that takes its place when all went well and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        folder, previous = temporary / "new", temporary / "old"
        folder.mkdir()  # with the usual permissions, which the temporary one lacks
        yield folder
        if path.exists():
            path.rename(previous)
        try:
            folder.rename(path)
        except OSError:
            if previous.exists():
                previous.rename(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_network(
    folder: Path,
    class_name: str,
    module: nn.Module,
    read_config: Json,
    dtype: torch.dtype | None,
    max_shard_bytes: int,
    variant: str | None,
) -> None:
    component = COMPONENT_CLASSES[class_name]
    tensors = {_saved_key(component, name): tensor for name, tensor in module.state_dict().items()}
    folder.mkdir()
    _write_json(folder / CONFIG_NAME, _updated_config(component, class_name, module, read_config, tensors, dtype))
    weights_name, index_name = weights_filenames(component.weights_stem, variant)
    shards = _group_into_shards(tensors, dtype, max_shard_bytes)
    if len(shards) == 1:
        save_safetensors(folder / weights_name, tensors, dtype)
        return
    weights_stem = weights_name.removesuffix(".safetensors")
    files = [f"{weights_stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, names in zip(files, shards, strict=True):
        save_safetensors(folder / file, {name: tensors[name] for name in names}, dtype)
    total_size = sum(tensor.numel() * saved_dtype(name, tensor, dtype).itemsize for name, tensor in tensors.items())
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    _write_json(folder / index_name, {"metadata": {"total_size": total_size}, "weight_map": weight_map})


def _write_component(folder: Path, component: Any) -> None:
    """A tokenizer's files, or a scheduler's."""
    folder.mkdir()
    if isinstance(component, Tokenizer):
        for name, text in component.to_files().items():
            (folder / name).write_text(text, "utf-8")
    else:
        _write_json(folder / SCHEDULER_CONFIG_NAME, dict(component))


def _model_index(pipeline: PipelineComponents) -> Json:
    """model_index.json of what is written: components that are not there become [null, null]."""
    index: Json = {"_class_name": "DiffusionPipeline", "_diffusers_version": DIFFUSERS_VERSION} | dict(pipeline.index)
    saved_names = {*pipeline.components, *(name for name in pipeline.skipped if (pipeline.path / name).is_dir())}
    for name, value in pipeline.index.items():
        if isinstance(value, list) and len(value) == 2 and name not in saved_names:  # pyright: ignore[reportUnknownArgumentType] - JSON
            index[name] = [None, None]
    for name, component in pipeline.components.items():
        if isinstance(component, Tensor):
            continue  # beside the index, since no class stands for it
        class_name = _class_name(component, index.get(name))
        library = "transformers" if isinstance(component, Tokenizer) else "diffusers"
        index[name] = [
            COMPONENT_CLASSES[class_name].library if class_name in COMPONENT_CLASSES else library,
            class_name,
        ]
    return {name: index[name] for name in sorted(index)}


def _class_name(component: Any, index_entry: Any) -> str:
    """The class by which model_index.json names a component: the network's own, or else the one stated there."""
    if isinstance(component, Tokenizer):
        return "CLIPTokenizer"
    if not isinstance(component, nn.Module):
        return str(component.get("_class_name"))
    class_name = network_class_name(component)
    class_name = class_name if class_name in COMPONENT_CLASSES or not index_entry else str(index_entry[1])
    if class_name not in COMPONENT_CLASSES:
        raise InputError(
            f"{class_name} is not a network that can be saved; expected one of {', '.join(COMPONENT_CLASSES)}."
        )
    return class_name


def _updated_config(
    component: ComponentClass,
    class_name: str,
    module: nn.Module,
    read_config: Json,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> Json:
    """The config as it was read, brought up to date with the module; our own files name their class too."""
    config = {
        name: value for name, value in read_config.items() if name not in PROVENANCE_KEYS
    } | component.write_config(module.config)
    if component.library == "transformers":
        saved_dtype_of_first = next(saved_dtype(name, tensor, dtype) for name, tensor in tensors.items())
        return config | {"torch_dtype": str(saved_dtype_of_first).removeprefix("torch.")}
    return {"_class_name": class_name, "_diffusers_version": DIFFUSERS_VERSION} | config


def _saved_key(component: ComponentClass, name: str) -> str:
    """Text encoders are saved under the prefix of the official files, which every transformers release reads."""
    return (
        f"text_model.{name}"
        if component.library == "transformers" and not name.startswith("text_projection.")
        else name
    )


def _group_into_shards(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, max_shard_bytes: int
) -> list[list[str]]:
    """Names in their order, in groups of at most `max_shard_bytes`; a larger tensor gets a group of its own."""
    shards: list[list[str]] = [[]]
    shard_bytes = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * saved_dtype(name, tensor, dtype).itemsize
        if shards[-1] and shard_bytes + size > max_shard_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(name)
        shard_bytes += size
    return shards


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
