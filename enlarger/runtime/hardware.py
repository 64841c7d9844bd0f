"""What this machine computes with, asked of torch and of the system once. Tests put another `hardware` in its place."""

from dataclasses import dataclass
from functools import cache

import torch

from enlarger.runtime.cores import count_cores

BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")  # torch's names of what multiplies bfloat16, the fastest first


@dataclass(frozen=True)
class Hardware:
    """What decides how networks run."""

    accelerator: str | None = None  # torch's name of the first: cuda, mps
    bfloat16: str | None = None  # the CPU's instructions that multiply bfloat16; None: it has none
    cores: int = 1  # that this process may use


@cache
def hardware() -> Hardware:
    """Of this machine, as far as this process may use it."""
    return Hardware(_accelerator(), _bfloat16_instructions(), count_cores())


def _accelerator() -> str | None:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def _bfloat16_instructions() -> str | None:
    """None too where torch was told to use older instructions (ATEN_CPU_CAPABILITY=avx2)."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return None
    capabilities = torch.cpu.get_capabilities()
    return next((name for name in BFLOAT16_INSTRUCTIONS if capabilities.get(name)), None)
