"""Batches of pairs: large pictures, and small ones as people have them; each follows from the seed and its step."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from enlarger.image.degrade import Pixels, Severity, degrade
from enlarger.train.drawn import drawn_pair
from enlarger.train.photos import Photos

KERNELS = tuple(Image.Resampling[name] for name in ("BOX", "BILINEAR", "LANCZOS", "HAMMING"))


@dataclass(frozen=True)
class Mixture:
    """What training pairs are made of."""

    batch: int = 8
    drawn: float = 0.15  # share of pairs that are drawings, text and cells
    kernels: float = 0.15  # share of the photographs halved otherwise than by antialiased bicubic
    severity: Severity | None = None  # how small pictures suffer; None: not at all


@dataclass(frozen=True)
class Pair:
    """(B, 3, S, S) and (B, 3, S/2, S/2) in -1..1, and how much each small picture has suffered, (B,) in 0..1."""

    large: Tensor
    small: Tensor
    strength: Tensor

    def __str__(self) -> str:
        return f"{len(self.large)} pairs"


class Pairs(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """The batch of each step as bytes, in worker processes."""

    def __init__(self, photos: Photos, mixture: Mixture, seed: int) -> None:
        self.photos, self.mixture, self.seed = photos, mixture, seed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        draw = np.random.default_rng([self.seed, step])
        made = [self._pair(draw) for _ in range(self.mixture.batch)]
        large, small = (torch.from_numpy(np.stack([pair[i] for pair in made])) for i in (0, 1))
        return large, small, torch.tensor([pair[2] for pair in made], dtype=torch.float32)

    def _pair(self, draw: np.random.Generator) -> tuple[Pixels, Pixels, float]:
        if draw.random() < self.mixture.drawn:
            large, small = drawn_pair(draw, self.photos.crop)
        else:
            large = self.photos.draw(draw)
            other = draw.random() < self.mixture.kernels
            small = halve(large, KERNELS[int(draw.integers(len(KERNELS)))] if other else Image.Resampling.BICUBIC)
        if self.mixture.severity is None:
            return large, small, 0.0
        return large, *degrade(small, draw, self.mixture.severity)


def halve(large: Pixels, kernel: Image.Resampling = Image.Resampling.BICUBIC) -> Pixels:
    """Half the size, in 8 bits."""
    return np.asarray(Image.fromarray(large).resize((large.shape[1] // 2, large.shape[0] // 2), kernel))


def batches(pairs: Pairs, first: int, end: int, workers: int) -> Iterator[Pair]:
    """The pairs of steps `first` to `end`, made ahead in `workers` processes."""
    loader = DataLoader(
        pairs, batch_size=None, sampler=range(first, end), num_workers=workers, prefetch_factor=4 if workers else None
    )
    return (unpacked(*batch) for batch in loader)


def unpacked(large: Tensor, small: Tensor, strength: Tensor) -> Pair:
    """Bytes (B, H, W, 3) as the networks take them."""
    return Pair(_picture(large), _picture(small), strength)


def _picture(values: Tensor) -> Tensor:
    x = values.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return x.float().div_(127.5).sub_(1)
