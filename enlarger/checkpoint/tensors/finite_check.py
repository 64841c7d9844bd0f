"""Finding weights that are NaN or infinite, in files and in networks, and naming them."""

from collections.abc import Iterator
from itertools import chain

from torch import Tensor, nn

from enlarger.checkpoint.tensors.open import LazyTensors
from enlarger.checkpoint.tensors.pickle_guard import PickleCheckpoint
from enlarger.checkpoint.tensors.safetensors_file import SafetensorsCheckpoint
from enlarger.errors import CheckpointError, list_names

BLOCK_ELEMENTS = 1 << 20  # elements looked at together


def check_finite(weights: LazyTensors) -> None:
    """Read every weight once. Raises `CheckpointError` naming those that hold NaN or infinity."""
    bad_keys = find_non_finite(weights)
    if bad_keys:
        raise CheckpointError(
            f"{weights.path}: NaN or infinity in {len(bad_keys)} weights: {list_names(bad_keys)}; "
            "expected numbers. The file is damaged or was saved in a precision that is too small: fetch another."
        )


def find_non_finite(weights: LazyTensors) -> tuple[str, ...]:
    """The names of weights that hold NaN or infinity; a block of each is in memory at a time."""
    return tuple(name for name in weights.keys() if not _is_finite(_tensor_blocks(weights, name)))


def find_first_non_finite(module: nn.Module) -> str | None:
    """The first parameter or buffer of a network that holds NaN or infinity; None where all are numbers."""
    tensors = chain(module.named_parameters(), module.named_buffers())
    return next((name for name, tensor in tensors if not _is_finite(_split_blocks(tensor))), None)


def _tensor_blocks(weights: LazyTensors, name: str) -> Iterator[Tensor]:
    if isinstance(weights, SafetensorsCheckpoint | PickleCheckpoint):
        return weights.iter_blocks(name)
    return _split_blocks(weights.get_tensor(name))  # whatever else holds tensors gives them whole


def _split_blocks(tensor: Tensor) -> Iterator[Tensor]:
    if not tensor.is_meta:
        yield from tensor.detach().reshape(-1).split(BLOCK_ELEMENTS)


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
