"""Schedulers by diffusers' names."""

import enum
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
from enlarger.diffusers.unsupported import missing
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

AysSchedules: Mapping[str, list[int] | list[float]] = {
    "StableDiffusionTimesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
    "StableDiffusionSigmas": [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0],
    "StableDiffusionXLTimesteps": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
    "StableDiffusionXLSigmas": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0],
}
"""Ten steps of "Align Your Steps" (Sabour et al. 2024), as their authors list them, to be given to a call."""
KarrasDiffusionSchedulers = enum.Enum("KarrasDiffusionSchedulers", [*SCHEDULER_CLASSES])
"""The names of the classes, as diffusers lists those that its pipelines take."""

__all__ = [
    "AysSchedules",
    "KarrasDiffusionSchedulers",
    "SCHEDULER_CLASSES",
    "Scheduler",
    "SchedulerConfig",
    "scheduler_from_config",
    *SCHEDULER_CLASSES,
]  # pyright: ignore[reportUnsupportedDunderAll] - the classes' names


def scheduler_from_config(config: Mapping[str, object]) -> Scheduler:
    """The scheduler that a scheduler file names."""
    name = str(config.get("_class_name"))
    if name not in SCHEDULER_CLASSES:
        raise Unsupported(
            f"scheduler {name}: no class here stands for it; expected one of {', '.join(SCHEDULER_CLASSES)}."
        )
    return SCHEDULER_CLASSES[name].from_config(config)


def __getattr__(name: str) -> object:
    """One sentence for the names of diffusers that are not here."""
    raise missing(name, __name__)
