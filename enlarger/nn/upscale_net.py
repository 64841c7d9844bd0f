"""The bundled model's network: a picture to its enlargement by 2 in one call.

Every layer sees a bounded neighbourhood and none takes statistics over the picture, so a picture enlarged in
overlapping tiles is the same as one enlarged whole.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enlarger.nn.compact import ResidualBlock, downsample_bicubic, upsample_bicubic, zero_module

FLAT_WINDOW = 5  # input pixels on a side: bicubic enlargement looks no further
BACKPROJECTION_RADIUS = 5  # input pixels: the cubics of both sizes reach two each
LEVEL = 2 / 255  # one step of an 8-bit picture, in -1..1


@dataclass(frozen=True)
class UpscaleNetConfig:
    """Sizes of `UpscaleNet`: its width, the number of its residual blocks, and planes that join the picture."""

    channels: int = 48
    blocks: int = 6
    extra_channels: int = 0  # such as the strength of a restoration


class UpscaleNet(nn.Module):
    """Residual blocks at the input's resolution (Lim et al. 2017, EDSR), added to the bicubic enlargement.

    Untrained it is exactly that enlargement. Where the surroundings are of one colour nothing is added, so that flat
    areas stay flat to the border.
    """

    def __init__(self, config: UpscaleNetConfig) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Conv2d(3 + config.extra_channels, config.channels, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(config.channels) for _ in range(config.blocks))
        self.tail = zero_module(nn.Conv2d(config.channels, 12, 3, padding=1))

    @property
    def receptive_radius(self) -> int:
        """Input pixels on each side that an output can depend on, at most."""
        return 2 + 2 * self.config.blocks

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 3 + extra, H, W), a picture in -1..1 and the planes that the config asks for, to (B, 3, 2H, 2W)."""
        picture = inputs[:, :3]
        x = shallow = self.head(inputs)  # (B, C, H, W)
        for block in self.blocks:
            x = block(x)
        rest = F.pixel_shuffle(self.tail(x + shallow), 2)
        return upsample_bicubic(picture) + unevenness(picture) * rest


def unevenness(picture: Tensor) -> Tensor:
    """0 where the surroundings in a picture (B, 3, H, W) are of one colour, 1 where they differ by two 8-bit steps.

    (B, 1, 2H, 2W), in sudden steps, for the enlarged picture.
    """
    with torch.no_grad():
        margin = FLAT_WINDOW // 2
        spread = F.max_pool2d(picture, FLAT_WINDOW, 1, margin) + F.max_pool2d(-picture, FLAT_WINDOW, 1, margin)
        gate = (spread.amax(1, keepdim=True) / (2 * LEVEL)).clamp(max=1)
        return F.interpolate(gate, scale_factor=2, mode="nearest")


def backproject(large: Tensor, small: Tensor) -> Tensor:
    """One round of iterative back-projection (Irani and Peleg 1991): the half of the result is nearer to `small`."""
    return large + upsample_bicubic(small - downsample_bicubic(large))


class Backprojected(nn.Module):
    """A network whose enlargements are back-projected once, as `backproject` does."""

    def __init__(self, network: UpscaleNet) -> None:
        super().__init__()
        self.network = network

    @property
    def receptive_radius(self) -> int:
        """Input pixels on each side that an output can depend on, at most."""
        return self.network.receptive_radius + BACKPROJECTION_RADIUS

    def forward(self, picture: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 to (B, 3, 2H, 2W)."""
        return backproject(self.network(picture), picture)
