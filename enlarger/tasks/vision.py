"""What the networks that look at pictures share: preprocessing by their file, the error where an extra is missing."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from enlarger.checkpoint.settings import Json, Settings
from enlarger.errors import CheckpointError, EnlargerError, InputError, Unsupported
from enlarger.images import Picture, to_pil
from enlarger.jsonfile import read_json

EXTRACTOR = "feature_extractor"
PREPROCESSOR = "preprocessor_config.json"
# Written by transformers; without effect on one RGB picture.
UNUSED = (
    "feature_extractor_type", "image_processor_type", "processor_class", "do_convert_rgb", "default_to_square",
    "do_reduce_labels", "data_format", "input_data_format", "device", "return_tensors", "disable_grouping",
)  # fmt: skip


@dataclass(frozen=True)
class Preprocess:
    """Pictures as a network wants them. Resizing is Pillow's, on 8 bits, as it was when the networks were trained."""

    size: int | tuple[int, int] | None  # (height, width), or of the shorter side; None keeps the picture's
    resample: Image.Resampling
    crop: tuple[int, int] | None  # the middle (height, width)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    factor: float = 1 / 255  # of the 8-bit values, before mean and std
    keep_ratio: bool = False  # scale both sides as the one that `size` changes least
    multiple: int = 1  # of both sides

    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 to (B, 3, h, w) in float32 on the CPU."""
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise InputError(f"found pictures of shape {tuple(pictures.shape)}, expected (B, 3, H, W) in -1..1")
        pixels = torch.stack([self._pixels(to_pil(Picture(each))) for each in pictures]) * self.factor
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std

    def _pixels(self, image: Image.Image) -> Tensor:
        """(3, h, w), 0..255."""
        height, width = self._target(image.height, image.width)
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), self.resample)
        if self.crop is not None:
            top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
            if min(top, left) < 0:
                raise Unsupported(f"{PREPROCESSOR}: crops {height} x {width} pixels to {self.crop}; give a larger size")
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """The size after resizing."""
        if self.size is None:
            return height, width
        if isinstance(self.size, int):
            short = min(height, width)
            return self.size * height // short, self.size * width // short
        tall, wide = self.size[0] / height, self.size[1] / width
        if self.keep_ratio:
            tall = wide = wide if abs(1 - wide) < abs(1 - tall) else tall
        sides = [max(1, round(side / self.multiple)) * self.multiple for side in (tall * height, wide * width)]
        return sides[0], sides[1]


def read_preprocess(model: Path, silent: Preprocess) -> Preprocess:
    """How a model's folder wants its pictures; `silent` says what holds where the file does not."""
    file = model / EXTRACTOR / PREPROCESSOR
    try:
        return preprocess_config(read_json(file), silent)
    except EnlargerError as error:
        raise type(error)(str(error) if str(file) in str(error) else f"{file}: {error}") from error


def preprocess_config(config: Json, silent: Preprocess) -> Preprocess:
    """A `preprocessor_config.json` of transformers, whatever its age."""
    found = Settings("image processor", config).same({"do_pad": False}).ignore(*UNUSED, "size_divisor", "pad_size")
    size, crop = _size(found, "size", silent.size), _size(found, "crop_size", silent.crop)
    resizes = found.get("do_resize", True)
    crops = found.get("do_center_crop", silent.crop is not None)
    normalise = found.get("do_normalize", True)
    mean = found.reals("image_mean") or silent.mean
    std = found.reals("image_std") or silent.std
    factor = found.real("rescale_factor", silent.factor)
    if len(mean) != 3 or len(std) != 3:
        raise CheckpointError(f"{found.what}: image_mean and image_std are {mean} and {std}, expected 3 numbers each.")
    try:
        resample = Image.Resampling(found.number("resample", int(silent.resample)))
    except ValueError as error:
        raise CheckpointError(f"{found.what}: resample is {config['resample']}, expected 0 to 5.") from error
    made = replace(
        silent, size=size if resizes else None, resample=resample,
        crop=None if not crops else (crop, crop) if isinstance(crop, int) else crop,
        factor=factor if found.get("do_rescale", True) else 1.0,
        mean=mean if normalise else (0.0,) * 3, std=std if normalise else (1.0,) * 3,
        keep_ratio=bool(found.get("keep_aspect_ratio", silent.keep_ratio)),
        multiple=found.number("ensure_multiple_of", silent.multiple),
    )  # fmt: skip
    found.finish()
    return made


def _size(found: Settings, name: str, silent: Any) -> Any:
    """A number, a height and width, or the shorter side."""
    stated: Any = found.get(name)
    if stated is None or isinstance(stated, int):
        return silent if stated is None else found.number(name)
    sides = cast("dict[str, Any]", stated) if isinstance(stated, dict) else {}
    given = {key: side for key, side in sides.items() if side is not None}
    if all(type(side) is int and side > 0 for side in given.values()):
        if set(given) == {"shortest_edge"}:
            return given["shortest_edge"]
        if set(given) == {"height", "width"}:
            return given["height"], given["width"]
    raise Unsupported(f"{found.what}: {name} is {stated!r}; supported: height and width, or shortest_edge.")


@contextmanager
def needing(extra: str, otherwise: str) -> Generator[None]:
    """Says which extra to install where an import inside fails, and what to do without it."""
    try:
        yield
    except ImportError as error:
        raise Unsupported(f"transformers cannot be imported: install enlarger[{extra}], or {otherwise}") from error
