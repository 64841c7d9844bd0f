"""Where modules run: a device, a layout of features, and what to do with a module that is not at work."""

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from enlarger.errors import InputError
from enlarger.runtime.engines.engine import EAGER, Call, Engine
from enlarger.runtime.layout import use_layout
from enlarger.runtime.mapped_file import check_unchanged

CPU = torch.device("cpu")
Offload = Literal["none", "model", "sequential"]
Module = TypeVar("Module", bound=nn.Module)


_num_forks = 0  # that led from the process which imported this to the one that runs


def _count_fork() -> None:
    global _num_forks
    _num_forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


@dataclass(frozen=True)
class Runtime:
    """Policy for the modules of a task. With "model" a module is on the device only while held; with "sequential" only
    the layer at work is. Neither changes a result."""

    device: torch.device = CPU
    offload: Offload = "none"
    engine: Engine = EAGER
    memory_format: torch.memory_format = torch.contiguous_format  # of feature maps
    work: int | None = None  # bytes that a network may take beside its weights; None: as much as it is cut for unasked
    forks: int | None = field(default=None, compare=False, repr=False)  # before this process when the model was loaded

    def __post_init__(self) -> None:
        if self.offload not in get_args(Offload):
            raise InputError(f"offload is {self.offload!r}, expected one of {', '.join(get_args(Offload))}")

    @classmethod
    def here(
        cls,
        device: torch.device = CPU,
        offload: Offload = "none",
        engine: Engine = EAGER,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> "Runtime":
        """One for a model that is loaded in this process, and refuses to work in a fork of it."""
        return cls(device, offload, engine, memory_format, forks=_num_forks)

    @contextmanager
    def run(self, network: nn.Module, *, repeated: bool = False) -> Generator[Call]:
        """The network's calls by the engine, see `Engine.prepare`, while the network is held."""
        with self.hold(network), self.engine.prepare(network, repeated=repeated) as call:
            yield call

    @contextmanager
    def hold(self, module: Module) -> Generator[Module]:
        """The module, ready to run on the device for the length of the block.

        Raises InputError in a forked process: torch's threads are not there, and a network would wait for them for
        ever. Raises CheckpointError if the file that the weights lie in was written to.
        """
        if self.forks is not None and self.forks < _num_forks:
            raise InputError(
                "the model was loaded before this process was forked, and torch does not work in a fork; load it here, "
                "or start processes with multiprocessing's method 'spawn'"
            )
        check_unchanged(module)
        use_layout(module, self.memory_format)
        with ExitStack() as stack:
            if self.offload == "sequential":
                for layer in module.modules():
                    if direct_tensors(layer):
                        stack.enter_context(_on_device_during_forward(layer, self.device))
            else:
                module.to(self.device)
            try:
                yield module
            finally:
                if self.offload == "model":
                    module.to("cpu")


@contextmanager
def _on_device_during_forward(layer: nn.Module, device: torch.device) -> Generator[None]:
    """The layer's own tensors are on the device only during its forward call."""

    def onload(layer: nn.Module, inputs: Any) -> None:
        _move(layer, device)

    def offload(layer: nn.Module, inputs: Any, output: Any) -> None:
        _move(layer, torch.device("cpu"))

    hooks = [layer.register_forward_pre_hook(onload), layer.register_forward_hook(offload)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _move(layer, torch.device("cpu"))


def direct_tensors(layer: nn.Module) -> list[Tensor]:
    """The parameters and buffers that a layer holds itself."""
    return [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]


def _move(layer: nn.Module, device: torch.device) -> None:
    for tensor in direct_tensors(layer):
        tensor.data = tensor.data.to(device)
