"""A contact sheet: crops beside each other, enlarged without smoothing, with captions."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from enlarger.errors import InputError

GAP = 8
BACKGROUND, TEXT_COLOUR = (255, 255, 255), (0, 0, 0)
TRANSPARENT_BACKGROUND = (128, 128, 128)  # seen through transparent pixels

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(rows: Sequence[tuple[str, Sequence[tuple[str, Image.Image]]]], zoom: int = 2) -> Image.Image:
    """One row per label; each crop `zoom` times as large by nearest pixel, its caption below it.

    `rows` holds (label, [(caption, image), ...]). Columns are as wide as their widest crop or caption. Raises
    InputError when there is no crop at all or the zoom is below 1.
    """
    if zoom < 1 or not any(cells for _, cells in rows):
        raise InputError(f"found {len(rows)} rows and zoom {zoom}, expected at least one crop and zoom 1; add crops")
    font = ImageFont.load_default(14)
    line_height = sum(font.getmetrics()) if isinstance(font, ImageFont.FreeTypeFont) else 14
    tiles = [[_tile(caption, image, zoom, font, line_height) for caption, image in cells] for _, cells in rows]
    columns = [max(row[k].width for row in tiles if k < len(row)) for k in range(max(map(len, tiles)))]
    heights = [line_height + GAP + max((tile.height for tile in row), default=0) for row in tiles]
    labels = max(round(font.getlength(label)) for label, _ in rows)
    width = max(sum(columns) + GAP * (len(columns) - 1), labels) + 2 * GAP
    sheet = Image.new("RGB", (width, sum(heights) + GAP * (len(rows) + 1)), BACKGROUND)
    draw, top = ImageDraw.Draw(sheet), GAP
    for (label, _), row, height in zip(rows, tiles, heights, strict=True):
        draw.text((GAP, top), label, TEXT_COLOUR, font)
        left = GAP
        for tile, column in zip(row, columns, strict=False):
            sheet.paste(tile, (left, top + line_height + GAP))
            left += column + GAP
        top += height + GAP
    return sheet


def _tile(caption: str, image: Image.Image, zoom: int, font: Font, line_height: int) -> Image.Image:
    """A crop with its caption below."""
    crop = _opaque(image).resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    tile = Image.new("RGB", (max(crop.width, round(font.getlength(caption))), crop.height + line_height), BACKGROUND)
    tile.paste(crop, (0, 0))
    ImageDraw.Draw(tile).text((0, crop.height), caption, TEXT_COLOUR, font)
    return tile


def _opaque(image: Image.Image) -> Image.Image:
    """Any mode that enlarger writes, as RGB over middle grey."""
    if image.mode == "I;16":
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    colour = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*TRANSPARENT_BACKGROUND, 255)), colour).convert("RGB")
