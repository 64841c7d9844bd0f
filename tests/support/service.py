"""A real service on a free port, as a child process, with tiny weights beside the bundled model."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from tests.support import tiny, tiny_xl

HTTP = httpx2.Client(timeout=30)  # making one takes longer than a request
READY = re.compile(r"(http://[\w.\[\]:]+)")
FOLDERS = {
    "tiny-sd": tiny.sd1_folder,
    "tiny-inpaint": tiny.inpaint_folder,
    "tiny-x2": tiny.x2_folder,
    "tiny-xl": tiny_xl.base_folder,
    "tiny-refiner": tiny_xl.refiner_folder,
}
START_SECONDS = 150.0  # a cluster of Ray starts first where there is one, on a machine that is at work


@dataclass(frozen=True)
class Served:
    """A running service."""

    url: str
    process: subprocess.Popen[bytes]
    data: Path  # its folder
    log: Path  # what it wrote to standard error
    config: Path

    def get(self, path: str) -> httpx2.Response:
        return HTTP.get(self.url + path)

    def ready(self) -> bool:
        try:
            return self.get("/readyz").status_code == 200
        except httpx2.HTTPError:
            return False

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        until(self.ready, seconds, self.log_tail)

    def log_tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:]


def until(true: Any, seconds: float, why: Any = str) -> None:
    """Wait until a function of no arguments gives something true; AssertionError after so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"nothing after {seconds} s: {why()}"
        time.sleep(0.02)


def config_text(models: Sequence[str], settings: dict[str, Any]) -> str:
    """A configuration file."""
    nested = {key: value for key, value in settings.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in settings.items() if key not in nested]
    for name in models:
        lines += ["", "[[models]]", f'name = "{name}"', f'path = "{FOLDERS[name]()}"']
    for key, values in nested.items():
        lines += ["", f"[{key}]", *(f"{name} = {_toml(value)}" for name, value in values.items())]
    return "\n".join(lines) + "\n"


@contextmanager
def running(data: Path | None = None, *, models: Sequence[str] = ("tiny-sd",), **settings: Any) -> Iterator[Served]:
    """A service that is ready; stopped at the end with SIGTERM, and killed if that does not help."""
    with TemporaryDirectory(prefix="enlarger-service-") as place:
        folder = Path(place) / "data" if data is None else data
        served = start(Path(place), folder, models, settings)
        try:
            served.wait_ready()
            yield served
        finally:
            stop(served)


def start(
    place: Path, data: Path, models: Sequence[str] = ("tiny-sd",), settings: dict[str, Any] | None = None
) -> Served:
    """Start a service whose configuration and log lie in `place`; it answers, but may not be ready yet."""
    place.mkdir(parents=True, exist_ok=True)
    config, log = place / "enlarger.toml", place / "log"
    config.write_text(config_text(models, {"data": str(data), "port": 0} | (settings or {})))
    before = log.stat().st_size if log.exists() else 0
    with log.open("ab") as stream:
        command = [sys.executable, "-m", "enlarger", "serve", "--config", str(config)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)

    def read_log() -> str:
        with log.open("rb") as stream:
            stream.seek(before)
            return stream.read().decode(errors="replace")

    def address() -> str | None:
        assert process.poll() is None, f"the service ended with {process.returncode}: {read_log()}"
        found = [line for line in read_log().splitlines() if "serves on" in line]
        match = READY.search(found[0]) if found else None
        return match.group(1) if match else None

    try:
        until(address, START_SECONDS, read_log)
    except BaseException:
        process.kill()
        raise
    return Served(str(address()), process, data, log, config)


def stop(served: Served, seconds: float = 40) -> int:
    """End a service in order; its exit status."""
    served.process.terminate()
    try:
        return served.process.wait(seconds)
    except subprocess.TimeoutExpired:
        served.process.kill()
        served.process.wait()
        raise


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str | Path) else str(value)
