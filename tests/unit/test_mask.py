"""`enlarger.image.mask`: what counts as a mask and in which sense, sizes, feathers and boxes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from enlarger.errors import InputError
from enlarger.image.mask import bounding_box, distance_to_edge, expand_box, feather_mask, read_mask
from tests.support.close import assert_close

LEVELS = np.array([[0, 51, 255], [255, 0, 102]], np.uint8)
WEIGHTS = torch.tensor(LEVELS / 255, dtype=torch.float32)[None]
DEEP = LEVELS.astype(np.uint16) * 257


def with_alpha(colour: Any, alpha: Any) -> Image.Image:
    return Image.fromarray(np.dstack([colour] * 3 + [alpha]).astype(np.uint8))


@pytest.mark.parametrize(
    "source",
    [
        Image.fromarray(LEVELS), Image.fromarray(LEVELS).convert("RGB"), LEVELS, LEVELS[..., None], DEEP,
        Image.fromarray(DEEP), LEVELS / 255, (LEVELS / 255).astype(np.float32), WEIGHTS[0], WEIGHTS, WEIGHTS.double(),
        with_alpha(LEVELS, LEVELS * 0 + 255), with_alpha(LEVELS * 0 + 255, LEVELS),
    ],
    ids=lambda source: f"{type(source).__name__} {getattr(source, 'dtype', getattr(source, 'mode', ''))}",
)  # fmt: skip
def test_every_kind_of_mask_is_read_in_the_white_sense(source: Any) -> None:
    assert_close(read_mask(source, (2, 3), "white").weights, WEIGHTS, 1e-6)


@pytest.mark.parametrize("source", [LEVELS == 255, torch.from_numpy(LEVELS == 255), Image.fromarray(LEVELS == 255)])
def test_masks_of_two_values_are_0_and_1(source: Any) -> None:
    assert read_mask(source, (2, 3), "auto").weights.tolist() == [[[0, 0, 1], [1, 0, 0]]]


def test_the_three_senses(tmp_path: Path) -> None:
    varying, constant = with_alpha(255 - LEVELS, LEVELS), with_alpha(LEVELS, LEVELS * 0 + 255)
    assert_close(read_mask(varying, (2, 3), "alpha").weights, 1 - WEIGHTS, 1e-6)
    found = read_mask(varying, (2, 3), "auto")
    assert_close(found.weights, 1 - WEIGHTS, 1e-6)
    assert found.notes == ("mask_mode auto took the mask as 'alpha': its transparent part is repainted",)
    varying.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", (2, 3), "auto").weights.equal(found.weights)
    found = read_mask(constant, (2, 3), "auto")
    assert_close(found.weights, WEIGHTS, 1e-6)
    assert found.notes == ("mask_mode auto took the mask as 'white': its white part is repainted",)
    assert read_mask(constant, (2, 3), "alpha").coverage == 0
    assert read_mask(constant, (2, 3), "white").notes == ()


def test_a_jpeg_of_black_and_white_is_a_hard_mask(tmp_path: Path) -> None:
    hard = np.zeros((40, 40), np.uint8)
    hard[9:22, 5:31] = 255
    Image.fromarray(hard).save(tmp_path / "mask.jpg", quality=98)
    assert 0 < np.abs(np.array(Image.open(tmp_path / "mask.jpg")).astype(int) - hard).max() < 8
    found = read_mask(str(tmp_path / "mask.jpg"), (40, 40), "white")
    assert_close(found.weights[0], hard / 255, 0)
    assert found.notes[0].startswith("the mask is a JPEG: what is within 8 steps of black or white")


def hard_mask() -> np.ndarray:
    rows, columns = np.ogrid[:96, :128]
    return np.where((rows - 40) ** 2 + (columns - 60) ** 2 < 900, 255, 0).astype(np.uint8)


def reencoded(mask: np.ndarray, kind: str, **options: Any) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(mask).convert("RGB").save(file, kind, **options)
    return Image.open(file)


@pytest.mark.parametrize("quality", [30, 50, 75, 90, 95])
@pytest.mark.parametrize("form", ["PNG", "array", "webp", "image"])
def test_ringing_is_no_mask(tmp_path: Path, quality: int, form: str) -> None:
    """Of a PNG that was a JPEG, of a lossy WebP, of what somebody has opened: black stays black."""
    was = reencoded(hard_mask(), "WEBP" if form == "webp" else "JPEG", quality=quality)
    was.copy().save(tmp_path / "a.png")
    source: Any = tmp_path / "a.png"
    if form == "array":
        source = np.array(was)
    elif form == "image":
        source = was.copy()
    elif form == "webp":
        source = tmp_path / "a.webp"
        Image.fromarray(hard_mask()).convert("RGB").save(source, quality=quality)
    found = read_mask(source, (96, 128), "white")
    far = np.array(Image.fromarray(hard_mask()).filter(ImageFilter.MaxFilter(33))) == 0
    assert not found.weights[0][far].any()
    assert set((found.weights * 255).round().unique().tolist()) & {*range(1, 9), *range(247, 255)} == set()
    assert "within 8 steps of black or white was taken as such" in found.notes[-1]


@pytest.mark.parametrize("radius", [0, 1, 4, 12])
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_soft_edges_keep_every_step(tmp_path: Path, radius: int, kind: str) -> None:
    soft = Image.fromarray(hard_mask()).filter(ImageFilter.GaussianBlur(radius))
    soft.save(tmp_path / f"a.{kind}", lossless=True)
    found = read_mask(tmp_path / f"a.{kind}", (96, 128), "white")
    assert_close(found.weights[0], np.array(soft) / 255, 1e-6)
    assert found.notes == ()


@pytest.mark.parametrize("form", ["L", "RGB", "array", "RGBA"])
def test_masks_of_0_and_1_mean_0_and_255(form: str) -> None:
    grey = Image.fromarray(hard_mask() // 255)
    source: Any = {"L": grey, "RGB": grey.convert("RGB"), "array": np.array(grey), "RGBA": grey.convert("RGBA")}[form]
    found = read_mask(source, (96, 128), "white")
    assert_close(found.weights[0], hard_mask() / 255, 0)
    assert found.notes == ("the mask holds only 0 and 1: 1 was taken as white",)
    assert read_mask(np.zeros((2, 3), np.uint8), (2, 3), "white").notes == ()


def test_a_mask_may_be_resized() -> None:
    half = Image.fromarray(hard_mask()).resize((64, 48))
    found = read_mask(half, (96, 128), "white", resize=True)
    expected = np.array(half.resize((128, 96), Image.Resampling.BILINEAR)) / 255
    assert_close(found.weights[0], expected, 1 / 255)
    assert found.notes == ("the mask was 64 x 48 pixels and the picture 128 x 96: resized to the picture",)


@pytest.mark.parametrize(
    ("source", "mode", "words"),
    [
        (Image.new("L", (4, 2)), "white", "the mask is 4 x 2 pixels and the picture 3 x 2; make them equal"),
        (torch.zeros(3, 2), "auto", "the mask is 2 x 3 pixels and the picture 3 x 2; make them equal"),
        (torch.zeros(3, 2, 3), "white", r"found a tensor of shape \(3, 2, 3\), expected \(H, W\) or \(1, H, W\)"),
        (torch.zeros(2, 3, dtype=torch.uint8), "white", "found a tensor of torch.uint8, expected bool or floats"),
        (torch.full((2, 3), 2.0), "white", "found values from 2 to 2, expected 0..1"),
        (torch.full((2, 3), torch.nan), "white", "found values from nan to nan, expected 0..1"),
        (torch.zeros(2, 3), "alpha", "the mask is a tensor, which has no alpha"),
        (Image.new("L", (3, 2)), "alpha", "the mask has no alpha"),
        (np.full((2, 3), 2.0), "white", "found values from 2 to 2, expected floats in 0..1"),
        (np.zeros((2, 3), int), "white", "found int64, expected uint8, uint16 or floats"),
        ("no such mask.png", "white", "no such mask.png: no such file"),
        (7, "white", "found a int, expected a path"),
    ],
)
def test_bad_masks_are_refused(source: Any, mode: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_mask(source, (2, 3), mode)


@pytest.mark.parametrize("most", [1, 3, 50])
def test_distances_are_euclidean(most: int) -> None:
    inside = torch.from_numpy(np.random.default_rng(most).random((17, 23)) < 0.97)
    places = torch.nonzero(~inside).double()
    grid = torch.cartesian_prod(torch.arange(17.0), torch.arange(23.0)).double()
    nearest = torch.cdist(grid, places).amin(1).view(17, 23)
    found = distance_to_edge(inside, most)
    near = nearest <= most
    assert_close(found[near], nearest[near], 1e-5)
    assert (found[~near] > most).all()
    assert (distance_to_edge(torch.ones(4, 5, dtype=torch.bool), 3) == 4).all()


def test_a_feather_lies_inside_the_edge() -> None:
    mask = torch.zeros(1, 1, 12)
    mask[..., 2:] = 1
    assert_close(feather_mask(mask, 3)[0, 0], np.array([0, 0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4]) / 4, 1e-6)
    assert feather_mask(mask, 0) is mask
    soft = mask * 0.5
    assert_close(feather_mask(soft, 3), feather_mask(mask, 3) / 2, 1e-6)
    assert (feather_mask(mask, 512) < 1).all() and (feather_mask(mask, 512)[mask > 0] > 0).all()


def test_boxes() -> None:
    mask = torch.zeros(1, 20, 30)
    assert bounding_box(mask) is None
    mask[:, 3:7, 10:12] = 0.01
    assert bounding_box(mask) == (10, 3, 12, 7)
    assert expand_box((10, 3, 12, 7), 0, (20, 30)) == (9, 3, 13, 7)
    assert expand_box((10, 3, 12, 7), 2, (20, 30)) == (7, 1, 15, 9)
    assert expand_box((0, 0, 2, 7), 1, (20, 30)) == (0, 0, 8, 8)
    assert expand_box((0, 15, 30, 20), 4, (20, 30)) == (0, 0, 30, 20)
    assert expand_box((28, 18, 30, 20), 500, (20, 30)) == (0, 0, 30, 20)
