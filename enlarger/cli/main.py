"""The command `enlarger`: its verbs, and what every way out of it looks like."""

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from enlarger import __version__
from enlarger.cli.convert import convert
from enlarger.cli.depth import depth
from enlarger.cli.doctor import doctor
from enlarger.cli.evaluate import evaluate
from enlarger.cli.generate import generate
from enlarger.cli.image_jobs import describe_unexpected
from enlarger.cli.inpaint import inpaint
from enlarger.cli.inspect import inspect
from enlarger.cli.models import models
from enlarger.cli.pull import pull
from enlarger.cli.refine import refine
from enlarger.cli.replay import replay
from enlarger.cli.serve import key, serve
from enlarger.cli.terminal import printable
from enlarger.cli.train import train
from enlarger.cli.upscale import upscale
from enlarger.cli.verbs import Verb, Verbs
from enlarger.errors import EnlargerError
from enlarger.runtime.cores import heed_quota

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (upscale, generate, refine, inpaint, depth, models, inspect, replay, convert, pull, doctor, key):
    app.command(cls=Verb)(verb)
app.command(cls=Verb, add_help_option=False)(serve)  # it has its own, with the texts of the settings
app.add_typer(train, name="train")
app.add_typer(evaluate, name="evaluate")


def _print_version(is_requested: bool) -> None:
    if is_requested:
        print(f"enlarger {__version__}")
        raise typer.Exit


@app.callback()
def enlarger(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and exit", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Enlarge pictures with latent diffusion, on this computer.

    Exit status: 0 all done, 1 something failed, 2 wrong usage, 130 interrupted.
    """


def run() -> None:
    """The entry point. Every error is one message on standard error, never a traceback."""
    _prepare_streams()
    heed_quota()
    try:
        app()
    except EnlargerError as error:
        sys.exit(f"error: {printable(error)}")
    except Exception as error:  # noqa: BLE001 - the last resort
        sys.exit(f"error: {printable(describe_unexpected(error))}")


def _prepare_streams() -> None:
    """Closed standard streams become the null device, and file names that are not text can be printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the new file takes the free number, so that no file of ours gets it
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
