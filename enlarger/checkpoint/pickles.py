"""Pickled checkpoints (.ckpt, .pt, .pth, .bin), read only when asked for, through two gates that nothing goes around.

A pickle is a program. The first gate walks through the zip file's directory and through the program without running
it: only what names, shapes and numbers need may stand there, and every size must fit the file. The second is torch's
own restricted reader (`weights_only`), which then reads the tensors. Whatever fails at a gate is an error.
"""

import struct
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import Tensor

from enlarger.checkpoint.pickle_program import CALLBACK, SCALARS, check_program
from enlarger.checkpoint.pickle_zip import STORED, Refused, read_content, read_records
from enlarger.errors import CheckpointError, Unsupported

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
FIRST_SAFE = (2, 10)  # the first torch whose weights_only has no known way out (CVE-2025-32434, CVE-2026-24747)
LARGEST_PROGRAM = 8 << 20  # bytes; that of a whole training checkpoint has one or two million
DEEPEST = 8  # dictionaries inside each other
BLOCK = 1 << 18  # elements looked at together
SHOWN = 10  # names that a note lists
OPENED = "state_dict"  # the container whose name is no part of the weights' names
HOW_TO_ALLOW = (
    "Where you trust its origin, pass allow_pickle=True (--allow-pickle on the command line): it is then read through "
    "an allow-list, and nothing in it runs; or convert it once: enlarger convert OLD NEW.safetensors --allow-pickle"
)
_LOADING = threading.Lock()  # torch's list of additional names belongs to the whole process


class Inert:
    """Stands for what is no weight: takes anything, does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


@dataclass(frozen=True)
class PickledWeights:
    """Named tensors of one pickled file, which stay in the file until `read`, as those of `files.Weights`.

    What `read` returns is memory of its own. The file must not change for as long as it is read from.
    """

    path: Path
    tensors: Mapping[str, Tensor] = field(repr=False)  # views of the mapped file
    size: int
    notes: tuple[str, ...] = ()  # what else the file held
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])  # pickles have none

    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, converted where it is floating and `dtype` asks for another type."""
        found = self._unchanged(name)
        keep = dtype is None or not found.dtype.is_floating_point
        return torch.empty(found.shape, dtype=found.dtype if keep else dtype).copy_(found)

    def blocks(self, name: str) -> Iterator[Tensor]:
        """The tensor's elements in pieces of at most one row or one block."""
        found = self._unchanged(name)
        rows = (found,) if found.is_contiguous() or found.ndim < 2 else found.unbind()
        for row in rows:
            yield from row.reshape(-1).split(BLOCK)

    def _unchanged(self, name: str) -> Tensor:
        """The mapped tensor; reading one past the end of a file that was cut since would end the process."""
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{self.path}: {name} cannot be read ({error.strerror or error}).") from error
        if size != self.size:
            raise CheckpointError(
                f"{self.path}: {name} cannot be read: found {size:,} bytes, expected {self.size:,} as before; the file "
                "was changed after it was opened: open it again."
            )
        return self.tensors[name]


def open_pickle(path: Path) -> PickledWeights:
    """A checkpoint that torch.save wrote (since torch 1.6), opened without running anything in it.

    Dictionaries in it are opened: weights in `state_dict` keep their names, those in others (`model_ema`, `module`)
    get its name and a dot in front. What is no tensor, and what lies in lists, is left out and counted in `notes`.
    Raises `CheckpointError` for whatever is more than that or does not fit the file, and `Unsupported` under a torch
    whose restricted reader is unsafe.
    """
    _check_torch(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a pickled checkpoint.")
    if path.name.endswith(".safetensors"):  # torch.load would go by the name
        raise CheckpointError(f"{path}: a pickle under the name of safetensors; where you trust it, name it .ckpt.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            records = read_records(file, size)
            program = read_content(file, records, "data.pkl", LARGEST_PROGRAM)
            if "byteorder" in records and read_content(file, records, "byteorder", 8) != b"little":
                raise Refused("its numbers are big-endian, expected little-endian")
        stored = {name.removeprefix(STORED): each.size for name, each in records.items() if name.startswith(STORED)}
        named = check_program(program, stored)
        tensors, notes = _flatten(_load(path, named))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (Refused, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: refused, and nothing in it has run: {error}.") from error
    return PickledWeights(path, tensors, size, notes)


def refusal(path: Path) -> str:
    """That a pickle was not opened, and what to do."""
    return f"{path}: not opened, since it is a pickle, a program that runs when it is opened. {HOW_TO_ALLOW}."


def _check_torch(path: Path) -> None:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < FIRST_SAFE:
        raise Unsupported(
            f"{path}: torch {torch.__version__} can be made to run what is in a pickle even with weights_only=True "
            "(CVE-2026-24747); install torch 2.10 or newer, or convert the file to safetensors where that is."
        )


def _load(path: Path, named: Collection[str]) -> dict[Any, Any]:
    """The second gate. The tensors are views of the mapped file."""
    inert: list[Callable[..., Any] | tuple[Callable[..., Any], str]]
    inert = [(Inert, name) for name in (CALLBACK, *SCALARS) if name in named]
    try:
        with _LOADING, torch.serialization.safe_globals(inert):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (
        UnpicklingError, RuntimeError, ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, TypeError
    ) as error:  # fmt: skip
        raise Refused(f"torch's restricted reader does not take it ({type(error).__name__})") from error


def _flatten(root: Mapping[Any, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """All tensors in dictionaries by their dotted names, and what was left out."""
    tensors: dict[str, Tensor] = {}
    dropped: list[str] = []
    opened: set[int] = set()

    def walk(table: dict[Any, Any], prefix: str, depth: int) -> None:
        opened.add(id(table))
        # the class's method, since an attribute of that name may come from the file
        for key, value in cast("Iterable[tuple[Any, Any]]", dict.items(table)):
            name = f"{prefix}{key}" if isinstance(key, str) else f"{prefix}[{type(key).__name__}]"
            if isinstance(key, str) and isinstance(value, Tensor):
                if name in tensors or not name.isprintable():
                    raise Refused(f"the name {name[:80]!r} is there twice or is no plain text")
                tensors[name] = value.detach()
            elif (
                isinstance(key, str)
                and isinstance(value, dict)
                and depth < DEEPEST
                and id(cast("Any", value)) not in opened
            ):
                inner = cast("dict[Any, Any]", value)
                walk(inner, prefix if not prefix and key == OPENED else f"{name}.", depth + 1)
            else:
                dropped.append(name)

    walk(cast("dict[Any, Any]", root), "", 0)
    if not tensors:
        raise Refused("it holds no tensors in dictionaries")
    return tensors, (_note(dropped),) if dropped else ()


def _note(dropped: Sequence[str]) -> str:
    shown = ", ".join(name[:80] if name.isprintable() else ascii(name[:80]) for name in dropped[:SHOWN])
    more = f" and {len(dropped) - SHOWN} more" if len(dropped) > SHOWN else ""
    return f"left out {len(dropped)} entries that are no named tensors: {shown}{more}"
