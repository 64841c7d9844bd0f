"""Changes of one weight, in the forms that trainers store (Yeh et al. 2023, LyCORIS; Liu et al. 2024, DoRA)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

Shape = tuple[int, ...]


class WeightDelta(Protocol):
    """What an adapter adds to a weight at scale 1."""

    def fits(self, shape: Shape) -> bool:
        """Whether it changes weights of this shape."""
        ...

    def delta(self, weight: Tensor) -> Tensor:
        """The change of a weight, in its shape, type and place; the weight stays as it is."""
        ...


@dataclass(frozen=True, eq=False)
class LoraDelta:
    """`scale * up @ down` (Hu et al. 2021); a convolution's is taken over all places of its kernel."""

    down: Tensor  # (rank, in) or (rank, in, h, w)
    up: Tensor  # (out, rank) or (out, rank, 1, 1)
    scale: float  # alpha / rank

    def fits(self, shape: Shape) -> bool:
        """A linear layer and a 1x1 convolution fit each other."""
        rank, rows, columns = self.down.shape[0], shape[:1], _squeeze_kernel(shape[1:])
        return _squeeze_kernel(self.up.shape) == (*rows, rank) and _squeeze_kernel(self.down.shape[1:]) == columns

    def delta(self, weight: Tensor) -> Tensor:
        up, down = (factor.flatten(1).to(weight) for factor in (self.up, self.down))
        return self.scale * (up @ down).view_as(weight)


@dataclass(frozen=True, eq=False)
class HadamardDelta:
    """LoHa: the product, element by element, of two products of low rank; `cores` are those of a Tucker form."""

    first: tuple[Tensor, Tensor]  # (out, rank), (rank, in * h * w); with a core (rank, out), (rank, in)
    second: tuple[Tensor, Tensor]
    scale: float  # alpha / rank
    cores: tuple[Tensor | None, Tensor | None] = (None, None)  # (rank, rank, h, w)

    def fits(self, shape: Shape) -> bool:
        return _fits_by_shape(self, shape)

    def delta(self, weight: Tensor) -> Tensor:
        pairs = zip((self.first, self.second), self.cores, strict=True)
        first, second = (_low_rank(weight, *pair, core) for pair, core in pairs)
        return self.scale * (first * second).reshape(weight.shape)


@dataclass(frozen=True, eq=False)
class KroneckerDelta:
    """LoKr: the Kronecker product of two factors, each whole or of low rank."""

    left: tuple[Tensor, ...]  # one matrix, or two whose product it is
    right: tuple[Tensor, ...]
    scale: float  # alpha / rank, 1 where neither is of low rank
    core: Tensor | None = None  # of the right factor's Tucker form, (rank, rank, h, w)

    def fits(self, shape: Shape) -> bool:
        return _fits_by_shape(self, shape)

    def delta(self, weight: Tensor) -> Tensor:
        left, right = (
            factor[0].to(weight) if len(factor) == 1 else _low_rank(weight, factor[0], factor[1], core)
            for factor, core in ((self.left, None), (self.right, self.core))
        )
        left = left.reshape(*left.shape, *[1] * (right.dim() - left.dim()))
        return self.scale * torch.kron(left, right.contiguous()).reshape(weight.shape)


@dataclass(frozen=True, eq=False)
class RescalingDelta:
    """(IA)3 (Liu et al. 2022): every row, or with `on_input` every column, is multiplied by one number more."""

    factors: Tensor
    on_input: bool

    def fits(self, shape: Shape) -> bool:
        return len(shape) > 1 and self.factors.numel() == shape[int(self.on_input)]

    def delta(self, weight: Tensor) -> Tensor:
        places = [1] * weight.dim()
        places[int(self.on_input)] = -1
        return weight * self.factors.to(weight).reshape(places)


@dataclass(frozen=True, eq=False)
class FullDelta:
    """The whole difference, of a layer's weight, its bias, or a normalisation's."""

    difference: Tensor

    def fits(self, shape: Shape) -> bool:
        return _squeeze_kernel(self.difference.shape) == _squeeze_kernel(shape)

    def delta(self, weight: Tensor) -> Tensor:
        return self.difference.to(weight).reshape(weight.shape)


@dataclass(frozen=True, eq=False)
class DoraDelta:
    """DoRA: the changed weight's rows, or columns, are brought to lengths that were learned."""

    change: WeightDelta
    lengths: Tensor
    by_rows: bool

    def fits(self, shape: Shape) -> bool:
        return len(shape) > 1 and self.lengths.numel() == shape[int(not self.by_rows)] and self.change.fits(shape)

    def delta(self, weight: Tensor) -> Tensor:
        changed = weight + self.change.delta(weight)
        lines = changed if self.by_rows else changed.transpose(0, 1)
        norms = lines.flatten(1).square().sum(1).sqrt().clamp_min(torch.finfo(weight.dtype).tiny)
        places = [1] * weight.dim()
        places[int(not self.by_rows)] = -1
        return changed * (self.lengths.to(weight).flatten() / norms).reshape(places) - weight


def _low_rank(like: Tensor, a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """A product of low rank, or that around a core for each place of a kernel."""
    a, b = a.to(like), b.to(like)
    return a @ b.flatten(1) if core is None else torch.einsum("ijkl,jr,ip->prkl", core.to(like), b, a)


def _fits_by_shape(delta: WeightDelta, shape: Shape) -> bool:
    """Whether the factors give a weight of this shape, tried without any memory."""
    tensors = {item.name: _without_memory(getattr(delta, item.name)) for item in fields(cast("Any", delta))}
    try:
        return replace(cast("Any", delta), **tensors).delta(torch.empty(shape, device="meta")).shape == shape
    except (RuntimeError, ValueError, IndexError):
        return False


def _without_memory(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_without_memory(each) for each in cast("tuple[Any, ...]", value))
    return value.to("meta") if isinstance(value, Tensor) else value


def _squeeze_kernel(shape: Sequence[int]) -> Shape:
    """A shape without the kernel of a 1x1 convolution."""
    return tuple(shape[:-2] if len(shape) > 2 and tuple(shape[-2:]) == (1, 1) else shape)
