"""Short calls of each kind of network and of the work on pictures, from which times are read off."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from enlarger.image.consistency import project_into_range_
from enlarger.image.picture import Picture, read_picture, to_pil
from enlarger.image.resize import resize
from enlarger.nn.autoencoder import Decoder, Encoder
from enlarger.nn.clip_text import ClipText
from enlarger.nn.k_unet import KUNet
from enlarger.nn.unet import UNet
from enlarger.runtime.footprint import Cost
from enlarger.tasks.latent_diffusion.tiled_autoencoder import TILE, run_tiled
from enlarger.tasks.planning.network_costs import (
    TOKENS,
    Size,
    diffusion_cost,
    diffusion_inputs,
    half_cost,
    input_channels,
    picture_cost,
    text_cost,
)

MOVED_BYTES = 2**26  # of a tensor that memory is measured with, more than caches hold
PICTURE_SIDE = 512  # pixels
PICTURE_MEGAPIXELS = PICTURE_SIDE**2 / 1e6


@dataclass(frozen=True, eq=False)
class SampleCall:
    """A call to be measured, and what it costs."""

    run: Callable[[], object]
    cost: Cost


def sample_calls(kind: str, network: nn.Module, device: torch.device) -> list[SampleCall]:
    """Calls of a network from the cheapest on."""
    if isinstance(network, UNet | KUNet):
        sides = (2 ** len(network.config.stages) * 2**k for k in range(4))
        return [_diffusion_call(network, (side, side), device) for side in sides]
    if isinstance(network, ClipText):
        return [_text_call(network, rows, device) for rows in (1, 2)]
    if isinstance(network, Encoder | Decoder):
        tile, least = (TILE, TILE) if kind.endswith(" in tiles") else (None, 32)
        least = least // 8 if isinstance(network, Decoder) else least
        return [_half_call(network, (least * 2**k,) * 2, tile, device) for k in range(5)]
    return [_picture_call(network, (64 * 2**k, 64 * 2**k), device) for k in range(4)]


def picture_work(kind: str) -> Callable[[], object]:
    """Work on a picture of a quarter of a megapixel."""
    side = PICTURE_SIDE
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, side // 8, side // 8, generator=generator) * 2 - 1
    large = resize(coarse, (side, side)).add_(0.02 * torch.randn(1, 3, side, side, generator=generator)).clamp_(-1, 1)
    image, small = to_pil(Picture(large[0])), resize(large, (side // 2, side // 2))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    works: dict[str, Callable[[], object]] = {
        "read": lambda: read_picture(stream.getvalue()),
        "resample": lambda: resize(large, (side, side - 1), "lanczos"),
        "consistency": lambda: project_into_range_(large.clone(), small),
        "write": lambda: _write(large),
    }
    return works[kind]


def _write(large: Tensor) -> None:
    image: Image.Image = to_pil(Picture(large[0]))
    image.save(io.BytesIO(), "PNG")


def _diffusion_call(network: UNet | KUNet, size: Size, device: torch.device) -> SampleCall:
    arguments, named = diffusion_inputs(network, size, 1, next(network.parameters()).dtype, device)
    return SampleCall(lambda: network(*arguments, **named), diffusion_cost(network, size, 1))


def _text_call(network: ClipText, rows: int, device: torch.device) -> SampleCall:
    ids = torch.zeros(rows, TOKENS, dtype=torch.int64, device=device)
    return SampleCall(lambda: network(ids).last_hidden_state, text_cost(network, rows))


def _half_call(network: Encoder | Decoder, size: tuple[int, ...], tile: int | None, device: torch.device) -> SampleCall:
    height, width = size
    channels = network.conv_in.in_channels
    x = torch.randn(1, channels, height, width, dtype=network.conv_in.weight.dtype, device=device)
    cost = half_cost(network, channels, (height, width), tile)
    return SampleCall(lambda: network(x) if tile is None else run_tiled(network, x, tile), cost)


def _picture_call(network: nn.Module, size: Size, device: torch.device) -> SampleCall:
    x = torch.rand(1, input_channels(network), *size, device=device)
    return SampleCall(lambda: network(x), picture_cost(network, size, x.shape[1]))
