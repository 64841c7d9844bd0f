"""A slice of the matrix of `scripts/checkpoint-matrix`: one family, each container and company."""

from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.checkpoint_matrix import CONTAINERS, DTYPES, EXTRAS, Cell, cells, round_trip

one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)


@pytest.mark.parametrize("place", range(len(CONTAINERS)))
def test_read_and_written_back(tmp_path: Path, place: int) -> None:
    cell = Cell("sd1", CONTAINERS[place], DTYPES[place % len(DTYPES)], EXTRAS[place])
    assert round_trip(cell, tmp_path) is None


def test_the_matrix_is_large() -> None:
    assert len(list(cells())) >= 300
