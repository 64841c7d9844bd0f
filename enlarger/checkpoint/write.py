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

from enlarger.checkpoint.files import weight_names
from enlarger.checkpoint.folder import COMPONENTS, CONFIG, FREQUENCIES, INDEX, SCHEDULER, Bundle, Component
from enlarger.checkpoint.settings import Json
from enlarger.checkpoint.tensorfile import save_tensors, saved_type
from enlarger.errors import InputError
from enlarger.text.tokenize import Tokenizer

SAVED_BY = "0.30.0"  # `_diffusers_version`: the release whose layout this is
OFFICIAL = {"ClipText": "CLIPTextModel", "UNet": "UNet2DConditionModel", "KUNet": "UNet2DConditionModel"}
PLACES = ("_name_or_path", "_commit_hash")  # where a config came from; of no use to who reads the copy


def save_folder(
    bundle: Bundle,
    path: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 10_000_000_000,
    *,
    variant: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write all parts of a bundle; parts that were skipped in reading are copied from where it was read.

    The folder appears whole or not at all. `dtype` converts floating weights; weights over `max_shard_bytes` are
    split. Raises `InputError` if something is there already, unless `overwrite` replaces it.
    """
    path = Path(path)
    if path.exists() and not overwrite and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: already exists; choose another place or allow overwriting.")
    index = _index(bundle)
    with whole_folder(path) as folder:
        for name, part in bundle.components.items():
            if isinstance(part, nn.Module):
                kind = index[name][1]
                _write_network(folder / name, kind, part, bundle.configs.get(name, {}), dtype, max_shard_bytes, variant)
            elif isinstance(part, Tensor):
                save_tensors(folder / FREQUENCIES, {"weight": part})
            else:
                _write_part(folder / name, part)
        for name in bundle.skipped:
            if (bundle.path / name).is_dir():
                shutil.copytree(bundle.path / name, folder / name)
        _write_json(folder / INDEX, index)
    return path


@contextmanager
def whole_folder(path: Path) -> Generator[Path]:
    """A new folder beside `path` that takes its place when all went well and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        folder, old = made / "new", made / "old"
        folder.mkdir()  # with the usual permissions, which the temporary one lacks
        yield folder
        if path.exists():
            path.rename(old)
        try:
            folder.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write_network(
    folder: Path, kind: str, module: nn.Module, raw: Json, dtype: torch.dtype | None, limit: int, variant: str | None
) -> None:
    part = COMPONENTS[kind]
    tensors = {_saved_name(part, name): tensor for name, tensor in module.state_dict().items()}
    folder.mkdir()
    _write_json(folder / CONFIG, _config(part, kind, module, raw, tensors, dtype))
    single, index = weight_names(part.stem, variant)
    groups = _shards(tensors, dtype, limit)
    if len(groups) == 1:
        save_tensors(folder / single, tensors, dtype)
        return
    whole = single.removesuffix(".safetensors")
    files = [f"{whole}-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    for file, names in zip(files, groups, strict=True):
        save_tensors(folder / file, {name: tensors[name] for name in names}, dtype)
    total = sum(tensor.numel() * saved_type(name, tensor, dtype).itemsize for name, tensor in tensors.items())
    places = {name: file for file, names in zip(files, groups, strict=True) for name in names}
    _write_json(folder / index, {"metadata": {"total_size": total}, "weight_map": places})


def _write_part(folder: Path, part: Any) -> None:
    """A tokenizer's files, or a scheduler's."""
    folder.mkdir()
    if isinstance(part, Tokenizer):
        for name, text in part.files().items():
            (folder / name).write_text(text, "utf-8")
    else:
        _write_json(folder / SCHEDULER, dict(part))


def _index(bundle: Bundle) -> Json:
    """model_index.json of what is written: parts that are not there become [null, null]."""
    index: Json = {"_class_name": "DiffusionPipeline", "_diffusers_version": SAVED_BY} | dict(bundle.index)
    kept = {*bundle.components, *(name for name in bundle.skipped if (bundle.path / name).is_dir())}
    for name, value in bundle.index.items():
        if isinstance(value, list) and len(value) == 2 and name not in kept:  # pyright: ignore[reportUnknownArgumentType] - JSON
            index[name] = [None, None]
    for name, part in bundle.components.items():
        if isinstance(part, Tensor):
            continue  # beside the index, since no class stands for it
        kind = _class_name(part, index.get(name))
        library = "transformers" if isinstance(part, Tokenizer) else "diffusers"
        index[name] = [COMPONENTS[kind].library if kind in COMPONENTS else library, kind]
    return {name: index[name] for name in sorted(index)}


def _class_name(part: Any, stated: Any) -> str:
    """The class by which model_index.json names a part: the network's own, or else the one stated there."""
    if isinstance(part, Tokenizer):
        return "CLIPTokenizer"
    if not isinstance(part, nn.Module):
        return str(part.get("_class_name"))
    config: Any = getattr(part, "config", None)
    kind = OFFICIAL.get(type(part).__name__, type(part).__name__)
    if kind == "CLIPTextModel" and config.projection is not None:
        kind = "CLIPTextModelWithProjection"
    kind = kind if kind in COMPONENTS or not stated else str(stated[1])
    if kind not in COMPONENTS:
        raise InputError(f"{kind} is not a network that can be saved; expected one of {', '.join(COMPONENTS)}.")
    return kind


def _config(
    part: Component, kind: str, module: nn.Module, raw: Json, tensors: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Json:
    """The config as it was read, brought up to date with the module; our own files name their class too."""
    config = {name: value for name, value in raw.items() if name not in PLACES} | part.write(module.config)
    if part.library == "transformers":
        first = next(saved_type(name, tensor, dtype) for name, tensor in tensors.items())
        return config | {"torch_dtype": str(first).removeprefix("torch.")}
    return {"_class_name": kind, "_diffusers_version": SAVED_BY} | config


def _saved_name(part: Component, name: str) -> str:
    """Text encoders are saved under the prefix of the official files, which every transformers release reads."""
    return f"text_model.{name}" if part.library == "transformers" and not name.startswith("text_projection.") else name


def _shards(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, limit: int) -> list[list[str]]:
    """Names in their order, in groups of at most `limit` bytes; a larger tensor gets a group of its own."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * saved_type(name, tensor, dtype).itemsize
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
