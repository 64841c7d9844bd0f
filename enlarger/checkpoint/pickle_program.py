"""The program in a pickled checkpoint, walked through without running it: only what makes tensors may stand there."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pickletools import opcodes
from struct import Struct
from typing import Any, cast

import torch

from enlarger.checkpoint.pickle_zip import Refused

MOST_STEPS = 500_000  # that of a whole training checkpoint has 100,000 or so
MOST_AXES = 64
ORDERED = "collections.OrderedDict"
TENSOR = "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"
ENCODE = "_codecs.encode"
STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
# What Lightning's checkpoints carry beside weights (a callback's name, its best score): made into inert things.
CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
ALLOWED = {ORDERED, TENSOR, PARAMETER, ENCODE, *STORAGES, CALLBACK, *SCALARS}

NUMBERS = {  # how the steps' own numbers are written
    code: Struct(form)
    for form, codes in {
        "<B": ("PROTO", "BININT1", "BINPUT", "BINGET", "LONG1"),
        "<H": ("BININT2",),
        "<i": ("BININT",),
        "<I": ("LONG_BINPUT", "LONG_BINGET", "BINUNICODE"),
        ">d": ("BINFLOAT",),
    }.items()
    for code in codes
}
CODES = {ord(each.code): each.name for each in opcodes}
LONGEST_NAME = 1000  # bytes of a module and its member
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
PLAIN = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Kind(Enum):
    """What a step of the program would make, as far as it matters."""

    LIST = "a list"
    TENSOR = "a tensor"
    THING = "a thing without effect"


@dataclass(frozen=True)
class Named:
    """A class or function that the program names."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The numbers that tensors are views of."""

    dtype: torch.dtype
    count: int


@dataclass(eq=False)
class Table:
    """A dictionary: its keys."""

    keys: set[Any] = field(default_factory=set[Any])


@dataclass
class Walk:
    """The state of a program as it would be, with kinds in the place of values."""

    sizes: Mapping[str, int]  # the bytes of each storage in the file
    stack: list[Any] = field(default_factory=list[Any])
    marks: list[int] = field(default_factory=list[int])
    memo: dict[int, Any] = field(default_factory=dict[int, Any])
    storages: dict[str, Storage] = field(default_factory=dict[str, Storage])
    named: set[str] = field(default_factory=set[str])

    def step(self, code: str, argument: Any) -> None:
        if code in PLAIN:
            self.stack.append(argument)
        elif code in CONSTANTS:
            self.stack.append(CONSTANTS[code])
        elif code in TUPLES:
            self.stack.append(self.pop(TUPLES[code]))
        elif code in STEPS:
            STEPS[code](self, argument)
        else:
            raise Refused(f"its program has the step {code}, which no tensor needs")

    def pop(self, count: int) -> tuple[Any, ...]:
        """The uppermost values, none of them from below the last mark."""
        begin = len(self.stack) - count
        if begin < (self.marks[-1] if self.marks else 0):
            raise Refused("its program takes more than it has made")
        taken = tuple(self.stack[begin:])
        del self.stack[begin:]
        return taken

    def since_mark(self) -> tuple[Any, ...]:
        if not self.marks:
            raise Refused("its program takes more than it has made")
        taken = self.pop(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return taken

    def top(self) -> Any:
        (found,) = self.pop(1)
        self.stack.append(found)
        return found


def check_program(program: bytes, sizes: Mapping[str, int]) -> frozenset[str]:
    """What a program names, all of it allowed. Raises `Refused` for anything that tensors by name do not need.

    `sizes` are the bytes of each storage; tensors must lie inside theirs.
    """
    walk, end = Walk(sizes), 0
    for count, (code, argument, position) in enumerate(_read_steps(program)):
        if count == 0 and (code, argument) != ("PROTO", 2):
            raise Refused(f"its program begins with {code} {argument}, expected pickle protocol 2 as torch.save's")
        if count > MOST_STEPS:
            raise Refused(f"its program has more than {MOST_STEPS:,} steps")
        if code == "STOP":
            end = position
            break
        if count > 0:
            walk.step(code, argument)
    if end != len(program):
        raise Refused("something follows its program, or it has no end")
    if walk.marks or len(walk.stack) != 1 or not isinstance(walk.stack[0], Table):
        raise Refused("it holds something else than a dictionary of tensors")
    return frozenset(walk.named)


def _read_steps(program: bytes) -> Iterator[tuple[str, Any, int]]:
    """Each step's name, its argument, and where the next begins; read as torch's own reader reads them."""
    at = 0
    while at < len(program):
        code, at = CODES.get(program[at], f"{program[at]:#x}"), at + 1
        argument: Any = None
        if code in NUMBERS:
            (argument,) = NUMBERS[code].unpack_from(program, at)
            at += NUMBERS[code].size
        if code in ("BINUNICODE", "LONG1"):  # the number is their length
            found, at = program[at : at + argument], at + argument
            text = code == "BINUNICODE"
            argument = str(found, "utf-8", "surrogatepass") if text else int.from_bytes(found, "little", signed=True)
        elif code == "GLOBAL":
            module, member, _ = program[at : at + LONGEST_NAME].split(b"\n", 2)
            argument, at = f"{module.decode()}.{member.decode()}", at + len(module) + len(member) + 2
        yield code, argument, at
    if at > len(program):
        raise Refused("its program is cut short")


def _global(walk: Walk, argument: Any) -> None:
    name = str(argument)
    if name not in ALLOWED:
        raise Refused(f"its program names {name[:120]!r}, which no tensor needs")
    walk.named.add(name)
    walk.stack.append(Named(name))


def _call(walk: Walk, _: Any) -> None:
    function, arguments = walk.pop(2)
    name = function.name if isinstance(function, Named) else "a value"
    if type(arguments) is not tuple:
        raise Refused(f"its program calls {name} without arguments")
    made = _made(name, cast("tuple[Any, ...]", arguments))
    if made is None:
        raise Refused(f"its program calls {name} in a way that no tensor needs")
    walk.stack.append(made)


def _made(name: str, arguments: tuple[Any, ...]) -> Any:
    """What a call gives; None for one that is not as torch.save writes it."""
    if name == ORDERED:
        return None if arguments else Table()
    if name == TENSOR:
        return Kind.TENSOR if _is_tensor(arguments) else None
    if name == PARAMETER:
        fits = len(arguments) == 3 and arguments[0] is Kind.TENSOR and isinstance(arguments[2], Table)
        return Kind.TENSOR if fits and isinstance(arguments[1], bool) else None
    if name == ENCODE:
        fits = len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1"
        return Kind.THING if fits else None
    return Kind.THING if name in SCALARS else None


def _is_tensor(arguments: tuple[Any, ...]) -> bool:
    """A view of a storage that lies inside it and has no more elements, as torch.save writes it."""
    if len(arguments) != 6:
        return False
    storage, offset, shape, stride, gradient, hooks = arguments
    if not isinstance(storage, Storage) or not isinstance(gradient, bool) or not isinstance(hooks, Table):
        return False
    if hooks.keys or not _are_counts((offset,)) or not _are_counts(shape) or not _are_counts(stride):
        return False
    if len(shape) != len(stride) or math.prod(shape) > storage.count:
        return False
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    return 0 in shape or last < storage.count


def _are_counts(found: Any) -> bool:
    if type(found) is not tuple or len(cast("Sequence[Any]", found)) > MOST_AXES:
        return False
    return all(type(each) is int and 0 <= each < 1 << 62 for each in cast("Sequence[Any]", found))


def _storage(walk: Walk, _: Any) -> None:
    """("storage", type, key, device, count), which the file must hold."""
    (found,) = walk.pop(1)
    if type(found) is not tuple or len(cast("tuple[Any, ...]", found)) != 5 or found[0] != "storage":
        raise Refused("its program asks for something else than stored numbers")
    _, kind, key, device, count = cast("tuple[Any, ...]", found)
    dtype = STORAGES.get(kind.name) if isinstance(kind, Named) else None
    if dtype is None or not isinstance(key, str) or not isinstance(device, str) or not _are_counts((count,)):
        raise Refused("its program describes stored numbers wrongly")
    made = Storage(dtype, count)
    if walk.sizes.get(key, -1) < count * made.dtype.itemsize or walk.storages.setdefault(key, made) != made:
        raise Refused(f"storage {key[:80]!r} does not hold {count:,} numbers of type {made.dtype}")
    walk.stack.append(made)


def _set(walk: Walk, items: tuple[Any, ...]) -> None:
    table = walk.top()
    keys = items[::2]
    if not isinstance(table, Table) or len(items) % 2:
        raise Refused("its program sets an entry of something that is no dictionary")
    for key in keys:
        if not isinstance(key, str | int | float | Named | None):
            raise Refused("a dictionary has a key that is no text")
        if key in table.keys:
            raise Refused(f"a dictionary has {str(key)[:80]!r} twice")
        table.keys.add(key)


def _append(walk: Walk, _: tuple[Any, ...]) -> None:
    if walk.top() is not Kind.LIST:
        raise Refused("its program appends to something that is no list")


def _build(walk: Walk, _: Any) -> None:
    (state,) = walk.pop(1)
    target = walk.top()
    if not (isinstance(target, Table) and isinstance(state, Table)) and target is not Kind.THING:
        raise Refused("its program changes something that is no dictionary")


def _get(walk: Walk, argument: Any) -> None:
    if argument not in walk.memo:
        raise Refused("its program recalls what it has not kept")
    walk.stack.append(walk.memo[argument])


STEPS: dict[str, Callable[[Walk, Any], None]] = {
    "MARK": lambda walk, _: walk.marks.append(len(walk.stack)),
    "EMPTY_LIST": lambda walk, _: walk.stack.append(Kind.LIST),
    "EMPTY_DICT": lambda walk, _: walk.stack.append(Table()),
    "TUPLE": lambda walk, _: walk.stack.append(walk.since_mark()),
    "BINPUT": lambda walk, argument: walk.memo.update({argument: walk.top()}),
    "LONG_BINPUT": lambda walk, argument: walk.memo.update({argument: walk.top()}),
    "BINGET": _get,
    "LONG_BINGET": _get,
    "GLOBAL": _global,
    "REDUCE": _call,
    "BINPERSID": _storage,
    "BUILD": _build,
    "APPEND": lambda walk, _: _append(walk, walk.pop(1)),
    "APPENDS": lambda walk, _: _append(walk, walk.since_mark()),
    "SETITEM": lambda walk, _: _set(walk, walk.pop(2)),
    "SETITEMS": lambda walk, _: _set(walk, walk.since_mark()),
}
