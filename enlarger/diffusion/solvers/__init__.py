"""Solvers of the probability-flow equation dx/dsigma = (x - clean) / sigma and of its stochastic kin.

Each takes the denoiser, a latent x = clean + sigma * noise at the first of the falling noise levels, the levels
(float64, CPU), and a source of noise. Each yields its steps and goes on from the latents that it is sent.
"""

from collections.abc import Mapping
from functools import partial

from enlarger.diffusion.sample import Solver
from enlarger.diffusion.solvers.consistency import lcm
from enlarger.diffusion.solvers.dpm import PIDStepSizeController, dpm2, dpm2_ancestral, dpm_adaptive, dpm_fast
from enlarger.diffusion.solvers.dpmpp import (
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_3m_sde,
    dpmpp_sde,
    dpmpp_singlestep,
)
from enlarger.diffusion.solvers.euler import ddim, ddpm, euler, euler_ancestral, heun
from enlarger.diffusion.solvers.levels import ancestral_step, ancestral_step_in_time, log_midpoint
from enlarger.diffusion.solvers.multistep import adams_bashforth, lms, plms, pndm
from enlarger.diffusion.solvers.unipc import unipc

SOLVERS: Mapping[str, Solver] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "ddim": ddim,
    "ddpm": ddpm,
    "heun": heun,
    "plms": plms,
    "pndm": pndm,
    "lms": lms,
    "dpm2": dpm2,
    "dpm2_ancestral": dpm2_ancestral,
    "dpm_fast": dpm_fast,
    "dpm_adaptive": dpm_adaptive,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_singlestep": dpmpp_singlestep,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": partial(dpmpp_2m_sde, heun=True),
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "unipc": unipc,
    "lcm": lcm,
}
"""The solvers by the names that users type."""

__all__ = [
    "SOLVERS",
    "PIDStepSizeController",
    "adams_bashforth",
    "ancestral_step",
    "ancestral_step_in_time",
    "ddim",
    "ddpm",
    "dpm2",
    "dpm2_ancestral",
    "dpm_adaptive",
    "dpm_fast",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s_ancestral",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "dpmpp_singlestep",
    "euler",
    "euler_ancestral",
    "heun",
    "lcm",
    "lms",
    "log_midpoint",
    "plms",
    "pndm",
    "unipc",
]
