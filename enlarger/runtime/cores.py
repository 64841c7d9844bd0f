"""How many cores this process may use, without torch."""

import os
from math import ceil
from pathlib import Path

TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"  # of a CPU: those that share its core
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of work in a period, of a container
THREADS_VARIABLE = "OMP_NUM_THREADS"  # which torch obeys


def count_cores() -> int:
    """Cores, not threads of them, that this process may use: at most as many as its container is given."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return min(len(cores), _quota() or len(cores))


def heed_quota() -> None:
    """Before torch is imported: where a container's share is bounded, let it make as many threads and no more."""
    if _quota() is not None:
        os.environ.setdefault(THREADS_VARIABLE, str(count_cores()))


def _siblings(cpu: int) -> str:
    """The CPUs that share the core of one, as the system lists them."""
    try:
        return Path(TOPOLOGY.format(cpu)).read_text()
    except OSError:
        return str(cpu)


def _quota() -> int | None:
    """Whole cores that a container's share comes to; None where it has no bound."""
    try:
        share, period = QUOTA.read_text().split()
        return None if share == "max" else max(1, ceil(int(share) / int(period)))
    except (OSError, ValueError):
        return None
