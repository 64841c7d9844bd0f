"""Whether a network's outputs are numbers, and which module was the first whose output was none."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from enlarger.errors import NonFinite

MAX_PENDING = 64  # outputs on an accelerator that are looked at together


@contextmanager
def _watch(network: nn.Module) -> Generator[list[str]]:
    """The names of modules with NaN or infinity in their output, in the order they ran."""
    found: list[str] = []

    def hook_of(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        return hook

    parts: dict[str, nn.Module] = dict(network.named_modules())  # pyright: ignore[reportUnknownArgumentType] - torch's
    handles = [part.register_forward_hook(hook_of(name)) for name, part in parts.items() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class FiniteCheck:
    """Looks at the outputs of one run. An accelerator is not waited for: what it computes is looked at together, many
    calls at a time and at the end of the run; what the CPU computes at once."""

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, Callable[[], NonFinite]]] = []

    def see(self, output: Tensor, describe: Callable[[], NonFinite]) -> None:
        """Look at an output, or remember to; raises what `describe` gives for the first that is no number."""
        self._pending.append((torch.isfinite(output).all(), describe))
        if (is_at_hand(output) or len(self._pending) == MAX_PENDING) and (error := self.settle()) is not None:
            raise error

    def settle(self) -> NonFinite | None:
        """Look at what was put off: the error of the first output that is no number."""
        pending, self._pending = self._pending, []
        if not pending:
            return None
        are_finite = torch.stack([is_finite for is_finite, _ in pending]).cpu()
        return next((describe() for (_, describe), finite in zip(pending, are_finite, strict=True) if not finite), None)


def is_at_hand(output: Tensor) -> bool:
    """Whether nothing has to be waited for to know its values."""
    return output.device.type == "cpu"


def first_overflow(network: object, run: Callable[[], object]) -> str | None:
    """The module that is to blame when `run` calls the network once more; None where no module's output shows it."""
    if not isinstance(network, nn.Module):
        return None
    with _watch(network) as found, suppress(ArithmeticError):
        run()
    return found[0] if found else None
