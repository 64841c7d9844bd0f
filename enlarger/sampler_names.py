"""THE table of solvers and spacings: our names, and those of A1111's and ComfyUI's menus. Without torch."""

import re
from collections.abc import Mapping, Sequence

from enlarger.errors import InputError

SOLVER_NAMES: Mapping[str, tuple[str, ...]] = {  # ours: A1111's, where that differs, then others'
    "euler": ("Euler",),
    "euler_ancestral": ("Euler a",),
    "ddim": ("DDIM",),
    "ddpm": (),
    "heun": ("Heun",),
    "plms": ("PLMS",),
    "pndm": (),
    "lms": ("LMS",),
    "dpm2": ("DPM2", "dpm_2"),
    "dpm2_ancestral": ("DPM2 a", "dpm_2_ancestral"),
    "dpm_fast": ("DPM fast",),
    "dpm_adaptive": ("DPM adaptive",),
    "dpmpp_2s_ancestral": ("DPM++ 2S a",),
    "dpmpp_singlestep": (),
    "dpmpp_2m": ("DPM++ 2M",),
    "dpmpp_sde": ("DPM++ SDE",),
    "dpmpp_2m_sde": ("DPM++ 2M SDE",),
    "dpmpp_3m_sde": ("DPM++ 3M SDE",),
    "unipc": ("UniPC", "uni_pc"),
    "lcm": ("LCM",),
}
SPACING_NAMES: Mapping[str, tuple[str, ...]] = {
    "karras": ("Karras",),
    "exponential": ("Exponential", "Polyexponential"),
    "beta": ("Beta",),
    "linspace": ("Uniform", "Normal"),
    "leading": (),
    "trailing": ("SGM Uniform",),
}
CURVES = ("Karras", "Exponential", "Beta")  # that A1111's menus put behind a solver's name
SOLVERS, SPACINGS = tuple(SOLVER_NAMES), tuple(SPACING_NAMES)
MENU_NAMES = tuple(
    name
    for names in SOLVER_NAMES.values()
    for label in names[:1]
    for name in (label, *(f"{label} {curve}" for curve in CURVES))
)


def parse_sampler(solver: str | None, spacing: str | None = None) -> tuple[str | None, str | None]:
    """Our names of a solver and a spacing by any of theirs; "DPM++ 2M Karras" says both. None stays None.

    Raises InputError for a name that is none, and for two spacings.
    """
    chosen = None if spacing is None else _spacing(spacing)
    plain = None if solver is None else _SOLVER_BY_NAME.get(_normalised(solver))
    if solver is None or plain is not None:
        return plain, chosen
    begin, _, last = _normalised(solver).rpartition(" ")
    named, curve = _SOLVER_BY_NAME.get(begin), _SPACING_BY_NAME.get(last)
    if named is None or curve is None:
        raise InputError(f"no solver is called {solver!r}; there are {', '.join(SOLVERS)}, and A1111's names")
    if chosen not in (None, curve):
        raise InputError(f"solver is {solver!r} and spacing {spacing!r}, expected one spacing; leave one out")
    return named, curve


def menu_name(solver: str, spacing: str | None = None) -> str:
    """What A1111 calls a solver with a spacing; our own name where it has none."""
    label = next(iter(SOLVER_NAMES.get(solver, ())), solver)
    curve = next((curve for curve in CURVES if curve.lower() == spacing), None)
    return label if curve is None else f"{label} {curve}"


def _spacing(name: str) -> str:
    if (found := _SPACING_BY_NAME.get(_normalised(name))) is None:
        raise InputError(f"no spacing is called {name!r}; there are {', '.join(SPACINGS)}")
    return found


def _normalised(name: str) -> str:
    """Small letters and digits in words: "DPM++ 2M" and "dpmpp_2m" are one; without what programs put around."""
    words = re.sub(r"[^a-z0-9]+", " ", name.casefold().replace("++", "pp")).split()
    return " ".join(words[words[:1] == ["k"] : -1 if words[-1:] == ["gpu"] else None])


def _by_name(table: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {_normalised(name): ours for ours, names in table.items() for name in (ours, *names)}


_SOLVER_BY_NAME, _SPACING_BY_NAME = _by_name(SOLVER_NAMES), _by_name(SPACING_NAMES)
