"""The features of one picture outside of the device, so that a network's layers pass over them tile by tile."""

import tempfile
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import product
from typing import BinaryIO

import torch
from torch import Tensor

from enlarger.errors import EnlargerError

IN_MEMORY = 64 * 2**20  # bytes of a map that is kept in memory; a larger one is an unnamed file


class FeatureMap:
    """Features (channels, height, width), written once, tile by tile, and read in any windows.

    It knows the mean and variance of each group of channels, as a group normalisation over the whole needs them.
    Larger maps than `IN_MEMORY` lie in an unnamed file in the folder for temporary files (`TMPDIR`).
    """

    def __init__(self, channels: int, size: tuple[int, int], dtype: torch.dtype, groups: int = 1) -> None:
        self.channels, self.size, self.dtype = channels, size, dtype
        shape = (*size, channels)
        num_bytes = channels * size[0] * size[1] * dtype.itemsize
        self._memory = torch.empty(shape, dtype=dtype) if num_bytes <= IN_MEMORY else None
        self._file: BinaryIO | None = None
        if self._memory is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the map is used
            weakref.finalize(self, self._file.close)
        self._count = 0
        self._mean = torch.zeros(groups, dtype=torch.float64)
        self._squares = torch.zeros(groups, dtype=torch.float64)  # summed squares of the distances to the mean

    @classmethod
    def of(cls, features: Tensor) -> "FeatureMap":
        """The map of features (1, C, H, W), which are on the host and stay there; without statistics."""
        found = cls(features.shape[1], (0, 0), features.dtype)
        found.size, found._memory = (features.shape[2], features.shape[3]), features[0].permute(1, 2, 0)
        return found

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each group of channels, (groups,) float64."""
        return self._mean, self._squares / self._count

    def write(self, top: int, left: int, tile: Tensor) -> None:
        """Put a tile (1, C, h, w) in its place; places do not overlap."""
        self._count_in(tile)
        rows = tile[0].permute(1, 2, 0).to("cpu", self.dtype)
        height, width = rows.shape[:2]
        if self._memory is not None:
            self._memory[top : top + height, left : left + width] = rows
            return
        for i, row in enumerate(rows.contiguous().view(torch.uint8).numpy()):
            self._transfer(top + i, left, lambda file, row=row: file.write(row))

    def read(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """A window (1, C, bottom - top, right - left)."""
        if self._memory is not None:
            rows = self._memory[top:bottom, left:right]
        else:
            rows = torch.empty(bottom - top, right - left, self.channels, dtype=self.dtype)
            for i, row in enumerate(rows.view(torch.uint8).numpy()):
                self._transfer(top + i, left, lambda file, row=row: file.readinto(row))  # pyright: ignore
        return rows.permute(2, 0, 1)[None]

    def _transfer(self, row: int, column: int, act: Callable[[BinaryIO], object]) -> None:
        assert self._file is not None
        try:
            self._file.seek((row * self.size[1] + column) * self.channels * self.dtype.itemsize)
            act(self._file)
        except OSError as error:
            raise EnlargerError(
                f"the folder for temporary files {tempfile.gettempdir()} cannot hold a network's features "
                f"({error.strerror}); free space there, or name another in TMPDIR"
            ) from error

    def _count_in(self, tile: Tensor) -> None:
        """Join a tile's statistics with those so far (Chan, Golub and LeVeque 1979)."""
        values = tile.reshape(len(self._mean), -1).float()
        variance, mean = (s.double().cpu() for s in torch.var_mean(values, dim=1, correction=0))
        count, total = values.shape[1], self._count + values.shape[1]
        distance = mean - self._mean
        self._squares += variance * count + distance**2 * (self._count * count / total)
        self._mean += distance * (count / total)
        self._count = total


def map_tiles(
    function: Callable[..., Tensor],
    *maps: FeatureMap,
    tile: int,
    device: torch.device,
    margin: int = 0,
    scale: Fraction = Fraction(1),
    groups: int = 1,
) -> FeatureMap:
    """The map of `function`'s results, which are `scale` as large as its inputs.

    It is called with the same window of each of `maps`: a tile with `margin` pixels of its surroundings, (1, C, h, w).
    The result is that of the whole if no output depends on inputs further than `margin` away, and if `tile` and
    `margin` are multiples of what the function halves.
    """
    height, width = maps[0].size
    made: FeatureMap | None = None
    for top, left in product(range(0, height, tile), range(0, width, tile)):
        bottom, right = min(height, top + tile), min(width, left + tile)
        above, before = max(0, top - margin), max(0, left - margin)
        window = (above, min(height, bottom + margin), before, min(width, right + margin))
        output = function(*(each.read(*window).to(device) for each in maps))
        if made is None:
            size = (int(height * scale), int(width * scale))
            made = FeatureMap(output.shape[1], size, output.dtype, groups)
        rows = slice(int((top - above) * scale), int((bottom - above) * scale))
        columns = slice(int((left - before) * scale), int((right - before) * scale))
        if (cropped := output[..., rows, columns]).numel():
            made.write(int(top * scale), int(left * scale), cropped)
    assert made is not None
    return made


def row_bands(features: FeatureMap, pixels: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """The map from top to bottom in bands of whole rows, about `pixels` in each: the first row, and (1, C, h, W)."""
    height, width = features.size
    rows = max(1, pixels // width)
    for top in range(0, height, rows):
        yield top, features.read(top, min(height, top + rows), 0, width).to(device)
