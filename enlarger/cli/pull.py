"""`enlarger pull`: fetch a checkpoint once, to use it offline."""

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enlarger.cli.options import JsonLines
from enlarger.errors import InputError

if TYPE_CHECKING:
    from enlarger.cli.told import Told
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
    """Fetch a checkpoint into the cache, or into a folder, and print its path: the one verb that uses the network.

    Only safetensors, configurations and vocabularies are fetched, an interrupted run goes on where it stopped, and
    every file is checked. The licence and what the model is not for are shown once.
    """
    from enlarger.cli.told import Told
    from enlarger.hub.pull import Order
    from enlarger.hub.pull import pull as fetch

    order = Order(name, variant, revision, to, mirror, offline, repair)
    with Told() as told:
        try:
            done = fetch(order, partial(_ask, told, yes), told)
        except KeyboardInterrupt:
            told.say("interrupted; what came is kept, the same command goes on there")
            raise typer.Exit(130) from None
    line = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(done).items()}
    print(json.dumps({"name": name} | line) if json_lines else done.folder)


def _ask(told: "Told", yes: bool, repository: str, licence: "Licence") -> bool:
    """Show the licence, and ask on the terminal unless --yes was given."""
    named = licence.name or "none stated in its model card"
    told.say(f"{repository}: licence {named}{f' ({licence.link})' if licence.link else ''}")
    told.say(licence.uses or "Its model card does not say what it is not for.")
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InputError(f"{repository}: to accept the licence {named}, shown above, add --yes")
    with told.paused():
        return typer.confirm("Accept?", err=True)
