"""Buckets: the sizes that pictures are trained at, so that all of a batch have one and little is cut off."""

import math
from collections.abc import Sequence

from enlarger.errors import InputError
from enlarger.tasks.latent_diffusion.conditioning import Size

MAX_SIDE_RATIO = 2  # of a bucket's longer side to the resolution: aspect ratios of 1:4 to 4:1, as SDXL has them


def bucket_sizes(resolution: int, step: int) -> tuple[Size, ...]:
    """Sizes in multiples of `step` with about resolution x resolution pixels, never more; in order.

    For each multiple from resolution / 2 to 2 resolution as one side, the other is the largest that fits (Podell et al.
    2023, appendix I; NovelAI 2022). Raises InputError for a resolution that is no multiple of `step`.
    """
    if resolution < step or resolution % step:
        raise InputError(f"the resolution is {resolution}, expected a multiple of {step}; {_nearest(resolution, step)}")
    shortest, longest = -(-resolution // MAX_SIDE_RATIO // step) * step, resolution * MAX_SIDE_RATIO
    sides = range(max(shortest, step), longest + 1, step)
    pairs = [(side, min(resolution**2 // side // step * step, longest)) for side in sides]
    return tuple(sorted({size for a, b in pairs if b >= step for size in ((a, b), (b, a))}))


def _nearest(resolution: int, step: int) -> str:
    below = max(step, resolution // step * step)
    return f"give {below}" if resolution <= step else f"give {below} or {below + step}"


def nearest_bucket(size: Size, sizes: Sequence[Size]) -> Size:
    """That with the aspect ratio nearest to a picture's, by the ratio of the ratios; of equal ones the larger."""
    ratio = math.log(size[1] / size[0])
    return min(sizes, key=lambda bucket: (abs(math.log(bucket[1] / bucket[0]) - ratio), -bucket[0] * bucket[1]))
