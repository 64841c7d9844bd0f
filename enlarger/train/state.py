"""All that changes while training, written whole and read again to the last bit."""

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from enlarger.checkpoint.tensors.open import open_checkpoint
from enlarger.checkpoint.tensors.save_safetensors import save_safetensors
from enlarger.errors import EnlargerError, InputError
from enlarger.strict_json import is_object, parse_json

Settings = Mapping[str, object]  # what a training began with, as JSON


@dataclass(frozen=True, eq=False)
class State:
    """The weights that learn, their average (None: none is kept), and what the optimizers remember.

    Frozen weights of the module are neither copied nor written.
    """

    module: nn.Module
    averaged: nn.Module | None
    optimizers: tuple[torch.optim.Optimizer, ...]

    @property
    def result(self) -> nn.Module:
        """What a training leaves: the average where there is one."""
        return self.module if self.averaged is None else self.averaged

    def save(self, path: Path, step: int, settings: Settings | None = None) -> None:
        """Write everything at once, so that no half of a file is ever read.

        Raises TrainingStopped, with the file as it was, where there is no room for it.
        """
        stated = {} if settings is None else {"settings": json.dumps(settings, sort_keys=True)}
        try:
            save_safetensors(path, self._tensors(), metadata={"step": str(step), **stated})
        except OSError as error:
            kept = f"; that of step {step_of(path)} is kept" if path.exists() else ""
            raise TrainingStopped(
                f"{path}: the state of step {step} could not be written ({error.strerror or error}){kept}: make "
                "room and go on"
            ) from error

    def resume(self, path: Path, settings: Settings | None = None) -> int:
        """Take everything from a file, if there is one; the number of steps it has seen.

        Raises InputError for the state of another network, or of a training with other settings.
        """
        if not path.exists():
            return 0
        found = open_checkpoint(path)
        _check_settings(path, found.metadata.get("settings"), settings)
        self._start()
        own = self._tensors()
        if {name: tuple(value.shape) for name, value in own.items()} != {
            name: found.shape(name) for name in found.keys()
        }:
            raise InputError(f"{path}: is of another network than this training's; give another --work")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(found.get_tensor(name))
        return int(found.metadata["step"])

    def _tensors(self) -> dict[str, Tensor]:
        """Views by name; the optimizer's once it has stepped."""
        frozen = {name for name, parameter in self.module.named_parameters() if not parameter.requires_grad}
        named: dict[str, Tensor] = {}
        for part, module in (("module", self.module), ("averaged", self.averaged)):
            weights = {} if module is None else module.state_dict()
            named |= {f"{part}.{name}": value for name, value in weights.items() if name not in frozen}
        for name, parameter in self.module.named_parameters():
            kept: list[dict[str, Tensor]] = [o.state[parameter] for o in self.optimizers if parameter in o.state]
            named |= {f"optimizer.{name}.{key}": value for state in kept for key, value in state.items()}
        return named

    def _start(self) -> None:
        """Let the optimizers make what they keep, without a change of the weights."""
        for parameter in trainable(self.module):
            parameter.grad = torch.zeros_like(parameter)
        self.step(0.0)

    def step(self, rate: float) -> None:
        """One step down the gradients."""
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()

    @torch.no_grad()
    def average(self, keep: float) -> None:
        """Move the average a little towards the weights (exponential moving average)."""
        if self.averaged is None:
            return
        for mean, now in zip(self.averaged.state_dict().values(), self.module.state_dict().values(), strict=True):
            if mean is not now and mean.data_ptr() != now.data_ptr():  # what is frozen is shared
                mean.lerp_(now, 1 - keep)


class TrainingStopped(EnlargerError):
    """A training that cannot go on; its last state is there."""


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The weights that learn."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def copy_trainable(module: nn.Module) -> nn.Module:
    """A copy to average into, in evaluation mode; it shares what is frozen."""
    frozen: Iterable[Tensor] = (parameter for parameter in module.parameters() if not parameter.requires_grad)
    return deepcopy(module, {id(parameter): parameter for parameter in frozen}).eval().requires_grad_(False)


def step_of(path: Path) -> int:
    """The step of a state's file."""
    return int(open_checkpoint(path).metadata["step"])


def _check_settings(path: Path, stated: str | None, settings: Settings | None) -> None:
    """Raises InputError where a training began with other settings than it is to go on with."""
    found = None if stated is None else parse_json(stated)
    if settings is None or not is_object(found):
        return
    names = sorted({*found, *settings})
    other = [
        f"{name} is {settings.get(name)}, it began with {found.get(name)}"
        for name in names
        if found.get(name) != settings.get(name)
    ]
    if other:
        raise InputError(f"{path}: {'; '.join(other)}. Give the same settings, or another --out to begin anew")
