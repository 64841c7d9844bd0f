"""Running a network with a bounded receptive field over a large picture in pieces, with the same result."""

from collections.abc import Callable, Iterator

from torch import Tensor


def tiled(
    function: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, margin: int, scale: float = 1
) -> Tensor:  # fmt: skip
    """`function(x)` for x (B, C, H, W), in tiles with `margin` pixels of their surroundings on each side.

    Equal to the whole if no output pixel depends on inputs further than `margin` away and `tile` and `margin` are
    multiples of the function's granularity. `scale` is output pixels per input pixel.
    """
    height, width = x.shape[-2:]
    if height <= tile + margin and width <= tile + margin:
        return function(x)
    result: Tensor | None = None
    for top, bottom, above, below in _spans(height, tile, margin):
        for left, right, before, after in _spans(width, tile, margin):
            piece = function(x[..., above:below, before:after])
            if result is None:
                result = piece.new_empty(*piece.shape[:2], round(height * scale), round(width * scale))
            rows = slice(round((top - above) * scale), round((bottom - above) * scale))
            columns = slice(round((left - before) * scale), round((right - before) * scale))
            result[..., round(top * scale) : round(bottom * scale), round(left * scale) : round(right * scale)] = piece[
                ..., rows, columns
            ]
    assert result is not None
    return result


def _spans(length: int, tile: int, margin: int) -> Iterator[tuple[int, int, int, int]]:
    """Start and end of each tile, and of the tile with its surroundings."""
    for start in range(0, length, tile):
        end = min(length, start + tile)
        yield start, end, max(0, start - margin), min(length, end + margin)
