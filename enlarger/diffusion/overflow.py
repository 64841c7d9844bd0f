"""Which module of a network was the first whose output was no number."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn


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


def first_overflow(network: object, run: Callable[[], object]) -> str | None:
    """The module that is to blame when `run` calls the network once more; None where no module's output shows it."""
    if not isinstance(network, nn.Module):
        return None
    with _watch(network) as found, suppress(ArithmeticError):
        run()
    return found[0] if found else None
