"""Amounts of memory as people write them: 4, "4GB", "4GiB", "512MB", "50%". Without torch."""

import re
from dataclasses import dataclass
from numbers import Real

from enlarger.errors import InputError

GIB = 2**30
UNITS = {
    "": GIB,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate(("k", "m", "g", "t"), 1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate(("k", "m", "g", "t"), 1)},
}
LEAST, MOST = GIB // 100, 1024 * GIB
AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*|%)\s*", re.ASCII | re.IGNORECASE)
EXPECTED = "an amount as 4GB, 4GiB, 512MB or 50%, or a number of GiB"


@dataclass(frozen=True)
class MemorySize:
    """So many bytes, or a share of what there is."""

    bytes: int | None
    share: float | None = None

    def of(self, available: int) -> int:
        """The bytes, where so many are available."""
        if self.bytes is not None:
            return self.bytes
        assert self.share is not None, "either is stated"
        return int(self.share * available)


def parse_memory(value: str | float, name: str = "memory") -> MemorySize:
    """An amount of 0.01 GiB to 1024 GiB, or of 1 to 100 %; a plain number is GiB. Raises InputError for others."""
    if isinstance(value, bool) or not isinstance(value, str | Real):
        raise InputError(f"{name} is {value!r}, expected {EXPECTED}")
    found = AMOUNT.fullmatch(str(value))
    number, unit = ("", "") if found is None else (found[1], found[2].lower())
    if unit == "%" and number:
        if not 1 <= float(number) <= 100:
            raise InputError(f"{name} is {value}, expected 1% to 100% of what is available")
        return MemorySize(None, float(number) / 100)
    if not number or unit not in UNITS:
        raise InputError(f"{name} is {value!r}, expected {EXPECTED}")
    size = float(number) * UNITS[unit]
    if not LEAST <= size <= MOST:
        shown = str(value) if len(str(value)) < 40 else f"{str(value)[:40]}..."
        raise InputError(f"{name} is {shown}, expected 0.01 to 1024 GiB")
    return MemorySize(round(size))


def format_bytes(size: float) -> str:
    """An amount for people, as 512 MB or 4.2 GB; units are powers of 1000, so that it can be given again."""
    return f"{size / 1e9:.3g} GB" if size >= 999.5e6 else f"{size / 1e6:.3g} MB"
