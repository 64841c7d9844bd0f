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
    """Halve pictures, enlarge them again, and compare a model with bicubic and Lanczos.

    Folders in FOLDER are sets of their own. The table is Markdown; --json prints its rows as one line.
    """
    from enlarger.cli.report import Report  # torch comes with these
    from enlarger.evaluate.upscale import evaluate_upscale

    with Report(1) as report:
        report.start_stage("loading the model")
        table = evaluate_upscale(folder, model, steps or (), sheet, device, report.start_file(str(folder)))
    print(json.dumps(table.rows) if json_lines else table)
