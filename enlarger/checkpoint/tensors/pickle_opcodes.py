"""The program in a pickled checkpoint, walked through without running it: only what makes tensors may stand there."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pickletools import opcodes
from struct import Struct
from typing import Any, cast

import torch

from enlarger.checkpoint.tensors.pickle_globals import (
    ALLOWED_GLOBALS,
    CODECS_ENCODE,
    INERT_CALLABLES,
    ORDERED_DICT,
    PARAMETER_DICT,
    REBUILD_OLD_TENSOR,
    REBUILD_PARAMETER,
    REBUILD_TENSOR,
    STORAGE_DTYPES,
    VALUE_CLASSES,
)
from enlarger.checkpoint.tensors.pickle_zip import PickleRejected

MAX_OPCODES = 500_000  # that of a whole training checkpoint has 100,000 or so
MAX_OBJECTS = 60_000  # lists, dictionaries and results of calls, up to 1 kB of memory each; a training run has 20,000
MAX_BIG_NUMBERS = 1000  # numbers beyond 60 bits: many as keys, all with one hash, would take time without end
MAX_TEXT_BYTES = 1 << 20  # bytes of one text: one sign above ASCII makes four of each
MAX_DIMS = 64
MAX_ELEMENTS = 1 << 60  # elements, places and strides: no file has more, and torch can count them
OPCODE_STRUCTS = {  # how the steps' own numbers are written
    code: Struct(form)
    for form, codes in {
        "<B": ("PROTO", "BININT1", "BINPUT", "BINGET", "LONG1", "SHORT_BINSTRING"),
        "<H": ("BININT2",),
        "<i": ("BININT",),
        "<I": ("LONG_BINPUT", "LONG_BINGET", "BINUNICODE"),
        ">d": ("BINFLOAT",),
    }.items()
    for code in codes
}
OPCODE_NAMES = {ord(each.code): each.name for each in opcodes}
MAX_NAME_LENGTH = 1000  # bytes of a module and its member
CONSTANT_OPCODES: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
ARGUMENT_OPCODES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
OBJECT_OPCODES = {"EMPTY_LIST", "EMPTY_DICT", "REDUCE", "NEWOBJ"}
TUPLE_OPCODES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class ValueKind(Enum):
    """What a step of the program would make, as far as it matters."""

    LIST = "a list"
    TENSOR = "a tensor"
    INERT = "a thing without effect"


ARGUMENT_TYPES: Mapping[str, type] = {
    "__builtin__.set": ValueKind,
    "builtins.set": ValueKind,
    "torch.Size": tuple,
    "torch.device": str,
}


@dataclass(frozen=True)
class GlobalRef:
    """A class or function that the program names."""

    name: str


@dataclass(frozen=True)
class StorageRef:
    """The numbers that tensors are views of."""

    dtype: torch.dtype
    num_elements: int


@dataclass(eq=False, slots=True)
class DictValue:
    """A dictionary of such values."""

    entries: dict[object, object] = field(default_factory=dict[object, object])


@dataclass
class UnpicklerState:
    """The state of a program as it would be, with kinds in the place of values."""

    storage_bytes: Mapping[str, int] | None  # the bytes of each storage in the file; None: checked afterwards
    stack: list[Any] = field(default_factory=list[Any])
    marks: list[int] = field(default_factory=list[int])
    memo: dict[int, Any] = field(default_factory=dict[int, Any])
    storages: dict[str, StorageRef] = field(default_factory=dict[str, StorageRef])
    global_names: set[str] = field(default_factory=set[str])
    big_numbers: int = 0
    texts: list[str] = field(default_factory=list[str])  # those that the program states, in order
    encoded_characters: int = 0  # texts that the program has made bytes of
    objects: int = 0

    def execute(self, opcode: str, argument: Any) -> None:
        if opcode in ARGUMENT_OPCODES:
            self.big_numbers += opcode == "LONG1" and abs(argument) >= MAX_ELEMENTS
            self.texts += [argument] if isinstance(argument, str) else []
            self.stack.append(argument)
        elif opcode in CONSTANT_OPCODES:
            self.stack.append(CONSTANT_OPCODES[opcode])
        elif opcode in TUPLE_OPCODES:
            self.stack.append(self.pop(TUPLE_OPCODES[opcode]))
        elif opcode in OPCODE_HANDLERS:
            self.objects += opcode in OBJECT_OPCODES
            OPCODE_HANDLERS[opcode](self, argument)
        else:
            raise PickleRejected(f"its program has the step {opcode}, which no tensor needs")

    def pop(self, count: int) -> tuple[Any, ...]:
        """The uppermost values, none of them from below the last mark."""
        begin = len(self.stack) - count
        if begin < (self.marks[-1] if self.marks else 0):
            raise PickleRejected("its program takes more than it has made")
        taken = tuple(self.stack[begin:])
        del self.stack[begin:]
        return taken

    def pop_to_mark(self) -> tuple[Any, ...]:
        if not self.marks:
            raise PickleRejected("its program takes more than it has made")
        taken = self.pop(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return taken

    def peek(self) -> Any:
        (found,) = self.pop(1)
        self.stack.append(found)
        return found


def check_opcodes(program: bytes, storage_bytes: Mapping[str, int], bare_tensor: bool = False) -> frozenset[str]:
    """What a program names, all of it allowed. Raises `PickleRejected` for anything that tensors by name do not need.

    `storage_bytes` are those of each storage, inside which tensors must lie. The program must make a dictionary, or,
    with `bare_tensor`, a dictionary or one tensor.
    """
    state, end = execute_program(program, storage_bytes=storage_bytes)
    if end != len(program):
        raise PickleRejected("something follows its program, or it has no end")
    require_tensors(state, bare_tensor)
    return frozenset(state.global_names)


def execute_program(
    program: bytes, start: int = 0, storage_bytes: Mapping[str, int] | None = None
) -> tuple[UnpicklerState, int]:
    """What a program that begins at `start` would leave, and where it ends. `storage_bytes` None: unknown as yet."""
    state = UnpicklerState(storage_bytes)
    for count, (opcode, argument, position) in enumerate(_read_opcodes(program, start)):
        if count == 0 and (opcode, argument) != ("PROTO", 2):
            raise PickleRejected(f"its program begins with {opcode} {argument}, expected pickle protocol 2 to 5")
        if count > MAX_OPCODES:
            raise PickleRejected(f"its program has more than {MAX_OPCODES:,} steps")
        if opcode == "STOP":
            return state, position
        if count > 0:
            state.execute(opcode, argument)
        if max(state.objects / MAX_OBJECTS, state.big_numbers / MAX_BIG_NUMBERS) > 1 or state.encoded_characters > len(
            program
        ):
            raise PickleRejected("its program makes more of itself than weights need")
    raise PickleRejected("something follows its program, or it has no end")


def require_tensors(state: UnpicklerState, bare_tensor: bool) -> None:
    """Raise `PickleRejected` unless a program has made a dictionary, or, with `bare_tensor`, one tensor."""
    result = state.stack[0] if len(state.stack) == 1 and not state.marks else None
    if not isinstance(result, DictValue) and not (bare_tensor and result is ValueKind.TENSOR):
        raise PickleRejected("it holds something else than a dictionary of tensors")


def _read_opcodes(program: bytes, position: int) -> Iterator[tuple[str, Any, int]]:
    """Each step's name, its argument, and where the next begins; read as torch's own reader reads them."""
    while position < len(program):
        opcode, position = OPCODE_NAMES.get(program[position], f"{program[position]:#x}"), position + 1
        argument: Any = None
        if opcode in OPCODE_STRUCTS:
            (argument,) = OPCODE_STRUCTS[opcode].unpack_from(program, position)
            position += OPCODE_STRUCTS[opcode].size
        if opcode in ("BINUNICODE", "LONG1", "SHORT_BINSTRING"):  # the number is their length
            if argument > MAX_TEXT_BYTES:
                raise PickleRejected(f"its program has a text of {argument:,} bytes, at most {MAX_TEXT_BYTES:,}")
            data, position = program[position : position + argument], position + argument
            is_number = opcode == "LONG1"
            argument = int.from_bytes(data, "little", signed=True) if is_number else str(data, "utf-8", "surrogatepass")
        elif opcode == "GLOBAL":
            module, member, _ = program[position : position + MAX_NAME_LENGTH].split(b"\n", 2)
            argument, position = f"{module.decode()}.{member.decode()}", position + len(module) + len(member) + 2
        yield opcode, argument, position
    if position > len(program):
        raise PickleRejected("its program is cut short")


def _op_global(state: UnpicklerState, argument: Any) -> None:
    name = str(argument)
    if name not in ALLOWED_GLOBALS:
        raise PickleRejected(f"its program names {name[:120]!r}, which no tensor needs")
    state.global_names.add(name)
    state.stack.append(GlobalRef(name))


def _op_reduce(state: UnpicklerState, _: object) -> None:
    function, arguments = state.pop(2)
    name = function.name if isinstance(function, GlobalRef) else "a value"
    if type(arguments) is not tuple:
        raise PickleRejected(f"its program calls {name} without arguments")
    if name == CODECS_ENCODE and arguments and isinstance(arguments[0], str):  # the same text may be taken many times
        state.encoded_characters += len(arguments[0])
    result = _call_result(name, cast("tuple[Any, ...]", arguments))
    if result is None:
        raise PickleRejected(f"its program calls {name} in a way that no tensor needs")
    state.stack.append(result)


def _call_result(name: str, arguments: tuple[Any, ...]) -> Any:
    """What a call gives; None for one that is not as torch.save writes it."""
    if name == ORDERED_DICT:
        return None if arguments else DictValue()
    if name == REBUILD_TENSOR:
        return ValueKind.TENSOR if _is_valid_tensor(arguments) else None
    if name == REBUILD_OLD_TENSOR:
        fits = len(arguments) == 4 and _is_valid_tensor((*arguments, False, DictValue()))
        return ValueKind.TENSOR if fits else None
    if name == REBUILD_PARAMETER:
        fits = len(arguments) == 3 and arguments[0] is ValueKind.TENSOR and isinstance(arguments[2], DictValue)
        return ValueKind.TENSOR if fits and isinstance(arguments[1], bool) else None
    if name == CODECS_ENCODE:
        fits = len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1"
        return ValueKind.INERT if fits else None
    if name in VALUE_CLASSES:
        fits = len(arguments) == 1 and isinstance(arguments[0], ARGUMENT_TYPES[name])
        return ValueKind.INERT if fits else None
    return ValueKind.INERT if name in INERT_CALLABLES else None


def _op_new_object(state: UnpicklerState, _: Any) -> None:
    """An object of a class that stands for nothing here, or a dictionary in a module's form."""
    kind, arguments = state.pop(2)
    if isinstance(kind, GlobalRef) and kind.name == PARAMETER_DICT and arguments == ():
        state.stack.append(DictValue())
        return
    if not isinstance(kind, GlobalRef) or kind.name not in INERT_CALLABLES or type(arguments) is not tuple:
        raise PickleRejected("its program makes an object that no tensor needs")
    state.stack.append(ValueKind.INERT)


def _is_valid_tensor(arguments: tuple[Any, ...]) -> bool:
    """A view of a storage that lies inside it and has no more elements, as torch.save writes it."""
    if len(arguments) != 6:
        return False
    storage, offset, shape, stride, gradient, hooks = arguments
    if not isinstance(storage, StorageRef) or not isinstance(gradient, bool) or not isinstance(hooks, DictValue):
        return False
    if hooks.entries or not _is_count_tuple((offset,)) or not _is_count_tuple(shape) or not _is_count_tuple(stride):
        return False
    if len(shape) != len(stride) or math.prod(shape) > storage.num_elements:
        return False
    if max(offset, math.prod(side or 1 for side in shape), *stride) >= MAX_ELEMENTS:
        return False  # torch multiplies the sides of an empty tensor too
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    return 0 in shape or last < storage.num_elements


def _is_count_tuple(value: Any) -> bool:
    if type(value) is not tuple or len(cast("Sequence[Any]", value)) > MAX_DIMS:
        return False
    return all(type(each) is int and 0 <= each < 1 << 62 for each in cast("Sequence[Any]", value))


def _op_persistent_id(state: UnpicklerState, _: object) -> None:
    """("storage", type, key, device, count), which the file must hold; before torch 1.6 a view follows, None."""
    (persistent_id,) = state.pop(1)
    parts: tuple[Any, ...] = cast("tuple[Any, ...]", persistent_id) if type(persistent_id) is tuple else ("",)
    is_legacy = state.storage_bytes is None
    if len(parts) != 5 + is_legacy or parts[0] != "storage" or parts[5:] != (None,) * is_legacy:
        raise PickleRejected("its program asks for something else than stored numbers")
    _, storage_type, key, device, count = parts[:5]
    dtype = STORAGE_DTYPES.get(storage_type.name) if isinstance(storage_type, GlobalRef) else None
    if dtype is None or not isinstance(key, str) or not isinstance(device, str) or not _is_count_tuple((count,)):
        raise PickleRejected("its program describes stored numbers wrongly")
    storage = StorageRef(dtype, count)
    is_held = state.storage_bytes is None or state.storage_bytes.get(key, -1) >= count * dtype.itemsize
    if not is_held or state.storages.setdefault(key, storage) != storage:
        raise PickleRejected(f"storage {key[:80]!r} does not hold {count:,} numbers of type {storage.dtype}")
    state.stack.append(storage)


def _op_set_items(state: UnpicklerState, items: tuple[Any, ...]) -> None:
    target = state.peek()
    if not isinstance(target, DictValue) or len(items) % 2:
        raise PickleRejected("its program sets an entry of something that is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float | GlobalRef | None):
            raise PickleRejected("a dictionary has a key that is no text")
        if key in target.entries:
            raise PickleRejected(f"a dictionary has {str(key)[:80]!r} twice")
        target.entries[key] = value


def _op_append(state: UnpicklerState, _: object) -> None:
    if state.peek() is not ValueKind.LIST:
        raise PickleRejected("its program appends to something that is no list")


def _op_build(unpickler: UnpicklerState, _: object) -> None:
    (state,) = unpickler.pop(1)
    target = unpickler.peek()
    if not (isinstance(target, DictValue) and isinstance(state, DictValue)) and target is not ValueKind.INERT:
        raise PickleRejected("its program changes something that is no dictionary")


def _op_get(state: UnpicklerState, argument: Any) -> None:
    if argument not in state.memo:
        raise PickleRejected("its program recalls what it has not stored")
    state.stack.append(state.memo[argument])


OPCODE_HANDLERS: dict[str, Callable[[UnpicklerState, Any], None]] = {
    "MARK": lambda state, _: state.marks.append(len(state.stack)),
    "EMPTY_LIST": lambda state, _: state.stack.append(ValueKind.LIST),
    "EMPTY_DICT": lambda state, _: state.stack.append(DictValue()),
    "TUPLE": lambda state, _: state.stack.append(state.pop_to_mark()),
    "BINPUT": lambda state, argument: state.memo.update({argument: state.peek()}),
    "LONG_BINPUT": lambda state, argument: state.memo.update({argument: state.peek()}),
    "BINGET": _op_get,
    "LONG_BINGET": _op_get,
    "GLOBAL": _op_global,
    "REDUCE": _op_reduce,
    "NEWOBJ": _op_new_object,
    "BINPERSID": _op_persistent_id,
    "BUILD": _op_build,
    "APPEND": lambda state, _: _op_append(state, state.pop(1)),
    "APPENDS": lambda state, _: _op_append(state, state.pop_to_mark()),
    "SETITEM": lambda state, _: _op_set_items(state, state.pop(2)),
    "SETITEMS": lambda state, _: _op_set_items(state, state.pop_to_mark()),
}
