"""What a call of a network costs, counted on its architecture: memory at its peak, multiplications, bytes moved.

A call runs on torch's meta device, where tensors have shapes and no numbers: every operation says what it makes, and
what nobody holds any more is gone. Nothing is measured, and no weight is read.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Thread
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from enlarger.runtime.result_shapes import META, make_result


@dataclass(frozen=True)
class Cost:
    """Of one call. `peak` is what it holds at once beside weights and inputs, its result included."""

    peak: int = 0  # bytes
    flops: int = 0
    moved: int = 0  # bytes that its operations read and write
    operations: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """One after the other."""
        return Cost(
            max(self.peak, other.peak),
            self.flops + other.flops,
            self.moved + other.moved,
            self.operations + other.operations,
        )

    def __mul__(self, count: float) -> "Cost":
        """So many times in a row."""
        return Cost(self.peak, round(self.flops * count), round(self.moved * count), round(self.operations * count))


NO_COST = Cost()


def count_call(function: Callable[..., object], *inputs: Any, **named: Any) -> Cost:
    """The cost of `function` on meta tensors; modules in it have to lie there too, see `on_meta`.

    Neither the tensors nor the call are of `torch.inference_mode`, see `in_own_thread`.
    """
    counter = _Counter()
    with torch.no_grad(), _Attention(counter), counter:
        function(*inputs, **named)
    return Cost(counter.peak, counter.flops, counter.moved, counter.operations)


def in_own_thread(run: Callable[[], None]) -> None:
    """Run where no `torch.inference_mode` of the caller's holds: there, operations do not say what they consist of."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = Thread(target=guarded)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def on_meta(module: nn.Module) -> Any:
    """A copy of the module whose tensors have shapes and types, and no memory, and whose calls nobody sees; the module
    stays as it is."""
    tensors = (*module.parameters(), *module.buffers())
    instead: dict[int, Any] = {id(tensor): _without_numbers(tensor) for tensor in tensors}
    for layer in module.modules():
        instead |= {id(hooks): type(hooks)() for name, hooks in vars(layer).items() if name.endswith("_hooks")}
    made = copy.deepcopy(module, instead)
    for layer in made.modules():
        vars(layer).pop("forward", None)
    return made


def _without_numbers(tensor: Tensor) -> Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


class _Counter(TorchDispatchMode):
    """Follows what each operation makes, until nobody holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.live = self.flops = self.moved = self.operations = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self._registry = _flop_formulas()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled in it: so torch's compiler, which takes seconds to import, stays out."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = make_result(func, args, kwargs or {})
        self.note(func, args, made, kwargs or {})
        return made

    def note(self, func: Any, args: Sequence[Any], made: Any, named: Mapping[str, Any]) -> None:
        """Count an operation that has been done."""
        self._drop_freed()
        taken, results = _tensors(args), _tensors((made,))
        storages = {_key(tensor) for tensor in taken}
        fresh = [tensor for tensor in results if _key(tensor) not in storages]
        for tensor in fresh:
            self.hold(tensor)
        is_in_place = func._schema.is_mutable if hasattr(func, "_schema") else False
        if fresh or is_in_place:
            self.operations += 1
            self.moved += sum(tensor.nbytes for tensor in (*taken, *results))
        formula = self._registry.get(getattr(func, "_overloadpacket", None))
        self.flops += 0 if formula is None else int(formula(*args, **named, out_val=made))
        self.peak = max(self.peak, self.live + _workspace(func, taken, results))

    def hold(self, tensor: Tensor) -> None:
        """Count the memory of a tensor until it is gone."""
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference.cdata not in self._held:
            self._held[reference.cdata] = (reference, storage.nbytes())
            self.live += storage.nbytes()

    def _drop_freed(self) -> None:
        for key in [key for key, (reference, _) in self._held.items() if reference.expired()]:
            self.live -= self._held.pop(key)[1]


class _Attention(TorchFunctionMode):
    """Stands in for the fused product of attention, which holds its result and no matrix of weights."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        made = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=META)
        products = query.shape[:-1].numel() * key.shape[-2]
        self.counter.flops += 2 * products * (query.shape[-1] + value.shape[-1])
        self.counter.moved += query.nbytes + key.nbytes + value.nbytes + made.nbytes
        self.counter.operations += 1
        return made


def _key(tensor: Tensor) -> int:
    """Equal for tensors that share their memory."""
    reference: Any = StorageWeakRef(tensor.untyped_storage())
    return int(reference.cdata)


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    """The tensors among arguments or results, in lists too."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(cast("Sequence[Any]", value))
    return found


def _workspace(func: Any, taken: Sequence[Tensor], results: Sequence[Tensor]) -> int:
    """What an operation takes beside its result: a convolution reorders its weight and, unless the channels lie last,
    picture and result."""
    if getattr(func, "_overloadpacket", None) is not torch.ops.aten.convolution:
        return 0
    x, weight, result = taken[0], taken[1], results[0]
    is_last = any(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (x, weight)) and x.ndim == 4
    return weight.nbytes + (0 if is_last else x.nbytes + result.nbytes)


@lru_cache(maxsize=1)
def _flop_formulas() -> Mapping[Any, Callable[..., int]]:
    from torch.utils.flop_counter import flop_registry

    return flop_registry
