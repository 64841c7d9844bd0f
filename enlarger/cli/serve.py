"""`enlarger serve` runs the service; `enlarger key` makes a key for it."""

import math
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enlarger.cli.terminal import print_lines
from enlarger.errors import CheckpointError, EnlargerError, InputError

if TYPE_CHECKING:
    from enlarger.service.settings import Settings
    from enlarger.service.workers.supervisor import WorkerPlan

SETTING_OF_FLAG = {
    "host_name": "hosts",
    "origin": "origins",
    "device": "devices",
    "model": "models",
    "models": "models_folder",
}  # flags, as settings
BYTES_PER_PIXEL = 4  # of a picture's file: 8 bits, with alpha
KEEP_SUFFIX = ",keep"


def _print_help(context: typer.Context, is_requested: bool) -> None:
    """Print the help with the texts and defaults of the settings, read only now: importing them takes time."""
    if not is_requested:
        return
    from enlarger.service.settings import Settings

    fields = Settings.model_fields
    parameters: Any = context.command.params
    for parameter in parameters:
        name = str(parameter.name)
        field = fields.get(SETTING_OF_FLAG.get(name, name))
        if field is not None:
            parameter.help = parameter.help or field.description
            parameter.show_default = _format_default(field.default)
    print(context.get_help())
    raise typer.Exit


def _format_default(default: object) -> str | bool:
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
    models: Annotated[Path | None, typer.Option("--models", metavar="DIR", envvar="ENLARGER_MODELS_FOLDER")] = None,
    allow_pickle: Annotated[bool | None, typer.Option("--allow-pickle")] = None,
    ray: Annotated[str | None, typer.Option("--ray", metavar="CLUSTER")] = None,
    workers: Annotated[str | None, typer.Option(metavar="NUMBER|MIN..MAX")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option()] = None,
    queue: Annotated[int | None, typer.Option()] = None,
    batch: Annotated[int | None, typer.Option()] = None,
    memory: Annotated[float | None, typer.Option()] = None,
    job_minutes: Annotated[float | None, typer.Option()] = None,
    megapixels: Annotated[
        float | None,
        typer.Option(metavar="N", min=0.001, help="largest picture that the bundled model enlarges; 50 if not given"),
    ] = None,
    host_name: Annotated[list[str] | None, typer.Option()] = None,
    origin: Annotated[list[str] | None, typer.Option()] = None,
    fetch: Annotated[bool | None, typer.Option("--fetch/--no-fetch")] = None,
    a1111: Annotated[bool | None, typer.Option("--a1111")] = None,
    insecure_no_auth: Annotated[bool | None, typer.Option("--insecure-no-auth")] = None,
    log_level: Annotated[str | None, typer.Option()] = None,
    help: Annotated[
        bool, typer.Option("--help", "-h", is_eager=True, callback=_print_help, help="show this message and exit")
    ] = False,
) -> None:
    """Serve pictures over HTTP: OpenAI's images API, /v1/images/upscale, jobs and a web page.

    Every flag is a setting of the same name in the file of --config and in an ENLARGER_... variable, but --megapixels,
    which stands for bounds. Flags win over variables, these over the file. Stops in order on SIGTERM and Ctrl-C.
    """
    try:
        use_config(config)
        status = _serve(
            host=host,
            port=port,
            data=data,
            devices=device,
            models=None if model is None else [parse_model(argument) for argument in model],
            models_folder=models,
            allow_pickle=allow_pickle,
            ray=ray,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            queue=queue,
            batch=batch,
            memory=memory,
            job_minutes=job_minutes,
            bounds=None if megapixels is None else bundled_bounds(megapixels),
            hosts=host_name,
            origins=origin,
            fetch=fetch,
            a1111=a1111,
            insecure_no_auth=insecure_no_auth,
            log_level=log_level,
        )
    except InputError as error:
        print_lines([f"error: {error}"], sys.stderr)
        raise typer.Exit(2) from error
    raise typer.Exit(status)


def use_config(config: Path | None) -> None:
    """Take the settings' file from a flag, or from ENLARGER_CONFIG. Raises InputError if it is not there."""
    config_path = os.environ.get("ENLARGER_CONFIG") if config is None else os.fspath(config)
    if config_path is None:
        return
    if not os.path.isfile(config_path):
        raise InputError(
            f"{config_path}: no such configuration file; make it, or leave --config and ENLARGER_CONFIG out"
        )
    os.environ["ENLARGER_CONFIG"] = config_path


def parse_model(argument: str) -> dict[str, str | bool]:
    """A model's settings of NAME=PATH or NAME=PATH,keep."""
    name, sign, path = argument.partition("=")
    if not (name and sign and path.removesuffix(KEEP_SUFFIX)):
        raise InputError(f"--model {argument}: expected NAME=PATH, or NAME=PATH,keep")
    return {"name": name, "path": path.removesuffix(KEEP_SUFFIX), "keep": path.endswith(KEEP_SUFFIX)}


def bundled_bounds(megapixels: float) -> dict[str, int]:
    """The bounds of a picture to enlarge twofold with the bundled model, and of its file, which may not compress."""
    from enlarger.service.settings import Bounds

    pixels, usual = round(megapixels * 1e6), Bounds()
    bounds = {"bundled_pixels": pixels, "bundled_output_pixels": 4 * pixels, "pixels": pixels}
    bounds |= {name: math.ceil(4 * megapixels) for name in ("request_price", "key_price", "total_price")}
    if pixels > usual.pixels:
        image = BYTES_PER_PIXEL * pixels
        body = image + usual.body - usual.image
        bounds |= {"image": image, "body": body, "bodies_per_key": 2 * body, "bodies": 4 * body}
        bounds["decode_seconds"] = math.ceil(usual.decode_seconds * pixels / usual.pixels)
    kept = ("bundled_pixels", "bundled_output_pixels")  # may be smaller than usual
    return {name: value for name, value in bounds.items() if name in kept or value > getattr(usual, name)}


def with_room(settings: "Settings") -> "Settings":
    """The settings with a disk that holds two of the largest results of the bundled model, unless they say how much."""
    from enlarger.service.jobs.disk_usage import BYTES_PER_PIXEL as RESULT_BYTES
    from enlarger.service.settings import GIB, Bounds

    pixels = settings.bounds.bundled_output_pixels
    if pixels <= Bounds().bundled_output_pixels or "disk" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"disk": max(settings.disk, math.ceil(2 * pixels * RESULT_BYTES / GIB))})


def check_models(settings: "Settings") -> None:
    """Raise InputError for a model whose files are not there: a service would only say so when it is asked for."""
    from enlarger.hub.cache import resolve

    folder = settings.models_folder
    if folder is not None and not folder.is_dir():
        raise InputError(f"--models {folder}: no such folder; expected one of models, such as models of a web UI")
    for model in settings.models:
        extras = [*(path for path, _ in model.loras), *([] if model.preview is None else [model.preview])]
        try:
            if model.path != "bundled":
                resolve(model.path)
        except CheckpointError as error:
            raise InputError(f"model {model.name}: {error}") from error
        for path in extras:
            if not os.path.exists(path):
                raise InputError(f"model {model.name}: {path}: no such file or folder; expected weights that are there")


def _serve(**flags: object) -> int:
    """Serve until a signal to stop; the exit status."""
    from enlarger.service.settings import load_settings

    settings = with_room(load_settings(**flags))
    check_models(settings)
    with ExitStack() as stack:
        return _serve_with(settings, stack)


def _serve_with(settings: "Settings", stack: ExitStack) -> int:
    """Serve with the workers that the settings ask for; `stack` ends what was started for them."""
    from enlarger.service.app import create_app
    from enlarger.service.server import serve as serve_app
    from enlarger.service.settings import is_loopback

    names = ", ".join(model.name for model in settings.known_models)

    def print_address(address: str) -> None:
        reached = f"other machines reach port {address.rpartition(':')[2]} by this one's address, or by a --host-name"
        lines = [
            f"enlarger serves on {address}",
            *([] if is_loopback(settings.host) else [reached]),
            f"models: {names}",
        ]
        print_lines(lines, sys.stderr)

    return serve_app(settings, create_app(settings, _workers(settings, stack)), on_ready=print_address)


def _workers(settings: "Settings", stack: ExitStack) -> "WorkerPlan":
    """Child processes for the devices, or actors of a cluster. Raises InputError for one that cannot be used."""
    from enlarger.service.workers.supervisor import WorkerPlan

    if settings.ray is None:
        return WorkerPlan(settings.devices)
    from enlarger.cluster.connect import cluster_options
    from enlarger.service.workers.bridge import bridge_argv
    from enlarger.service.workers.local_cluster import local_cluster

    try:
        options = cluster_options(settings.ray, settings.workers, settings.gpus_per_worker)
        address = stack.enter_context(local_cluster()) if settings.ray == "local" else settings.ray
    except EnlargerError as error:
        raise InputError(str(error)) from error
    most = options.least if options.most is None else options.most
    return WorkerPlan(("auto",) * most, bridge_argv(address, options.gpus_per_worker), options.least)


def key() -> None:
    """Make a key for the service, and the line for its configuration.

    The key is shown once and stored nowhere; the service knows only its hash.
    """
    from enlarger.service.middleware.api_keys import generate_key

    secret, key_hash = generate_key()
    print(f'key: {secret}\nconfiguration: keys = ["{key_hash}"]')
