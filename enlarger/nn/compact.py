"""What the bundled model's networks are built of: residual blocks, and bicubic interpolation."""

from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions added to their input (Lim et al. 2017, EDSR: no normalisation)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.conv1(x), inplace=True)  # in place: large features cost more to allocate than to change
        return self.conv2(hidden).add_(x)


def zero_module(module: Module) -> Module:
    """The module with all its parameters 0, so that what it adds starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def upsample_bicubic(picture: Tensor) -> Tensor:
    """Twice the size by Keys' cubic convolution with a = -0.5, Pillow's `BICUBIC`."""
    return F.interpolate(picture, scale_factor=2, mode="bicubic", antialias=True)


def downsample_bicubic(picture: Tensor) -> Tensor:
    """Half the size by the antialiased cubic with a = -0.5, Pillow's `BICUBIC`."""
    return F.interpolate(picture, scale_factor=0.5, mode="bicubic", antialias=True)
