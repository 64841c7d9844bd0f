"""Metrics: what they give for equal, shifted and batched pictures, and what they refuse; the contact sheet."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from enlarger.errors import InputError
from enlarger.evaluate.metrics import METRICS, consistency, fine_band, luma, psnr, psnr_y, studio_luma
from enlarger.evaluate.sheet import contact_sheet
from enlarger.image.picture import resize
from tests.support.close import assert_close
from tests.support.pictures import texture


def picture(height: int = 180, width: int = 190, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(texture(width, height, seed=seed)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("name", METRICS)
def test_equal_pictures_are_perfect(name: str) -> None:
    best = {"PSNR": math.inf, "PSNR-Y": math.inf, "SSIM": 1.0, "MS-SSIM": 1.0, "GMSD": 0.0}
    assert METRICS[name](picture(), picture()).item() == pytest.approx(best[name], abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_more_noise_is_worse(name: str) -> None:
    truth = picture()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    scores = [METRICS[name](truth + strength * noise, truth).item() for strength in (0.01, 0.03, 0.1)]
    assert scores == sorted(scores, reverse=name != "GMSD") and len(set(scores)) == 3


@pytest.mark.parametrize("name", METRICS)
def test_a_batch_equals_singles(name: str) -> None:
    truth = torch.stack([picture(), picture(seed=1)])
    output = (truth + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    singles = torch.stack([METRICS[name](a, b) for a, b in zip(output, truth, strict=True)])
    assert METRICS[name](output, truth).shape == (2,)
    assert_close(METRICS[name](output, truth), singles, 1e-12)


def test_psnr_of_a_known_difference() -> None:
    truth = torch.full((3, 8, 8), 0.5, dtype=torch.float64)
    assert psnr(truth + 0.1, truth).item() == pytest.approx(20)
    assert psnr_y(truth + 0.1, truth).item() == pytest.approx(20 - 20 * math.log10(219 / 255))
    assert psnr(truth + 1 / 255, truth).item() == pytest.approx(48.1308036)


def test_luma_runs_from_black_to_white() -> None:
    ends = torch.tensor([0.0, 1.0]).reshape(1, 1, 2).expand(3, -1, -1)
    assert_close(luma(ends), torch.tensor([[0.0, 1.0]]), 1e-12)
    assert_close(studio_luma(ends), torch.tensor([[16.0, 235.0]], dtype=torch.float64) / 255, 1e-12)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("SSIM", (3, 10, 20), "SSIM: found 20 x 10 pixels, expected at least 11 a side; use larger pictures"),
        ("MS-SSIM", (3, 175, 300), "MS-SSIM: found 300 x 175 pixels, expected at least 176 a side"),
        ("GMSD", (3, 1, 5), "GMSD: found 5 x 1 pixels, expected at least 2 a side"),
        ("PSNR", (1, 5, 5), r"PSNR: found shapes \(1, 5, 5\) and \(1, 5, 5\), expected two equal ones"),
    ],
)
def test_what_cannot_be_measured_is_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        METRICS[name](torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(InputError, match="expected two equal ones"):
        METRICS[name](torch.zeros(3, 200, 200), torch.zeros(3, 200, 199))


def test_consistency_counts_eight_bit_steps() -> None:
    large = picture(40, 60)
    small = resize(large, (20, 30))
    assert consistency(large, small).largest < 1e-3
    found = consistency(large[None], small[None] + 2 / 255)
    assert (found.largest, found.mean) == pytest.approx((2, 2), abs=1e-3)
    small[:, 3, 4] += 5 / 255
    assert consistency(large, small).largest == pytest.approx(5, abs=1e-3)
    assert consistency(large, small).mean == pytest.approx(5 / 600, abs=1e-3)


def holds(sheet: Image.Image, crop: np.ndarray, zoom: int) -> bool:
    """Whether the first column of a sheet shows a crop, enlarged by nearest pixel."""
    values, tile = np.asarray(sheet), crop.repeat(zoom, 0).repeat(zoom, 1)
    height, width = tile.shape[:2]
    tops = range(values.shape[0] - height)
    return any(np.array_equal(values[top : top + height, 8 : 8 + width], tile) for top in tops)


@pytest.mark.parametrize("zoom", [1, 2, 3])
def test_a_contact_sheet_holds_every_crop(zoom: int) -> None:
    deep = Image.fromarray(np.full((20, 24), 40000, np.uint16))
    crops = [Image.fromarray(texture(24, 20, k)) for k in (1, 3, 4)]
    sheet = contact_sheet([("photo one", [("bicubic 28.1", crops[1]), ("ours", crops[0])]), ("b", [("x", deep)])], zoom)
    assert sheet.mode == "RGB"
    assert holds(sheet, np.asarray(crops[1]), zoom)
    assert holds(sheet, np.full((20, 24, 3), 40000 >> 8), zoom)
    assert contact_sheet([("alpha", [("", crops[2])])], zoom).width >= 24 * zoom


def test_an_empty_contact_sheet_is_refused() -> None:
    with pytest.raises(InputError, match="found 1 rows and zoom 2, expected at least one crop"):
        contact_sheet([("nothing", [])])


def test_the_fine_band_knows_true_detail_from_made_up() -> None:
    truth = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    same, made_up, smooth = (fine_band(x, truth) for x in (truth, other, torch.full_like(truth, 0.5)))
    assert same.energy == pytest.approx(1) and same.correlation == pytest.approx(1)
    assert made_up.energy == pytest.approx(1, abs=0.2) and abs(made_up.correlation) < 0.1
    assert smooth.energy < 1e-9 and abs(smooth.correlation) <= 1
