"""Drawings, text and cells, rendered at both sizes: what graphics look like, which are nobody's bicubic half."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from enlarger.image.degrade import Pixels

Draw = np.random.Generator
Colour = tuple[int, int, int]
CELLS = 0.3  # share of the drawings that are cells
TEXT = 0.5  # share of the others that have text
FINE = 4  # times finer than the large picture is what it is rendered from


def drawn_pair(draw: Draw, side: int) -> tuple[Pixels, Pixels]:
    """A picture of `side` pixels and the same of half as many."""
    if draw.random() < CELLS:
        return _cells(draw, side)
    canvas = side * FINE
    grey = int(draw.integers(256))
    paper = [(255, 255, 255), _colour(draw), (grey, grey, grey)][int(draw.integers(3))]
    image = Image.new("RGB", (canvas, canvas), paper)
    pen = ImageDraw.Draw(image)
    for _ in range(int(draw.integers(2, 9))):
        _shape(pen, draw, canvas)
    if draw.random() < TEXT:
        _text(pen, draw, canvas, paper)
    kind = Image.Resampling.BOX if draw.random() < 0.6 else Image.Resampling.BICUBIC
    large, small = (np.asarray(image.resize((size, size), kind)) for size in (side, side // 2))
    return large, small


def _colour(draw: Draw) -> Colour:
    red, green, blue = (int(v) for v in draw.integers(0, 256, 3))
    return red, green, blue


def _cells(draw: Draw, side: int) -> tuple[Pixels, Pixels]:
    """Pixel art: squares of few colours, mirrored as sprites are."""
    size, palette = int(draw.integers(1, 5)), [_colour(draw) for _ in range(int(draw.integers(2, 7)))]
    count = -(-side // (2 * size))
    cells = draw.integers(0, len(palette), (count, count))
    if draw.random() < 0.6:
        coarse = cells.repeat(3, 0)[:count].repeat(3, 1)[:, :count]
        cells = np.where(draw.random((count, count)) < 0.3, cells, coarse)
        half = cells[:, : -(-count // 2)]
        cells = np.concatenate([half, half[:, ::-1]], 1)[:, :count]
    colours = np.array(palette, np.uint8)[cells]
    large, small = (colours.repeat(n, 0).repeat(n, 1) for n in (2 * size, size))
    return large[:side, :side], small[: side // 2, : side // 2]


def _shape(pen: ImageDraw.ImageDraw, draw: Draw, canvas: int) -> None:
    x = [int(v) for v in draw.integers(-canvas // 8, canvas + canvas // 8, 4)]
    box = (min(x[::2]), min(x[1::2]), max(x[::2]) + 1, max(x[1::2]) + 1)
    width, ink = int(draw.integers(3, 28)), _colour(draw) if draw.random() < 0.6 else (0, 0, 0)
    fill = _colour(draw) if draw.random() < 0.7 else None
    match int(draw.integers(6)):
        case 0:
            pen.line(x, fill=ink, width=width)
        case 1:
            pen.ellipse(box, fill=fill, outline=ink, width=width)
        case 2:
            pen.rectangle(box, fill=fill, outline=ink, width=width)
        case 3:
            corners: Any = [tuple(int(v) for v in draw.integers(0, canvas, 2)) for _ in range(int(draw.integers(3, 6)))]
            pen.polygon(corners, fill=fill, outline=ink)
        case 4:
            start, end = sorted(float(v) for v in draw.uniform(0, 360, 2))
            pen.arc(box, start, end, fill=ink, width=width)
        case _:
            circle = (x[0], x[1], int(draw.integers(canvas // 24, canvas // 2)))
            pen.regular_polygon(circle, int(draw.integers(3, 9)), fill=ink)


def _text(pen: ImageDraw.ImageDraw, draw: Draw, canvas: int, paper: Colour) -> None:
    """Lines of letters over the whole picture, mostly black or white."""
    size, y = int(draw.integers(36, 150)), int(draw.integers(-20, 20))
    plain = (0, 0, 0) if sum(paper) > 380 else (255, 255, 255)
    ink, font = _colour(draw) if draw.random() < 0.4 else plain, ImageFont.load_default(size)
    letters = np.r_[33:127, [32] * 12, 97:123, 97:123]
    while y < canvas:
        line = "".join(chr(int(c)) for c in draw.choice(letters, int(draw.integers(8, 40))))
        pen.text((int(draw.integers(-30, 30)), y), line, font=font, fill=ink)
        y += round(size * 1.25)
