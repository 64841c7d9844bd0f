"""THE table of solvers and spacings: our names, and those of A1111's and ComfyUI's menus. Without torch."""

import difflib
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
    "dpm2": ("DPM2", "kdpm_2"),
    "dpm2_ancestral": ("DPM2 a", "kdpm_2_a"),
    "dpm_fast": ("DPM fast",),
    "dpm_adaptive": ("DPM adaptive",),
    "dpmpp_2s_ancestral": ("DPM++ 2S a",),
    "dpmpp_singlestep": ("DPM++ 2S",),
    "dpmpp_2m": ("DPM++ 2M",),
    "dpmpp_sde": ("DPM++ SDE",),
    "dpmpp_2m_sde": ("DPM++ 2M SDE",),
    "dpmpp_2m_sde_heun": ("DPM++ 2M SDE Heun",),
    "dpmpp_3m_sde": ("DPM++ 3M SDE",),
    "unipc": ("UniPC", "uni_pc_bh2"),
    "lcm": ("LCM",),
}
SPACING_NAMES: Mapping[str, tuple[str, ...]] = {
    "karras": ("Karras", "ka", "k"),
    "exponential": ("Exponential", "Polyexponential"),
    "beta": ("Beta",),
    "linspace": ("Uniform", "Normal"),
    "leading": ("DDIM", "ddim_uniform"),
    "trailing": ("SGM Uniform", "Simple"),
}
NEAREST_SOLVERS: Mapping[str, str] = {  # what other programs have and we do not: the nearest that there is
    "Restart": "Heun",
    "DDIM CFG++": "DDIM",
    "euler_cfg_pp": "Euler",
    "euler_ancestral_cfg_pp": "Euler a",
    "dpmpp_2s_ancestral_cfg_pp": "DPM++ 2S a",
    "dpmpp_2m_cfg_pp": "DPM++ 2M",
    "heunpp2": "Heun",
    "ipndm": "PLMS",
    "ipndm_v": "PLMS",
    "deis": "UniPC",
    "res_multistep": "DPM++ 2M",
    "res_multistep_ancestral": "DPM++ 2S a",
    "gradient_estimation": "Euler",
    "er_sde": "DPM++ 3M SDE",
    "seeds_2": "DPM++ SDE",
    "seeds_3": "DPM++ SDE",
    "sa_solver": "DPM++ 3M SDE",
    "tcd": "LCM",
    "dpmpp_3m": "DPM++ 3M SDE",
    "DPMSolverMultistep": "DPM++ 2M",
    "DPMSolverSinglestep": "DPM++ 2S",
}
NEAREST_SPACINGS: Mapping[str, str] = {
    "KL Optimal": "Karras",
    "Align Your Steps": "Karras",
    "AYS": "Karras",
    "linear_quadratic": "SGM Uniform",
    "Turbo": "SGM Uniform",
}
AUTOMATIC = "automatic"  # A1111's spacing of the model's own
MAX_LETTERS = 64  # of a name that may be one
LIKENESS = 0.6  # of letters, above which a name is taken for a slip
CURVES = ("Karras", "Exponential", "Beta")  # that A1111's menus put behind a solver's name
SOLVERS, SPACINGS = tuple(SOLVER_NAMES), tuple(SPACING_NAMES)
MENU_NAMES = tuple(
    name
    for names in SOLVER_NAMES.values()
    for label in names[:1]
    for name in (label, *(f"{label} {curve}" for curve in CURVES))
)


def parse_sampler(solver: str | None, spacing: str | None = None) -> tuple[str | None, str | None]:
    """Our names of a solver and a spacing by any of theirs; "DPM++ 2M Karras" says both. None stays None, and a spacing
    that is called automatic becomes it.

    Raises InputError for a name that is none, and for two spacings.
    """
    chosen = None if spacing is None or spacing.casefold() == AUTOMATIC else _spacing(spacing)
    if solver is None:
        return None, chosen
    named, curve = _split(_words(solver), _SOLVER_BY_NAME) if len(solver) <= MAX_LETTERS else (None, None)
    if named is None:
        known = f"there are {', '.join(SOLVERS)}, and A1111's names"
        raise InputError(f"no solver is called {_shown(solver)}{suggested_solver(solver)}; {known}")
    if curve is None:
        return named, chosen
    if chosen not in (None, curve):
        raise InputError(f"solver is {solver!r} and spacing {spacing!r}, expected one spacing; leave one out")
    return named, curve


def menu_name(solver: str, spacing: str | None = None) -> str:
    """What A1111 calls a solver with a spacing; our own name where it has none."""
    label = next(iter(SOLVER_NAMES.get(solver, ())), solver)
    curve = next((curve for curve in CURVES if curve.lower() == spacing), None)
    return label if curve is None else f"{label} {curve}"


def _spacing(name: str) -> str:
    if len(name) > MAX_LETTERS or (found := _SPACING_BY_NAME.get("".join(_words(name)))) is None:
        raise InputError(
            f"no spacing is called {_shown(name)}{suggested_spacing(name)}; there are {', '.join(SPACINGS)}"
        )
    return found


def suggested_spacing(name: str) -> str:
    """The nearest of the spacings as a part of a sentence; nothing where none is near."""
    return _suggestion(_nearest(_words(name), SPACING_NAMES, _NEAREST_SPACINGS))


def suggested_solver(name: str) -> str:
    """The nearest of the solvers, with the spacing that the name has behind it, as a part of a sentence."""
    words = _words(name)
    for count in range(len(words), 0, -1):
        spacing = _SPACING_BY_NAME.get("".join(words[count:]))
        near = _NEAREST_SOLVERS.get("".join(words[:count]))
        if near is not None and (spacing is not None or count == len(words)):
            return _suggestion(near if spacing is None else f"{near} {SPACING_NAMES[spacing][0]}")
    table = {**{label: (label,) for label in MENU_NAMES}, **SOLVER_NAMES}
    return _suggestion(_nearest(words, table, _NEAREST_SOLVERS))


def _nearest(words: Sequence[str], table: Mapping[str, Sequence[str]], nearest: Mapping[str, str]) -> str | None:
    """What of a table a name is nearest to: as known, or by its letters; None where nothing is near."""
    name, by_name = "".join(words), _by_name(table)
    if name in nearest:
        return nearest[name]
    found = difflib.get_close_matches(name, by_name, 1, LIKENESS)
    return by_name[found[0]] if found else None


def _shown(name: str) -> str:
    return repr(name if len(name) <= MAX_LETTERS else f"{name[:MAX_LETTERS]}...")


def _suggestion(name: str | None) -> str:
    return "" if name is None else f", the nearest is {name!r}"


def _split(words: Sequence[str], by_name: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The solver that words name, and the spacing that the last of them name, if they do."""
    for count in range(len(words), 0, -1):
        named, curve = by_name.get("".join(words[:count])), _SPACING_BY_NAME.get("".join(words[count:]))
        if named is not None and (curve is not None or count == len(words)):
            return named, curve
    return None, None


def _words(name: str) -> list[str]:
    """Small letters and digits in words: "DPM++ 2M" and "dpmpp_2m" are alike; without what programs put around."""
    lower = name[:MAX_LETTERS].casefold().replace("++", "pp").removesuffix("scheduler")
    words = [word for word in re.sub(r"[^a-z0-9]+", " ", lower).split() if word != "gpu"]
    words = words[words[:1] == ["sampler"] :]
    return words[words[:1] == ["k"] and len(words) > 1 :]


def _by_name(table: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {"".join(_words(name)): ours for ours, names in table.items() for name in (ours, *names)}


_SOLVER_BY_NAME, _SPACING_BY_NAME = _by_name(SOLVER_NAMES), _by_name(SPACING_NAMES)
_NEAREST_SOLVERS, _NEAREST_SPACINGS = (
    {"".join(_words(name)): nearest for name, nearest in table.items()} for table in (NEAREST_SOLVERS, NEAREST_SPACINGS)
)
