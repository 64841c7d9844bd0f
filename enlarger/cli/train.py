"""`enlarger train`: make models from one's own photos."""

from pathlib import Path
from typing import Annotated

import typer

train = typer.Typer(no_args_is_help=True, help="Train models.")


@train.callback()
def about() -> None:
    """Train models."""


@train.command()
def upscaler(
    photos: Annotated[Path, typer.Option(help="folder of photos, searched with the folders in it")],
    out: Annotated[Path, typer.Option(help="folder to write the model to")] = Path("upscaler"),
    minutes: Annotated[float, typer.Option(min=0, help="how long to train, all stages together")] = 120,
    work: Annotated[
        Path | None, typer.Option(help="folder for logs and states, to go on from", show_default="OUT.work")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of all draws")] = 0,
) -> None:
    """Train a x2 upscaler like the bundled one; run again with the same --work to go on."""
    from enlarger.train.upscaler import train_upscaler  # torch comes with it

    train_upscaler(photos, out, minutes, out.with_name(f"{out.name}.work") if work is None else work, seed)
    print(out)
