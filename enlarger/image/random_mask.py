"""LaMa's masks for training and measuring inpainting: brush strokes, boxes, and their mixture."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from enlarger.errors import InputError

ANGLES = 4  # turns of a stroke's segment: 0.01, 1.01, 2.01 or 3.01 radians
ANGLE_OFFSET = 0.01
Point = tuple[float, float]


@dataclass(frozen=True)
class MaskSettings:
    """Ranges of what is drawn, in pixels of a picture of `side` x `side`; both ends of each are drawn too.

    The defaults are those that LaMa was trained with (Suvorov et al. 2021, `abl-04-256-mh-dist.yaml`): wide strokes or
    boxes, one as often as the other.
    """

    side: int = 256
    stroke_share: float = 0.5  # of the masks; the others are boxes
    strokes: tuple[int, int] = (1, 5)
    segments: tuple[int, int] = (1, 5)  # of a stroke
    length: tuple[int, int] = (10, 209)  # of a segment
    width: tuple[int, int] = (5, 104)
    boxes: tuple[int, int] = (1, 4)
    box_side: tuple[int, int] = (30, 149)
    margin: int = 10  # between boxes and the edges of the picture


LAMA_MASKS = MaskSettings()


def lama_mask(size: tuple[int, int], generator: torch.Generator, settings: MaskSettings = LAMA_MASKS) -> Tensor:
    """A mask (1, H, W) of 0 keep and 1 repaint for a picture of `size` (h, w), drawn from a CPU generator.

    The ranges grow and shrink with the picture's shorter side. Source: Suvorov et al. 2021, section 2.3. Raises
    InputError for a picture under 8 pixels a side, in which no box has room.
    """
    if min(size) < 8:
        raise InputError(f"a mask of {size[1]} x {size[0]} pixels, expected 8 x 8 or more; use larger pictures")
    image = Image.new("L", (size[1], size[0]))
    draw = _Draw(ImageDraw.Draw(image), size, min(size) / settings.side, generator)
    if draw.uniform() < settings.stroke_share:
        draw.strokes(settings)
    else:
        draw.boxes(settings)
    return torch.from_numpy(np.array(image, dtype=np.float32))[None]


@dataclass(frozen=True)
class _Draw:
    """A pen, the picture's size (h, w), pixels per pixel of the settings, and what all draws come from."""

    pen: ImageDraw.ImageDraw
    size: tuple[int, int]
    scale: float
    generator: torch.Generator

    def uniform(self) -> float:
        return float(torch.rand((), generator=self.generator))

    def integer(self, low: int, high: int) -> int:
        """One of low..high, both included."""
        return int(torch.randint(low, max(low, high) + 1, (), generator=self.generator))

    def pixels(self, span: tuple[int, int]) -> int:
        """A length of the settings in pixels of this picture, at least 1."""
        return max(1, round(self.integer(*span) * self.scale))

    def strokes(self, settings: MaskSettings) -> None:
        """Chains of straight segments; every second stroke turns the other way."""
        height, width = self.size
        for i in range(self.integer(*settings.strokes)):
            start = (float(self.integer(0, width - 1)), float(self.integer(0, height - 1)))
            for _ in range(self.integer(*settings.segments)):
                angle = (ANGLE_OFFSET + self.integer(0, ANGLES - 1)) * (1 if i % 2 else -1)
                start = self.segment(start, angle, self.pixels(settings.length), self.pixels(settings.width))

    def segment(self, start: Point, angle: float, length: int, width: int) -> Point:
        """A thick line with round ends, cut at the edges; where it ends."""
        height, across = self.size
        end = (
            min(max(start[0] + length * math.sin(angle), 0.0), across - 1.0),
            min(max(start[1] + length * math.cos(angle), 0.0), height - 1.0),
        )
        self.pen.line((start, end), 1, width)
        for x, y in (start, end):
            self.pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), 1)
        return end

    def boxes(self, settings: MaskSettings) -> None:
        margin = min(round(settings.margin * self.scale), min(self.size) // 4)
        room = min(self.size) - 2 * margin
        for _ in range(self.integer(*settings.boxes)):
            high, wide = (min(self.pixels(settings.box_side), room) for _ in range(2))
            top, left = (
                self.integer(margin, side - margin - extent)
                for side, extent in zip(self.size, (high, wide), strict=True)
            )
            self.pen.rectangle((left, top, left + wide - 1, top + high - 1), 1)
