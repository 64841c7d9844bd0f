"""The service as the operating system sees it: its processes, their memory and their open files."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import psutil

Role = Literal["server", "worker", "decoder", "other"]
MARKS: dict[str, Role] = {"enlarger.service.worker": "worker", "enlarger.service.uploads": "decoder"}


def family(pid: int) -> dict[int, Role]:
    """The server and its living children, by process id."""
    try:
        return {pid: "server"} | {each.pid: role_of(each) for each in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return {}


def role_of(process: psutil.Process) -> Role:
    """What a child is for."""
    try:
        line = " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return "other"
    return next((role for mark, role in MARKS.items() if mark in line), "other")


def pids(server: int, role: Role) -> list[int]:
    """The children of one kind."""
    return [pid for pid, found in family(server).items() if found == role]


def memory(server: int) -> dict[Role, int]:
    """Bytes held by kind of process; what several share (a process forked for a picture, its parent) counts once."""
    held: dict[Role, int] = {}
    for pid, role in family(server).items():
        try:
            held[role] = held.get(role, 0) + psutil.Process(pid).memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return held


def open_files(server: int) -> int:
    """Descriptors that the server itself holds."""
    return psutil.Process(server).num_fds()


def threads(server: int) -> int:
    return psutil.Process(server).num_threads()


@dataclass
class Peak:
    """The most memory seen of all processes together, and of the server, while sampled."""

    before: int
    before_server: int
    most: int = 0
    most_server: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def look(self, server: int) -> None:
        held = memory(server)
        self.most, self.most_server = max(self.most, sum(held.values())), max(self.most_server, held.get("server", 0))

    @property
    def growth(self) -> int:
        return self.most - self.before

    @property
    def growth_server(self) -> int:
        return self.most_server - self.before_server


@contextmanager
def sampled(server: int, every: float = 0.02) -> Iterator[Peak]:
    """Sample the memory of all processes in the background."""
    held = memory(server)
    peak = Peak(sum(held.values()), held["server"])

    def sample() -> None:
        while not peak.stop.wait(every):
            peak.look(server)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
        peak.look(server)
    finally:
        peak.stop.set()
        thread.join()
