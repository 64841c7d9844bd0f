"""`enlarger evaluate`: measure models on pictures whose large version is known."""

import json
from pathlib import Path
from typing import Annotated

import typer

from enlarger.cli.options import Device, JsonLines, Model
from enlarger.cli.terminal import print_lines
from enlarger.cli.verbs import Verb

evaluate = typer.Typer(no_args_is_help=True)


@evaluate.callback()
def about() -> None:
    """Measure models."""


@evaluate.command(cls=Verb)
def upscale(
    folder: Annotated[Path, typer.Argument(help="folder of pictures to halve and enlarge again")],
    model: Model = None,
    steps: Annotated[list[int] | None, typer.Option(min=1, help="number of steps to try; may be repeated")] = None,
    sheet: Annotated[Path | None, typer.Option(help="also write a contact sheet of crops, a PNG file")] = None,
    judges: Annotated[Path | None, typer.Option(help="weights of LPIPS and DISTS, made by scripts/judges")] = None,
    degraded: Annotated[
        list[str] | None, typer.Option(help="also damage the halves: jpeg40, jpeg70, phone or blur; may be repeated")
    ] = None,
    beside: Annotated[
        Path | None, typer.Option(help="other programs' results, measured too: FOLDER/METHOD/SET/NAME.png")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="folder for all inputs and results, in that order")] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the damage")] = 0,
    device: Device = "auto",
    json_lines: JsonLines = False,
) -> None:
    """Halve pictures, enlarge them again, and compare a model with bicubic and Lanczos.

    Folders in FOLDER are sets of their own. Other programs are compared by enlarging what --keep writes under input,
    and giving their results with --beside. The table is Markdown; --json prints its rows as one line.
    """
    from enlarger.cli.report import Report  # torch comes with these
    from enlarger.evaluate.upscale import Evaluation, evaluate_upscale

    wanted = Evaluation(folder, model, steps or (), sheet, judges, degraded or (), beside, keep, seed, device)
    with Report(1, log_stages=True) as report:
        report.start_stage("loading the model")
        table = evaluate_upscale(wanted, report.start_file(str(folder)))
    print_lines([json.dumps(table.rows)] if json_lines else str(table).splitlines())
