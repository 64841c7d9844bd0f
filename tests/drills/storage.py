"""A full disk: an error that says so, and a service that goes on."""

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2

from tests.drills import jobs, wire
from tests.drills.figures import Figure, exactly, none, share
from tests.drills.processes import pids
from tests.support.service import Served, running

SIZE, MORE = 24, 8  # MiB of the disk, and of what each round leaves on it
LEFT = 160 * 1024  # bytes that are left of it
LARGE, LITTLE = (480, 320), (240, 160)  # pictures that do not fit, and whose results do not fit


class NoDisk(Exception):
    """A small disk cannot be had here; says why."""


def storage(rounds: int) -> list[Figure]:
    """A service on a small disk that is filled and emptied so often. Raises NoDisk where none can be mounted."""
    with small_disk(SIZE + MORE * rounds) as disk, running(disk / "data") as served:
        assert send(served).status_code == 200
        workers = pids(served.process.pid, "worker")
        full, health, again = [], 0, 0
        for _ in range(rounds):
            with filled(disk):
                full += [send(served), send(served, headers=jobs.DETACHED), send(served, LITTLE)]
                health += jobs.get(served, "/healthz").status_code == 200
            again += send(served).status_code == 200
        errors = sum(answer.json()["error"]["code"] == "storage_full" for answer in full if answer.status_code == 500)
        left = list((served.data / "spool").iterdir())
        return [
            share("requests on a full disk: 500 storage_full" + said(full), errors, len(full)),
            share("answers about health meanwhile", health, rounds),
            share("good pictures after there is room again", again, rounds),
            none("workers lost", len(set(workers) - set(pids(served.process.pid, "worker")))),
            none("uploads left in the spool", len(left)),
            exactly("service still running", int(served.process.poll() is None), 1),
        ]


def said(answers: list[httpx2.Response]) -> str:
    odd = {f"{a.status_code} {a.text[:60]}" for a in answers if "storage_full" not in a.text}
    return f" (not: {', '.join(sorted(odd)[:3])})" if odd else ""


def send(served: Served, size: tuple[int, int] = LARGE, headers: dict[str, str] | None = None) -> httpx2.Response:
    """A picture of which there is no room for the upload, or only none for the result."""
    picture = wire.png(*size)
    return jobs.HTTP.post(
        served.url + wire.UPSCALE, files={"image": ("a.png", picture, "image/png")}, data={"model": "bundled"},
        headers=headers, timeout=60,
    )  # fmt: skip


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """The disk without room, but for a little that the queue's file may need."""
    ballast = disk / "ballast"
    free = shutil.disk_usage(disk).free
    with ballast.open("wb") as stream, suppress(OSError):
        stream.write(bytes(max(0, free - LEFT)))
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """A file system of so many MiB in memory, mounted by root, or by sudo where that asks for no password."""
    with TemporaryDirectory(prefix="enlarger-disk-") as place:
        command = [] if os.geteuid() == 0 else ["sudo", "-n"]
        options = f"size={size}m,mode=0700,uid={os.geteuid()}"
        try:
            mounted = subprocess.run(
                [*command, "mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True
            )
        except FileNotFoundError as error:
            raise NoDisk(str(error)) from error
        if mounted.returncode:
            raise NoDisk(f"{getpass.getuser()} may not mount a disk in memory: {mounted.stderr.strip()}")
        try:
            yield Path(place)
        finally:
            subprocess.run([*command, "umount", "-l", place], check=True)
