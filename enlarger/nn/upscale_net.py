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
LEVEL = 2 / 255  # one step of an 8-bit picture, in -1..1


@dataclass(frozen=True)
class UpscaleNetConfig:
    """Sizes of `UpscaleNet`: width and residual blocks at the input's resolution and half of it, extra inputs."""

    channels: int = 48
    blocks: int = 6
    inner_channels: int = 96
    inner_blocks: int = 3
    extra_channels: int = 0  # planes that join the picture, such as the strength of a restoration


class UpscaleNet(nn.Module):
    """Residual blocks (Lim et al. 2017, EDSR) with a branch at half resolution, added to the bicubic enlargement.

    Where the surroundings are of one colour nothing is added, so that flat areas stay flat to the border.
    """

    def __init__(self, config: UpscaleNetConfig) -> None:
        super().__init__()
        self.config = config
        width, inner = config.channels, config.inner_channels
        self.head = nn.Conv2d(3 + config.extra_channels, width, 3, padding=1)
        self.before = nn.ModuleList(ResidualBlock(width) for _ in range(config.blocks // 2))
        if config.inner_blocks:
            self.shrink = nn.Conv2d(width, inner, 2, stride=2)
            self.grow = zero_module(nn.Conv2d(inner, 4 * width, 1))
        self.inner = nn.ModuleList(ResidualBlock(inner) for _ in range(config.inner_blocks))
        self.after = nn.ModuleList(ResidualBlock(width) for _ in range(config.blocks - config.blocks // 2))
        self.tail = zero_module(nn.Conv2d(width, 12, 3, padding=1))

    @property
    def size_multiple(self) -> int:
        """Pieces of a picture start at multiples of this many input pixels."""
        return 2

    @property
    def receptive_radius(self) -> int:
        """Input pixels on each side that an output can depend on, at most."""
        coarse = 2 * (2 * self.config.inner_blocks) + 2 if self.config.inner_blocks else 0
        return 2 + 2 * self.config.blocks + coarse

    def forward(self, picture: Tensor, extra: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) in -1..1, and (B, extra, H, W) where the config asks for it, to (B, 3, 2H, 2W)."""
        height, width = picture.shape[-2:]
        even = F.pad(picture, (0, width % 2, 0, height % 2), mode="replicate")
        inputs = even if extra is None else torch.cat([even, F.pad(extra, (0, width % 2, 0, height % 2))], 1)
        x = shallow = self.head(inputs)  # (B, C, H, W)
        for block in self.before:
            x = block(x)
        if self.config.inner_blocks:
            x = x + self._coarse(x)
        for block in self.after:
            x = block(x)
        rest = F.pixel_shuffle(self.tail(x + shallow), 2)[..., : 2 * height, : 2 * width]
        return upsample_bicubic(picture) + unevenness(picture) * rest

    def _coarse(self, x: Tensor) -> Tensor:
        """What half the resolution has to add, (B, C, H, W)."""
        x = self.shrink(x)  # (B, I, H/2, W/2)
        for block in self.inner:
            x = block(x)
        return F.pixel_shuffle(self.grow(x), 2)


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
