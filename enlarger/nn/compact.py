"""The bundled model's pixel networks: a predictor of the enlarged picture and an autoencoder for what it misses.

Every layer sees a bounded neighbourhood and none takes statistics over the picture, so a picture enlarged in
overlapping tiles is the same as one enlarged whole.
"""

from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class PredictorConfig:
    """Sizes of `Predictor`: the width and the number of its residual blocks."""

    channels: int = 48
    blocks: int = 6


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions added to their input (Lim et al. 2017, EDSR: no normalisation)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class Predictor(nn.Module):
    """A picture to the mean of its enlargements by 2 (the first stage of Whang et al. 2022, "predict and refine").

    It works at the input's resolution and adds what it finds to the bicubic enlargement; untrained it is exactly that
    enlargement.
    """

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Conv2d(3, config.channels, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(config.channels) for _ in range(config.blocks))
        self.tail = zero_module(nn.Conv2d(config.channels, 12, 3, padding=1))

    @property
    def receptive_radius(self) -> int:
        """Input pixels on each side that an output can depend on, at most."""
        return 2 + 2 * self.config.blocks

    def forward(self, picture: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 to (B, 3, 2H, 2W)."""
        x = shallow = self.head(picture)  # (B, C, H, W)
        for block in self.blocks:
            x = block(x)
        return upsample_bicubic(picture) + F.pixel_shuffle(self.tail(x + shallow), 2)


@dataclass(frozen=True)
class CompactAutoencoderConfig:
    """Sizes of `CompactAutoencoder`: the latent, the inner width, and the residual blocks on each side."""

    latent_channels: int = 16
    channels: int = 64
    blocks: int = 3


class CompactAutoencoder(nn.Module):
    """A deterministic autoencoder at a quarter of the resolution: a linear map of 4x4 patches, then corrected.

    `linear` starts as the principal components of patches (`set_components`), which alone reach about 40 dB with 16
    channels; the residual branches start at zero.
    """

    downsample_factor = 4

    def __init__(self, config: CompactAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        patch_channels = 3 * self.downsample_factor**2
        self.linear_in = nn.Conv2d(patch_channels, config.latent_channels, 1)
        self.linear_out = nn.Conv2d(config.latent_channels, patch_channels, 1)
        self.encoder = _residual_branch(patch_channels, config.latent_channels, config)
        self.decoder = _residual_branch(config.latent_channels, patch_channels, config)

    @property
    def receptive_radius(self) -> int:
        """Pixels on each side of its patch that a latent or a decoded pixel can depend on, at most."""
        return self.downsample_factor * (2 + 2 * self.config.blocks)

    def encode(self, picture: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 to latents (B, C, H/4, W/4); H and W are multiples of 4."""
        patches = F.pixel_unshuffle(picture, self.downsample_factor)
        return self.linear_in(patches) + self.encoder(patches)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to a picture about -1..1, (B, 3, 4h, 4w)."""
        return F.pixel_shuffle(self.linear_out(latents) + self.decoder(latents), self.downsample_factor)

    @torch.no_grad()
    def init_from_pca(self, pictures: Tensor) -> None:
        """Start the linear maps at the principal components of the 4x4 patches of some pictures, unit variance each."""
        patches = F.pixel_unshuffle(pictures, self.downsample_factor).double().transpose(0, 1).flatten(1)  # (48, N)
        mean = patches.mean(1)
        eigenvalues, eigenvectors = cast("tuple[Tensor, Tensor]", torch.linalg.eigh(torch.cov(patches)))
        leading = slice(-self.config.latent_channels, None)
        eigenvectors, std = eigenvectors[:, leading], eigenvalues[leading].sqrt()
        encode_matrix, decode_matrix = (eigenvectors / std).T, eigenvectors * std
        self.linear_in.weight.copy_(encode_matrix[..., None, None])
        self.linear_in.bias.copy_(-(encode_matrix @ mean))  # pyright: ignore[reportOptionalMemberAccess]
        self.linear_out.weight.copy_(decode_matrix[..., None, None])
        self.linear_out.bias.copy_(mean)  # pyright: ignore[reportOptionalMemberAccess]


def _residual_branch(in_channels: int, out_channels: int, config: CompactAutoencoderConfig) -> nn.Sequential:
    last = zero_module(nn.Conv2d(config.channels, out_channels, 3, padding=1))
    blocks = (ResidualBlock(config.channels) for _ in range(config.blocks))
    return nn.Sequential(nn.Conv2d(in_channels, config.channels, 3, padding=1), *blocks, last)


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
