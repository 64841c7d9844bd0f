"""What a call of each network costs by the size of what it sees; counted once for each size and kept."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from enlarger.nn.attention import attend_streamed
from enlarger.nn.autoencoder import AutoencoderKL, Decoder, Encoder, PixelAttention
from enlarger.nn.blocks import Downsample, ResnetBlock, Upsample
from enlarger.nn.clip_text import ClipText
from enlarger.nn.k_unet import KUNet
from enlarger.nn.unet import UNet
from enlarger.runtime.feature_map import IN_MEMORY
from enlarger.runtime.footprint import META, NO_COST, Cost, count_call, in_own_thread, on_meta

Size = tuple[int, int]  # height, width
BAND = 16  # times a tile's side: pixels that attend to as many at once
MARGIN = 2  # pixels that a layer of the autoencoder sees around a tile
TOKENS = 77  # of a prompt

_costs: WeakKeyDictionary[nn.Module, dict[object, Cost]] = WeakKeyDictionary()
_copies: WeakKeyDictionary[nn.Module, dict[object, nn.Module]] = WeakKeyDictionary()


def _layout(module: nn.Module) -> tuple[torch.dtype, bool]:
    """What of a network's weights decides on its costs beside its architecture."""
    weights = [weight for weight in module.parameters() if weight.ndim == 4 and weight.shape[1] > 1]
    is_last = any(not weight.is_contiguous() for weight in weights[:3])
    return next(module.parameters()).dtype, is_last


def _counted(module: nn.Module, key: object, count: Callable[[nn.Module, torch.dtype], Cost]) -> Cost:
    """The cost of that key, counted on a copy of the module without memory when it is first asked for."""
    layout = _layout(module)
    known = _costs.setdefault(module, {})
    if (key, layout) not in known:
        copies = _copies.setdefault(module, {})

        def run() -> None:
            if layout not in copies:
                copies[layout] = on_meta(module)
            known[key, layout] = count(copies[layout], layout[0])

        in_own_thread(run)
    return known[key, layout]


def diffusion_cost(network: nn.Module, size: Size, rows: int) -> Cost:
    """One call of a diffusion network on `rows` latents of `size`, both branches of a guidance counted."""

    def count(copy: nn.Module, dtype: torch.dtype) -> Cost:
        arguments, named = diffusion_inputs(copy, size, rows, dtype, META)
        return count_call(copy, *arguments, **named)

    return _counted(network, (size, rows), count)


def diffusion_inputs(
    network: nn.Module, size: Size, rows: int, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """What a diffusion network is called with, all zeros."""
    assert isinstance(network, UNet | KUNet), "the only diffusion networks there are"

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(rows, *shape, dtype=dtype, device=device)

    config, named = network.config, {"tokens": zeros(TOKENS, network.config.context_channels)}
    if config.vector_channels is not None:
        named["vector"] = zeros(config.vector_channels)
    if getattr(config, "num_class_embeds", None) is not None:
        named["label"] = torch.zeros(rows, dtype=torch.int64, device=device)
    if (guidance := getattr(config, "guidance_channels", None)) is not None:
        named["guidance"] = zeros(guidance)
    return (zeros(config.in_channels, *size), torch.zeros(rows, device=device)), named


def decoder_cost(autoencoder: AutoencoderKL, size: Size, tile: int | None = None) -> Cost:
    """Decoding one picture's latents of `size`, whole or in tiles of `tile` pixels."""
    return half_cost(autoencoder.decoder, autoencoder.config.latent_channels, size, tile)


def encoder_cost(autoencoder: AutoencoderKL, size: Size, tile: int | None = None) -> Cost:
    """Encoding one picture of `size` pixels, whole or in tiles."""
    return half_cost(autoencoder.encoder, 3, size, tile)


def text_cost(encoder: ClipText, rows: int) -> Cost:
    """Encoding so many prompts."""

    def count(copy: nn.Module, dtype: torch.dtype) -> Cost:
        return count_call(copy, torch.empty(rows, TOKENS, dtype=torch.int64, device=META))

    return _counted(encoder, rows, count)


def picture_cost(network: nn.Module, size: Size, channels: int = 3) -> Cost:
    """One call of a network from picture to picture."""

    def count(copy: nn.Module, dtype: torch.dtype) -> Cost:
        return count_call(copy, torch.empty(1, channels, *size, dtype=dtype, device=META))

    return _counted(network, (size, channels), count)


def input_channels(network: nn.Module) -> int:
    """Of its first convolution."""
    return next(weight.shape[1] for weight in network.parameters() if weight.ndim == 4)


def half_cost(network: nn.Module, channels: int, size: Size, tile: int | None) -> Cost:
    """Of an autoencoder's encoder or decoder, which is given so many channels of `size`."""
    if tile is None:
        return picture_cost(network, size, channels)

    def count(copy: nn.Module, dtype: torch.dtype) -> Cost:
        assert isinstance(copy, Encoder | Decoder)
        return _tiled(copy, channels, size, tile)

    return _counted(network, (channels, size, tile), count)


def _tiled(network: Encoder | Decoder, channels: int, size: Size, tile: int) -> Cost:
    """The layers one after another, each over all of its input: see `tiled_autoencoder`."""
    total, dtype = NO_COST, network.conv_in.weight.dtype
    last = nn.Sequential(network.conv_norm_out, nn.SiLU(), network.conv_out)
    for layer in (*network.layers(), last):
        made_channels, made_size = _result(layer, channels, size)
        seen = channels * size[0] * size[1] * dtype.itemsize
        made = made_channels * made_size[0] * made_size[1] * dtype.itemsize
        maps = [seen, made, *([made] if isinstance(layer, ResnetBlock) else [])]
        cost = _over_tiles(layer, channels, size, tile, dtype)
        kept = sum(size for size in maps if size <= IN_MEMORY)
        total = total + Cost(cost.peak + kept, cost.flops, cost.moved + 2 * sum(maps), cost.operations)
        channels, size = made_channels, made_size
    result = channels * size[0] * size[1] * dtype.itemsize
    return total + Cost(result + (result if result <= IN_MEMORY else 0))


def _result(layer: nn.Module, channels: int, size: Size) -> tuple[int, Size]:
    """The channels and the size of what a layer makes."""
    match layer:
        case Downsample():
            return channels, (size[0] // 2, size[1] // 2)
        case Upsample():
            return channels, (size[0] * 2, size[1] * 2)
        case ResnetBlock():
            return layer.conv2.out_channels, size
        case nn.Sequential():
            return _result(layer[-1], channels, size)
        case nn.Conv2d():
            return layer.out_channels, size
        case _:
            return channels, size


def _over_tiles(layer: nn.Module, channels: int, size: Size, tile: int, dtype: torch.dtype) -> Cost:
    if isinstance(layer, PixelAttention):
        return _streamed_attention(layer, channels, size, tile, dtype)
    height, width = (min(side, tile + 2 * MARGIN) for side in size)
    window = torch.empty(1, channels, height, width, dtype=dtype, device=META, memory_format=torch.channels_last)
    count = -(-size[0] // tile) * -(-size[1] // tile)
    return count_call(layer, window) * count


def _streamed_attention(layer: PixelAttention, channels: int, size: Size, tile: int, dtype: torch.dtype) -> Cost:
    """Every band of rows attends to all others, whose keys and values are made anew for each."""
    rows = min(size[0], max(1, BAND * tile // size[1]))
    bands = -(-size[0] // rows)
    tokens = torch.empty(1, rows * size[1], channels, dtype=dtype, device=META)

    def attend(query: Tensor) -> Tensor:
        return attend_streamed(query, [(layer.to_k(query), layer.to_v(query))])

    return count_call(attend, tokens) * bands**2
