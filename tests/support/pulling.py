"""Pulling in tests: a quiet teller, one that counts, and pulls in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from enlarger.hub.fetch import Patience
from enlarger.hub.pull import Order, Pulled, pull

ROOT = Path(__file__).parents[2]
SOON = Patience(tries=3, wait=0.01)
PROCESS = """
import sys
from enlarger.errors import EnlargerError
from enlarger.hub.pull import Order, pull
from tests.support.pulling import Heard
try:
    done = pull(Order(sys.argv[1], mirror=sys.argv[2]), lambda repository, licence: True, Heard())
    print(done.folder, done.fetched)
except EnlargerError as error:
    sys.exit(str(error))
"""


@dataclass
class Heard:
    """What was told."""

    said: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)

    def total(self, size: int) -> None:
        self.sizes.append(size)

    def file(self, path: str, size: int) -> Callable[[int], None]:
        self.files.append(path)
        return lambda there: None


def get(name: str, mirror: str, heard: Heard | None = None, **order) -> Pulled:
    """Pull here, accepting the licence."""
    order = Order(name, mirror=mirror, **order)
    return pull(order, lambda repository, licence: True, Heard() if heard is None else heard, SOON)


def start(name: str, mirror: str) -> subprocess.Popen[str]:
    """Pull in another process."""
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, name, mirror],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    """The files in a folder but for the record."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
