"""`enlarger evaluate`: measure models on pictures whose large version is known."""

import json
from pathlib import Path
from typing import Annotated

import typer

from enlarger.cli.options import Device, JsonLines, Model

evaluate = typer.Typer(no_args_is_help=True)


@evaluate.callback()
def about() -> None:
    """Measure models."""


@evaluate.command()
def upscale(
    folder: Annotated[Path, typer.Argument(help="folder of pictures to halve and enlarge again")],
    model: Model = None,
    steps: Annotated[list[int] | None, typer.Option(min=1, help="number of steps to try; may be repeated")] = None,
    sheet: Annotated[Path | None, typer.Option(help="also write a contact sheet of crops, a PNG file")] = None,
    device: Device = "auto",
    json_lines: JsonLines = False,
) -> None:
    """Compare a model with bicubic and Lanczos: PSNR, SSIM, and how far the halved result is from the input."""
    from enlarger.evaluate.upscale import evaluate_upscale  # torch comes with it

    table = evaluate_upscale(folder, model=model, steps=tuple(steps or ()), sheet=sheet, device=device)
    print(json.dumps(table.rows) if json_lines else table)
