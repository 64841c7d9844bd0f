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
from enlarger.runtime.smaller_tiles import Tiling, halve_tile, tile_attempts
from enlarger.tasks.planning.network_costs import BAND, MARGIN, decoder_cost, encoder_cost
from enlarger.tasks.planning.room import DEFAULT_WORK, TILES, decoder_tile, encoder_tile

TILE = 128  # pixels along a side, at every resolution within the network


def encode_image(
    autoencoder: AutoencoderKL,
    image: Tensor,
    *,
    tiled: bool = False,
    encoder: Call | None = None,
    work: int | None = None,
) -> Posterior:
    """The latents' distribution of pictures (B, 3, H, W).

    What takes more than `work` bytes (None: 4 GiB) is encoded in tiles in any case, which changes nothing. `encoder`
    computes the encoder's calls where there are no tiles.
    """
    if _runs_whole(autoencoder):
        return autoencoder.encode(image)
    size = (image.shape[2], image.shape[3])
    tile = encoder_tile(autoencoder, size, (DEFAULT_WORK if work is None else work) // len(image), tiled=tiled)

    def need(tile: int | None) -> int:
        return encoder_cost(autoencoder, size, tile).peak

    halve = halve_tile(max(size), TILES[-1], TILE)
    for attempt in tile_attempts(Tiling("encoding", tile, "pixels", halve, need)):
        with attempt as side:
            if side is not None:
                return encode_tiled(autoencoder, image, side)
            if encoder is None or encoder is autoencoder.encoder:
                return autoencoder.encode(image)
            return autoencoder.posterior(encoder(image))
    raise AssertionError("the last attempt returns or raises")


def decode_image(
    autoencoder: AutoencoderKL,
    latents: Tensor,
    *,
    tiled: bool = False,
    decoder: Call | None = None,
    work: int | None = None,
) -> Tensor:
    """The pictures (B, 3, H, W) of scaled latents; in tiles as `encode_image` encodes, and then on the host."""
    if _runs_whole(autoencoder):
        return autoencoder.decode(latents)
    size = (latents.shape[2], latents.shape[3])
    tile = decoder_tile(autoencoder, size, (DEFAULT_WORK if work is None else work) // len(latents), tiled=tiled)
    whole = max(size) * autoencoder.downsample_factor

    def need(tile: int | None) -> int:
        return decoder_cost(autoencoder, size, tile).peak

    halve = halve_tile(whole, TILES[-1], TILE)
    for attempt in tile_attempts(Tiling("decoding", tile, "pixels", halve, need)):
        with attempt as side:
            if side is not None:
                return decode_tiled(autoencoder, latents, side)
            if decoder is None or decoder is autoencoder.decoder:
                return autoencoder.decode(latents)
            return decoder(autoencoder.post_quant_conv(autoencoder.unscale(latents)))
    raise AssertionError("the last attempt returns or raises")


def _runs_whole(autoencoder: object) -> bool:
    """Whether an autoencoder is one of another package, whose layers are not known here."""
    return not isinstance(autoencoder, AutoencoderKL)


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
    pictures = [run_tiled(autoencoder.decoder, one[None], tile) for one in unscaled]
    return pictures[0] if len(pictures) == 1 else torch.cat(pictures)


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
        return map_tiles(
            function, *maps, tile=self.side, margin=MARGIN, scale=scale, device=self.device, groups=self.groups
        )


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
