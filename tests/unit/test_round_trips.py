"""A part of `scripts/round-trips`, and the colour difference that it measures by."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.round_trips import cells, ciede2000, round_trip

CELLS = list(cells())
PUBLISHED = [  # Sharma, Wu and Dalal 2005, table 1, some of the pairs
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, -1.0, 2.0), (50, 0, 0), 2.3669),
    ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


@pytest.mark.parametrize(("first", "second", "expected"), PUBLISHED)
def test_the_colour_difference_is_the_published_one(first: tuple, second: tuple, expected: float) -> None:
    assert ciede2000(np.array(first), np.array(second)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("cell", CELLS[::9], ids=str)
def test_what_must_be_equal_is_and_what_is_lost_is_said(cell, tmp_path: Path) -> None:
    assert round_trip(cell, tmp_path) is None


def test_there_are_enough_cells() -> None:
    assert len(CELLS) >= 80
