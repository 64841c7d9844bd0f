"""How a weight of one layout becomes one or more of another: renamed, split, reshaped, transposed, and back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from enlarger.checkpoint.files import Tensors, Weights
from enlarger.errors import CheckpointError

Shape = tuple[int, ...]
Form = Literal["same", "conv", "column", "transposed"]
SAME: Form = "same"
CONV: Form = "conv"  # theirs is a 1x1 convolution (out, in, 1, 1), ours a linear layer (out, in)
COLUMN: Form = "column"  # theirs is (n, 1), ours (n,)
TRANSPOSED: Form = "transposed"


@dataclass(frozen=True)
class Rule:
    """What a module or weight of the original is called here; several names share its rows in equal parts."""

    ours: tuple[str, ...]
    form: Form = SAME


Table = dict[str, Rule]
"""Rules by the original's names, of weights or of the modules that hold them; the longest that fits decides."""


def plain(pairs: Mapping[str, str]) -> Table:
    """Rules that only rename."""
    return {theirs: Rule((ours,)) for theirs, ours in pairs.items()}


@dataclass(frozen=True)
class Place:
    """Where one of our weights lies: part `index` of `count` of the rows of the original's weight `name`."""

    name: str
    index: int = 0
    count: int = 1
    form: Form = SAME


def places(table: Table, name: str) -> Iterator[tuple[str, Place]]:
    """Our weights that lie in the original's weight `name`; none where no rule fits."""
    head, rest = _longest(table, name)
    if head is None:
        return
    rule = table[head]
    for index, ours in enumerate(rule.ours):
        yield ours + rest, Place(name, index, len(rule.ours), rule.form)


def backwards(table: Table) -> dict[str, Place]:
    """The inverse of a table: where each of our modules or weights goes."""
    found: dict[str, Place] = {}
    for theirs, rule in table.items():
        for index, ours in enumerate(rule.ours):
            assert ours not in found, f"{ours} has two originals"
            found[ours] = Place(theirs, index, len(rule.ours), rule.form)
    return found


def place_of(table: Mapping[str, Place], name: str) -> Place | None:
    """Where our weight `name` goes."""
    head, rest = _longest(table, name)
    if head is None:
        return None
    place = table[head]
    return Place(place.name + rest, place.index, place.count, place.form)


def _longest(table: Mapping[str, object], name: str) -> tuple[str | None, str]:
    """The longest beginning of a name, cut at a dot, that is in the table; and what follows it."""
    head = name
    while head and head not in table:
        head = head.rpartition(".")[0]
    return (head, name[len(head) :]) if head in table else (None, name)


def our_shape(place: Place, shape: Shape) -> Shape:
    """The shape here of a weight that has `shape` in the original."""
    if place.form == TRANSPOSED:
        shape = shape[::-1]
    elif (place.form == CONV and shape[2:] == (1, 1)) or (place.form == COLUMN and shape[1:] == (1,)):
        shape = shape[: 2 if place.form == CONV else 1]
    if place.count == 1:
        return shape
    if not shape or shape[0] % place.count:
        raise CheckpointError(f"{place.name} has shape {shape}, expected a multiple of {place.count} rows.")
    return (shape[0] // place.count, *shape[1:])


def original_shape(place: Place, shape: Shape) -> Shape:
    """The shape in the original of a weight, or of all weights that share one, that has `shape` here."""
    shape = (shape[0] * place.count, *shape[1:]) if place.count > 1 else shape
    if place.form == TRANSPOSED:
        return shape[::-1]
    if place.form == CONV and len(shape) == 2:
        return (*shape, 1, 1)
    return (*shape, 1) if place.form == COLUMN else shape


def to_original(place: Place, parts: list[Tensor]) -> Tensor:
    """One weight of the original from the weights here that share it, in their order."""
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    if place.form == TRANSPOSED:
        return whole.T
    return whole.reshape(original_shape(Place(place.name, form=place.form), tuple(whole.shape)))


@dataclass(frozen=True)
class Mapped:
    """Weights of an original file under our names; each is read, and only then changed, when asked for."""

    source: Tensors
    where: Mapping[str, Place]

    @property
    def path(self) -> Path:
        return self.source.path

    def names(self) -> tuple[str, ...]:
        return tuple(self.where)

    def shape(self, name: str) -> Shape:
        return our_shape(self.where[name], self.source.shape(self.where[name].name))

    def dtype(self, name: str) -> torch.dtype:
        return self.source.dtype(self.where[name].name)

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, in memory of its own."""
        place, shape = self.where[name], self.shape(name)
        tensor = self.source.read(place.name, dtype) if place.count == 1 else _rows(self.source, place, dtype)
        return tensor.T.contiguous() if place.form == TRANSPOSED else tensor.reshape(shape)


def _rows(source: Tensors, place: Place, dtype: torch.dtype | None) -> Tensor:
    """Some rows of a tensor; of a safetensors file no more than these are read."""
    if not isinstance(source, Weights):
        return source.read(place.name, dtype).chunk(place.count)[place.index].clone()
    entry = source.entries[place.name]
    size = (entry.stop - entry.start) // place.count
    start = entry.start + place.index * size
    part = replace(entry, shape=(entry.shape[0] // place.count, *entry.shape[1:]), start=start, stop=start + size)
    return Weights(source.path, {place.name: part}).read(place.name, dtype)
