"""Sizes that people ask for, and whether a picture can have them. Without torch."""

import math
import re

from enlarger.errors import InputError

MAX_FACTOR = 16
MAX_SIDE = 65_536  # pixels


def scaled_side(side: int, factor: float) -> int:
    """A side in pixels times `factor`: to the nearest whole number, halves up, at least 1."""
    return max(1, math.floor(side * factor + 0.5))


def parse_size(size: str) -> tuple[int, int]:
    """Width and height of 3000x2000; InputError for anything else."""
    width, _, height = str(size).lower().partition("x")
    if not all(re.fullmatch("[0-9]{1,5}", side) and 1 <= int(side) <= MAX_SIDE for side in (width, height)):
        raise InputError(f"size is {size!r:.40}, expected width x height in pixels, as 3000x2000")
    return int(width), int(height)


def fitting_size(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Height and width of `size` (width, height) for a picture of the same shape, up to rounding.

    Raises InputError for another shape: nothing is stretched or cut without a word.
    """
    target_width, target_height = size
    across, down = target_width / width, target_height / height
    check_factor(min(across, down), height, width)
    if abs(target_width - width * down) > 1 and abs(target_height - height * across) > 1:
        fitting = f"{target_width}x{scaled_side(height, across)} or {scaled_side(width, down)}x{target_height}"
        raise InputError(
            f"size is {target_width}x{target_height}, but the picture of {width}x{height} has another shape; "
            f"give {fitting}, or crop it first"
        )
    return target_height, target_width


def check_factor(factor: float, height: int, width: int) -> None:
    """Raise InputError for a picture that would become smaller, or over `MAX_FACTOR` times as large."""
    if not 1 - 1e-9 <= factor <= MAX_FACTOR + 1e-9:
        raise InputError(
            f"the picture of {width}x{height} would become {factor:.3g} times as large, expected 1 to {MAX_FACTOR}; "
            "give another size"
        )
