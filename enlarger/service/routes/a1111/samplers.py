"""AUTOMATIC1111's samplers and schedules as our solvers and spacings, by the table in `enlarger.sampler_names`."""

from collections.abc import Mapping
from typing import Any

from enlarger.errors import InputError
from enlarger.sampler_names import SOLVER_NAMES, SPACING_NAMES, parse_sampler
from enlarger.service.problems import problem_error
from enlarger.service.routes.a1111.payloads import Sampling, unsupported

AUTOMATIC = ("automatic", "Automatic", "")
AUTOMATIC_SPACINGS: Mapping[str, str] = {  # what "Automatic" means there, where it is not the model's own
    **dict.fromkeys(("dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m", "dpmpp_sde"), "karras"),
    **dict.fromkeys(("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"), "exponential"),
}
STOCHASTIC = frozenset(  # they put back all the noise that there is to put back
    {
        *("euler_ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral"),
        *("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"),
    }
)
SAMPLERS = tuple(names[0] for names in SOLVER_NAMES.values() if names)
SCHEDULERS: Mapping[str, str] = {"automatic": "Automatic"} | {
    name: names[0] for name, names in SPACING_NAMES.items() if names
}


def sampler_options(body: Sampling) -> dict[str, Any]:
    """The solver and the spacing of a request. Raises ProblemError for names that are none, and for another `eta`."""
    name = body.sampler_name or body.sampler_index
    scheduler = None if body.scheduler in (None, *AUTOMATIC) else body.scheduler
    _parse("scheduler", None, scheduler)
    solver, spacing = _parse("sampler_name", name, scheduler)
    if spacing is None and solver is not None:
        spacing = AUTOMATIC_SPACINGS.get(solver)
    if solver is None and body.eta is not None:
        raise unsupported("eta", f"eta is {body.eta:g} without sampler_name; name a sampler, or leave eta out")
    if solver == "ddim" and body.eta == 1:  # as much noise as DDPM puts back
        solver = "ddpm"
    elif (solver == "ddim" and body.eta not in (None, 0)) or (solver in STOCHASTIC and body.eta not in (None, 1)):
        raise unsupported("eta", f"eta is {body.eta:g}, expected {'0 or 1' if solver == 'ddim' else '1'} for {name}")
    return {"solver": solver, "spacing": spacing}


def _parse(param: str, solver: str | None, spacing: str | None) -> tuple[str | None, str | None]:
    try:
        return parse_sampler(solver, spacing)
    except InputError as error:
        raise problem_error(400, "invalid_value", str(error), param) from error
