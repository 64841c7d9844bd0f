"""Where a training runs: on one device, or on several by accelerate; the loop sees the same of both."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from enlarger.errors import InputError, Unsupported
from enlarger.runtime.runtime import CPU
from enlarger.train.options import TrainingPrecision

LAUNCHED = ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")  # variables that say so
MIXED: Mapping[TrainingPrecision, str] = {"float32": "no", "bfloat16": "bf16"}  # as accelerate calls them
Context = AbstractContextManager[object]


class Accelerator(Protocol):
    """What is used of accelerate's class of that name, which has no types."""

    device: torch.device
    process_index: int
    num_processes: int

    def prepare_model(self, model: nn.Module) -> nn.Module: ...
    def autocast(self) -> Context: ...
    def no_sync(self, model: nn.Module) -> Context: ...
    def gather(self, tensor: Tensor) -> Tensor: ...
    def wait_for_everyone(self) -> None: ...
    def log(self, values: dict[str, float], step: int) -> None: ...
    def init_trackers(self, project_name: str) -> None: ...
    def end_training(self) -> None: ...


class Devices(Protocol):
    """This process among those that train together."""

    @property
    def device(self) -> torch.device: ...
    @property
    def rank(self) -> int: ...
    @property
    def processes(self) -> int: ...

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module as it is called; its gradients are the mean of all processes'."""
        ...

    def autocast(self) -> Context:
        """In it, networks run in the chosen precision."""
        ...

    def without_sync(self, module: nn.Module) -> Context:
        """In it, gradients are added up in this process alone."""
        ...

    def mean(self, value: Tensor) -> float:
        """The mean of all processes' numbers."""
        ...

    def wait(self) -> None:
        """Until all processes are here."""
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """To the tracker that was asked for, if any."""
        ...

    def close(self) -> None:
        """Let go of the other processes and of the tracker."""
        ...


def half_precision() -> Context:
    """bfloat16 where the processor multiplies it; elsewhere it would only be slower."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage] - nothing public tells
    return torch.autocast("cpu", torch.bfloat16) if fast else nullcontext()


@dataclass(frozen=True, eq=False)
class OneDevice:
    """This process alone."""

    device: torch.device = CPU
    autocast: Callable[[], Context] = half_precision
    rank: int = 0
    processes: int = 1

    def prepare(self, module: nn.Module) -> nn.Module:
        return module

    def without_sync(self, module: nn.Module) -> Context:
        return nullcontext()

    def mean(self, value: Tensor) -> float:
        return value.item()

    def wait(self) -> None:
        return

    def log(self, values: Mapping[str, float], step: int) -> None:
        return

    def close(self) -> None:
        return


@dataclass(frozen=True, eq=False)
class Accelerated:
    """One of the processes that `accelerate launch` started."""

    accelerator: Accelerator

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes

    def prepare(self, module: nn.Module) -> nn.Module:
        return self.accelerator.prepare_model(module)

    def autocast(self) -> Context:
        return self.accelerator.autocast()

    def without_sync(self, module: nn.Module) -> Context:
        return self.accelerator.no_sync(module)

    def mean(self, value: Tensor) -> float:
        return self.accelerator.gather(value.detach().reshape(1)).mean().item()

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.accelerator.log(dict(values), step)

    def close(self) -> None:
        self.accelerator.end_training()


def one_device(device: torch.device, precision: TrainingPrecision) -> OneDevice:
    """This process alone, in a precision."""
    if precision == "float32":
        return OneDevice(device, nullcontext)
    return OneDevice(device, lambda: torch.autocast(device.type, torch.bfloat16))


def choose_devices(device: torch.device, precision: TrainingPrecision, tracker: str | None, work: Path) -> Devices:
    """accelerate's where it launched this process or a tracker is asked for, else this process alone.

    Raises Unsupported where accelerate is needed and is not there, InputError for a tracker that is not.
    """
    is_launched = any(name in os.environ for name in LAUNCHED)
    if not is_launched and tracker is None:
        return one_device(device, precision)
    _check_launch(device, precision, is_launched=is_launched)
    try:
        accelerate: Any = import_module("accelerate")
        tracking: Any = import_module("accelerate.tracking")
    except ImportError as error:
        raise Unsupported(
            "several processes and trackers need accelerate, which is not installed: pip install 'enlarger[train]'"
        ) from error
    if tracker is not None and not _is_there(tracking, tracker, work):
        raise InputError(
            f"tracker is {tracker!r}, which is none of accelerate's that is installed; install its package"
        )
    accelerator: Accelerator = accelerate.Accelerator(
        mixed_precision=MIXED[precision],
        cpu=device.type == "cpu",
        log_with=tracker,
        project_dir=str(work),
    )
    if tracker is not None:
        accelerator.init_trackers("enlarger")
    return Accelerated(accelerator)


def _check_launch(device: torch.device, precision: TrainingPrecision, *, is_launched: bool) -> None:
    """Raises InputError for a device that accelerate would not take, or a precision other than it was launched with."""
    if device.index:
        advice = "--gpu_ids of accelerate launch" if is_launched else "CUDA_VISIBLE_DEVICES"
        raise InputError(
            f"device is {device}, but with accelerate or a tracker the first one is taken; choose by {advice}"
        )
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if launched not in (None, "no", MIXED[precision]):
        raise InputError(
            f"accelerate was launched with --mixed_precision {launched}, and precision is {precision}; give "
            "--precision bfloat16 and --mixed_precision bf16, or neither"
        )


def _is_there(tracking: Any, tracker: str, work: Path) -> bool:
    try:
        return bool(tracking.filter_trackers([tracker], str(work)))
    except (ValueError, ImportError):
        return False
