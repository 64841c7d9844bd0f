"""What a network gets besides the noisy latent."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The ways into a network, each (B, ...) or None.

    `tokens` (B, L, D) are attended to, `mask` (B, L) is True where they may be; `vector` (B, D) or `label` (B,) joins
    the time embedding; `concat` (B, C, H, W) joins the latent's channels after input scaling.
    """

    tokens: Tensor | None = None
    mask: Tensor | None = None
    vector: Tensor | None = None
    label: Tensor | None = None
    concat: Tensor | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of the network; floating tensors still in the precision they came in."""
        return {f.name: v for f in fields(self) if f.name != "concat" and (v := getattr(self, f.name)) is not None}

    def join(self, x: Tensor) -> Tensor:
        """The latent with the extra channels behind its own."""
        return x if self.concat is None else torch.cat([x, self.concat.to(x)], 1)

    def cast(self, device: torch.device | str, dtype: torch.dtype) -> "Conditioning":
        """The same on another device, floating tensors in another precision."""
        values: dict[str, Tensor | None] = {f.name: getattr(self, f.name) for f in fields(self)}
        return Conditioning(
            **{
                n: v if v is None else v.to(device, dtype if v.is_floating_point() else v.dtype)
                for n, v in values.items()
            }
        )


def is_equal(a: Conditioning, b: Conditioning) -> bool:
    """Whether a network is told the same by both."""
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(Conditioning)]
    return all(one is other or (one is not None and other is not None and one.equal(other)) for one, other in pairs)


def stack_branches(unconditional: Conditioning, conditional: Conditioning) -> Conditioning:
    """Two conditionings one behind the other along the batch: the unconditional branch, then the conditional one."""

    def concatenate(name: str) -> Tensor | None:
        a, b = getattr(unconditional, name), getattr(conditional, name)
        assert (a is None) == (b is None), f"one branch of the guidance has {name}, the other has not"
        return None if a is None else torch.cat([a, b])

    return Conditioning(**{f.name: concatenate(f.name) for f in fields(Conditioning)})
