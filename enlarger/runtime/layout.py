"""How feature maps lie in memory while a network runs: convolutions and attention keep the layout of what they get."""

import torch
from torch import nn

ENTRANCE_CHANNELS = 16  # at most, of pictures, latents and what joins them; features have more


def use_layout(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Let a network's features lie in `memory_format`. Only the convolutions of few channels, by which pictures and
    latents enter, are laid out anew: what follows keeps the layout, and large weights stay where they are."""
    if memory_format == torch.contiguous_format:
        return
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels <= ENTRANCE_CHANNELS and not _is_channels_last(layer):
            layer.weight.data = layer.weight.data.clone(memory_format=memory_format)


def _is_channels_last(layer: nn.Conv2d) -> bool:
    """By its strides: torch takes kernels of one pixel for both."""
    return layer.weight.stride(3) == layer.weight.shape[1]
