"""`--server`: a task like the library's own, with a service computing; torch is not needed for it."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enlarger.cli.loading import DEFAULTS
from enlarger.requests import UpscaleRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from enlarger.client.job_protocol import Watch
    from enlarger.client.responses import Result
    from enlarger.image.decode import FileSource

Server = Annotated[
    str | None,
    typer.Option(
        help="address of a service that computes instead, as http://127.0.0.1:8997; --model is then a name there",
        show_default=False,
    ),
]
Key = Annotated[str | None, typer.Option(help="key of the service", envvar="ENLARGER_KEY", show_default=False)]


def check_no_local_options(model: object, local_options: dict[str, str]) -> None:
    """Raise BadParameter for options that a service has its own of."""
    conflicting = [f"--{name}" for name, value in local_options.items() if value != DEFAULTS[name]]
    if not (model is None or isinstance(model, str)):
        conflicting.append("options on how to read a model")
    if conflicting:
        raise typer.BadParameter(f"{', '.join(conflicting)} cannot be given with --server: the service has its own")


@contextmanager
def remote_upscaler(
    server: str, key: str | None, model: str | None
) -> Generator["Callable[[UpscaleRequest, Watch], Result]"]:
    """The task of a service, after a look whether it is there. Raises ServiceError if it is not."""
    from enlarger.client.client import Client

    with Client(server, key, timeout=None) as client:
        client.health()

        def upscale(request: UpscaleRequest, watch: "Watch") -> "Result":
            options = {item.name: getattr(request, item.name) for item in fields(request) if item.name != "image"}
            result = client.upscale(request.image, model=model, watch=watch, **options)
            about = _metadata_of(request.image)
            for image in result.images:
                image.info |= about
            return result

        yield upscale


def _metadata_of(source: "FileSource | Image") -> dict[str, Any]:
    """What an input's file says beside its pixels, of which a service is told nothing."""
    from enlarger.image.decode import open_image
    from enlarger.image.metadata import read_file_metadata

    with open_image(source) as (image, _):
        return read_file_metadata(image)
