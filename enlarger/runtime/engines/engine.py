"""What every engine offers; and torch as it is, which every network runs by unless another is asked for."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from enlarger.runtime.engines.winograd import use_winograd

Call = Callable[..., Tensor]


class Calibrated(Exception):
    """Ends a block whose calls an engine had to see first; made again, the run is computed as it was asked for."""


class Engine(Protocol):
    """Computes the calls of networks. It is made once for a model, and what it cannot honour it refuses then."""

    @property
    def name(self) -> str:
        """What a user calls it by."""
        ...

    def prepare(self, network: nn.Module, *, repeated: bool = False) -> AbstractContextManager[Call]:
        """A callable with the signature of the network's `forward`, for the length of the block.

        `repeated`: a run calls it many times with inputs alike, as it does a diffusion network. Raises InputError for
        what is set on this network that the engine cannot honour, and Calibrated.
        """
        ...


@dataclass(frozen=True)
class EagerEngine:
    """torch, layer by layer; large convolutions of float32 on a CPU by `winograd`."""

    name: str = "torch"

    @contextmanager
    def prepare(self, network: nn.Module, *, repeated: bool = False) -> Generator[Call]:
        use_winograd(network)
        yield network


EAGER = EagerEngine()
