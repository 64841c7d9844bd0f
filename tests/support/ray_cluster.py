"""A small Ray cluster in this process, for the tests of a file: two cores, no dashboard, and nothing that is sent."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from enlarger.cli.main import run
from enlarger.cluster.connect import import_ray, protect_local_cluster

WITH_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="the extra enlarger[ray] is not installed")
OBJECT_STORE_BYTES = 100_000_000
Call = Callable[..., tuple[int, str, str]]


@contextmanager
def small_cluster(num_cpus: int = 2) -> Iterator[Any]:
    """Ray, with such a cluster; always shut down."""
    protect_local_cluster()
    ray = import_ray()
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level="ERROR",
    )
    every = list(ray._private.worker._global_node.all_processes.values())
    try:
        yield ray
    finally:
        ray.shutdown()
        for started in itertools.chain(*every):
            started.process.wait(20)  # else Python warns that Ray has not


def caller(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs the command here; gives exit status, standard output and standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["enlarger", *map(str, arguments)])
        capfd.readouterr()
        status: Any = 0
        try:
            run()
        except SystemExit as error:
            status = error.code
        said = capfd.readouterr()
        if isinstance(status, str):
            return 1, said.out, f"{said.err}{status}\n"
        return status or 0, said.out, said.err

    return call


def photos(folder: Path, count: int, side: int = 16, first: int = 0) -> list[Path]:
    """So many pictures, each another one."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / f"p{number:05}.png" for number in range(first, first + count)]
    for number, path in enumerate(made, first):
        pixels = np.random.default_rng(number).integers(0, 256, (side // 4, side // 4, 3), np.uint8)
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return made


def kill(pid: int) -> None:
    """End a process at once, if it is there."""
    with suppress(ProcessLookupError):
        os.kill(pid, 9)
