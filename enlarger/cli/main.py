"""The command `enlarger`: its verbs, and what every way out of it looks like."""

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from enlarger import __version__
from enlarger.cli.lazy_verbs import Verbs, add_verbs
from enlarger.cli.terminal import printable
from enlarger.errors import EnlargerError
from enlarger.runtime.cores import heed_quota

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
add_verbs(app)


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
        from enlarger.cli.image_jobs import describe_unexpected

        sys.exit(f"error: {printable(describe_unexpected(error))}")


def _prepare_streams() -> None:
    """Closed standard streams become the null device, and file names that are not text can be printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the new file takes the free number, so that no file of ours gets it
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
