"""`enlarger evaluate`: measure models as their cards do."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from enlarger.cli.options import AllowPickle, Device, JsonLines, Model, Precision
from enlarger.cli.terminal import print_lines
from enlarger.cli.verbs import Verb
from enlarger.target_size import parse_size

if TYPE_CHECKING:
    from enlarger.evaluate.results import EvaluationResults

evaluate = typer.Typer(no_args_is_help=True)

ModelFolder = Annotated[str, typer.Option(help="folder of a model in diffusers' layout, or a name")]
Out = Annotated[Path, typer.Option(help="folder for the pictures and figures; run again to go on in it")]
Inception = Annotated[
    Path | None, typer.Option(help="weights of pytorch-fid's Inception (pt_inception-2015-12-05), for FID and KID")
]
Steps = Annotated[int, typer.Option(min=1, max=1000, help="denoising steps")]
Solver = Annotated[str, typer.Option(help="name of the solver")]
FirstSeed = Annotated[int, typer.Option(min=0, help="seed of the first picture; the others count on")]


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


@evaluate.command(cls=Verb)
def generate(
    prompts: Annotated[Path, typer.Argument(help="text file with one prompt a line")],
    model: ModelFolder,
    out: Out,
    reference: Annotated[Path | None, typer.Option(help="folder of real pictures, for FID and KID")] = None,
    inception: Inception = None,
    clip: Annotated[Path | None, typer.Option(help="folder of a CLIP in transformers' layout, for its score")] = None,
    allow_pickle: AllowPickle = False,
    guidance: Annotated[
        list[float] | None,
        typer.Option(help="guidance scale to try; may be repeated", show_default="1.5, 2, 3, 4, 5, 6, 7, 8"),
    ] = None,
    steps: Steps = 50,
    solver: Solver = "ddim",
    size: Annotated[
        str | None, typer.Option(help="of the pictures in pixels, as 512x512", show_default="the model's own")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="so many prompts, drawn by the seed")] = None,
    seed: FirstSeed = 0,
    beside: Annotated[
        list[Path] | None, typer.Option(help="folder of an earlier evaluation, drawn into the plot too")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json_lines: JsonLines = False,
) -> None:
    """Generate at several guidance scales, and measure FID, KID and CLIP score: the sweep of the models' cards.

    Nothing is downloaded: give the weights of the networks that look at the pictures. OUT gets the pictures,
    results.csv, results.json and plot.png, FID against CLIP score.
    """
    from enlarger.cli.report import Report
    from enlarger.evaluate.generate import CARD_GUIDANCE, FeatureFiles, GenerateEvaluation, evaluate_generate

    width, height = (None, None) if size is None else parse_size(size)
    wanted = GenerateEvaluation(
        prompts, model, out, FeatureFiles(inception, clip, allow_pickle), reference, tuple(guidance or CARD_GUIDANCE),
        steps, solver, None if width is None or height is None else (height, width), limit, seed, tuple(beside or ()),
        device, precision,
    )  # fmt: skip
    with Report(1, log_stages=True) as report:
        results = evaluate_generate(wanted, report.start_file(str(model)))
    _print_results(results, json_lines)


@evaluate.command(cls=Verb)
def inpaint(
    pictures: Annotated[Path, typer.Argument(help="folder of pictures; a .txt file beside one is its prompt")],
    model: ModelFolder,
    out: Out,
    masks: Annotated[
        Path | None,
        typer.Option(help="folder of masks of the pictures' names, white is hidden", show_default="drawn as LaMa's"),
    ] = None,
    inception: Inception = None,
    allow_pickle: AllowPickle = False,
    guidance: Annotated[
        list[float] | None, typer.Option(help="guidance scale to try; may be repeated", show_default="7.5")
    ] = None,
    steps: Steps = 50,
    solver: Solver = "ddim",
    preserve: Annotated[
        Literal["exact", "none"], typer.Option(help="what the mask does not cover: exact, or none: as decoded")
    ] = "exact",
    seed: FirstSeed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    json_lines: JsonLines = False,
) -> None:
    """Hide parts of pictures, repaint them, and compare: PSNR, SSIM and HaarPSI under the mask and beside it.

    OUT gets the results, results.csv and results.json.
    """
    from enlarger.cli.report import Report
    from enlarger.evaluate.generate import FeatureFiles
    from enlarger.evaluate.inpaint import DEFAULT_GUIDANCE, InpaintEvaluation, evaluate_inpaint

    files = FeatureFiles(inception, None, allow_pickle)
    wanted = InpaintEvaluation(
        pictures, model, out, masks, files, tuple(guidance or DEFAULT_GUIDANCE), steps, solver, preserve, seed, device,
        precision,
    )  # fmt: skip
    with Report(1, log_stages=True) as report:
        results = evaluate_inpaint(wanted, report.start_file(str(model)))
    _print_results(results, json_lines)


def _print_results(results: "EvaluationResults", json_lines: bool) -> None:
    """A table, in Markdown, or the rows as one line of JSON."""
    from rich.box import MARKDOWN
    from rich.console import Console
    from rich.table import Table

    if json_lines:
        print_lines([json.dumps(results.json_rows())])
        return
    names, *rows = results.text_cells()
    table = Table(*names, box=MARKDOWN)
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, width=max(200, len(names) * 24)).print(table)
