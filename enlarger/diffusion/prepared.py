"""What a network makes of its conditioning, computed once for all the steps of a run."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

KEPT = 2  # conditionings that a run goes back and forth between: with guidance and, outside its interval, without


@runtime_checkable
class Preparable(Protocol):
    """A network that can work on its conditioning ahead: `network(x, time, prepared=network.prepare(**inputs))` is
    `network(x, time, **inputs)`."""

    def prepare(self, **inputs: Tensor) -> object: ...

    def __call__(self, x: Tensor, time: Tensor, *, prepared: object) -> Tensor: ...


class PreparedNetwork:
    """A network that prepares its conditioning once for as long as it is given the same tensors, and anew for others.

    One lives as long as a run, in which a network's weights stay. A tensor that was written into is another one.
    """

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self.network = network
        self._prepared: list[tuple[dict[str, _Seen], object]] = []  # the latest first

    def __call__(self, x: Tensor, time: Tensor, **inputs: Tensor) -> Tensor:
        return self.network(x, time, **self.told(inputs))

    def told(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """What the network is called with in place of `inputs`."""
        if not isinstance(self.network, Preparable):
            return inputs
        return {"prepared": self._prepare(self.network, inputs)}

    def _prepare(self, network: Preparable, inputs: Mapping[str, Tensor]) -> object:
        for seen, prepared in self._prepared:
            if seen.keys() == inputs.keys() and all(seen[name].is_same(value) for name, value in inputs.items()):
                return prepared
        prepared = network.prepare(**inputs)
        seen = {name: _Seen(value) for name, value in inputs.items()}
        self._prepared = [(seen, prepared), *self._prepared][:KEPT]
        return prepared


class _Seen:
    """A tensor as it was at a time; holding it keeps its memory from becoming another's."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = tensor, _version(tensor)

    def is_same(self, other: Tensor) -> bool:
        """Whether that is the same tensor, not written into since."""
        return other is self._tensor and _version(other) == self._version


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def plain(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The network itself."""
    return network.network if isinstance(network, PreparedNetwork) else network
