"""Schedulers by diffusers' names."""

from collections.abc import Mapping

from enlarger.diffusers.schedulers.config import SchedulerConfig
from enlarger.diffusers.schedulers.discrete_time import DDIMScheduler, DDPMScheduler, PNDMScheduler
from enlarger.diffusers.schedulers.distilled import LCMScheduler, TCDScheduler
from enlarger.diffusers.schedulers.dpm import DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler
from enlarger.diffusers.schedulers.edm import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from enlarger.diffusers.schedulers.k_diffusion import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
)
from enlarger.diffusers.schedulers.scheduling_utils import Scheduler
from enlarger.diffusers.schedulers.second_order import (
    DPMSolverSDEScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
)
from enlarger.diffusers.schedulers.unipc import DEISMultistepScheduler, UniPCMultistepScheduler
from enlarger.errors import Unsupported

SCHEDULER_CLASSES: Mapping[str, type[Scheduler]] = {
    kind.__name__: kind
    for kind in (
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
        DDIMScheduler,
        DDPMScheduler,
        PNDMScheduler,
        LMSDiscreteScheduler,
        KDPM2DiscreteScheduler,
        KDPM2AncestralDiscreteScheduler,
        DPMSolverSDEScheduler,
        DPMSolverMultistepScheduler,
        DPMSolverSinglestepScheduler,
        UniPCMultistepScheduler,
        DEISMultistepScheduler,
        LCMScheduler,
        TCDScheduler,
        EDMEulerScheduler,
        EDMDPMSolverMultistepScheduler,
    )
}

__all__ = ["SCHEDULER_CLASSES", "Scheduler", "SchedulerConfig", "scheduler_from_config", *SCHEDULER_CLASSES]  # pyright: ignore[reportUnsupportedDunderAll] - the classes' names


def scheduler_from_config(config: Mapping[str, object]) -> Scheduler:
    """The scheduler that a scheduler file names."""
    name = str(config.get("_class_name"))
    if name not in SCHEDULER_CLASSES:
        raise Unsupported(
            f"scheduler {name}: no class here stands for it; expected one of {', '.join(SCHEDULER_CLASSES)}."
        )
    return SCHEDULER_CLASSES[name].from_config(config)
