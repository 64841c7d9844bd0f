"""TAESD, the tiny autoencoder of Stable Diffusion's latents, under diffusers' parameter names."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT_BOUND = 3  # latents are bent into -3..3 before they are decoded


@dataclass(frozen=True)
class AutoencoderTinyConfig:
    """One width throughout; blocks per resolution, from the picture to the latent and back."""

    channels: int = 64
    latent_channels: int = 4
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0  # TAESD was trained on latents as diffusion sees them, so there is nothing to scale


class AutoencoderTinyBlock(nn.Module):
    """Three convolutions beside a shortcut, with ReLU after each and after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second, third = (_conv3x3(channels, channels) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class EncoderTiny(nn.Module):
    """Image (B, 3, H, W) in -1..1 to latents (B, latent_channels, H / 8, W / 8)."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(*self._make_layers(config))

    @staticmethod
    def _make_layers(config: AutoencoderTinyConfig) -> Iterator[nn.Module]:
        for level, blocks in enumerate(config.encoder_blocks):
            if level == 0:
                yield _conv3x3(3, config.channels)
            else:
                yield nn.Conv2d(config.channels, config.channels, 3, stride=2, padding=1, bias=False)
            yield from (AutoencoderTinyBlock(config.channels) for _ in range(blocks))
        yield _conv3x3(config.channels, config.latent_channels)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image / 2 + 0.5)


class DecoderTiny(nn.Module):
    """Latents (B, latent_channels, h, w) to an image (B, 3, 8 h, 8 w), about -1..1."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(*self._make_layers(config))

    @staticmethod
    def _make_layers(config: AutoencoderTinyConfig) -> Iterator[nn.Module]:
        *upper, last = config.decoder_blocks
        yield from (_conv3x3(config.latent_channels, config.channels), nn.ReLU())
        for blocks in upper:
            yield from (AutoencoderTinyBlock(config.channels) for _ in range(blocks))
            yield nn.Upsample(scale_factor=2)  # nearest
            yield _conv3x3(config.channels, config.channels, bias=False)
        yield from (AutoencoderTinyBlock(config.channels) for _ in range(last))
        yield _conv3x3(config.channels, 3)

    def forward(self, latents: Tensor) -> Tensor:
        clamped = torch.tanh(latents / (self.config.scaling_factor * LATENT_BOUND)) * LATENT_BOUND
        return self.layers(clamped) * 2 - 1


class AutoencoderTiny(nn.Module):
    """Both halves. Its latents are those that diffusion works on, scaled as the large autoencoder scales them."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EncoderTiny(config)
        self.decoder = DecoderTiny(config)

    def encode(self, image: Tensor) -> Tensor:
        """The latents of an image (B, 3, H, W) in -1..1; they are exact, not a distribution."""
        return self.encoder(image) * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """The image, about -1..1, of latents (B, latent_channels, h, w)."""
        return self.decoder(latents)

    def forward(self, image: Tensor) -> Tensor:
        """The image rebuilt from its latents."""
        return self.decode(self.encode(image))


def _conv3x3(in_channels: int, out_channels: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
