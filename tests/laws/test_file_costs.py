"""What a file of others may cost: memory in proportion to its size, and a typed error that says what it is."""

import tracemalloc
from pathlib import Path

import pytest

from enlarger.errors import EnlargerError
from tests.support.hostile_kinds import KINDS

SIZE = 16 << 10  # bytes
ALLOWANCE = 24 << 20  # bytes that any file may take, beside four times its own size


@pytest.mark.parametrize("label", KINDS)
def test_a_file_costs_what_it_weighs(tmp_path: Path, label: str) -> None:
    path = tmp_path / "hostile.bin"
    path.write_bytes(KINDS[label].make(SIZE))
    tracemalloc.start()
    try:
        KINDS[label].read(path)
    except EnlargerError as error:
        assert str(error).isprintable() and len(str(error)) < 1000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * path.stat().st_size + ALLOWANCE


def test_forty_kinds_are_known() -> None:
    assert len(KINDS) >= 40
