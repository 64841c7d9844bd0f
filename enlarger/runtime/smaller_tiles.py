"""What ran out of memory runs again in smaller tiles, which is said; at last an error says what it needs."""

import gc
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

from enlarger.errors import OutOfMemory
from enlarger.memory_size import format_bytes
from enlarger.runtime.memory import is_out_of_memory

RETRIES = 2


@dataclass(frozen=True)
class Tiling:
    """How a step of the work is cut: `what` it is, `tile` is the side of its tiles, None where it runs whole.

    `halve` gives the next smaller tiling's side, None where there is none, and `need` the bytes that a side takes.
    """

    what: str
    tile: int | None
    unit: str
    halve: Callable[[int | None], int | None]
    need: Callable[[int | None], int]

    def error(self, tile: int | None) -> OutOfMemory:
        """What is raised where there is nothing smaller to try."""
        size = "whole" if tile is None else f"in tiles of {tile} {self.unit}"
        return OutOfMemory(
            f"memory ran out in {self.what} {size}, which takes {format_bytes(self.need(tile))} beside the weights and "
            "the pictures; free memory, give a smaller picture, or a lower precision"
        )


def tile_attempts(tiling: Tiling) -> Iterator[AbstractContextManager[int | None]]:
    """`for attempt in tile_attempts(...)`, `with attempt as tile:` a run in tiles of that side.

    Where memory runs out in it, another follows in tiles of half the side, twice at most, after a warning. Raises
    OutOfMemory after the last.
    """
    failed = False

    @contextmanager
    def attempt(tile: int | None) -> Generator[int | None]:
        nonlocal failed
        try:
            yield tile
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed = True  # what follows is outside of the handler, where no frame holds the tensors any more

    tile = tiling.tile
    for _ in range(RETRIES):
        yield attempt(tile)
        smaller = tiling.halve(tile)
        if not failed:
            return
        if smaller is None:
            raise tiling.error(tile)
        _give_back()
        warnings.warn(f"memory ran out in {tiling.what}: again in tiles of {smaller} {tiling.unit}", stacklevel=2)
        tile, failed = smaller, False
    yield attempt(tile)
    if failed:
        raise tiling.error(tile)


def halve_tile(whole: int, least: int, most: int | None = None) -> Callable[[int | None], int | None]:
    """Half the side of a tile, or of the whole but at most `most`, down to the least; in steps of that."""

    def halve(tile: int | None) -> int | None:
        smaller = (whole if tile is None else tile) // 2 // least * least
        smaller = smaller if most is None else min(smaller, most)
        return smaller if smaller >= least else None

    return halve


def _give_back() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
