"""How a weight of one layout becomes one or more of another: renamed, split, reshaped, transposed, and back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from enlarger.checkpoint.tensors.open import LazyTensors
from enlarger.checkpoint.tensors.safetensors_file import SafetensorsCheckpoint
from enlarger.errors import CheckpointError

Shape = tuple[int, ...]
Transform = Literal["same", "conv", "column", "transposed"]
IDENTITY: Transform = "same"
SQUEEZE_CONV: Transform = "conv"  # theirs is a 1x1 convolution (out, in, 1, 1), ours a linear layer (out, in)
SQUEEZE_COLUMN: Transform = "column"  # theirs is (n, 1), ours (n,)
TRANSPOSE: Transform = "transposed"


@dataclass(frozen=True)
class KeyRule:
    """What a module or weight of the original is called here; several names share its rows in equal parts."""

    targets: tuple[str, ...]
    transform: Transform = IDENTITY


KeyRules = dict[str, KeyRule]
"""Rules by the original's names, of weights or of the modules that hold them; the longest that fits decides."""


def rename_rules(pairs: Mapping[str, str]) -> KeyRules:
    """Rules that only rename."""
    return {original: KeyRule((diffusers,)) for original, diffusers in pairs.items()}


@dataclass(frozen=True)
class KeySource:
    """Where one of our weights lies: part `chunk` of `num_chunks` of the rows of the original's weight `key`."""

    key: str
    chunk: int = 0
    num_chunks: int = 1
    transform: Transform = IDENTITY


def key_sources(key_rules: KeyRules, name: str) -> Iterator[tuple[str, KeySource]]:
    """Our weights that lie in the original's weight `name`; none where no rule fits."""
    prefix, suffix = _longest_prefix(key_rules, name)
    if prefix is None:
        return
    rule = key_rules[prefix]
    for index, target in enumerate(rule.targets):
        yield target + suffix, KeySource(name, index, len(rule.targets), rule.transform)


def invert_rules(key_rules: KeyRules) -> dict[str, KeySource]:
    """The inverse of a table: where each of our modules or weights goes; of several spellings to the first."""
    sources: dict[str, KeySource] = {}
    for original, rule in key_rules.items():
        for index, target in enumerate(rule.targets):
            sources.setdefault(target, KeySource(original, index, len(rule.targets), rule.transform))
    return sources


def find_source(sources: Mapping[str, KeySource], name: str) -> KeySource | None:
    """Where our weight `name` goes."""
    prefix, suffix = _longest_prefix(sources, name)
    if prefix is None:
        return None
    source = sources[prefix]
    return KeySource(source.key + suffix, source.chunk, source.num_chunks, source.transform)


def _longest_prefix(table: Mapping[str, object], name: str) -> tuple[str | None, str]:
    """The longest beginning of a name, cut at a dot, that is in the table; and what follows it."""
    prefix = name
    while prefix and prefix not in table:
        prefix = prefix.rpartition(".")[0]
    return (prefix, name[len(prefix) :]) if prefix in table else (None, name)


def diffusers_shape(source: KeySource, shape: Shape) -> Shape:
    """The shape here of a weight that has `shape` in the original."""
    if source.transform == TRANSPOSE:
        shape = shape[::-1]
    elif (source.transform == SQUEEZE_CONV and shape[2:] == (1, 1)) or (
        source.transform == SQUEEZE_COLUMN and shape[1:] == (1,)
    ):
        shape = shape[: 2 if source.transform == SQUEEZE_CONV else 1]
    if source.num_chunks == 1:
        return shape
    if not shape or shape[0] % source.num_chunks:
        raise CheckpointError(f"{source.key} has shape {shape}, expected a multiple of {source.num_chunks} rows.")
    return (shape[0] // source.num_chunks, *shape[1:])


def original_shape(source: KeySource, shape: Shape) -> Shape:
    """The shape in the original of a weight, or of all weights that share one, that has `shape` here."""
    shape = (shape[0] * source.num_chunks, *shape[1:]) if source.num_chunks > 1 else shape
    if source.transform == TRANSPOSE:
        return shape[::-1]
    if source.transform == SQUEEZE_CONV and len(shape) == 2:
        return (*shape, 1, 1)
    return (*shape, 1) if source.transform == SQUEEZE_COLUMN else shape


def merge_to_original(source: KeySource, parts: list[Tensor]) -> Tensor:
    """One weight of the original from the weights here that share it, in their order."""
    merged = parts[0] if len(parts) == 1 else torch.cat(parts)
    if source.transform == TRANSPOSE:
        return merged.T
    return merged.reshape(original_shape(KeySource(source.key, transform=source.transform), tuple(merged.shape)))


@dataclass(frozen=True)
class RemappedTensors:
    """Weights of an original file under our names; each is read, and only then changed, when asked for."""

    original: LazyTensors
    key_sources: Mapping[str, KeySource]

    @property
    def path(self) -> Path:
        return self.original.path

    def keys(self) -> tuple[str, ...]:
        return tuple(self.key_sources)

    def shape(self, name: str) -> Shape:
        return diffusers_shape(self.key_sources[name], self.original.shape(self.key_sources[name].key))

    def dtype(self, name: str) -> torch.dtype:
        return self.original.dtype(self.key_sources[name].key)

    def get_tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, where the original's lies unless it has to be turned around."""
        source, shape = self.key_sources[name], self.shape(name)
        tensor = (
            self.original.get_tensor(source.key, dtype)
            if source.num_chunks == 1
            else _read_chunk(self.original, source, dtype)
        )
        return tensor.T.contiguous() if source.transform == TRANSPOSE else tensor.reshape(shape)


def _read_chunk(tensors: LazyTensors, key_source: KeySource, dtype: torch.dtype | None) -> Tensor:
    """Some rows of a tensor; of a safetensors file no more than these are read."""
    if not isinstance(tensors, SafetensorsCheckpoint):
        return tensors.get_tensor(key_source.key, dtype).chunk(key_source.num_chunks)[key_source.chunk].clone()
    info = tensors.tensor_infos[key_source.key]
    size = (info.end - info.start) // key_source.num_chunks
    start = info.start + key_source.chunk * size
    chunk_info = replace(
        info, shape=(info.shape[0] // key_source.num_chunks, *info.shape[1:]), start=start, end=start + size
    )
    return replace(tensors, tensor_infos={key_source.key: chunk_info}).get_tensor(key_source.key, dtype)
