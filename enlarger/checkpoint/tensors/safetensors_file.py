"""Safetensors files: named tensors that are read one at a time, from one file or several shards."""

import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, TypeGuard

import torch
from torch import Tensor

from enlarger.errors import CheckpointError
from enlarger.runtime.mapped_file import map_file
from enlarger.strict_json import Json, is_array, is_object, parse_json, reject_duplicate_keys, short_repr

TENSOR_INFO_KEYS = {"dtype", "shape", "data_offsets"}
MAX_HEADER_BYTES = 100_000_000  # bytes, as in the format's own reader
MAX_HEADER_VALUES = 250_000  # texts, numbers, lists and objects in it: those of 20,000 tensors
MAX_NAME_LENGTH = 1000
MAX_ELEMENTS = 1 << 60  # bytes or elements: no file has more, and torch can count them
MAX_DIMS = 64  # as torch
BLOCK_BYTES = 1 << 20  # bytes converted at a time
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
class TensorInfo:
    """Where a tensor lies: bytes `start` up to `end` of `file`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def is_aligned(self) -> bool:
        """Whether it can be used where it lies: there is something, at a place that its type allows."""
        return self.start < self.end and self.start % self.dtype.itemsize == 0


@dataclass(frozen=True)
class SafetensorsCheckpoint:
    """Named tensors of one file or of all its shards; nothing is read before `get_tensor`.

    What `get_tensor` returns is memory of its own, and the file may change afterwards. With `mapped_files` it lies in
    the file, which may be replaced or deleted but not written to, see `map_file`.
    """

    path: Path  # the file, or the index that lists the shards
    tensor_infos: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])  # what the file says about itself
    notes: tuple[str, ...] = ()  # nothing else is in such a file
    mapped_files: dict[Path, Tensor] | None = field(default=None, repr=False, compare=False)  # those mapped so far

    def keys(self) -> tuple[str, ...]:
        return tuple(self.tensor_infos)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensor_infos[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.tensor_infos[name].dtype

    def get_tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, converted block by block where it is floating and `dtype` is another type."""
        info = self.tensor_infos[name]
        same_dtype = dtype is None or not info.dtype.is_floating_point or dtype == info.dtype
        if same_dtype and self.mapped_files is not None and info.is_aligned:
            return _view_mapped(self.mapped_files, info, name)
        try:
            tensor = torch.empty(info.shape, dtype=info.dtype if same_dtype else dtype)
        except RuntimeError as error:
            raise CheckpointError(f"{info.file}: {name} of shape {info.shape} does not fit in memory.") from error
        with _open_at(info, name) as file:
            _read_into(file, tensor) if same_dtype else _read_converted(file, tensor, info.dtype)
        return tensor

    def iter_blocks(self, name: str) -> Iterator[Tensor]:
        """The tensor's elements, a block at a time; a block is overwritten by the next."""
        info = self.tensor_infos[name]
        remaining, block = math.prod(info.shape), torch.empty(BLOCK_BYTES // info.dtype.itemsize, dtype=info.dtype)
        with _open_at(info, name) as file:
            while remaining:
                part = block[:remaining]
                _read_into(file, part)
                remaining -= len(part)
                yield part


def _view_mapped(mapped_files: dict[Path, Tensor], info: TensorInfo, name: str) -> Tensor:
    """The tensor where it lies in its file, which is mapped when the first one is asked for."""
    if info.file not in mapped_files:
        with _open_at(info, name) as file:
            mapped_files[info.file] = map_file(file, info.file)
    whole = mapped_files[info.file]
    if len(whole) < info.end:
        raise _unreadable(info, name, "the file ends early")
    return whole[info.start : info.end].view(info.dtype).view(info.shape)


def _unreadable(info: TensorInfo, name: str, reason: object) -> CheckpointError:
    return CheckpointError(f"{info.file}: {name} cannot be read ({reason}); fetch the file again.")


@contextmanager
def _open_at(info: TensorInfo, name: str) -> Generator[FileIO]:
    """The file at a tensor's first byte."""
    try:
        with info.file.open("rb", buffering=0) as file:
            file.seek(info.start)
            yield file
    except (OSError, EOFError) as error:
        raise _unreadable(info, name, error) from error


def size_and_magic(path: Path) -> tuple[int, bytes]:
    """The size and the first bytes of an ordinary file; nothing else is opened, since a pipe would never end."""
    try:
        file_stat = path.stat()
        if not S_ISREG(file_stat.st_mode):
            kind = "a folder" if S_ISDIR(file_stat.st_mode) else "a pipe or device"
            raise CheckpointError(f"{path}: found {kind}, expected a file of weights.")
        with path.open("rb", buffering=0) as file:
            return file_stat.st_size, file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r}: not the name of a file ({error}).") from error


def open_safetensors(path: Path, *, mmap: bool = False) -> SafetensorsCheckpoint:
    """One safetensors file. Its header is checked against its size. With `mmap` its tensors stay in it."""
    size, magic = size_and_magic(path)
    length = int.from_bytes(magic[:8], "little")
    if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(f"{path}: {size:,} bytes are no whole safetensors file; fetch it again.")
    header = _read_header(path, length)
    metadata = header.pop("__metadata__", {})
    if not _is_text_table(metadata):
        raise CheckpointError(f"{path}: found other things than texts in __metadata__; fetch it again.")
    tensor_infos = {name: _parse_tensor_info(path, name, found, 8 + length) for name, found in header.items()}
    _check_offsets(path, tensor_infos, 8 + length, size)
    return SafetensorsCheckpoint(path, tensor_infos, metadata, mapped_files={} if mmap else None)


def _read_header(path: Path, length: int) -> Json:
    """The header's one JSON object, each name once."""
    try:
        with path.open("rb") as file:
            file.seek(8)
            header = parse_json(file.read(length).decode(), _mark_duplicate_keys, MAX_HEADER_VALUES)
        if not is_object(header):
            raise ValueError(f"found {short_repr(header)}, expected one object")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged safetensors header ({error}); fetch the file again.") from error
    return header


@dataclass(frozen=True, repr=False)
class DuplicateKeys:
    """Stands for a JSON object that names something twice, until it is known what the object describes."""

    problem: str

    def __repr__(self) -> str:
        return f"an object where {self.problem}"


def _mark_duplicate_keys(pairs: list[tuple[str, Any]]) -> Json | DuplicateKeys:
    try:
        return reject_duplicate_keys(pairs)
    except ValueError as error:
        return DuplicateKeys(str(error))


def _parse_tensor_info(path: Path, name: str, description: Any, data_start: int) -> TensorInfo:
    """One tensor's place in a file whose tensors begin at byte `data_start`."""
    if len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise CheckpointError(
            f"{path}: found the name {short_repr(name)}, expected at most {MAX_NAME_LENGTH} plain characters."
        )
    if not is_object(description) or set(description) != TENSOR_INFO_KEYS:
        raise CheckpointError(
            f"{path}: {name} is described by {short_repr(description)}, expected {', '.join(sorted(TENSOR_INFO_KEYS))}."
        )
    dtype_name, shape, offsets = (description[each] for each in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
        raise CheckpointError(f"{path}: {name} has type {short_repr(dtype_name)}, expected one of {', '.join(DTYPES)}.")
    if not _is_count_list(shape) or not _is_count_list(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"{path}: {name} has shape {short_repr(shape)} and bytes {short_repr(offsets)}, expected lists of whole "
            "numbers, two for the bytes."
        )
    info = TensorInfo(path, DTYPES[dtype_name], tuple(shape), data_start + offsets[0], data_start + offsets[1])
    length, elements = offsets[1] - offsets[0], math.prod(info.shape)
    if length != elements * info.dtype.itemsize or math.prod(side or 1 for side in shape) >= MAX_ELEMENTS:
        raise CheckpointError(f"{path}: {name} of shape {short_repr(info.shape)} does not fill its {length:,} bytes.")
    return info


def _is_text_table(value: object) -> TypeGuard[dict[str, str]]:
    return is_object(value) and all(type(each) is str for each in value.values())


def _is_count_list(value: object) -> TypeGuard[list[int]]:
    if not is_array(value) or len(value) > MAX_DIMS:
        return False
    return all(type(each) is int and 0 <= each < MAX_ELEMENTS for each in value)


def _check_offsets(path: Path, tensor_infos: Mapping[str, TensorInfo], data_start: int, size: int) -> None:
    """The tensors follow each other without gaps and end with the file."""
    end = data_start
    for name, info in sorted(tensor_infos.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != end:
            raise CheckpointError(f"{path}: {name} begins at byte {info.start:,}, expected {end:,}; fetch it again.")
        end = info.end
    if end != size:
        state = "cut short" if end > size else "too long"
        raise CheckpointError(f"{path}: {state}: {size:,} bytes, its header promises {end:,}; fetch the file again.")


def _read_into(file: FileIO, tensor: Tensor) -> None:
    """Read exactly as many bytes as the contiguous tensor has."""
    remaining = tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")
    while remaining:
        read = file.readinto(remaining)
        if not read:
            raise EOFError("the file ends early")
        remaining = remaining[read:]


def _read_converted(file: FileIO, tensor: Tensor, dtype: torch.dtype) -> None:
    """Read elements of `dtype` into a tensor of another type, holding one block of them at a time."""
    block = torch.empty(BLOCK_BYTES // dtype.itemsize, dtype=dtype)
    flat, size = tensor.reshape(-1), len(block)
    for start in range(0, len(flat), size):
        part = flat[start : start + size]
        _read_into(file, block[: len(part)])
        part.copy_(block[: len(part)])
