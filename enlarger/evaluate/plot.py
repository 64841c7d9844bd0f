"""The plot of Stable Diffusion's model cards: FID against CLIP score, a point for each guidance scale."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

SIZE, MARGINS = (760, 560), (76, 46, 24, 62)  # left, top, right, bottom
PAPER, INK, FAINT = "white", "black", "#dddddd"
COLOURS = ("#1f5fa8", "#c4551b", "#2f8f4e", "#8a3fa0", "#7a6a14", "#b3265e")
TICKS, DOT = 6, 4  # about so many ticks on an axis; the radius of a point in pixels

Point = tuple[float, float, str]  # across, up, label


def draw_curves(curves: Mapping[str, Sequence[Point]], across: str, up: str) -> Image.Image:
    """A diagram with a line of labelled points for each name; at least one point in all."""
    page = Image.new("RGB", SIZE, PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    points = [point for curve in curves.values() for point in curve]
    axes = (_ticks([x for x, _, _ in points]), _ticks([y for _, y, _ in points]))
    left, top, right, bottom = MARGINS
    box = (left, top, SIZE[0] - right, SIZE[1] - bottom)

    def place(x: float, y: float) -> tuple[float, float]:
        shares = [(value - axis[0]) / (axis[-1] - axis[0]) for value, axis in zip((x, y), axes, strict=True)]
        return box[0] + shares[0] * (box[2] - box[0]), box[3] - shares[1] * (box[3] - box[1])

    for value in axes[0]:
        column = place(value, axes[1][0])[0]
        pen.line((column, box[1], column, box[3]), FAINT)
        pen.text((column, box[3] + 6), f"{value:g}", INK, font, anchor="ma")
    for value in axes[1]:
        row = place(axes[0][0], value)[1]
        pen.line((box[0], row, box[2], row), FAINT)
        pen.text((box[0] - 8, row), f"{value:g}", INK, font, anchor="rm")
    pen.rectangle(box, outline=INK)
    pen.text(((box[0] + box[2]) / 2, SIZE[1] - 26), across, INK, font, anchor="ma")
    pen.text((12, 12), up, INK, font)
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        spots = [place(x, y) for x, y, _ in curve]
        pen.line(spots if len(spots) > 1 else spots * 2, colour, 2)
        for (column, row), (_, _, label) in zip(spots, curve, strict=True):
            pen.ellipse((column - DOT, row - DOT, column + DOT, row + DOT), colour)
            pen.text((column + 6, row - 6), label, colour, font, anchor="ls")
        pen.text((SIZE[0] - right - 8, top + 8 + 18 * i), name, colour, font, anchor="ra")
    return page


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers that reach beyond all values."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    rough = span / (TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    last += first == last
    return [round(i * step, 12) for i in range(first, last + 1)]
