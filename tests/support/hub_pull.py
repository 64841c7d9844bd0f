"""Pulling in tests: a listener that records, and pulls in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from enlarger.hub.fetch import RetryPolicy
from enlarger.hub.pull import PullOptions, PullResult, pull

ROOT = Path(__file__).parents[2]
FAST_RETRIES = RetryPolicy(max_tries=3, backoff=0.01)
PULL_SCRIPT = """
import sys
from enlarger.errors import EnlargerError
from enlarger.hub.pull import PullOptions, pull
from tests.support.hub_pull import RecordingListener
try:
    done = pull(PullOptions(sys.argv[1], mirror=sys.argv[2]), lambda repository, licence: True, RecordingListener())
    print(done.folder, done.fetched)
except EnlargerError as error:
    sys.exit(str(error))
"""


@dataclass
class RecordingListener:
    """What a pull reported."""

    messages: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def set_total(self, size: int) -> None:
        self.totals.append(size)

    def start_file(self, path: str, size: int) -> Callable[[int], None]:
        self.files.append(path)
        return lambda there: None


def pull_here(name: str, mirror: str, listener: RecordingListener | None = None, **options) -> PullResult:
    """Pull here, accepting the licence."""
    options = PullOptions(name, mirror=mirror, **options)
    return pull(
        options, lambda repository, licence: True, RecordingListener() if listener is None else listener, FAST_RETRIES
    )


def start_pull(name: str, mirror: str) -> subprocess.Popen[str]:
    """Pull in another process."""
    return subprocess.Popen(
        [sys.executable, "-c", PULL_SCRIPT, name, mirror],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    """The files in a folder but for the record."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
