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

from enlarger.checkpoint.files import DTYPES
from enlarger.errors import InputError

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensor by tensor, the widest types first so that all are aligned; `dtype` converts floating ones."""
    kinds = {name: saved_type(name, tensor, dtype) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} | dict(metadata or {})}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * kinds[name].itemsize
        header[name] = {"dtype": NAMES[kinds[name]], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            flat = tensors[name].detach().to("cpu", kinds[name]).contiguous().reshape(-1)
            if flat.numel():
                file.write(flat.view(torch.uint8).numpy().data)


@contextmanager
def whole_file(path: Path) -> Generator[BinaryIO]:
    """A new file that takes the place of `path` when all went well and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    made = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        made.chmod(0o666 & ~mask)  # the usual permissions, which a temporary file lacks
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)


def saved_type(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type that a tensor is written in. Raises InputError for one without memory."""
    if tensor.is_meta:
        raise InputError(f"{name} is without memory (device meta) and cannot be saved; load the weights first.")
    return tensor.dtype if dtype is None or not tensor.dtype.is_floating_point else dtype
