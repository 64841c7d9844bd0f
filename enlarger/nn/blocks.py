"""Pieces that several networks share; attribute names are the names in the weight files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enlarger.nn.attention import attend


def embedding_table(num_embeddings: int, channels: int) -> nn.Embedding:
    """An embedding whose numbers come from a file: torch's own start costs seconds on the meta device."""
    return nn.Embedding.from_pretrained(torch.empty(num_embeddings, channels), freeze=False)


def sinusoidal_embedding(values: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding of numbers (Vaswani et al. 2017), the cosine half first, longest period 10000.

    `values` is (B,); the result is (B, channels) in float32.
    """
    half = channels // 2
    exponents = torch.arange(half, device=values.device, dtype=torch.float32) * (-math.log(10000) / half)
    angles = values[:, None].float() * exponents.exp()
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def to_tokens(x: Tensor) -> Tensor:
    """View a feature map (B, C, H, W) as a sequence (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def to_feature_map(x: Tensor, like: Tensor) -> Tensor:
    """View a sequence (B, H * W, C) as a feature map with the height and width of `like`."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *like.shape[2:])


class TimestepEmbedding(nn.Module):
    """Two linear layers with SiLU between: (B, inputs) to (B, channels); what `project` makes of a condition
    (B, condition_channels) joins the inputs where there is one."""

    def __init__(self, in_channels: int, channels: int, condition_channels: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, channels)
        self.cond_proj = None if condition_channels is None else nn.Linear(condition_channels, in_channels, bias=False)
        self.linear_2 = nn.Linear(channels, channels)

    def project(self, condition: Tensor | None) -> Tensor | None:
        """What joins the inputs for a condition."""
        return None if condition is None or self.cond_proj is None else self.cond_proj(condition)

    def forward(self, x: Tensor, joined: Tensor | None = None) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x if joined is None else x + joined)))


class KeysValues(NamedTuple):
    """What an attention makes of what it looks at, each (B, S, channels)."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Attention of a sequence (B, L, channels) to itself or to `context`, (B, S, context_channels) or keys, values."""

    def __init__(
        self,
        channels: int,
        heads: int,
        context_channels: int | None = None,
        *,
        bias: bool = False,
        norm_context: bool = False,
    ) -> None:
        super().__init__()
        key_channels = channels if context_channels is None else context_channels
        self.heads, self.is_cross = heads, context_channels is not None
        self.norm_cross = nn.LayerNorm(key_channels) if norm_context else nn.Identity()
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(key_channels, channels, bias=bias)
        self.to_v = nn.Linear(key_channels, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor | KeysValues | None = None, mask: Tensor | None = None) -> Tensor:
        query, keys, values = self.project(x, context)
        return self.to_out[0](attend(query, keys, values, self.heads, mask))

    def project(self, x: Tensor, context: Tensor | KeysValues | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, keys and values."""
        if context is None:
            return self.to_q(x), self.to_k(x), self.to_v(x)
        keys, values = context if isinstance(context, KeysValues) else self.look_at(context)
        return self.to_q(x), keys, values

    def look_at(self, context: Tensor) -> KeysValues:
        """The keys and values of a context, which do not depend on what looks at it."""
        source = self.norm_cross(context)
        return KeysValues(self.to_k(source), self.to_v(source))


@dataclass(frozen=True, eq=False)
class PreparedConditioning:
    """What a UNet makes of its conditioning without having seen a latent, and so once for all steps of a run.

    `joined` joins the sinusoids of the time, `embeddings` the embedding of it, in order; `keys_values` are those of the
    attentions to the tokens.
    """

    tokens: Tensor  # (B, L, context channels)
    attention_mask: Tensor | None = None  # (B, 1, 1, L)
    joined: Tensor | None = None
    embeddings: tuple[Tensor, ...] = ()
    keys_values: Mapping[nn.Module, KeysValues] = field(default_factory=dict[nn.Module, KeysValues])

    def context(self, attention: nn.Module) -> Tensor | KeysValues:
        """What an attention looks at: its keys and values, or the tokens where it is no `Attention` of ours."""
        return self.keys_values.get(attention, self.tokens)


def look_at_tokens(network: nn.Module, tokens: Tensor) -> dict[nn.Module, KeysValues]:
    """The keys and values of every attention to the tokens; what has another `forward` sees the tokens themselves."""
    return {
        part: part.look_at(tokens)
        for part in network.modules()
        if isinstance(part, Attention)
        and part.is_cross
        and type(part).forward is Attention.forward
        and "forward" not in vars(part)
    }


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut; the time embedding (B, time_channels) joins between them.

    `time` comes in already through its SiLU, which all blocks of a network share.
    """

    def __init__(
        self, in_channels: int, channels: int, *, groups: int, eps: float, time_channels: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.time_emb_proj = None if time_channels is None else nn.Linear(time_channels, channels)
        self.norm2 = nn.GroupNorm(groups, channels, eps=eps)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2; the autoencoder pads right and bottom only, the UNet on all sides."""

    def __init__(self, channels: int, *, one_sided: bool = False) -> None:
        super().__init__()
        self.one_sided = one_sided
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if one_sided else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.one_sided else x)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement to `size` (twice the size when None), then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        size = (2 * x.shape[2], 2 * x.shape[3]) if size is None else size
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
