"""`enlarger train`: make models from one's own photos."""

from pathlib import Path
from typing import Annotated

import typer

from enlarger.cli.terminal import print_lines
from enlarger.cli.verbs import Verb

train = typer.Typer(no_args_is_help=True, help="Train models.")


@train.callback()
def about() -> None:
    """Train models."""


@train.command(cls=Verb)
def upscaler(
    photos: Annotated[Path, typer.Option(help="folder of photos, searched with the folders in it")],
    out: Annotated[Path, typer.Option(help="folder to write the model to")] = Path("upscaler"),
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="steps of the first network, the others in proportion", show_default="the bundled model's"
        ),
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="folder for logs and states, to go on from", show_default="OUT.work")
    ] = None,
    perceptual: Annotated[
        Path | None,
        typer.Option(help="weights of LPIPS and DISTS, made by scripts/judges; without, detail is learnt blindly"),
    ] = None,
    start: Annotated[Path | None, typer.Option(help="folder of an upscaler whose networks are learnt further")] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of all draws")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="processes that prepare pairs")] = 1,
) -> None:
    """Train a x2 upscaler like the bundled one; run again with the same --work to go on."""
    from enlarger.train.upscaler import Plan, train_upscaler  # torch comes with it

    place = out.with_name(f"{out.name}.work") if work is None else work
    train_upscaler(Plan(photos, out, place, perceptual, start, steps, seed, workers))
    print_lines([out])
