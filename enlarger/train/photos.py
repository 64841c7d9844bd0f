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
from enlarger.image.picture import list_pictures
from enlarger.nn.compact import downsample_bicubic


@dataclass(frozen=True)
class CropPair:
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

    def sample_crops(self, count: int, rng: np.random.Generator) -> Tensor:
        """Random crops in -1..1, (B, 3, crop, crop), flipped and turned; of two candidates the busier is taken."""
        crops = [max((self._random_crop(rng) for _ in range(2)), key=_detail_energy) for _ in range(count)]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1

    def _random_crop(self, rng: np.random.Generator) -> Pixels:
        picture = self.pictures[_random_index(rng, len(self.pictures))]
        top, left = (_random_index(rng, side - self.crop + 1) for side in picture.shape[:2])
        crop = picture[top : top + self.crop, left : left + self.crop]
        crop = np.rot90(crop, _random_index(rng, 4))
        return crop[:, ::-1] if _random_index(rng, 2) else crop


def read_photos(folder: Path, crop: int, seed: int = 0, scale: tuple[float, float] = (0.45, 0.9)) -> Photos:
    """The pictures of a folder, each scaled down by a random factor so that its pixels hold real detail.

    Raises InputError if none is large enough, or one cannot be read.
    """
    rng = np.random.default_rng(seed)
    loaded = (_load(path, rng.uniform(*scale), crop) for path in list_pictures(folder))
    pictures = [picture for picture in loaded if min(picture.shape[:2]) >= crop]
    if not pictures:
        raise InputError(f"{folder}: no pictures of {crop} x {crop} pixels or more; give a folder of photos")
    return Photos(pictures, crop)


def make_pairs(large: Tensor, rng: np.random.Generator, degradation: Degradation | None = None) -> CropPair:
    """Crops with their half-size inputs (antialiased bicubic, 8 bits), some of them blurred or JPEG-compressed."""
    small = downsample_bicubic(large)
    if degradation is not None:
        small = torch.stack([_blur(p, rng, degradation) for p in small])
    small = ((small.clamp(-1, 1) + 1) * 127.5).round()
    if degradation is not None:
        small = torch.stack([_compress(p, rng, degradation) for p in small])
    return CropPair(large, small / 127.5 - 1)


def _load(path: Path, scale: float, min_side: int) -> Pixels:
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a picture; mend it or take it out of the folder") from error
    else:
        scale = max(scale, min(1.0, min_side / min(image.size)))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return np.asarray(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))


def _random_index(rng: np.random.Generator, count: int) -> int:
    return int(cast(int, rng.integers(count)))


def _detail_energy(crop: Pixels) -> float:
    green = crop[::2, ::2, 1].astype(np.float32)
    return float(np.abs(np.diff(green, axis=0)).mean() + np.abs(np.diff(green, axis=1)).mean())


def _blur(picture: Tensor, rng: np.random.Generator, degradation: Degradation) -> Tensor:
    if rng.random() >= degradation.blur:
        return picture
    x = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.softmax(-(x**2) / (2 * rng.uniform(*degradation.blur_sigma) ** 2), 0)
    planes = F.pad(picture[:, None], (3, 3, 3, 3), mode="reflect")
    return F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, 7)), kernel.view(1, 1, 7, 1))[:, 0]


def _compress(picture: Tensor, rng: np.random.Generator, degradation: Degradation) -> Tensor:
    if rng.random() >= degradation.jpeg:
        return picture
    low, high = degradation.jpeg_quality
    data = io.BytesIO()
    Image.fromarray(picture.byte().permute(1, 2, 0).numpy()).save(
        data, "JPEG", quality=low + _random_index(rng, high - low)
    )
    return torch.from_numpy(np.asarray(Image.open(data)).copy()).permute(2, 0, 1).float()
