"""What a picture has been through, judged by its pixels: JPEG's blocks, noise, and whether it is a bicubic half."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.image.consistency import downscale

BLOCK = 8  # pixels of JPEG's blocks
BLOCKY = 1.3  # how much larger steps at the blocks' borders are than elsewhere
NOISY = 4.5  # 8-bit steps of noise
HARDLY_HALF, NO_HALF = 1.2, 4.0  # 8-bit steps (root mean square) that a mean's half is off; photographs have 0.2 to 2.4
MIN_BORDERS = 3
FLAT = 0.05  # share of pixels among others of their colour, at least, in graphics
STRIP = 512  # rows that are looked at at once
TRY = "try restore 0.5"


def input_hint(picture: Tensor) -> str | None:
    """What a picture (3, H, W) in -1..1 seems to have suffered, and what to try; None for a clean one."""
    blocks, noise = blockiness(picture), noise_level(picture)
    if blocks > BLOCKY:
        return f"this looks JPEG-compressed (steps at its blocks are {blocks:.1f} times those inside): {TRY}"
    if noise > NOISY:
        return f"this looks noisy (about {noise:.0f} of 255): {TRY}"
    return None


def blockiness(picture: Tensor) -> float:
    """How much larger second differences are across a grid of 8 x 8 pixels than beside it; about 1 without JPEG.

    The grid may lie anywhere, as in a crop. 1 where the picture is too small to tell.
    """
    luma = _luma(picture)
    if min(luma.shape) < 6 * BLOCK:
        return 1.0
    ratios: list[float] = []
    for line in (luma, luma.T):
        jump = (line[:, 1:-2] - line[:, 2:-1]) - (line[:, :-3] - line[:, 1:-2] + line[:, 2:-1] - line[:, 3:]) / 2
        size = jump.abs().clamp(max=24).mean(0)  # what a step across a border is beyond its neighbours', by column
        phases = torch.stack([size[k::BLOCK].mean() for k in range(BLOCK)])
        at = int(phases.argmax())
        rest = torch.cat([phases[:at], phases[at + 1 :]])
        ratios.append(float((phases[at] + 0.05) / (rest.median() + 0.05)))
    return min(ratios)


def noise_level(picture: Tensor) -> float:
    """The deviation of the noise in 8-bit steps, from the flattest places: texture is there in no photograph's sky.

    Diagonal differences (Immerkaer 1996) in blocks of 16 x 16 pixels, of which the lowest tenth counts. Blocks that are
    clipped or of one colour say nothing, and where most are, it is no photograph.
    """
    luma = _luma(picture)
    if min(luma.shape) < 4 * BLOCK:
        return 0.0
    mask = luma.new_tensor([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 6
    found = F.conv2d(luma[None, None], mask[None, None]).abs()
    blocks = F.avg_pool2d(found, 16)[0, 0] * (torch.pi / 2) ** 0.5
    mean = F.avg_pool2d(luma[None, None, 1:-1, 1:-1], 16)[0, 0]
    kept = blocks[(mean > 12) & (mean < 243) & (blocks > 0)]
    return float(kept.quantile(0.1)) if len(kept) > max(3, blocks.numel() // 2) else 0.0


def is_graphics(large: Tensor, small: Tensor) -> bool:
    """Whether a picture (1, 3, H, W) with its unprojected enlargement looks drawn.

    Drawings, text and pixel art have flat areas, and are rendered at their size: no larger picture's antialiased half
    is like them, and forcing one gives them overshoot and halos.
    """
    error, flat = half_error(large, small), float(is_flat(small).float().mean())
    return error > NO_HALF or (error > HARDLY_HALF and flat >= FLAT)


def cell_size(picture: Tensor) -> int:
    """The side of the squares of one colour that pixel art (1, 3, H, W) is made of; 1 where there is no such grid.

    The grid may begin anywhere. At least three borders between colours in each direction are needed to know.
    """
    steps = [(picture.diff(dim=axis) != 0).any(1).any(-1 if axis == 2 else -2).flatten() for axis in (2, 3)]
    places = [[int(place) for place in step.nonzero()] for step in steps]
    if min(len(each) for each in places) < MIN_BORDERS:
        return 1
    return math.gcd(*(place - each[0] for each in places for place in each[1:]))


def half_error(large: Tensor, small: Tensor) -> float:
    """Root mean square difference of the half of an enlargement to the input where that is not flat, in 8-bit steps."""
    wrong = downscale(large, small.shape[-2:], lambda x: x.clamp(-1, 1)).sub_(small).square_().mean(1, keepdim=True)
    busy = ~is_flat(small)
    return float((wrong[busy].mean() if bool(busy.any()) else wrong.mean()).sqrt()) * 127.5


def is_flat(picture: Tensor) -> Tensor:
    """Where the 3 x 3 pixels around each of (1, 3, H, W) are of one colour, (1, 1, H, W)."""
    flat = picture.new_empty(1, 1, *picture.shape[-2:], dtype=torch.bool)
    for top in range(0, picture.shape[-2], STRIP):  # so that little beside the picture is in memory
        above = min(top, 1)
        strip = picture[..., top - above : top + STRIP + 1, :]
        spread = F.max_pool2d(strip, 3, 1, 1).add_(F.max_pool2d(-strip, 3, 1, 1)).amax(1, keepdim=True)
        flat[..., top : top + STRIP, :] = spread[..., above : above + STRIP, :] < 1 / 255
    return flat


def _luma(picture: Tensor) -> Tensor:
    """(H, W) in 0..255."""
    weights = picture.new_tensor([0.299, 0.587, 0.114])
    return (torch.einsum("c,chw->hw", weights, picture) + 1) * 127.5
