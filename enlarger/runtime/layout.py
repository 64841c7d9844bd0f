"""How feature maps lie in memory while a network runs: what follows a convolution keeps the layout of its result."""

import torch
from torch import nn


def use_layout(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Let a network's features lie in `memory_format`, once: the weights of its convolutions are laid out alike."""
    if memory_format == torch.contiguous_format:
        return
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and not _is_channels_last(layer):
            layer.weight.data = layer.weight.data.clone(memory_format=memory_format)


def _is_channels_last(layer: nn.Conv2d) -> bool:
    """By its strides: torch takes kernels of one pixel for both."""
    return layer.weight.stride(3) == layer.weight.shape[1]
