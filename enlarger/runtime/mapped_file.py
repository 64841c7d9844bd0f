"""Weights that stay in their files: mapped into memory, read when they are first used, never written back."""

import mmap
import os
import weakref
from dataclasses import dataclass
from io import FileIO
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from enlarger.errors import CheckpointError


@dataclass(frozen=True)
class _Mapping:
    """A file that is mapped, and what it was then; a file that took its name since is another one."""

    path: Path
    descriptor: int
    size: int
    written: int  # nanoseconds: when it was last written to

    def is_changed(self) -> bool:
        found = os.fstat(self.descriptor)
        return (found.st_size, found.st_mtime_ns) != (self.size, self.written)


_mappings: dict[int, _Mapping] = {}  # by the address of the first byte, as long as a tensor lies there


def map_file(file: FileIO, path: Path) -> Tensor:
    """All bytes of an open file, (size,) uint8. What is written to the tensor stays in memory.

    The file may be closed, replaced by another, or deleted. It must not be written to, see `check_unchanged`.
    """
    descriptor = os.dup(file.fileno())
    found = os.fstat(descriptor)
    mapped = mmap.mmap(descriptor, found.st_size, access=mmap.ACCESS_COPY)
    whole = torch.frombuffer(mapped, dtype=torch.uint8)
    _mappings[whole.data_ptr()] = _Mapping(path, descriptor, found.st_size, found.st_mtime_ns)
    weakref.finalize(mapped, _forget, whole.data_ptr())
    return whole


def _forget(address: int) -> None:
    os.close(_mappings.pop(address).descriptor)


def changed_files(module: nn.Module) -> list[Path]:
    """The files that weights of a module lie in and that were written to since they were mapped."""
    if not _mappings:
        return []
    tensors = chain(module.parameters(), module.buffers())
    addresses = {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.device.type == "cpu"}
    return [found.path for address in addresses if (found := _mappings.get(address)) is not None and found.is_changed()]


def check_unchanged(module: nn.Module) -> None:
    """Raises CheckpointError for a file of the module's weights that was written to: they are others now, or gone."""
    for path in changed_files(module):
        raise CheckpointError(
            f"{path}: was written to while its weights were in use, which are read from it; load the model again, or "
            "copy the weights of a file that changes (mmap=False, on the command line --no-mmap)"
        )
