"""`--ray`: the options that say which cluster computes, and what cannot be given with them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from enlarger.errors import InputError

if TYPE_CHECKING:
    from enlarger.cluster.connect import ClusterOptions

Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="CLUSTER",
        help="compute on a Ray cluster: local starts one here, auto joins this machine's, or ray://HOST:PORT; "
        "inputs and --output may be s3://, gs:// and other URIs",
        show_default=False,
    ),
]
Workers = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER|MIN..MAX",
        help="with --ray: workers, each with the model",
        show_default="1 to all there is room for",
    ),
]
GpusPerWorker = Annotated[
    float, typer.Option("--gpus-per-worker", min=0, help="with --ray: of each worker; 0.5 lets two share one")
]


def read_cluster_options(
    ray: str | None, workers: str | None, gpus_per_worker: float, device: str
) -> "ClusterOptions | None":
    """What the options say; None without --ray. Raises BadParameter for what has no meaning with or without it."""
    if ray is None:
        if workers is not None or gpus_per_worker:
            raise typer.BadParameter("--workers and --gpus-per-worker say how --ray computes; give it too")
        return None
    from enlarger.cluster.connect import cluster_options

    if ":" in device:
        raise typer.BadParameter(
            f"--device {device} has no meaning with --ray, which gives each worker its own; leave it"
        )
    try:
        return cluster_options(ray, workers, gpus_per_worker)
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def refuse_uris(locations: Iterable[str | None]) -> None:
    """Raise BadParameter for URIs where no cluster reads or writes them."""
    for location in locations:
        if location is not None and "://" in location:
            raise typer.BadParameter(
                f"{location} is a URI, which only --ray reads and writes; add --ray local, or give a file"
            )
