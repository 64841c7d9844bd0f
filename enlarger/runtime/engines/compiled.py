"""`torch.compile` of the blocks that a network repeats: few and small programs, kept on disk by torch's own cache."""

import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakSet

import torch
from torch import Tensor, nn

from enlarger.runtime.engines.engine import Call

MOST_PROGRAMS = 64  # of one class of block: they differ in channels, and torch's own limit of 8 would leave most eager


@dataclass(frozen=True)
class CompileEngine:
    """Blocks compiled where they are; what surrounds them, such as FreeU and the joining of skips, runs as it is."""

    device: torch.device
    name: str = "compile"
    failed: WeakSet[nn.Module] = field(default_factory=lambda: WeakSet[nn.Module]())  # networks that run as they are

    @contextmanager
    def prepare(self, network: nn.Module, *, repeated: bool = False) -> Generator[Call]:
        from torch._dynamo import config  # seconds to import
        from torch._dynamo.exc import TorchDynamoException

        is_cuda = self.device.type == "cuda"
        config.recompile_limit = max(config.recompile_limit, MOST_PROGRAMS)
        for block in () if network in self.failed else repeated_blocks(network):
            if getattr(block, "_compiled_call_impl", None) is None:
                block.compile(mode="reduce-overhead" if is_cuda else None)  # CUDA graphs

        def call(*inputs: object, **named: object) -> Tensor:
            if is_cuda:
                torch.compiler.cudagraph_mark_step_begin()
            try:
                return network(*inputs, **named)
            except TorchDynamoException as error:
                self.failed.add(network)
                restore_eager(network)
                warnings.warn(f"torch.compile failed ({_reason(error)}): computed without it", stacklevel=2)
                return network(*inputs, **named)

        yield call


def repeated_blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The innermost modules of its lists that are a network's own: residual blocks, transformer blocks, resampling."""
    for child in network.children():
        yield from repeated_blocks(child)
    if isinstance(network, nn.ModuleList):
        yield from (block for block in network if _is_own(block) and next(repeated_blocks(block), None) is None)


def restore_eager(network: nn.Module) -> None:
    """Undo the compilation of its blocks."""
    for part in network.modules():
        part._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage] - torch has no way to undo `compile`


def _is_own(module: nn.Module) -> bool:
    return not type(module).__module__.startswith("torch.")


def _reason(error: Exception) -> str:
    """The first line that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
