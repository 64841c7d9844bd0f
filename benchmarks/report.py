"""What was measured, from benchmarks/results/, as tables and a plot in docs/performance.md.

    scripts/bench report [--results FOLDER] [--document FILE]

What is between the two marks of the document is replaced.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks import _harness, run, solvers
from enlarger.evaluate.plot import COLOURS, FAINT, INK, PAPER, draw_curves

BEGIN, END = "<!-- results -->", "<!-- end of the results -->"
WIDTH, NAMES, ROW, MARGIN = 760, 250, 20, 14  # of the bars: pixels in all, for names, per bar, around
PLOT, CURVES = "performance.png", "solvers.png"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the document and its plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=_harness.RESULTS)
    parser.add_argument("--document", type=Path, default=_harness.ROOT / "docs" / "performance.md")
    asked = parser.parse_args(arguments)
    measured = [json.loads(path.read_text()) for path in sorted(asked.results.glob("*.json"))]
    sections = [section(one) for one in measured]
    if bars := ratios(measured):
        draw_bars(bars).save(asked.document.with_name(PLOT))
        sections.insert(0, f"![Time over diffusers' eager float32: less is better]({PLOT})")
    if curves := next((one for one in measured if one["name"] == "solvers"), None):
        draw_solvers(curves["rows"]).save(asked.document.with_name(CURVES))
        sections.append(f"![Distance to the converged solution by calls of the network]({CURVES})")
    text = asked.document.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    asked.document.write_text(before + BEGIN + "\n\n" + "\n\n".join(sections) + "\n\n" + END + after)


def section(measured: Mapping[str, Any]) -> str:
    """One scenario: what it was, on which machine, and the table."""
    machine, settings = measured["machine"], measured["settings"]
    told = ", ".join(f"{key} {value}" for key, value in settings.items() if key not in ("threads", "calls"))
    software = ", ".join(f"{name} {machine[name]}" for name in ("torch", "diffusers", "openvino") if machine.get(name))
    where = f"{machine['processor']} ({', '.join(machine['flags'])}), {machine['threads']} threads; {software}"
    head = f"### {measured['name']}\n\n{told}; {measured['date']}, {where}.\n\n"
    if measured["name"] == "solvers":
        return head + "\n".join(solvers.table(measured["rows"]))
    if any("first" in row or "failed" in row for row in measured["rows"]):
        return head + "\n".join(run.table(measured["rows"]))
    return head + "\n".join(_harness.table(measured["rows"]))


def ratios(measured: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """Each side of ours with its time over diffusers'."""
    return [
        (f"{one['name']}: {row['name']}", row["ratios"]["run"])
        for one in measured
        for row in one["rows"]
        if "first" in row and "run" in row.get("ratios", {}) and row["name"] != run.REFERENCE
    ]


def draw_bars(bars: Sequence[tuple[str, float]]) -> Image.Image:
    """A bar for each ratio, and a line at 1."""
    page = Image.new("RGB", (WIDTH, 2 * MARGIN + ROW * len(bars)), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    most = max(1.1, *(value for _, value in bars))
    room = WIDTH - NAMES - 60
    for i, (name, value) in enumerate(bars):
        top = MARGIN + i * ROW
        pen.text((NAMES - 8, top + ROW / 2), name, INK, font, anchor="rm")
        end = NAMES + room * value / most
        pen.rectangle((NAMES, top + 3, end, top + ROW - 3), COLOURS[0] if value <= 1 else COLOURS[1])
        pen.text((end + 6, top + ROW / 2), f"{value:.2f}", INK, font, anchor="lm")
    one = NAMES + room / most
    pen.line((one, MARGIN, one, MARGIN + ROW * len(bars)), FAINT, 2)
    return page


def draw_solvers(rows: Sequence[Mapping[str, Any]], most_calls: int = 30) -> Image.Image:
    """Of the x2 upscaler's noise levels: how far each solver is from the converged solution."""
    curves = dict[str, list[tuple[float, float, str]]]()
    for row in rows:
        if row["task"] == "x2" and row["solver"] in ("euler", "heun", "dpmpp_2m", "unipc", "lms"):
            distances = sorted((int(calls), value) for calls, value in row["distances"].items())
            curves[row["solver"]] = [(calls, value, "") for calls, value in distances if calls <= most_calls]
    return draw_curves(curves, "calls of the network", "distance to the converged solution")


if __name__ == "__main__":
    main()
