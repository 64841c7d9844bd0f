"""safetensors files: named tensors that are read one at a time, from one file or several shards."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from enlarger.errors import CheckpointError
from enlarger.jsonfile import read_json

STEMS = ("diffusion_pytorch_model", "model")  # diffusers' and transformers' file names, without their endings
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
LARGEST_HEADER = 100_000_000  # bytes, as in the format's own reader
BLOCK = 1 << 20  # bytes converted at a time
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: bytes `start` up to `stop` of `file`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Weights:
    """Named tensors of one file or of all its shards; nothing is read before `read`.

    What `read` returns is memory of its own, not a view of the file: the file may be replaced or deleted afterwards.
    """

    path: Path  # the file, or the index that lists the shards
    entries: Mapping[str, Entry]

    def names(self) -> tuple[str, ...]:
        return tuple(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.entries[name].dtype

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, converted block by block where it is floating and `dtype` asks for another type."""
        entry = self.entries[name]
        keep = dtype is None or not entry.dtype.is_floating_point or dtype == entry.dtype
        tensor = torch.empty(entry.shape, dtype=entry.dtype if keep else dtype)
        try:
            with entry.file.open("rb", buffering=0) as file:
                file.seek(entry.start)
                _fill(file, tensor) if keep else _convert(file, tensor, entry.dtype)
        except (OSError, EOFError) as error:
            raise CheckpointError(f"{entry.file}: {name} cannot be read ({error}); fetch the file again.") from error
        return tensor


def open_weights(folder: Path, stem: str | None = None, variant: str | None = None) -> Weights:
    """The weights in a component's folder: `stem[.variant].safetensors`, or the shards that an index lists.

    `stem` None tries the usual ones. Raises `CheckpointError` saying what lies there instead.
    """
    for name in STEMS if stem is None else (stem,):
        single, index = weight_names(name, variant)
        if (folder / single).is_file():
            return open_file(folder / single)
        if (folder / index).is_file():
            return _open_shards(folder / index)
    raise CheckpointError(_nothing_found(folder, variant))


def weight_names(stem: str, variant: str | None) -> tuple[str, str]:
    """The names of a whole file and of an index of shards."""
    part = "" if variant is None else f".{variant}"
    return f"{stem}{part}.safetensors", f"{stem}.safetensors.index{part}.json"


def open_file(path: Path) -> Weights:
    """One safetensors file. Its header is checked against its size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(LARGEST_HEADER, size - 8):
                raise CheckpointError(f"{path}: {size:,} bytes are no whole safetensors file; fetch it again.")
            header = json.loads(file.read(length))
        entries = dict(_entries(path, header, 8 + length))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged safetensors header ({error!r}); fetch the file again.") from error
    _check_layout(path, entries, 8 + length, size)
    return Weights(path, entries)


def _entries(path: Path, header: Mapping[str, Any], data: int) -> Iterator[tuple[str, Entry]]:
    for name, found in header.items():
        if name == "__metadata__":
            continue
        if found["dtype"] not in DTYPES:
            raise CheckpointError(f"{path}: {name} has type {found['dtype']}, expected one of {', '.join(DTYPES)}.")
        shape = tuple(int(side) for side in found["shape"])
        start, stop = (int(offset) for offset in found["data_offsets"])
        entry = Entry(path, DTYPES[found["dtype"]], shape, data + start, data + stop)
        if min((*shape, start)) < 0 or stop - start != math.prod(shape) * entry.dtype.itemsize:
            raise CheckpointError(f"{path}: {name} of shape {shape} does not fill its {stop - start:,} bytes.")
        yield name, entry


def _check_layout(path: Path, entries: Mapping[str, Entry], data: int, size: int) -> None:
    """The tensors follow each other without gaps and end with the file."""
    end = data
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise CheckpointError(f"{path}: {name} begins at byte {entry.start:,}, expected {end:,}; fetch it again.")
        end = entry.stop
    if end != size:
        state = "cut short" if end > size else "too long"
        raise CheckpointError(f"{path}: {state}: {size:,} bytes, its header promises {end:,}; fetch the file again.")


def _open_shards(index: Path) -> Weights:
    listed: Any = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index}: no weight_map; expected the file of each weight.")
    places = {key: str(place) for key, place in cast("dict[str, Any]", listed).items()}
    files = {name: _shard(index, name) for name in sorted(set(places.values()))}
    entries = {key: entry for file in files.values() for key, entry in open_file(file).entries.items()}
    differ = sorted(set(entries) ^ set(places))
    differ += [key for key, place in places.items() if key in entries and entries[key].file != files[place]]
    if differ:
        raise CheckpointError(f"{index}: the index and the shards disagree about {', '.join(differ[:10])}.")
    return Weights(index, entries)


def _shard(index: Path, name: str) -> Path:
    """The file beside the index; a name that leads elsewhere is refused."""
    if not name.endswith(".safetensors") or name.startswith(".") or set(name) & set("/\\:\0"):
        raise CheckpointError(f"{index}: shard {name!r} is not the name of a safetensors file in the same folder.")
    if not (index.parent / name).is_file():
        raise CheckpointError(f"{index.parent / name}: this shard is missing; {index.name} lists it.")
    return index.parent / name


def _nothing_found(folder: Path, variant: str | None) -> str:
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    asked = "weights" if variant is None else f"weights of variant {variant!r}"
    tensors = [name for name in found if name.endswith((".safetensors", ".json")) and name.startswith(STEMS)]
    if tensors:
        return f"{folder}: no {asked}, but {', '.join(tensors)}; choose the variant that is there, or none."
    if any(name.endswith(PICKLES) for name in found):
        pickles = ", ".join(name for name in found if name.endswith(PICKLES))
        return (
            f"{folder}: found only {pickles}. Such files are programs that run when opened, so only safetensors are "
            "read. Convert once where you trust the file: DiffusionPipeline.from_pretrained(folder, "
            "use_safetensors=False).save_pretrained(new_folder) of diffusers, or fetch the safetensors files."
        )
    return f"{folder}: no {asked}; expected {' or '.join(weight_names(stem, variant)[0] for stem in STEMS)}."


def _fill(file: FileIO, tensor: Tensor) -> None:
    """Read exactly as many bytes as the contiguous tensor has."""
    left = tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")
    while left:
        read = file.readinto(left)
        if not read:
            raise EOFError("the file ends early")
        left = left[read:]


def _convert(file: FileIO, tensor: Tensor, dtype: torch.dtype) -> None:
    """Read elements of `dtype` into a tensor of another type, holding one block of them at a time."""
    block = torch.empty(BLOCK // dtype.itemsize, dtype=dtype)
    flat, size = tensor.reshape(-1), len(block)
    for start in range(0, len(flat), size):
        part = flat[start : start + size]
        _fill(file, block[: len(part)])
        part.copy_(block[: len(part)])
