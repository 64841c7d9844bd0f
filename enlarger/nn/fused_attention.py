"""Attention whose query, key and value come from one product: fewer, larger multiplications, the same numbers."""

from typing import Any

import torch
from torch import Tensor, nn

from enlarger.nn.attention import attend
from enlarger.nn.blocks import Attention

ATTRIBUTE = "fused_projections"


class FusedAttention(Attention):
    """`Attention` with the weights of its projections joined; they stay under their own names too."""

    fused_projections: tuple[Tensor, Tensor | None]

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        weight, bias = (None if part is None else part.to(x) for part in self.fused_projections)
        assert weight is not None
        if context is None:
            query, key, value = nn.functional.linear(x, weight, bias).chunk(3, -1)
        else:
            both = 2 * self.to_k.out_features
            query = self.to_q(x)
            joined = nn.functional.linear(
                self.norm_cross(context), weight[-both:], None if bias is None else bias[-both:]
            )
            key, value = joined.chunk(2, -1)
        return self.to_out[0](attend(query, key, value, self.heads, mask))


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
