"""FreeU (Si et al. 2023): where the way up of a UNet joins a skip, more of the backbone and less of the skip's lowest
frequencies."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from enlarger.nn.k_unet import KUNet

ATTRIBUTE = "skip_filter"  # of the blocks on the way up


@dataclass(frozen=True)
class FreeU:
    """Factors of the skips (s) and of half of the backbone's channels (b) at the first and the second stage."""

    s1: float
    s2: float
    b1: float
    b2: float


@dataclass(frozen=True)
class SkipFilter:
    """What FreeU does at one stage."""

    skip: float
    backbone: float

    def __call__(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        half = x.shape[1] // 2
        return torch.cat([x[:, :half] * self.backbone, x[:, half:]], 1), scale_low_frequencies(skip, self.skip)


def scale_low_frequencies(x: Tensor, scale: float) -> Tensor:
    """x (B, C, H, W) with its 2 x 2 lowest frequencies multiplied by `scale`, computed in float32."""
    spectrum: Tensor = torch.fft.fftshift(torch.fft.fftn(x.float(), dim=(-2, -1)), dim=(-2, -1))  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - torch.fft has no types
    row, column = x.shape[-2] // 2, x.shape[-1] // 2
    factors = torch.ones(x.shape[-2:], device=x.device)
    factors[row - 1 : row + 1, column - 1 : column + 1] = scale
    filtered: Tensor = torch.fft.ifftn(torch.fft.ifftshift(spectrum * factors, dim=(-2, -1)), dim=(-2, -1))  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - torch.fft has no types
    return filtered.real.to(x.dtype)  # pyright: ignore[reportUnknownVariableType] - as above


def enable(network: nn.Module, freeu: FreeU) -> None:
    """Filter at the first two stages that join skips; those of the x2 upscaler's UNet are the second and the third."""
    _note(network, vars(freeu))
    first, second = _stages(network)
    setattr(first, ATTRIBUTE, SkipFilter(freeu.s1, freeu.b1))
    if second is not None:
        setattr(second, ATTRIBUTE, SkipFilter(freeu.s2, freeu.b2))


def disable(network: nn.Module) -> None:
    """Filter nothing."""
    _note(network, dict.fromkeys(("s1", "s2", "b1", "b2")))
    for stage in _stages(network):
        if stage is not None:
            setattr(stage, ATTRIBUTE, None)


def _note(network: nn.Module, factors: Mapping[str, float | None]) -> None:
    """Say the factors on every block of the way up, as diffusers does."""
    for block in network.get_submodule("up_blocks").children():
        for name, value in factors.items():
            setattr(block, name, value)


def _stages(network: nn.Module) -> tuple[nn.Module, nn.Module | None]:
    blocks = network.get_submodule("up_blocks")
    stages = list(blocks.children())[1 if isinstance(network, KUNet) else 0 :]
    return stages[0], stages[1] if len(stages) > 1 else None
