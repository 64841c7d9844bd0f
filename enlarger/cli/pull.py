"""`enlarger pull`: fetch a checkpoint once, to use it offline."""

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enlarger.cli.options import JsonLines
from enlarger.cli.terminal import print_lines
from enlarger.errors import InputError

if TYPE_CHECKING:
    from enlarger.cli.download_progress import DownloadProgress
    from enlarger.hub.licence import Licence


def pull(
    name: Annotated[str, typer.Argument(help="an alias (sd15, sdxl, x2, ...) or owner/repository")],
    variant: Annotated[str | None, typer.Option(help="variant of the weights, such as fp16")] = None,
    revision: Annotated[
        str | None, typer.Option(help="commit, branch or tag", show_default="the alias's own, else main")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="folder to write to", show_default="the cache")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="accept the licence without being asked")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="open no connection; say whether it is there")] = False,
    mirror: Annotated[str | None, typer.Option(help="address of another hub with the same files")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="read again what was pulled, fetch what is broken of it")
    ] = False,
    json_lines: JsonLines = False,
) -> None:
    """Download a checkpoint into the cache or a folder, and print its path: the only command that uses the network.

    Only safetensors, configurations and vocabularies are fetched, an interrupted run goes on where it stopped, and
    every file is checked. The licence and what the model is not for are shown once.
    """
    from enlarger.cli.download_progress import DownloadProgress
    from enlarger.hub.pull import PullOptions
    from enlarger.hub.pull import pull as fetch

    options = PullOptions(name, variant, revision, to, mirror, offline, repair)
    with DownloadProgress() as progress:
        try:
            result = fetch(options, partial(_confirm_licence, progress, yes), progress)
        except KeyboardInterrupt:
            progress.message("interrupted; what came is kept, the same command goes on there")
            raise typer.Exit(130) from None
    summary = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(result).items()}
    print_lines([json.dumps({"name": name} | summary) if json_lines else result.folder])


def _confirm_licence(progress: "DownloadProgress", yes: bool, repository: str, licence: "Licence") -> bool:
    """Show the licence, and ask on the terminal unless --yes was given."""
    licence_name = licence.name or "none stated in its model card"
    progress.message(f"{repository}: licence {licence_name}{f' ({licence.link})' if licence.link else ''}")
    progress.message(licence.out_of_scope or "Its model card does not say what it is not for.")
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InputError(f"{repository}: to accept the licence {licence_name}, shown above, add --yes")
    with progress.paused():
        return typer.confirm("Accept?", err=True)
