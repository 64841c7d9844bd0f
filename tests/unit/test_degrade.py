"""Damage on purpose, and whether it is noticed."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from enlarger.image.degrade import DEGRADATIONS, Pixels, Severity, blur, compress, degrade, rounded, sensor_noise
from enlarger.image.input_quality import (
    STRIP,
    blockiness,
    cell_size,
    half_error,
    input_hint,
    is_flat,
    is_graphics,
    noise_level,
)
from enlarger.nn.compact import downsample_bicubic, upsample_bicubic
from tests.support.pictures import texture


def photo(width: int = 128, height: int = 112) -> Pixels:
    """Smooth as a sky, with some texture on one side."""
    y, x = np.mgrid[:height, :width]
    base = 120 + 60 * np.sin(x / 40) + 40 * np.cos(y / 30)
    base[:, width // 2 :] += texture(width - width // 2, height, 1)[:, :].reshape(height, -1) * 0.3 - 38
    return base[..., None].repeat(3, 2).clip(0, 255).astype(np.uint8)


def tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_blur_keeps_the_mean_and_takes_the_contrast() -> None:
    values = photo().astype(np.float32)
    soft = blur(values, 1.5)
    assert soft.shape == values.shape and abs(float(soft.mean() - values.mean())) < 0.5
    assert np.abs(np.diff(soft, 2, axis=1)).mean() < np.abs(np.diff(values, 2, axis=1)).mean() / 2
    flat = np.full((9, 8, 3), 77, np.float32)
    assert np.abs(blur(flat, 2.0) - 77).max() < 1e-3  # the border too


def test_noise_is_as_strong_as_asked() -> None:
    noise = sensor_noise(np.full((200, 200, 3), 128, np.float32), 10, draw()) - 128
    assert 7 < float(noise.std()) < 13 and abs(float(noise.mean())) < 0.5


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_each_degradation_follows_from_its_seed(name: str) -> None:
    first, again = (DEGRADATIONS[name](photo(), draw(3)) for _ in range(2))
    assert first.dtype == np.uint8 and first.shape == photo().shape and np.array_equal(first, again)
    assert 0.3 < np.abs(first.astype(int) - photo()).mean() < 20


def test_worse_is_worse() -> None:
    errors: list[list[float]] = [[], [], []]
    for seed in range(120):
        made, strength = degrade(photo(), draw(seed))
        assert 0 <= strength <= 1
        errors[min(2, int(3 * strength))].append(float(np.abs(made.astype(int) - photo()).mean()))
    assert all(a < b for a, b in pairwise(np.mean(part) for part in errors))
    untouched, strength = degrade(photo(), draw(), Severity(none=1.0))
    assert np.array_equal(untouched, photo()) and strength == 0


def test_jpeg_is_noticed_and_clean_pictures_are_left_alone() -> None:
    clean = photo()
    assert input_hint(tensor(clean)) is None and blockiness(tensor(clean)) < 1.2
    shifted = compress(clean, 30)[3:, 5:]  # a crop: the blocks do not begin at the corner
    for damaged in (compress(clean, 30), shifted):
        hint = input_hint(tensor(damaged))
        assert hint is not None and hint.startswith("this looks JPEG-compressed") and hint.endswith("try restore 0.5")


def test_noise_is_noticed() -> None:
    clean = photo().astype(np.float32)
    noisy = rounded(clean + draw().normal(0, 10, clean.shape))
    found = noise_level(tensor(noisy))
    assert 3 < found < 12
    hint = input_hint(tensor(noisy))
    assert hint is not None and hint.startswith("this looks noisy (about ")
    page = np.full((128, 128, 3), 255, np.uint8)
    page[40:60:2] = 0
    assert input_hint(tensor(page)) is None  # sharp, but most of it is paper


def test_small_pictures_tell_nothing() -> None:
    tiny = tensor(np.asarray(Image.fromarray(photo()).crop((0, 0, 20, 16))))
    assert (blockiness(tiny), noise_level(tiny), input_hint(tiny)) == (1.0, 0.0, None)


def test_whose_half_a_picture_is() -> None:
    large = upsample_bicubic(tensor(photo())[None])
    assert half_error(large, downsample_bicubic(large)) < 0.1 and not is_graphics(large, downsample_bicubic(large))
    assert half_error(large, downsample_bicubic(large) + 0.1) == pytest.approx(12.75, abs=0.1)
    assert is_graphics(large, downsample_bicubic(large) + 0.1)


def test_the_cells_of_pixel_art_are_found() -> None:
    cells = torch.from_numpy(draw().integers(0, 4, (1, 3, 9, 8))).float() / 2 - 1
    for size in (1, 2, 3, 5):
        art = cells.repeat_interleave(size, 2).repeat_interleave(size, 3)
        assert cell_size(art) == size and cell_size(art[..., 1:, 1:]) == size
    assert cell_size(tensor(photo())[None]) == 1
    assert cell_size(torch.zeros(1, 3, 16, 16)) == 1  # one colour has no cells


def test_where_a_picture_is_flat() -> None:
    picture = torch.zeros(1, 3, 8, 8)
    picture[..., 5, 5] = 1
    assert (~is_flat(picture)).nonzero()[:, 2:].tolist() == [[y, x] for y in (4, 5, 6) for x in (4, 5, 6)]


def test_where_a_picture_is_flat_across_the_strips_it_is_looked_at_in() -> None:
    picture = torch.zeros(1, 3, 2 * STRIP, 3)
    picture[..., (STRIP - 1, 2 * STRIP - 1), 1] = 1
    rows = (~is_flat(picture)).any(3).nonzero()[:, 2].tolist()
    assert rows == [STRIP - 2, STRIP - 1, STRIP, 2 * STRIP - 2, 2 * STRIP - 1]
