"""A slice of the matrix of `scripts/checkpoint-matrix`: one family in four containers, each in another company."""

from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.checkpoint_matrix import CONTAINERS, DTYPES, EXTRAS, Cell, cells, round_trip

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.mark.parametrize("place", [2, 3, 4, 5], ids=[CONTAINERS[place] for place in (2, 3, 4, 5)])
def test_read_and_written_back(tmp_path: Path, place: int) -> None:
    cell = Cell("sd1", CONTAINERS[place], DTYPES[place % len(DTYPES)], EXTRAS[place % len(EXTRAS)])
    assert round_trip(cell, tmp_path) is None


def test_the_matrix_is_large() -> None:
    assert len(list(cells())) >= 300
