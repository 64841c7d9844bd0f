"""LaMa's masks: the ranges of the paper's settings, the mixture, the seed."""

import math

import pytest
import torch

from enlarger.errors import InputError
from enlarger.image.random_mask import LAMA_MASKS, MaskSettings, lama_mask
from tests.support.close import assert_close

STROKES, BOXES = (MaskSettings(stroke_share=share) for share in (1.0, 0.0))


def masks(settings: MaskSettings, count: int, size: tuple[int, int] = (256, 256)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [lama_mask(size, generator, settings) for _ in range(count)]


def test_a_mask_is_keep_or_repaint_of_the_size_asked_for() -> None:
    for mask in masks(LAMA_MASKS, 20, (96, 160)):
        assert mask.shape == (1, 96, 160) and set(mask.unique().tolist()) <= {0.0, 1.0}


def test_the_same_generator_gives_the_same_masks() -> None:
    for one, other in zip(masks(LAMA_MASKS, 5), masks(LAMA_MASKS, 5), strict=True):
        assert_close(one, other, 0)


def test_a_box_has_the_sides_and_the_margin_that_are_stated() -> None:
    one = MaskSettings(stroke_share=0, boxes=(1, 1))
    for mask in masks(one, 200):
        rows, columns = (torch.nonzero(mask[0].any(axis)).flatten() for axis in (1, 0))
        assert bool((mask[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 1).all())
        for found in (rows, columns):
            assert 30 <= len(found) <= 149 and int(found[0]) >= 10 and int(found[-1]) <= 245


def test_one_to_four_boxes_cover_what_their_sides_allow() -> None:
    coverage = torch.stack([mask.mean() for mask in masks(BOXES, 400)])
    assert float(coverage.min()) >= (30 / 256) ** 2
    assert float(coverage.max()) <= (236 / 256) ** 2  # the margin stays free


def test_a_straight_segment_has_the_length_and_width_that_are_stated() -> None:
    """One segment covers at most a capsule: its length times its width and a disc."""
    one = MaskSettings(stroke_share=1, strokes=(1, 1), segments=(1, 1))
    area = torch.stack([mask.sum() for mask in masks(one, 300)])
    assert float(area.max()) <= 1.05 * (209 * 105 + math.pi * 53**2)
    assert float(area.min()) >= math.pi / 4 * 2.5**2  # a quarter of a disc of the thinnest brush, in a corner


def test_strokes_are_wide_and_one_mask_in_two_is_made_of_them() -> None:
    """Suvorov et al. 2021: large masks; the mixture draws strokes as often as boxes."""
    wide = torch.stack([mask.mean() for mask in masks(STROKES, 300)])
    assert 0.2 < float(wide.mean()) < 0.5 and float(wide.std()) > 0.1
    generator, strokes = torch.Generator().manual_seed(1), 0
    for _ in range(400):
        mask = lama_mask((64, 64), generator)[0]
        border = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        strokes += bool(border.any())  # a box never touches the border
    assert 0.4 < strokes / 400 < 0.55


@pytest.mark.parametrize("side", (64, 512))
def test_coverage_does_not_depend_on_the_size(side: int) -> None:
    small, large = (torch.stack([m.mean() for m in masks(LAMA_MASKS, 200, (s, s))]).mean() for s in (256, side))
    assert abs(float(small - large)) < 0.03


def test_a_picture_without_room_is_refused() -> None:
    with pytest.raises(InputError, match="a mask of 7 x 40 pixels, expected 8 x 8 or more"):
        lama_mask((40, 7), torch.Generator())
