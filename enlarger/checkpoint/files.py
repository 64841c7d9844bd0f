"""Files of weights: named tensors that are read one at a time, from one file or several shards."""

import json
import math
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Protocol, TypeGuard, cast, overload

import torch
from torch import Tensor

from enlarger.checkpoint.pickles import HOW_TO_ALLOW, PICKLES, PickledWeights, open_pickle, refusal
from enlarger.errors import CheckpointError
from enlarger.jsonfile import Json, read_json, shown, unique

STEMS = ("diffusion_pytorch_model", "model")  # diffusers' and transformers' file names, without their endings
OLD_STEMS = {"model": "pytorch_model"}  # of transformers' pickled files
PICKLED = (b"PK", b"\x80", b"7z\xbc\xaf")  # how torch's files begin, new and old, and what pretends to be one
FIELDS = {"dtype", "shape", "data_offsets"}
LARGEST_HEADER = 100_000_000  # bytes, as in the format's own reader
LONGEST_NAME = 1000
LARGEST = 1 << 60  # bytes or elements: no file has more, and torch can count them
MOST_AXES = 64  # as torch
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


class Tensors(Protocol):
    """Named tensors, whatever holds them; what `build` makes a network of."""

    @property
    def path(self) -> Path: ...
    def names(self) -> tuple[str, ...]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> torch.dtype: ...
    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor: ...


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
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])  # the file's own words about itself
    notes: tuple[str, ...] = ()  # nothing else is in such a file

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
        try:
            tensor = torch.empty(entry.shape, dtype=entry.dtype if keep else dtype)
        except RuntimeError as error:
            raise CheckpointError(f"{entry.file}: {name} of shape {entry.shape} does not fit in memory.") from error
        with _reading(entry, name) as file:
            _fill(file, tensor) if keep else _convert(file, tensor, entry.dtype)
        return tensor

    def blocks(self, name: str) -> Iterator[Tensor]:
        """The tensor's elements, a block at a time; a block is overwritten by the next."""
        entry = self.entries[name]
        left, block = math.prod(entry.shape), torch.empty(BLOCK // entry.dtype.itemsize, dtype=entry.dtype)
        with _reading(entry, name) as file:
            while left:
                part = block[:left]
                _fill(file, part)
                left -= len(part)
                yield part


@contextmanager
def _reading(entry: Entry, name: str) -> Generator[FileIO]:
    """The file at a tensor's first byte."""
    try:
        with entry.file.open("rb", buffering=0) as file:
            file.seek(entry.start)
            yield file
    except (OSError, EOFError) as error:
        raise CheckpointError(f"{entry.file}: {name} cannot be read ({error}); fetch the file again.") from error


@overload
def open_weights(folder: Path, stem: str | None = None, variant: str | None = None) -> Weights: ...
@overload
def open_weights(
    folder: Path, stem: str | None = None, variant: str | None = None, *, allow_pickle: bool
) -> Weights | PickledWeights: ...
def open_weights(
    folder: Path, stem: str | None = None, variant: str | None = None, *, allow_pickle: bool = False
) -> Weights | PickledWeights:
    """The weights in a component's folder: `stem[.variant].safetensors`, or the shards that an index lists.

    `stem` None tries the usual ones. `allow_pickle` takes the old `.bin` file where there are no safetensors. Raises
    `CheckpointError` saying what lies there instead.
    """
    stems = STEMS if stem is None else (stem,)
    for name in stems:
        single, index = weight_names(name, variant)
        if (folder / single).is_file():
            return _open_safetensors(folder / single)
        if (folder / index).is_file():
            return _open_shards(folder / index)
    for name in stems if allow_pickle else ():
        if (folder / pickle_name(name, variant)).is_file():
            return open_file(folder / pickle_name(name, variant), allow_pickle=True)
    raise CheckpointError(_nothing_found(folder, variant, allow_pickle))


def weight_names(stem: str, variant: str | None) -> tuple[str, str]:
    """The names of a whole file and of an index of shards."""
    part = "" if variant is None else f".{variant}"
    return f"{stem}{part}.safetensors", f"{stem}.safetensors.index{part}.json"


def pickle_name(stem: str, variant: str | None) -> str:
    """The name of a whole pickled file; transformers' have another stem than its safetensors."""
    part = "" if variant is None else f".{variant}"
    return f"{OLD_STEMS.get(stem, stem)}{part}.bin"


@overload
def open_file(path: Path) -> Weights: ...
@overload
def open_file(path: Path, *, allow_pickle: bool) -> Weights | PickledWeights: ...
def open_file(path: Path, *, allow_pickle: bool = False) -> Weights | PickledWeights:
    """One file of weights: safetensors, or a pickle where `allow_pickle` says so. Its content decides, not its name.

    Raises `CheckpointError` naming the file, and the tensor where one is concerned, for all that is damaged.
    """
    _, head = _begin(path)
    is_safetensors = head[8:] == b"{"
    if not is_safetensors and (head.startswith(PICKLED) or path.suffix.lower() in PICKLES):
        if not allow_pickle:
            raise CheckpointError(refusal(path))
        return open_pickle(path)
    return _open_safetensors(path)


def _begin(path: Path) -> tuple[int, bytes]:
    """The size and the first bytes of an ordinary file; nothing else is opened, since a pipe would never end."""
    try:
        found = path.stat()
        if not S_ISREG(found.st_mode):
            kind = "a folder" if S_ISDIR(found.st_mode) else "a pipe or device"
            raise CheckpointError(f"{path}: found {kind}, expected a file of weights.")
        with path.open("rb", buffering=0) as file:
            return found.st_size, file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r}: not the name of a file ({error}).") from error


def _open_safetensors(path: Path) -> Weights:
    """One safetensors file. Its header is checked against its size."""
    size, head = _begin(path)
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > min(LARGEST_HEADER, size - 8):
        raise CheckpointError(f"{path}: {size:,} bytes are no whole safetensors file; fetch it again.")
    header = _header(path, length)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(type(each) is not str for each in cast("Json", metadata).values()):
        raise CheckpointError(f"{path}: found other things than texts in __metadata__; fetch it again.")
    entries = {name: _entry(path, name, found, 8 + length) for name, found in header.items()}
    _check_layout(path, entries, 8 + length, size)
    return Weights(path, entries, cast("dict[str, str]", metadata))


def _header(path: Path, length: int) -> Json:
    """The header's one JSON object, each name once."""
    try:
        with path.open("rb") as file:
            file.seek(8)
            found = json.loads(file.read(length).decode(), object_pairs_hook=_once)
        if not isinstance(found, dict):
            raise ValueError(f"found {shown(found)}, expected one object")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged safetensors header ({error}); fetch the file again.") from error
    return cast("Json", found)


@dataclass(frozen=True, repr=False)
class Twice:
    """Stands for a JSON object that names something twice, until it is known what the object describes."""

    problem: str

    def __repr__(self) -> str:
        return f"an object where {self.problem}"


def _once(pairs: list[tuple[str, Any]]) -> Json | Twice:
    try:
        return unique(pairs)
    except ValueError as error:
        return Twice(str(error))


def _entry(path: Path, name: str, found: Any, data: int) -> Entry:
    """One tensor's place, whose bytes begin at `data`."""
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise CheckpointError(
            f"{path}: found the name {shown(name)}, expected at most {LONGEST_NAME} plain characters."
        )
    if not isinstance(found, dict) or set(cast("Json", found)) != FIELDS:
        raise CheckpointError(f"{path}: {name} is described by {shown(found)}, expected {', '.join(sorted(FIELDS))}.")
    kind, shape, offsets = (cast("Json", found)[each] for each in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or kind not in DTYPES:
        raise CheckpointError(f"{path}: {name} has type {shown(kind)}, expected one of {', '.join(DTYPES)}.")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"{path}: {name} has shape {shown(shape)} and bytes {shown(offsets)}, expected lists of whole numbers, two "
            "for the bytes."
        )
    entry = Entry(path, DTYPES[kind], tuple(shape), data + offsets[0], data + offsets[1])
    length, elements = offsets[1] - offsets[0], math.prod(entry.shape)
    if length != elements * entry.dtype.itemsize or math.prod(side or 1 for side in shape) >= LARGEST:
        raise CheckpointError(f"{path}: {name} of shape {shown(entry.shape)} does not fill its {length:,} bytes.")
    return entry


def _are_counts(found: Any) -> TypeGuard[list[int]]:
    if not isinstance(found, list) or len(cast("list[Any]", found)) > MOST_AXES:
        return False
    return all(type(each) is int and 0 <= each < LARGEST for each in cast("list[Any]", found))


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
    files = {name: _open_safetensors(_shard(index, name)) for name in sorted(set(places.values()))}
    entries = {key: entry for file in files.values() for key, entry in file.entries.items()}
    differ = sorted(set(entries) ^ set(places))
    differ += [
        key for key, count in Counter(key for file in files.values() for key in file.names()).items() if count > 1
    ]
    differ += [key for key, place in places.items() if key in entries and entries[key].file != files[place].path]
    if differ:
        raise CheckpointError(f"{index}: the index and the shards disagree about {', '.join(differ[:10])}.")
    stated = [file.metadata for file in files.values()]
    return Weights(
        index, entries, {key: text for key, text in stated[0].items() if all(each.get(key) == text for each in stated)}
    )


def _shard(index: Path, name: str) -> Path:
    """The file beside the index; a name that leads elsewhere is refused."""
    if not name.endswith(".safetensors") or name.startswith(".") or set(name) & set("/\\:\0"):
        raise CheckpointError(f"{index}: shard {name!r} is not the name of a safetensors file in the same folder.")
    if not (index.parent / name).is_file():
        raise CheckpointError(f"{index.parent / name}: this shard is missing; {index.name} lists it.")
    return index.parent / name


def _nothing_found(folder: Path, variant: str | None, allow_pickle: bool) -> str:
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    asked = "weights" if variant is None else f"weights of variant {variant!r}"
    tensors = [name for name in found if name.endswith((".safetensors", ".json")) and name.startswith(STEMS)]
    pickles = [name for name in found if name.endswith(PICKLES)]
    if tensors:
        return f"{folder}: no {asked}, but {', '.join(tensors)}; choose the variant that is there, or none."
    if pickles and not allow_pickle:
        return f"{folder}: found only {', '.join(pickles)}, pickles, programs that run when opened. {HOW_TO_ALLOW}."
    expected = " or ".join(weight_names(stem, variant)[0] for stem in STEMS)
    also = f", or {' or '.join(pickle_name(stem, variant) for stem in STEMS)}" if allow_pickle else ""
    there = f"found only {', '.join(pickles)}; " if pickles else ""
    return f"{folder}: no {asked}; {there}expected {expected}{also}."


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
