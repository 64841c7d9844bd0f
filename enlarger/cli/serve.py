"""`enlarger serve` runs the service; `enlarger key` makes a key for it."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from enlarger.errors import InputError

NAMED = {"host_name": "hosts", "origin": "origins", "device": "devices", "model": "models"}  # flags, as settings
KEEP = ",keep"


def _explain(context: typer.Context, wanted: bool) -> None:
    """Print the help with the words and defaults of the settings, read only now: their import takes its time."""
    if not wanted:
        return
    from enlarger.service.settings import Settings

    fields = Settings.model_fields
    parameters: Any = context.command.params
    for parameter in parameters:
        name = str(parameter.name)
        field = fields.get(NAMED.get(name, name))
        if field is not None:
            parameter.help = parameter.help or field.description
            parameter.show_default = _plain(field.default)
    print(context.get_help())
    raise typer.Exit


def _plain(default: Any) -> str | bool:
    """A default as the help shows it; False where there is none."""
    if isinstance(default, tuple):
        return ", ".join(map(str, default)) or False  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] - any items
    return str(default) if default not in (None, False) else False


def serve(
    host: Annotated[str | None, typer.Option()] = None,
    port: Annotated[int | None, typer.Option()] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; ENLARGER_CONFIG names one too")] = None,
    data: Annotated[Path | None, typer.Option()] = None,
    device: Annotated[list[str] | None, typer.Option()] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="model to serve, NAME=PATH,keep to keep it loaded; may be repeated"),
    ] = None,
    queue: Annotated[int | None, typer.Option()] = None,
    batch: Annotated[int | None, typer.Option()] = None,
    memory: Annotated[float | None, typer.Option()] = None,
    job_minutes: Annotated[float | None, typer.Option()] = None,
    host_name: Annotated[list[str] | None, typer.Option()] = None,
    origin: Annotated[list[str] | None, typer.Option()] = None,
    fetch: Annotated[bool | None, typer.Option("--fetch/--no-fetch")] = None,
    insecure_no_auth: Annotated[bool | None, typer.Option("--insecure-no-auth")] = None,
    log_level: Annotated[str | None, typer.Option()] = None,
    help: Annotated[
        bool, typer.Option("--help", "-h", is_eager=True, callback=_explain, help="show this message and exit")
    ] = False,
) -> None:
    """Serve pictures over HTTP: OpenAI's images API, /v1/images/upscale, jobs and a web page.

    Every flag is a setting of the same name in the file of --config and in an ENLARGER_... variable; flags win over
    variables, variables over the file. Stops in order on SIGTERM and Ctrl-C.
    """
    flags: dict[str, Any] = {
        "host": host, "port": port, "data": data, "devices": device, "queue": queue, "batch": batch, "memory": memory,
        "job_minutes": job_minutes, "hosts": host_name, "origins": origin, "fetch": fetch,
        "insecure_no_auth": insecure_no_auth, "log_level": log_level,
    }  # fmt: skip
    try:
        use_config(config)
        flags["models"] = None if model is None else [model_of(words) for words in model]
        status = _run(flags)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    raise typer.Exit(status)


def use_config(config: Path | None) -> None:
    """Take the settings' file from a flag, or from ENLARGER_CONFIG. Raises InputError if it is not there."""
    named = os.environ.get("ENLARGER_CONFIG") if config is None else os.fspath(config)
    if named is None:
        return
    if not os.path.isfile(named):
        raise InputError(f"{named}: no such configuration file; make it, or leave --config and ENLARGER_CONFIG out")
    os.environ["ENLARGER_CONFIG"] = named


def model_of(words: str) -> dict[str, Any]:
    """A model's settings of NAME=PATH or NAME=PATH,keep."""
    name, sign, path = words.partition("=")
    if not (name and sign and path.removesuffix(KEEP)):
        raise InputError(f"--model {words}: expected NAME=PATH, or NAME=PATH,keep")
    return {"name": name, "path": path.removesuffix(KEEP), "keep": path.endswith(KEEP)}


def _run(flags: dict[str, Any]) -> int:
    """Serve until told to stop; the exit status."""
    from enlarger.service.settings import read_settings

    settings = read_settings(**flags)
    from enlarger.service.app import make_app
    from enlarger.service.edge.server import serve as serve_app

    names = ", ".join(model.name for model in settings.known_models)

    def ready(address: str) -> None:
        print(f"enlarger serves on {address}\nmodels: {names}", file=sys.stderr, flush=True)

    return serve_app(settings, make_app(settings), on_ready=ready)


def key() -> None:
    """Make a key for the service, and what its configuration keeps of it.

    The key is shown once and kept nowhere; the service knows only its hash.
    """
    from enlarger.service.edge.keys import new_key

    made, kept = new_key()
    print(f'key: {made}\nconfiguration: keys = ["{kept}"]')
