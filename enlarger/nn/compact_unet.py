"""The bundled model's denoiser: a small UNet without attention or statistics over the picture.

Its normalisation is over the channels of each pixel, so that a bounded neighbourhood decides each output and tiles
equal the whole.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enlarger.nn.compact import zero_module


@dataclass(frozen=True)
class CompactStage:
    """One resolution: its width, and the residual blocks on the way down and again on the way up."""

    channels: int
    blocks: int


@dataclass(frozen=True)
class CompactUNetConfig:
    """Sizes of `CompactUNet`; `deviation` and `floor` say how large what it generates is (`residual_scale`)."""

    in_channels: int = 32  # noisy latent and condition
    out_channels: int = 16
    stages: tuple[CompactStage, ...] = (CompactStage(64, 2), CompactStage(96, 2), CompactStage(128, 2))
    time_channels: int = 128
    deviation: tuple[float, ...] = (1.0,) * 16
    floor: float = 0.02


class ModulatedBlock(nn.Module):
    """Twice: pixel-wise RMS normalisation, scale and shift from the noise level, GELU, 3x3 convolution; a residual."""

    def __init__(self, channels: int, time_channels: int) -> None:
        super().__init__()
        self.modulate = zero_module(nn.Linear(time_channels, 4 * channels))
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = zero_module(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale1, shift1, scale2, shift2 = self.modulate(time)[:, :, None, None].chunk(4, dim=1)
        h = self.conv1(F.gelu(torch.addcmul(shift1, _rms_norm(x), 1 + scale1)))
        return x + self.conv2(F.gelu(torch.addcmul(shift2, _rms_norm(h), 1 + scale2)))


class CompactUNet(nn.Module):
    """A noisy latent joined with its condition, and log(sigma) / 4, to the raw output of Karras's preconditioning."""

    def __init__(self, config: CompactUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [stage.channels for stage in config.stages]
        self.time = nn.Sequential(nn.Linear(64, config.time_channels), nn.GELU())
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_make_blocks(s, config) for s in config.stages)
        self.up = nn.ModuleList(_make_blocks(s, config) for s in config.stages[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.grow = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairwise(widths))
        self.conv_out = zero_module(nn.Conv2d(widths[0], config.out_channels, 3, padding=1))

    @property
    def size_multiple(self) -> int:
        """Heights and widths of the latent are multiples of this."""
        return 2 ** (len(self.config.stages) - 1)

    @property
    def receptive_radius(self) -> int:
        """Latent pixels on each side that an output can depend on, at most."""
        passes = [2 if i + 1 < len(self.config.stages) else 1 for i in range(len(self.config.stages))]
        return 2 + sum(
            (2 * stage.blocks * count + 1) * 2**level
            for level, (stage, count) in enumerate(zip(self.config.stages, passes, strict=True))
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, in, h, w) and (B,) to (B, out, h, w)."""
        angles = time[:, None] * torch.exp(
            torch.linspace(math.log(0.5), math.log(64), 32, device=x.device, dtype=x.dtype)
        )
        context = self.time(torch.cat([angles.cos(), angles.sin()], 1))
        x = self.conv_in(x)
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            if level > 0:
                skips.append(x)
                x = self.shrink[level - 1](x)
            for block in cast(Iterable[ModulatedBlock], blocks):
                x = block(x, context)
        for level in reversed(range(len(self.up))):
            x = skips.pop() + F.pixel_shuffle(self.grow[level](x), 2)
            for block in cast(Iterable[ModulatedBlock], self.up[level]):
                x = block(x, context)
        return self.conv_out(x)


def residual_scale(mean: Tensor, config: CompactUNetConfig) -> Tensor:
    """The expected size of what the mean's latents (B, C, h, w) leave out, at each place and channel.

    Texture hides where there is texture: the scale is the local standard deviation of the mean itself, in 5x5 windows
    and over all channels, times a number per channel. What is generated has unit variance everywhere in these units.
    """
    local_mean, local_mean_square = (F.avg_pool2d(v, 5, 1, 2, count_include_pad=False) for v in (mean, mean.square()))
    variance = (local_mean_square - local_mean.square()).clamp(min=0).mean(1, keepdim=True)
    return (variance + config.floor**2).sqrt() * mean.new_tensor(config.deviation).view(1, -1, 1, 1)


def _make_blocks(stage: CompactStage, config: CompactUNetConfig) -> nn.ModuleList:
    return nn.ModuleList(ModulatedBlock(stage.channels, config.time_channels) for _ in range(stage.blocks))


def _rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)
