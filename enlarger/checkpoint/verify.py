"""Finding weights that are NaN or infinite, in files and in networks, and naming them."""

from collections.abc import Iterator
from itertools import chain

from torch import Tensor, nn

from enlarger.checkpoint.files import Tensors, Weights
from enlarger.checkpoint.pickles import PickledWeights
from enlarger.errors import CheckpointError

SHOWN = 10  # names that an error lists
BLOCK = 1 << 20  # elements looked at together


def verify(weights: Tensors) -> None:
    """Read every weight once. Raises `CheckpointError` naming those that hold NaN or infinity."""
    found = non_finite(weights)
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise CheckpointError(
            f"{weights.path}: NaN or infinity in {len(found)} weights: {', '.join(found[:SHOWN])}{more}; expected "
            "numbers. The file is damaged or was saved in a precision that is too small: fetch another."
        )


def non_finite(weights: Tensors) -> tuple[str, ...]:
    """The names of weights that hold NaN or infinity; a block of each is in memory at a time."""
    return tuple(name for name in weights.names() if not _is_finite(_blocks(weights, name)))


def first_non_finite(module: nn.Module) -> str | None:
    """The first parameter or buffer of a network that holds NaN or infinity; None where all are numbers."""
    held = chain(module.named_parameters(), module.named_buffers())
    return next((name for name, tensor in held if not _is_finite(_parts(tensor))), None)


def _blocks(weights: Tensors, name: str) -> Iterator[Tensor]:
    if isinstance(weights, Weights | PickledWeights):
        return weights.blocks(name)
    return _parts(weights.read(name))  # whatever else holds tensors gives them whole


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    if not tensor.is_meta:
        yield from tensor.detach().reshape(-1).split(BLOCK)


def _is_finite(blocks: Iterator[Tensor]) -> bool:
    """Whether all are numbers: the least and the greatest are, since NaN is both where there is one."""
    for block in blocks:
        if not block.dtype.is_floating_point:
            return True
        if block.numel():
            low, high = (block.float() if block.dtype.itemsize == 1 else block).aminmax()
            if not low.isfinite() or not high.isfinite():
                return False
    return True
