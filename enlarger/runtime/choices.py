"""How networks run here: on which device, in which precision and layout, on how many threads, and why."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from enlarger.errors import InputError
from enlarger.runtime.cores import THREADS_VARIABLE
from enlarger.runtime.hardware import Hardware, hardware

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = {torch.contiguous_format: "contiguous", torch.channels_last: "channels-last"}


@dataclass(frozen=True)
class RuntimeChoices:
    """What was chosen; `reasons` has a line for each of device, precision, layout and threads."""

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format
    threads: int
    reasons: Mapping[str, str]

    def describe(self) -> dict[str, str]:
        """Each choice by its name, with its reason, for people."""
        values = {
            "device": str(self.device),
            "precision": dtype_name(self.dtype),
            "layout": LAYOUTS[self.memory_format],
            "threads": str(self.threads),
        }
        return {name: f"{value}: {self.reasons[name]}" for name, value in values.items()}


def choose(device: str = "auto", precision: str = "auto") -> RuntimeChoices:
    """What `device` and `precision` come to on this machine; "auto" leaves one to it.

    Raises InputError for what is unknown or cannot be used here.
    """
    found, machine = resolve_device(device), hardware()
    dtype, why = _choose_dtype(precision, found, machine)
    layout, why_layout = choose_layout(found, dtype)
    threads, why_threads = choose_threads(machine)
    reasons = {
        "device": _device_reason(device, machine),
        "precision": why,
        "layout": why_layout,
        "threads": why_threads,
    }
    return RuntimeChoices(found, dtype, layout, threads, reasons)


def resolve_device(name: str) -> torch.device:
    """The device of a name; "auto" is the first accelerator there is, else the CPU. Raises InputError for others."""
    if name == "auto":
        return torch.device(hardware().accelerator or "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"no device is called {name!r}; expected auto, cpu, cuda, cuda:0, mps ...") from error
    if device == torch.device("cpu"):
        return device
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # what torch raises depends on how it was built
        raise InputError(f"device {name!r} cannot be used here; give another, or auto") from error
    return device


def _device_reason(name: str, machine: Hardware) -> str:
    if name != "auto":
        return "asked for"
    return "there is no accelerator" if machine.accelerator is None else "the first accelerator"


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of a name on a device, see `choose`."""
    return _choose_dtype(name, device, hardware())[0]


def _choose_dtype(name: str, device: torch.device, machine: Hardware) -> tuple[torch.dtype, str]:
    """float16 on CUDA, bfloat16 on CPUs that multiply it, float32 elsewhere; and why."""
    if name != "auto":
        if name not in DTYPES:
            raise InputError(f"precision is {name!r}, expected auto, {', '.join(DTYPES)}")
        return DTYPES[name], "asked for"
    if device.type == "cuda":
        return torch.float16, "half the memory, and fast on CUDA"
    if device.type != "cpu":
        return torch.float32, f"the precision that is known to work on {device.type}"
    if machine.bfloat16 is None:
        return torch.float32, "this CPU has neither avx512_bf16 nor amx_bf16, without which bfloat16 is slow"
    return torch.bfloat16, f"this CPU multiplies it ({machine.bfloat16})"


def choose_layout(device: torch.device, dtype: torch.dtype) -> tuple[torch.memory_format, str]:
    """How feature maps lie in memory, and why."""
    if device.type == "mps":
        return torch.contiguous_format, "the usual one"
    if dtype == torch.float32:
        return torch.contiguous_format, "in float32 diffusion networks are not faster otherwise"
    return torch.channels_last, f"convolutions in {dtype_name(dtype)} are faster in it"


def choose_threads(machine: Hardware) -> tuple[int, str]:
    """How many threads compute on the CPU, and why."""
    stated = os.environ.get(THREADS_VARIABLE, "")
    if stated.isdecimal() and int(stated) not in (0, machine.cores):
        return int(stated), f"{THREADS_VARIABLE} says so"
    return machine.cores, "one per core that this process may use"


def dtype_name(dtype: torch.dtype) -> str:
    """A precision as people write it: float32."""
    return str(dtype).removeprefix("torch.")
