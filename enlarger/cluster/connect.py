"""Joining a Ray cluster quietly: nothing is sent anywhere, no dashboard starts, nothing is logged to the terminal."""

import logging
import os
import re
import secrets
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from enlarger.errors import EnlargerError, InputError, Unsupported
from enlarger.image.decode import one_line

WORKERS = re.compile(r"([1-9]\d{0,4})(?:\.\.([1-9]\d{0,4}))?")
QUIET = {  # what Ray reads when it is imported, or when its processes start
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what else would be printed among our results
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
OBJECT_STORE_BYTES = 200_000_000  # of a cluster on this machine: names and reports alone go through it


@dataclass(frozen=True)
class ClusterOptions:
    """Which cluster, and the pool of workers on it."""

    address: str
    least: int = 1
    most: int | None = None  # as many as there is room for
    gpus_per_worker: float = 0.0


def cluster_options(address: str, workers: str | None, gpus_per_worker: float) -> ClusterOptions:
    """The options as people write them, `workers` as 4 or 2..16. Raises InputError, Unsupported without Ray."""
    if address not in ("local", "auto") and not re.fullmatch(r"ray://[^/\s]+:\d+/?", address):
        raise InputError(f"--ray is {one_line(address)!r}, expected local, auto or ray://HOST:PORT")
    require_ray()
    if address.startswith("ray://") and find_spec("grpc") is None:
        raise Unsupported("ray:// needs Ray's client; install it with: pip install 'enlarger[ray]'")
    if workers is None:
        return ClusterOptions(address, gpus_per_worker=gpus_per_worker)
    if (match := WORKERS.fullmatch(workers)) is None:
        raise InputError(f"--workers is {one_line(workers)!r}, expected a number such as 4, or a range such as 2..16")
    least, most = int(match[1]), int(match[2] or match[1])
    if least > most:
        raise InputError(f"--workers is {workers}, expected the smaller number first; write {most}..{least}")
    return ClusterOptions(address, least, most, gpus_per_worker)


def require_ray() -> None:
    """Raise Unsupported, with what to install, where Ray is not."""
    if any(find_spec(name) is None for name in ("ray", "pyarrow", "pandas")):
        raise Unsupported("--ray needs Ray, which is not installed; install it with: pip install 'enlarger[ray]'")


def import_ray() -> Any:
    """Ray, told beforehand to be quiet; its own types are too weak to say more of it."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


def protect_local_cluster() -> None:
    """Let the clusters that this process starts, and who joins them from it, share a token of their own.

    Else Ray would leave one for all clusters in the home folder; so it does where a program has imported it before.
    """
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def enter_folder(folder: str) -> None:
    """Let a process of the cluster mean the same by relative paths as the one that sent it, where it has the folder."""
    with suppress(OSError):
        os.chdir(folder)


@contextmanager
def _native_errors_hidden() -> Generator[None]:
    """Ray's native part writes what it thinks of its own workings to this process's standard error; Python's stays.

    ENLARGER_DEBUG shows it.
    """
    if os.environ.get("ENLARGER_DEBUG"):
        yield
        return
    shown, kept = sys.stderr, os.dup(2)
    with open(kept, "w", buffering=1, errors="backslashreplace") as ours, open(os.devnull, "w") as nothing:
        shown.flush()
        os.dup2(nothing.fileno(), 2)
        sys.stderr = ours
        try:
            yield
        finally:
            sys.stderr = shown
            os.dup2(kept, 2)


@contextmanager
def connected(options: ClusterOptions) -> Generator[Any]:
    """Ray, with a cluster; one that was started for this is ended after. Raises EnlargerError if there is none."""
    with _native_errors_hidden():
        yield from _connected(options)


def _connected(options: ClusterOptions) -> Generator[Any]:
    if options.address == "local":
        protect_local_cluster()
    ray = import_ray()
    was_connected = bool(ray.is_initialized())
    try:
        if not was_connected:
            ray.init(**_init_options(options))
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        advice = "start one with: ray start --head, or give --ray local"
        raise EnlargerError(f"no Ray cluster at {options.address} ({one_line(error)[:200]}); {advice}") from error
    try:
        yield ray
    finally:
        if not was_connected:
            ray.shutdown()


def _init_options(options: ClusterOptions) -> dict[str, Any]:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if options.address != "local":
        return quiet | {"address": options.address}
    return quiet | {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
