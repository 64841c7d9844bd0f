"""The Stable Diffusion autoencoder (AutoencoderKL), under diffusers' parameter names."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enlarger.nn.attention import attend
from enlarger.nn.blocks import Downsample, ResnetBlock, Upsample, to_feature_map, to_tokens

EPS = 1e-6


@dataclass(frozen=True)
class AutoencoderConfig:
    """Widths and latent scaling of an autoencoder; `channels` runs from the picture to the latent."""

    channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    scaling_factor: float
    force_upcast: bool = True  # half precision overflows: the caller runs this network in float32
    groups: int = 32
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Posterior:
    """The normal distribution of an image's latents, (B, latent_channels, h, w), both already scaled."""

    mean: Tensor
    std: Tensor
    is_exact: bool = False  # the mean is all there is, and nothing is drawn

    def sample(self, noise: Tensor) -> Tensor:
        """The latents that standard normal `noise` (the shape of `mean`) selects."""
        return self.mean + self.std * noise


def join_posteriors(parts: Sequence[Posterior]) -> Posterior:
    """The distribution of a batch, from those of its parts."""
    return Posterior(torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts]))


class PixelAttention(nn.Module):
    """Self-attention over all pixels with one head over all channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        h = to_tokens(self.group_norm(x))
        h = attend(self.to_q(h), self.to_k(h), self.to_v(h), heads=1)
        return x + to_feature_map(self.to_out[0](h), x)


class MidBlock(nn.Module):
    """Attention between two residual blocks."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups=groups, eps=EPS) for _ in range(2))
        self.attentions = nn.ModuleList([PixelAttention(channels, groups)])

    def layers(self) -> tuple[nn.Module, ...]:
        """What runs one after another."""
        return self.resnets[0], self.attentions[0], self.resnets[1]


class DownBlock(nn.Module):
    """The residual blocks of one resolution, then half the size unless it is the last."""

    def __init__(self, in_channels: int, channels: int, layers: int, groups: int, *, last: bool) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * (layers - 1)
        self.resnets = nn.ModuleList(ResnetBlock(width, channels, groups=groups, eps=EPS) for width in widths)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(channels, one_sided=True)])

    def layers(self) -> tuple[nn.Module, ...]:
        """What runs one after another."""
        return (*self.resnets, *self.downsamplers)


class UpBlock(nn.Module):
    """The residual blocks of one resolution, then twice the size unless it is the last."""

    def __init__(self, in_channels: int, channels: int, layers: int, groups: int, *, last: bool) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * (layers - 1)
        self.resnets = nn.ModuleList(ResnetBlock(width, channels, groups=groups, eps=EPS) for width in widths)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(channels)])

    def layers(self) -> tuple[nn.Module, ...]:
        """What runs one after another."""
        return (*self.resnets, *self.upsamplers)


class Encoder(nn.Module):
    """Image (B, 3, H, W) to the moments of its latents (B, 2 * latent_channels, H / factor, W / factor)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.channels, config.groups
        in_channels = (widths[0], *widths[:-1])
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(a, b, config.layers_per_block, groups, last=level == len(widths) - 1)
            for level, (a, b) in enumerate(zip(in_channels, widths, strict=True))
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def layers(self) -> tuple[nn.Module, ...]:
        """What runs one after another before the last normalisation."""
        blocks: tuple[Any, ...] = (*self.down_blocks, self.mid_block)
        return self.conv_in, *chain.from_iterable(block.layers() for block in blocks)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers():
            x = layer(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Unscaled latents (B, latent_channels, h, w) to an image (B, 3, h * factor, w * factor)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.channels[::-1], config.groups
        in_channels = (widths[0], *widths[:-1])
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            UpBlock(a, b, config.layers_per_block + 1, groups, last=level == len(widths) - 1)
            for level, (a, b) in enumerate(zip(in_channels, widths, strict=True))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def layers(self) -> tuple[nn.Module, ...]:
        """What runs one after another before the last normalisation."""
        blocks: tuple[Any, ...] = (self.mid_block, *self.up_blocks)
        return self.conv_in, *chain.from_iterable(block.layers() for block in blocks)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers():
            x = layer(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """The variational autoencoder of latent diffusion (Rombach et al. 2022); it scales its latents itself."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    @property
    def downsample_factor(self) -> int:
        """Pixels per latent along each axis."""
        return 2 ** (len(self.config.channels) - 1)

    def encode(self, image: Tensor) -> Posterior:
        """The latents' distribution of an image (B, 3, H, W) in -1..1."""
        return self.posterior(self.encoder(image))

    def posterior(self, moments: Tensor) -> Posterior:
        """The latents' distribution, of what the encoder gives."""
        mean, log_variance = self.quant_conv(moments).chunk(2, dim=1)
        std = (log_variance.clamp(-30, 20) / 2).exp()
        _, scale = self._latent_shift_and_scale(mean)
        return Posterior(self.scale(mean), std * scale)

    def decode(self, latents: Tensor) -> Tensor:
        """The image (B, 3, H, W), about -1..1, of scaled latents (B, latent_channels, h, w)."""
        return self.decoder(self.post_quant_conv(self.unscale(latents)))

    def scale(self, latents: Tensor) -> Tensor:
        """Latents as the diffusion networks know them, from those of the convolutions."""
        shift, scale = self._latent_shift_and_scale(latents)
        return (latents - shift) * scale

    def unscale(self, latents: Tensor) -> Tensor:
        """The inverse of `scale`."""
        shift, scale = self._latent_shift_and_scale(latents)
        return latents / scale + shift

    def forward(self, image: Tensor) -> Tensor:
        """The image rebuilt from the mean of its latents."""
        return self.decode(self.encode(image).mean)

    def _latent_shift_and_scale(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Shift and scale of the latents: one number each, or one per channel where the file has statistics."""
        mean, std, scale = self.config.latents_mean, self.config.latents_std, self.config.scaling_factor
        shift = 0.0 if mean is None else like.new_tensor(mean)[:, None, None]
        return shift, scale if std is None else scale / like.new_tensor(std)[:, None, None]
