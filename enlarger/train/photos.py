"""Photographs as training material: a folder in memory, and random crops of it with their half-size inputs."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from enlarger.errors import InputError
from enlarger.images import pictures_in
from enlarger.nn.compact import halve_bicubic


@dataclass(frozen=True)
class Pair:
    """A batch of crops, (B, 3, S, S), and what a camera with half the pixels would have seen, (B, 3, S/2, S/2)."""

    large: Tensor
    small: Tensor


@dataclass(frozen=True)
class Degradation:
    """How often and how badly the small picture of a pair suffers, as real photos do."""

    blur: float = 0.05  # share of pairs
    blur_sigma: tuple[float, float] = (0.3, 0.8)  # pixels of the small picture
    jpeg: float = 0.08  # share of pairs
    jpeg_quality: tuple[int, int] = (60, 96)


Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # (H, W, 3)


@dataclass(frozen=True, eq=False)
class Photos:
    """Pictures in memory, of `crop` pixels a side at least."""

    pictures: Sequence[Pixels]
    crop: int

    def split(self, every: int = 40) -> tuple["Photos", "Photos"]:
        """Training and validation parts: each `every`-th picture is held out."""
        held_out = self.pictures[every - 1 :: every]
        if not held_out:
            return self, self
        training = [picture for i, picture in enumerate(self.pictures) if i % every != every - 1]
        return Photos(training, self.crop), Photos(held_out, self.crop)

    def draw(self, count: int, draw: np.random.Generator) -> Tensor:
        """Random crops in -1..1, (B, 3, crop, crop), flipped and turned; of two candidates the busier is taken."""
        crops = [max((self._cut(draw) for _ in range(2)), key=_busyness) for _ in range(count)]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1

    def _cut(self, draw: np.random.Generator) -> Pixels:
        picture = self.pictures[_below(draw, len(self.pictures))]
        top, left = (_below(draw, side - self.crop + 1) for side in picture.shape[:2])
        crop = picture[top : top + self.crop, left : left + self.crop]
        crop = np.rot90(crop, _below(draw, 4))
        return crop[:, ::-1] if _below(draw, 2) else crop


def read_photos(folder: Path, crop: int, seed: int = 0, scale: tuple[float, float] = (0.45, 0.9)) -> Photos:
    """The pictures of a folder, each scaled down by a random factor so that its pixels hold real detail.

    Raises InputError if none is large enough, or one cannot be read.
    """
    draw = np.random.default_rng(seed)
    read = (_load(path, draw.uniform(*scale), crop) for path in pictures_in(folder))
    pictures = [picture for picture in read if min(picture.shape[:2]) >= crop]
    if not pictures:
        raise InputError(f"{folder}: no pictures of {crop} x {crop} pixels or more; give a folder of photos")
    return Photos(pictures, crop)


def pair(large: Tensor, draw: np.random.Generator, degradation: Degradation | None = None) -> Pair:
    """Crops with their half-size inputs (antialiased bicubic, 8 bits), some of them blurred or JPEG-compressed."""
    small = halve_bicubic(large)
    if degradation is not None:
        small = torch.stack([_blur(p, draw, degradation) for p in small])
    small = ((small.clamp(-1, 1) + 1) * 127.5).round()
    if degradation is not None:
        small = torch.stack([_compress(p, draw, degradation) for p in small])
    return Pair(large, small / 127.5 - 1)


def _load(path: Path, scale: float, least: int) -> Pixels:
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a picture; mend it or take it out of the folder") from error
    else:
        scale = max(scale, min(1.0, least / min(image.size)))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return np.asarray(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))


def _below(draw: np.random.Generator, count: int) -> int:
    return int(cast(int, draw.integers(count)))


def _busyness(crop: Pixels) -> float:
    green = crop[::2, ::2, 1].astype(np.float32)
    return float(np.abs(np.diff(green, axis=0)).mean() + np.abs(np.diff(green, axis=1)).mean())


def _blur(picture: Tensor, draw: np.random.Generator, degradation: Degradation) -> Tensor:
    if draw.random() >= degradation.blur:
        return picture
    x = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.softmax(-(x**2) / (2 * draw.uniform(*degradation.blur_sigma) ** 2), 0)
    planes = F.pad(picture[:, None], (3, 3, 3, 3), mode="reflect")
    return F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, 7)), kernel.view(1, 1, 7, 1))[:, 0]


def _compress(picture: Tensor, draw: np.random.Generator, degradation: Degradation) -> Tensor:
    if draw.random() >= degradation.jpeg:
        return picture
    low, high = degradation.jpeg_quality
    data = io.BytesIO()
    Image.fromarray(picture.byte().permute(1, 2, 0).numpy()).save(data, "JPEG", quality=low + _below(draw, high - low))
    return torch.from_numpy(np.asarray(Image.open(data)).copy()).permute(2, 0, 1).float()
