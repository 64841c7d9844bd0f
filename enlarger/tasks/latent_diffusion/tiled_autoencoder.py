"""The autoencoder of pictures of any size in the memory of a tile, with the result of the whole."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enlarger.nn.attention import attend_streamed
from enlarger.nn.autoencoder import AutoencoderKL, Decoder, Encoder, PixelAttention, Posterior
from enlarger.nn.blocks import Downsample, ResnetBlock, Upsample, to_feature_map, to_tokens
from enlarger.runtime.engines.engine import Call
from enlarger.runtime.feature_map import FeatureMap, map_tiles, row_bands

TILE = 128  # pixels along a side, at every resolution within the network
WHOLE_BYTES = 2**30  # of a network's widest features: above, it runs in tiles
BAND = 16  # times the tile's side: pixels that attend to as many at once


def encode_image(
    autoencoder: AutoencoderKL, image: Tensor, *, tiled: bool = False, encoder: Call | None = None
) -> Posterior:
    """The latents' distribution of pictures (B, 3, H, W); of large ones in tiles in any case, which changes nothing.

    `encoder` computes the encoder's calls where there are no tiles.
    """
    if tiled or is_large(autoencoder, image, 1):
        return encode_tiled(autoencoder, image)
    if encoder is None or encoder is autoencoder.encoder:
        return autoencoder.encode(image)
    return autoencoder.posterior(encoder(image))


def decode_image(
    autoencoder: AutoencoderKL, latents: Tensor, *, tiled: bool = False, decoder: Call | None = None
) -> Tensor:
    """The pictures (B, 3, H, W) of scaled latents; large ones in tiles in any case, and then on the host.

    `decoder` computes the decoder's calls where there are no tiles.
    """
    if tiled or is_large(autoencoder, latents, autoencoder.downsample_factor):
        return decode_tiled(autoencoder, latents)
    if decoder is None or decoder is autoencoder.decoder:
        return autoencoder.decode(latents)
    return decoder(autoencoder.post_quant_conv(autoencoder.unscale(latents)))


def is_large(autoencoder: AutoencoderKL, x: Tensor, factor: int) -> bool:
    """Whether pictures `factor` times as large as `x` have features of more than `WHOLE_BYTES` at their widest."""
    pixels = x[:, 0].numel() * factor**2
    return max(autoencoder.config.channels[:2]) * pixels * x.dtype.itemsize > WHOLE_BYTES


def encode_tiled(autoencoder: AutoencoderKL, image: Tensor, tile: int = TILE) -> Posterior:
    """`autoencoder.encode` of pictures (B, 3, H, W), layer by layer in tiles of `tile` pixels.

    Unlike diffusers' tiling this is exact: the group normalisations share the statistics of the whole picture, and
    every pixel of the middle attends to every other. Equal to the untiled result up to rounding, for any size and tile.
    """
    moments = [run_tiled(autoencoder.encoder, one[None], tile) for one in image]
    return autoencoder.posterior(torch.cat(moments).to(image.device))


def decode_tiled(autoencoder: AutoencoderKL, latents: Tensor, tile: int = TILE) -> Tensor:
    """`autoencoder.decode` of scaled latents (B, C, h, w) to (B, 3, H, W) on the host, as `encode_tiled` encodes."""
    unscaled = autoencoder.post_quant_conv(autoencoder.unscale(latents))
    return torch.cat([run_tiled(autoencoder.decoder, one[None], tile) for one in unscaled])


def run_tiled(network: Encoder | Decoder, x: Tensor, tile: int) -> Tensor:
    """What `network(x)` is for one picture, (1, C, H, W), on the host."""
    tiles = _Tiles(max(2, tile // 2 * 2), x.device, network.conv_norm_out.num_groups)
    features = FeatureMap.of(x.cpu())
    for layer in network.layers():
        features = _run_layer(layer, features, tiles)
    last = replace(tiles, groups=1).map(_activated(network.conv_norm_out, network.conv_out, features), features)
    return last.read(0, last.size[0], 0, last.size[1])


@dataclass(frozen=True)
class _Tiles:
    """How a map is gone through; `side` is even, so that a tile can be halved."""

    side: int
    device: torch.device
    groups: int

    def map(self, function: Callable[..., Tensor], *maps: FeatureMap, scale: Fraction = Fraction(1)) -> FeatureMap:
        """A function that sees at most two pixels around a place; two halve as the tile does."""
        return map_tiles(function, *maps, tile=self.side, margin=2, scale=scale, device=self.device, groups=self.groups)


def _run_layer(layer: nn.Module, features: FeatureMap, tiles: _Tiles) -> FeatureMap:
    """The features behind a layer of an autoencoder."""
    match layer:
        case ResnetBlock():
            return _run_resnet(layer, features, tiles)
        case PixelAttention():
            return _attend(layer, features, tiles)
        case Downsample():
            return tiles.map(layer, features, scale=Fraction(1, 2))
        case Upsample():
            return tiles.map(layer, features, scale=Fraction(2))
        case _:
            return tiles.map(layer, features)


def _run_resnet(block: ResnetBlock, features: FeatureMap, tiles: _Tiles) -> FeatureMap:
    """`ResnetBlock.forward` without time, in two passes: the second normalisation needs all of the first."""
    hidden = tiles.map(_activated(block.norm1, block.conv1, features), features)
    residual = _activated(block.norm2, block.conv2, hidden)

    def add(x: Tensor, h: Tensor) -> Tensor:
        return block.conv_shortcut(x) + residual(h)

    return tiles.map(add, features, hidden)


def _activated(norm: nn.GroupNorm, conv: nn.Module, features: FeatureMap) -> Callable[[Tensor], Tensor]:
    """Of windows of `features`: normalised, through SiLU, convolved."""
    normalise = _normalisation(norm, features)

    def function(x: Tensor) -> Tensor:
        return conv(F.silu(normalise(x)))

    return function


def _normalisation(norm: nn.GroupNorm, features: FeatureMap) -> Callable[[Tensor], Tensor]:
    """The group normalisation of windows of a map by the statistics of all of it."""
    mean, variance = features.statistics
    weight, bias = (parameter.double().cpu() for parameter in (norm.weight, norm.bias))
    repeat = features.channels // len(mean)
    scale = weight * ((variance + norm.eps) ** -0.5).repeat_interleave(repeat)
    return partial(_scale_and_shift, scale=scale, shift=bias - mean.repeat_interleave(repeat) * scale)


def _scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """In float32, as normalisations compute."""
    scale, shift = (each.to(x.device, torch.float32)[:, None, None] for each in (scale, shift))
    return torch.addcmul(shift, x.float(), scale).to(x.dtype)


def _attend(layer: PixelAttention, features: FeatureMap, tiles: _Tiles) -> FeatureMap:
    """`PixelAttention.forward`, band by band of rows; keys and values are made anew for each, so that none is kept."""
    normalise = _normalisation(layer.group_norm, features)
    made = FeatureMap(features.channels, features.size, features.dtype, tiles.groups)
    bands = partial(row_bands, features, BAND * tiles.side, tiles.device)
    for top, x in bands():
        query = layer.to_q(to_tokens(normalise(x)))
        others = (to_tokens(normalise(other)) for _, other in bands())
        attended = attend_streamed(query, ((layer.to_k(h), layer.to_v(h)) for h in others))
        made.write(top, 0, x + to_feature_map(layer.to_out[0](attended), x))
    return made
