"""What a network is, in a hash: its weights, its layers and their settings."""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

SETTING = (bool, int, float, str, tuple)  # types of attributes that change what a layer computes


@dataclass(frozen=True)
class NetworkDigests:
    """The hashes of networks; of each it is computed anew when its weights were changed."""

    known: WeakKeyDictionary[nn.Module, tuple[Hashable, str]] = field(
        default_factory=WeakKeyDictionary[nn.Module, tuple[Hashable, str]]
    )

    def __call__(self, network: nn.Module) -> str:
        state, known = _state(network), self.known.get(network)
        if known is None or known[0] != state:
            known = self.known[network] = state, network_digest(network)
        return known[1]


def network_digest(network: nn.Module) -> str:
    """The sha256 of all weights, under their names and in their types, and of every layer's class and settings."""
    digest = hashlib.sha256()
    layers: dict[str, nn.Module] = dict(network.named_modules())  # pyright: ignore[reportUnknownArgumentType] - torch's
    for name, layer in layers.items():
        settings = [f"{key}={value!r}" for key, value in sorted(vars(layer).items()) if isinstance(value, SETTING)]
        digest.update(repr((name, type(layer).__qualname__, settings)).encode())
    for name, tensor in network.state_dict(keep_vars=True).items():
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _state(network: nn.Module) -> Hashable:
    """Other after any change of the weights, and cheap: where they are, and how often they were written."""
    return tuple(_tensor_state(tensor) for tensor in (*network.parameters(), *network.buffers()))


def _tensor_state(tensor: Tensor) -> Hashable:
    version = None if tensor.is_inference() else tensor._version  # pyright: ignore[reportPrivateUsage] - torch's only
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), version
