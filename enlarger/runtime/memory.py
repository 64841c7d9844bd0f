"""How much memory there is for a task: on the machine, in its control group, on its device; and when it ran out."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from enlarger.memory_size import parse_memory

USED_SHARE = 0.9  # of what is available, where no bound is given: others need some too
PROCESS_BYTES = 270_000_000  # what Python, torch and this package take before a model is there
MESSAGES = (  # of RuntimeErrors, in lower case
    "can't allocate memory",
    "out of memory",
    "not enough memory",
    "defaultcpuallocator",
)
CONTROL_GROUPS, GROUPS_OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had too little memory, by the types and the words of Python and torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in MESSAGES)


def process_bytes(device: torch.device) -> int:
    """What a process takes on a device before a model is there."""
    return PROCESS_BYTES if device.type == "cpu" else 0


def available_bytes(device: torch.device) -> int:
    """What this process can still take on a device: free memory there, on the host within its control groups."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return max(0, min(_machine_bytes(), *_control_group_bytes()))


def room_bytes(memory: str | float | None, device: torch.device, weights: int) -> int:
    """What is left for the pictures and the networks' work, below a bound on process, `weights` and work together.

    Without a bound it is nine tenths of what is available beside the weights. A share is of what is available, the
    weights included. Negative where not even these fit.
    """
    available = available_bytes(device)
    if memory is None:
        return int(USED_SHARE * available)
    return parse_memory(memory).of(available + process_bytes(device) + weights) - process_bytes(device) - weights


def weight_bytes(*modules: nn.Module, offload: str = "none") -> int:
    """The bytes of all parameters and buffers, shared ones once: those that are on the device at a time, if modules are
    kept off it while they are not at work ("model"), or their layers are ("sequential")."""
    if offload == "none":
        return sum({id(tensor): tensor.nbytes for module in modules for tensor in _tensors(module)}.values())
    if offload == "model":
        return max((weight_bytes(module) for module in modules), default=0)
    layers = (layer for module in modules for layer in module.modules())
    own = ((*layer.parameters(recurse=False), *layer.buffers(recurse=False)) for layer in layers)
    return max((sum(tensor.nbytes for tensor in tensors) for tensors in own), default=0)


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _machine_bytes() -> int:
    """What the kernel could give without swapping; where it does not say, all that is built in."""
    found = _read_table(Path("/proc/meminfo")).get("MemAvailable:")
    if found is not None:
        return found * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**33


def _control_group_bytes() -> Iterator[int]:
    """What each control group that this process is in leaves it, versions 2 and 1; nothing where there is no bound."""
    try:
        lines = GROUPS_OF_PROCESS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = CONTROL_GROUPS / controllers
        names = (
            ("memory.max", "memory.current") if not controllers else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, used = (_read_number(folder / name) for name in names)
            if limit is not None and used is not None:
                cached = _read_table(folder / "memory.stat").get("inactive_file", 0)  # given back when it is needed
                yield limit - max(0, used - cached)
            if folder == root:
                break


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _read_table(path: Path) -> dict[str, int]:
    """A file of the kernel with a name and a number in each line."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
