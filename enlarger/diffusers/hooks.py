"""diffusers.hooks: offloading and caches of single networks, none of which are here."""

from typing import Never

from enlarger.diffusers.unsupported import INSTEAD, NotHere


def __getattr__(name: str) -> Never:
    """One sentence for the names of diffusers' module."""
    if name.startswith("_"):
        raise AttributeError(name)
    kind = "offload of one network" if "offload" in name.lower() else "caches of layers"
    raise NotHere(f"enlarger.diffusers.hooks has no {name}: {INSTEAD[kind]}")
