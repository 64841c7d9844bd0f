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

from enlarger.checkpoint.config.strict_config import StrictConfig
from enlarger.errors import CheckpointError, EnlargerError, InputError, Unsupported
from enlarger.image.picture import Picture, to_pil
from enlarger.strict_json import Json, read_json

FEATURE_EXTRACTOR_FOLDER = "feature_extractor"
PREPROCESSOR_FILE = "preprocessor_config.json"
# Written by transformers; without effect on one RGB picture.
IGNORED_KEYS = (
    "feature_extractor_type", "image_processor_type", "processor_class", "do_convert_rgb", "default_to_square",
    "do_reduce_labels", "data_format", "input_data_format", "device", "return_tensors", "disable_grouping",
)  # fmt: skip


@dataclass(frozen=True)
class ImagePreprocessor:
    """Pictures as a network wants them. Resizing is Pillow's, on 8 bits, as it was when the networks were trained."""

    size: int | tuple[int, int] | None  # (height, width), or of the shorter side; None keeps the picture's
    resample: Image.Resampling
    crop: tuple[int, int] | None  # the middle (height, width)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale_factor: float = 1 / 255  # of the 8-bit values, before mean and std
    keep_aspect_ratio: bool = False  # scale both sides as the one that `size` changes least
    size_multiple: int = 1  # of both sides

    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 to (B, 3, h, w) in float32 on the CPU."""
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise InputError(f"found pictures of shape {tuple(pictures.shape)}, expected (B, 3, H, W) in -1..1")
        pixels = torch.stack([self._pixels(to_pil(Picture(each))) for each in pictures]) * self.rescale_factor
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std

    def _pixels(self, image: Image.Image) -> Tensor:
        """(3, h, w), 0..255."""
        height, width = self._target_size(image.height, image.width)
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), self.resample)
        if self.crop is not None:
            top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
            if min(top, left) < 0:
                raise Unsupported(
                    f"{PREPROCESSOR_FILE}: crops {height} x {width} pixels to {self.crop}; give a larger size"
                )
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()

    def _target_size(self, height: int, width: int) -> tuple[int, int]:
        """The size after resizing."""
        if self.size is None:
            return height, width
        if isinstance(self.size, int):
            shorter_side = min(height, width)
            return self.size * height // shorter_side, self.size * width // shorter_side
        height_scale, width_scale = self.size[0] / height, self.size[1] / width
        if self.keep_aspect_ratio:
            height_scale = width_scale = width_scale if abs(1 - width_scale) < abs(1 - height_scale) else height_scale
        sides = [
            max(1, round(side / self.size_multiple)) * self.size_multiple
            for side in (height_scale * height, width_scale * width)
        ]
        return sides[0], sides[1]


def read_preprocessor(model: Path, defaults: ImagePreprocessor) -> ImagePreprocessor:
    """How a model's folder wants its pictures; `silent` says what holds where the file does not."""
    file = model / FEATURE_EXTRACTOR_FOLDER / PREPROCESSOR_FILE
    try:
        return preprocessor_from_config(read_json(file), defaults)
    except EnlargerError as error:
        raise type(error)(str(error) if str(file) in str(error) else f"{file}: {error}") from error


def preprocessor_from_config(config: Json, defaults: ImagePreprocessor) -> ImagePreprocessor:
    """A `preprocessor_config.json` of transformers, whatever its age."""
    settings = (
        StrictConfig("image processor", config)
        .require_equal({"do_pad": False})
        .ignore_keys(*IGNORED_KEYS, "size_divisor", "pad_size")
    )
    size, crop = _read_size(settings, "size", defaults.size), _read_size(settings, "crop_size", defaults.crop)
    is_resized = settings.get("do_resize", True)
    is_cropped = settings.get("do_center_crop", defaults.crop is not None)
    is_normalised = settings.get("do_normalize", True)
    mean = settings.get_floats("image_mean") or defaults.mean
    std = settings.get_floats("image_std") or defaults.std
    rescale_factor = settings.get_float("rescale_factor", defaults.rescale_factor)
    if len(mean) != 3 or len(std) != 3:
        raise CheckpointError(
            f"{settings.class_name}: image_mean and image_std are {mean} and {std}, expected 3 numbers each."
        )
    try:
        resample = Image.Resampling(settings.get_int("resample", int(defaults.resample)))
    except ValueError as error:
        raise CheckpointError(f"{settings.class_name}: resample is {config['resample']}, expected 0 to 5.") from error
    preprocessor = replace(
        defaults,
        size=size if is_resized else None,
        resample=resample,
        crop=None if not is_cropped else (crop, crop) if isinstance(crop, int) else crop,
        rescale_factor=rescale_factor if settings.get("do_rescale", True) else 1.0,
        mean=mean if is_normalised else (0.0,) * 3,
        std=std if is_normalised else (1.0,) * 3,
        keep_aspect_ratio=bool(settings.get("keep_aspect_ratio", defaults.keep_aspect_ratio)),
        size_multiple=settings.get_int("ensure_multiple_of", defaults.size_multiple),
    )
    settings.reject_unknown()
    return preprocessor


def _read_size(settings: StrictConfig, name: str, defaults: Any) -> Any:
    """A number, a height and width, or the shorter side."""
    stated: Any = settings.get(name)
    if stated is None or isinstance(stated, int):
        return defaults if stated is None else settings.get_int(name)
    sides = cast("dict[str, Any]", stated) if isinstance(stated, dict) else {}
    present = {key: side for key, side in sides.items() if side is not None}
    if all(type(side) is int and side > 0 for side in present.values()):
        if set(present) == {"shortest_edge"}:
            return present["shortest_edge"]
        if set(present) == {"height", "width"}:
            return present["height"], present["width"]
    raise Unsupported(f"{settings.class_name}: {name} is {stated!r}; supported: height and width, or shortest_edge.")


@contextmanager
def require_transformers(extra: str, alternative: str) -> Generator[None]:
    """Says which extra to install where an import inside fails, and what to do without it."""
    try:
        yield
    except ImportError as error:
        raise Unsupported(f"transformers cannot be imported: install enlarger[{extra}], or {alternative}") from error
