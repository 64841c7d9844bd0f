"""Pickled checkpoints (.ckpt, .pt, .pth, .bin), read only when asked for, through two gates that nothing goes around.

A pickle is a program. The first gate walks through the zip file's directory and through the program without running
it: only what names, shapes and numbers need may stand there, and every size must fit the file. The second is torch's
own restricted reader (`weights_only`), which then reads the tensors. Whatever fails at a gate is an error. Programs of
newer protocols are first written anew in protocol 2, and both gates then see that program alone.
"""

import struct
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from enlarger.checkpoint.tensors.pickle_globals import INERT_GLOBALS, PARAMETER_DICT
from enlarger.checkpoint.tensors.pickle_legacy import LEGACY_MAGIC, check_legacy
from enlarger.checkpoint.tensors.pickle_opcodes import check_opcodes
from enlarger.checkpoint.tensors.pickle_protocol import PROGRAM_NAME, as_protocol_2, is_newer_protocol, rewritten
from enlarger.checkpoint.tensors.pickle_zip import STORAGE_PREFIX, PickleRejected, read_record, read_records
from enlarger.errors import CheckpointError, Unsupported, list_names

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
MIN_SAFE_TORCH = (2, 10)  # the first torch whose weights_only has no known way out (CVE-2025-32434, CVE-2026-24747)
MAX_PROGRAM_BYTES = 8 << 20  # bytes; that of a whole training checkpoint has one or two million
MAX_DEPTH = 8  # dictionaries inside each other
BLOCK_ELEMENTS = 1 << 18  # elements looked at together
STATE_DICT_KEY = "state_dict"  # the container whose name is no part of the weights' names
ALLOW_PICKLE_HINT = (
    "Where you trust its origin, pass allow_pickle=True (--allow-pickle on the command line): it is then read through "
    "an allow-list, and nothing in it runs; or convert it once: enlarger convert OLD NEW.safetensors --allow-pickle"
)
_LOAD_LOCK = threading.Lock()  # torch's list of additional names belongs to the whole process


class InertStub:
    """Stands for what is no weight: takes anything, does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class ParameterTable(dict[str, Tensor]):
    """Stands for torch's ParameterDict: the parameters of its state, by name."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        table: Any = state.get("_parameters")
        if isinstance(table, dict):
            self.update(cast("dict[str, Tensor]", table))


@dataclass(frozen=True)
class PickleCheckpoint:
    """Named tensors of one pickled file, which stay there until `get_tensor`, as those of `SafetensorsCheckpoint`.

    What `get_tensor` returns is memory of its own. The file must not change for as long as it is read from.
    """

    path: Path
    tensors: Mapping[str, Tensor] = field(repr=False)  # views of the mapped file; in memory for its older forms
    file_size: int
    notes: tuple[str, ...] = ()  # what else the file held
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])  # pickles have none

    def keys(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def get_tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, converted where it is floating and `dtype` is another type."""
        tensor = self._mapped_tensor(name)
        same_dtype = dtype is None or not tensor.dtype.is_floating_point
        return torch.empty(tensor.shape, dtype=tensor.dtype if same_dtype else dtype).copy_(tensor)

    def iter_blocks(self, name: str) -> Iterator[Tensor]:
        """The tensor's elements in pieces of at most one row or one block."""
        tensor = self._mapped_tensor(name)
        rows = (tensor,) if tensor.is_contiguous() or tensor.ndim < 2 else tensor.unbind()
        for row in rows:
            yield from row.reshape(-1).split(BLOCK_ELEMENTS)

    def _mapped_tensor(self, name: str) -> Tensor:
        """The mapped tensor; reading one past the end of a file that was cut since would end the process."""
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{self.path}: {name} cannot be read ({error.strerror or error}).") from error
        if size != self.file_size:
            raise CheckpointError(
                f"{self.path}: {name} cannot be read: found {size:,} bytes, expected {self.file_size:,} as before; "
                "the file was changed after it was opened: open it again."
            )
        return self.tensors[name]


def open_pickle(path: Path) -> PickleCheckpoint:
    """A checkpoint that torch.save wrote, in any of its forms but tar, opened without running anything in it.

    Dictionaries in it are opened: weights in `state_dict` keep their names, those in others (`model_ema`, `module`)
    get its name and a dot in front. What is no tensor, and what lies in lists, is left out and counted in `notes`.
    Raises `CheckpointError` for whatever is more than that or does not fit the file, and `Unsupported` under a torch
    whose restricted reader is unsafe.
    """
    root, size = _load_guarded(path, mmap=True, bare_tensor=False)
    try:
        tensors, notes = _flatten(root)
    except PickleRejected as error:
        raise CheckpointError(f"{path}: refused, and nothing in it has run: {error}.") from error
    return PickleCheckpoint(path, tensors, size, notes)


def load_pickle(path: Path) -> Mapping[Any, Any] | Tensor:
    """What a small pickled file holds, a dictionary or one tensor, in memory of its own and without running anything.

    Raises as `open_pickle` does.
    """
    root, _ = _load_guarded(path, mmap=False, bare_tensor=True)
    return root


def _load_guarded(path: Path, *, mmap: bool, bare_tensor: bool) -> tuple[Any, int]:
    """What both gates let pass, and the size of the file."""
    _require_safe_torch(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a pickled checkpoint.")
    if path.name.endswith(".safetensors"):  # torch.load would go by the name
        raise CheckpointError(f"{path}: a pickle under the name of safetensors; where you trust it, name it .ckpt.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC:
                global_names = check_legacy(file, size, MAX_PROGRAM_BYTES, bare_tensor)
                return _load_weights_only(path, global_names, mmap=False), size
            records = read_records(file, size)
            program = read_record(file, records, PROGRAM_NAME, MAX_PROGRAM_BYTES)
            if "byteorder" in records and read_record(file, records, "byteorder", 8) != b"little":
                raise PickleRejected("its numbers are big-endian, expected little-endian")
            storage_bytes = {
                name.removeprefix(STORAGE_PREFIX): each.size
                for name, each in records.items()
                if name.startswith(STORAGE_PREFIX)
            }
            if not is_newer_protocol(program):
                return _load_weights_only(path, check_opcodes(program, storage_bytes, bare_tensor), mmap), size
            program = as_protocol_2(program, MAX_PROGRAM_BYTES)
            global_names = check_opcodes(program, storage_bytes, bare_tensor)
            with rewritten(file, records, program) as copy:
                return _load_weights_only(copy, global_names, mmap=False), size
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (PickleRejected, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: refused, and nothing in it has run: {error}.") from error


def pickle_refused_message(path: Path) -> str:
    """That a pickle was not opened, and what to do."""
    return f"{path}: not opened, since it is a pickle, a program that runs when it is opened. {ALLOW_PICKLE_HINT}."


def _require_safe_torch(path: Path) -> None:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MIN_SAFE_TORCH:
        raise Unsupported(
            f"{path}: torch {torch.__version__} can be made to run what is in a pickle even with weights_only=True "
            "(CVE-2026-24747); install torch 2.10 or newer, or convert the file to safetensors where that is."
        )


def _load_weights_only(file: Path | BinaryIO, global_names: Collection[str], mmap: bool) -> Any:
    """The second gate. With `mmap` the tensors are views of the mapped file."""
    safe_globals: list[Callable[..., Any] | tuple[Callable[..., Any], str]]
    safe_globals = [
        (InertStub, name.replace("__builtin__.xrange", "builtins.range").replace("__builtin__", "builtins"))
        for name in INERT_GLOBALS
        if name in global_names
    ]
    safe_globals += [(ParameterTable, PARAMETER_DICT)] if PARAMETER_DICT in global_names else []
    try:
        with _LOAD_LOCK, torch.serialization.safe_globals(safe_globals):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except (
        UnpicklingError, RuntimeError, ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, TypeError
    ) as error:  # fmt: skip
        raise PickleRejected(f"torch's restricted reader does not take it ({type(error).__name__})") from error


def _flatten(root: Mapping[Any, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """All tensors in dictionaries by their dotted names, and what was left out."""
    tensors: dict[str, Tensor] = {}
    dropped: list[str] = []
    visited: set[int] = set()

    def walk(table: dict[Any, Any], prefix: str, depth: int) -> None:
        visited.add(id(table))
        # the class's method, since an attribute of that name may come from the file
        for key, value in cast("Iterable[tuple[Any, Any]]", dict.items(table)):
            name = f"{prefix}{key}" if isinstance(key, str) else f"{prefix}[{type(key).__name__}]"
            if isinstance(key, str) and isinstance(value, Tensor):
                if name in tensors or not name.isprintable():
                    raise PickleRejected(f"the name {name[:80]!r} is there twice or is no plain text")
                tensors[name] = value.detach()
            elif (
                isinstance(key, str)
                and isinstance(value, dict)
                and depth < MAX_DEPTH
                and id(cast("Any", value)) not in visited
            ):
                inner = cast("dict[Any, Any]", value)
                walk(inner, prefix if not prefix and key == STATE_DICT_KEY else f"{name}.", depth + 1)
            else:
                dropped.append(name)

    walk(cast("dict[Any, Any]", root), "", 0)
    if not tensors:
        raise PickleRejected("it holds no tensors in dictionaries")
    return tensors, (_dropped_note(dropped),) if dropped else ()


def _dropped_note(dropped: Sequence[str]) -> str:
    printable = [name[:80] if name.isprintable() else ascii(name[:80]) for name in dropped]
    return f"left out {len(dropped)} entries that are no named tensors: {list_names(printable)}"
