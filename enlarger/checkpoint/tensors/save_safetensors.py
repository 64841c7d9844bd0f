"""Writing one safetensors file, whole or not at all, with what it says about itself."""

import json
import os
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from enlarger.checkpoint.tensors.safetensors_file import DTYPES
from enlarger.errors import InputError

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensor by tensor, the widest types first so that all are aligned; `dtype` converts floating ones."""
    saved_dtypes = {name: saved_dtype(name, tensor, dtype) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-saved_dtypes[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} | dict(metadata or {})}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * saved_dtypes[name].itemsize
        header[name] = {
            "dtype": DTYPE_NAMES[saved_dtypes[name]],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    header_bytes = json.dumps(header, separators=(",", ":")).encode()
    header_bytes += b" " * (-len(header_bytes) % 8)
    with atomic_file(path) as file:
        file.write(len(header_bytes).to_bytes(8, "little") + header_bytes)
        for name in order:
            flat = tensors[name].detach().to("cpu", saved_dtypes[name]).contiguous().reshape(-1)
            if flat.numel():
                file.write(flat.view(torch.uint8).numpy().data)


@contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO]:
    """A new file that takes the place of `path` when all went well and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # the usual permissions, which a temporary file lacks
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def saved_dtype(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type that a tensor is written in. Raises InputError for one without memory."""
    if tensor.is_meta:
        raise InputError(f"{name} is without memory (device meta) and cannot be saved; load the weights first.")
    return tensor.dtype if dtype is None or not tensor.dtype.is_floating_point else dtype
