"""Attention whose query, key and value come from one product: fewer, larger multiplications, the same numbers."""

from typing import Any

import torch
from torch import Tensor, nn

from enlarger.nn.blocks import Attention, KeysValues

ATTRIBUTE = "fused_projections"


class FusedAttention(Attention):
    """`Attention` with the weights of its projections joined; they stay under their own names too."""

    fused_projections: tuple[Tensor, Tensor | None]

    def project(self, x: Tensor, context: Tensor | KeysValues | None) -> tuple[Tensor, Tensor, Tensor]:
        if context is not None:
            return super().project(x, context)
        weight, bias = self._weights_for(x)
        query, keys, values = nn.functional.linear(x, weight, bias).chunk(3, -1)
        return query, keys, values

    def look_at(self, context: Tensor) -> KeysValues:
        weight, bias = self._weights_for(context)
        both = 2 * self.to_k.out_features
        joined = nn.functional.linear(self.norm_cross(context), weight[-both:], None if bias is None else bias[-both:])
        keys, values = joined.chunk(2, -1)
        return KeysValues(keys, values)

    def _weights_for(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.fused_projections
        return weight.to(x), None if bias is None else bias.to(x)


def fuse(network: nn.Module) -> None:
    """Join the projections of every attention of a network: all three where it looks at itself, else key and value."""
    for part in network.modules():
        if type(part) is Attention:
            same = part.to_q.in_features == part.to_k.in_features
            projections = [*([part.to_q] if same else []), part.to_k, part.to_v]
            biases: list[Any] = [one.bias for one in projections]
            bias = None if biases[0] is None else torch.cat(biases).detach()
            part.__dict__[ATTRIBUTE] = torch.cat([one.weight for one in projections]).detach(), bias
            part.__class__ = FusedAttention


def unfuse(network: nn.Module) -> None:
    """Undo `fuse`."""
    for part in network.modules():
        if isinstance(part, FusedAttention):
            del part.__dict__[ATTRIBUTE]
            part.__class__ = Attention  # pyright: ignore[reportAttributeAccessIssue] - it was one
