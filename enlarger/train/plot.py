"""The curves of a training log as a PNG, drawn without further packages."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE, MARGIN, GAP = (720, 220), 56, 34  # pixels of one diagram, of its margins, and between diagrams
PAPER, INK, LINE, FAINT = "white", "black", "#1f5fa8", "#cccccc"

Curve = tuple[str, Sequence[tuple[float, float]]]


def plot_log(log: Path, out: Path) -> None:
    """Every number that the log's lines have, against the step, one diagram each.

    What was logged after the state that a training went on from is left out: it was learnt once more.
    """
    lines: list[dict[str, float]] = []
    for line in (json.loads(text) for text in log.read_text("utf-8").splitlines()):
        if "resumed_at" in line:
            lines = [earlier for earlier in lines if earlier["step"] <= line["resumed_at"]]
        elif "step" in line:
            lines.append(line)
    names = [name for name in dict.fromkeys(key for line in lines for key in line) if name != "step"]
    curves = [(name, [(line["step"], line[name]) for line in lines if name in line]) for name in names]
    draw_curves([curve for curve in curves if curve[1]]).save(out)


def draw_curves(curves: Sequence[Curve]) -> Image.Image:
    """Diagrams below each other."""
    width, height = SIZE
    page = Image.new("RGB", (width, max(1, len(curves)) * (height + GAP)), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for i, (name, points) in enumerate(curves):
        top = i * (height + GAP) + GAP
        xs, ys = ([point[axis] for point in points] for axis in (0, 1))
        low, high, last = min(ys), max(ys), max(xs)
        box = (MARGIN, top, width - MARGIN // 2, top + height - MARGIN // 2)
        pen.rectangle(box, outline=FAINT)
        pen.text((MARGIN, top - 18), name, INK, font)
        pen.text((4, top), f"{high:.4g}", INK, font)
        pen.text((4, box[3] - 16), f"{low:.4g}", INK, font)
        pen.text((box[2] - 40, box[3] + 2), f"{last:g}", INK, font)
        across, up = box[2] - box[0], box[3] - box[1]
        place = [
            (box[0] + across * x / (last or 1), box[3] - up * (y - low) / ((high - low) or 1))
            for x, y in zip(xs, ys, strict=True)
        ]
        pen.line(place if len(place) > 1 else place * 2, LINE, 2)
    return page
