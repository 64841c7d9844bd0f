"""Running a network with a bounded receptive field over a large picture in pieces, with the same result."""

from collections.abc import Callable

from torch import Tensor

Seen = Callable[[int, int], None]  # tiles done, tiles in all; it may raise to stop


def _unseen(done: int, total: int) -> None:
    """Nobody looks."""


def tiled(
    function: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, margin: int, scale: float = 1, seen: Seen = _unseen
) -> Tensor:
    """`function(x)` for x (B, C, H, W), in tiles with `margin` pixels of their surroundings on each side.

    Equal to the whole if no output pixel depends on inputs further than `margin` away and `tile` and `margin` are
    multiples of the function's granularity. `scale` is output pixels per input pixel.
    """
    height, width = x.shape[-2:]
    whole = height <= tile + margin and width <= tile + margin
    rows, columns = (_spans(side, side if whole else tile, margin) for side in (height, width))
    result: Tensor | None = None
    for i, (top, bottom, above, below) in enumerate(rows):
        for j, (left, right, before, after) in enumerate(columns):
            piece = function(x[..., above:below, before:after])
            if result is None:
                result = piece.new_empty(*piece.shape[:2], round(height * scale), round(width * scale))
            inner = piece[
                ..., _scaled(top - above, bottom - above, scale), _scaled(left - before, right - before, scale)
            ]
            result[..., _scaled(top, bottom, scale), _scaled(left, right, scale)] = inner
            seen(i * len(columns) + j + 1, len(rows) * len(columns))
    assert result is not None
    return result


def _spans(length: int, tile: int, margin: int) -> list[tuple[int, int, int, int]]:
    """Start and end of each tile, and of the tile with its surroundings."""
    ends = ((start, min(length, start + tile)) for start in range(0, length, tile))
    return [(start, end, max(0, start - margin), min(length, end + margin)) for start, end in ends]


def _scaled(start: int, end: int, scale: float) -> slice:
    return slice(round(start * scale), round(end * scale))
