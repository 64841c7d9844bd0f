"""Running a network with a bounded receptive field over a large picture in pieces, with the same result."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from enlarger.runtime.smaller_tiles import Tiling, tile_attempts

TileProgress = Callable[[int, int], None]  # tiles done, tiles in all; it may raise to stop


@dataclass(frozen=True, eq=False)
class Blend:
    """Where results go instead of a new tensor: a `share` of the way from what `onto`, of their shape, holds."""

    onto: Tensor
    share: float


def _no_progress(done: int, total: int) -> None:
    """Nobody looks."""


def apply_tiled(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    tile_size: int,
    margin: int,
    scale: float = 1,
    progress: TileProgress = _no_progress,
    blend: Blend | None = None,
    tiling: Callable[[int], Tiling] | None = None,
) -> Tensor:
    """`function(x)` for x (B, C, H, W), in tiles with `margin` pixels of their surroundings on each side.

    Equal to the whole if no output pixel depends on inputs further than `margin` away and `tile_size` and `margin`
    are multiples of the function's granularity. What memory does not suffice for is computed in smaller tiles by the
    `tiling` of its side. `scale` is output pixels per input pixel. With a
    `blend` the results go there, and no tensor is made for them.
    """
    height, width = x.shape[-2:]
    is_single_tile = height <= tile_size + margin and width <= tile_size + margin
    rows, columns = (_tile_bounds(side, side if is_single_tile else tile_size, margin) for side in (height, width))
    result, output = None if blend is None else blend.onto, None
    for i, (top, bottom, above, below) in enumerate(rows):
        for j, (left, right, before, after) in enumerate(columns):
            window = x[..., above:below, before:after]
            for attempt in _whole(tiling, window):
                with attempt as smaller:
                    output = (
                        function(window)
                        if smaller is None
                        else apply_tiled(function, window, tile_size=smaller, margin=margin, scale=scale)
                    )
            assert output is not None, "the last attempt returns or raises"
            if result is None:
                result = output.new_empty(*output.shape[:2], round(height * scale), round(width * scale))
            cropped = output[
                ...,
                _scaled_slice(top - above, bottom - above, scale),
                _scaled_slice(left - before, right - before, scale),
            ]
            place = result[..., _scaled_slice(top, bottom, scale), _scaled_slice(left, right, scale)]
            if blend is None or blend.share == 1:  # what lies there may be no number yet
                place.copy_(cropped)
            else:
                place.lerp_(cropped, blend.share)
            progress(i * len(columns) + j + 1, len(rows) * len(columns))
    assert result is not None
    return result


def _whole(tiling: Callable[[int], Tiling] | None, window: Tensor) -> Iterable[AbstractContextManager[int | None]]:
    """The attempts at one window, of which the first is whole."""
    return [nullcontext(None)] if tiling is None else tile_attempts(tiling(max(window.shape[-2:])))


def _tile_bounds(length: int, tile_size: int, margin: int) -> list[tuple[int, int, int, int]]:
    """Start and end of each tile, and of the tile with its surroundings."""
    ends = ((start, min(length, start + tile_size)) for start in range(0, length, tile_size))
    return [(start, end, max(0, start - margin), min(length, end + margin)) for start, end in ends]


def _scaled_slice(start: int, end: int, scale: float) -> slice:
    return slice(round(start * scale), round(end * scale))
