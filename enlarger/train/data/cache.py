"""What frozen networks make of pictures and captions, on disk: computed once, by content, model and size."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from enlarger.errors import InputError
from enlarger.image.atomic_write import atomic_write

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class TensorCache:
    """A folder of safetensors named by what they follow from; `model` tells apart what other weights make."""

    folder: Path
    model: str

    def get(self, content: str, compute: Callable[[], Tensors]) -> dict[str, Tensor]:
        """What lies there for `content`, or else is computed and put there; on the CPU.

        What another precision of autocast makes has its own place. A file that cannot be read is made again. Raises
        InputError where the folder cannot be written.
        """
        key = hashlib.sha256(f"{self.model}\0{_autocast()}\0{content}".encode()).hexdigest()
        path = self.folder / key[:2] / f"{key}.safetensors"
        try:
            return safetensors.torch.load(path.read_bytes())
        except (OSError, SafetensorError):
            tensors = {name: value.detach().cpu().contiguous() for name, value in compute().items()}
            self._put(path, tensors)
            return tensors

    def _put(self, path: Path, tensors: dict[str, Tensor]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, durable=False) as stream:
                stream.write(safetensors.torch.save(tensors))
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"{path}: cannot be written ({reason}); make room, or leave the cache out") from error


def _autocast() -> str:
    """The precisions that are computed in here, where they are not the weights' own."""
    devices = [device for device in ("cpu", "cuda", "mps") if torch.is_autocast_enabled(device)]
    return " ".join(f"{torch.get_autocast_dtype(device)}" for device in devices)


def weights_digest(*modules: nn.Module) -> str:
    """What tells networks apart: the SHA-256 of their configs, and of their weights' names, types and bytes."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(repr(getattr(module, "config", None)).encode())
        for name, value in module.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
