"""A process of its own that asks one path again and again: `python -m tests.drills.probe URL PATH [seconds between]`.

Asks until its input ends, then prints the seconds that each answer took as a JSON list. A question that could not be
asked in time counts from when it was due, so that one long silence is not a single slow answer."""

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.drills import wire

EVERY = 0.02


def main() -> None:
    """Ask until standard input ends."""
    url, path, *every = sys.argv[1:]
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    sys.stdout.write(json.dumps(ask_until(url, path, float(every[0]) if every else EVERY, ended)))


def ask_until(url: str, path: str, every: float, ended: threading.Event) -> list[float]:
    """The seconds of each answer; infinity for one that was not 200."""
    connection = http.client.HTTPConnection(*wire.address(url), timeout=10)
    found: list[float] = []
    due = time.perf_counter()
    while not ended.is_set():
        time.sleep(max(0.0, due - time.perf_counter()))
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            found.append(time.perf_counter() - due if answer.status == 200 else 1e9)
        except (OSError, http.client.HTTPException):
            connection.close()
            found.append(1e9)
        due += every
    return found


@contextmanager
def probing(url: str, path: str = "/healthz", every: float = EVERY) -> Iterator[list[float]]:
    """Probe meanwhile; the list is filled at the end."""
    command = [sys.executable, "-m", "tests.drills.probe", url, path, str(every)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    found: list[float] = []
    try:
        yield found
    finally:
        out, _ = process.communicate()
        found += json.loads(out)


if __name__ == "__main__":
    main()
