"""Photographs as training material: a folder in one file of pixels that all processes share, and random crops of it."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from enlarger.errors import InputError
from enlarger.image.decode import open_image
from enlarger.image.degrade import Pixels
from enlarger.image.picture import list_pictures

SCALES = (0.45, 0.9)  # photographs are made smaller, so that their pixels hold real detail
HOLD_OUT = 40  # one picture in so many is never trained on
CANDIDATES = 2  # crops looked at, of which the busiest is taken


@dataclass(frozen=True, eq=False)
class Photos:
    """Where pictures lie in a mapped file of pixels: (offset, height, width) each."""

    pixels: np.memmap[Any, np.dtype[np.uint8]]
    places: tuple[tuple[int, int, int], ...]
    crop: int

    def split(self) -> tuple["Photos", "Photos"]:
        """Training and validation parts; the same pictures twice where there are too few."""
        held_out = self.places[HOLD_OUT - 1 :: HOLD_OUT]
        if not held_out:
            return self, self
        training = tuple(place for i, place in enumerate(self.places) if i % HOLD_OUT != HOLD_OUT - 1)
        return Photos(self.pixels, training, self.crop), Photos(self.pixels, held_out, self.crop)

    def draw(self, draw: np.random.Generator) -> Pixels:
        """A random crop, flipped and turned; of two candidates the busier is taken."""
        crop = max((self._cut(draw) for _ in range(CANDIDATES)), key=_busyness)
        crop = np.rot90(crop, int(draw.integers(4)))
        return np.ascontiguousarray(crop[:, ::-1] if draw.random() < 0.5 else crop)

    def _cut(self, draw: np.random.Generator) -> Pixels:
        offset, height, width = self.places[int(draw.integers(len(self.places)))]
        picture = self.pixels[offset : offset + height * width * 3].reshape(height, width, 3)
        top, left = (int(draw.integers(side - self.crop + 1)) for side in (height, width))
        return picture[top : top + self.crop, left : left + self.crop]


def read_photos(folder: Path, work: Path, crop: int, seed: int = 0, workers: int | None = None) -> Photos:
    """The pictures of a folder, each scaled down by a random factor, in `work/photos.bin`, which is made once.

    Raises InputError if none is large enough, or one cannot be read.
    """
    index, data = work / "photos.json", work / "photos.bin"
    paths = list_pictures(folder)
    about = {"pictures": [[path.name, path.stat().st_size] for path in paths], "crop": crop, "seed": seed}
    if not index.exists() or {**json.loads(index.read_text()), "places": None} != {**about, "places": None}:
        work.mkdir(parents=True, exist_ok=True)
        with get_context("spawn").Pool(workers or os.cpu_count()) as pool:
            asked = [(path, [seed, i], crop) for i, path in enumerate(paths)]
            places = _write(pool.imap(_load, asked, chunksize=8), data, crop)
        index.write_text(json.dumps(about | {"places": places}))
    places = tuple((offset, height, width) for offset, height, width in json.loads(index.read_text())["places"])
    if not places:
        raise InputError(f"{folder}: no pictures of {crop} x {crop} pixels or more; give a folder of photos")
    return Photos(np.memmap(data, np.uint8, "r"), places, crop)


def _write(pictures: Iterable[Pixels], path: Path, crop: int) -> list[tuple[int, int, int]]:
    places: list[tuple[int, int, int]] = []
    with path.open("wb") as file:
        for picture in pictures:
            if min(picture.shape[:2]) >= crop:
                places.append((file.tell(), *picture.shape[:2]))
                file.write(picture.tobytes())
    return places


def _load(asked: tuple[Path, list[int], int]) -> Pixels:
    path, seed, least = asked
    try:
        with open_image(path) as (opened, _):
            image = opened.convert("RGB")
    except (OSError, InputError) as error:
        raise InputError(f"{path}: cannot be read as a picture; mend it or take it out of the folder") from error
    scale = max(np.random.default_rng(seed).uniform(*SCALES), min(1.0, least / min(image.size)))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))


def _busyness(crop: Pixels) -> float:
    green = crop[::2, ::2, 1].astype(np.int16)
    return float(cast(float, np.abs(np.diff(green, axis=0)).mean() + np.abs(np.diff(green, axis=1)).mean()))
