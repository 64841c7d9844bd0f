"""From a picture's file to the part of it that is trained on."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from enlarger.image.picture import Picture, read_picture
from enlarger.image.resize import covering_size, resize
from enlarger.tasks.latent_diffusion.conditioning import Size

BACKGROUND = 1.0  # white, under what is transparent


@dataclass(frozen=True, eq=False)
class Crop:
    """Pixels (3, H, W) in -1..1, the size of the whole picture, where the crop begins, and what tells it apart."""

    pixels: Tensor
    original_size: Size
    top_left: tuple[int, int]  # in the resized picture
    key: str


def cut(content: bytes, bucket: Size, place: tuple[float, float], *, flip: bool) -> Crop:
    """The picture of a file, resized to cover the bucket, mirrored if asked, and cut at `place`, 0..1 down and across.

    Raises InputError for a broken picture.
    """
    picture = read_picture(content)
    original = (picture.height, picture.width)
    covering = covering_size(original, bucket)
    pixels = on_white(picture)
    pixels = resize(pixels, covering).clamp(-1, 1) if covering != original else pixels
    pixels = pixels.flip(-1) if flip else pixels
    top, left = (min(int(share * (c - b + 1)), c - b) for share, c, b in zip(place, covering, bucket, strict=True))
    key = hashlib.sha256(content + repr((bucket, top, left, flip)).encode()).hexdigest()
    return Crop(pixels[:, top : top + bucket[0], left : left + bucket[1]].contiguous(), original, (top, left), key)


def on_white(picture: Picture) -> Tensor:
    """The colour (3, H, W) in -1..1, white showing through where it is transparent."""
    if picture.alpha is None:
        return picture.colour
    return torch.lerp(torch.full_like(picture.colour, BACKGROUND), picture.colour, picture.alpha)
