"""CLIP's text encoder (ViT-L, ViT-H and bigG are configurations), under transformers' parameter names."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enlarger.errors import InputError
from enlarger.nn.attention import attend
from enlarger.nn.blocks import table


@dataclass(frozen=True)
class ClipTextConfig:
    """Widths of a CLIP text encoder."""

    width: int
    layers: int
    heads: int
    inner: int
    activation: Literal["quick_gelu", "gelu"]
    vocabulary: int = 49408
    positions: int = 77
    projection: int | None = None  # width of `text_projection`; None: the file has none
    end_token: int | None = None  # None: the end is where the largest id is (files that say eos_token_id 2)


@dataclass(frozen=True)
class ClipFeatures:
    """What the encoder makes of (B, L) ids."""

    states: tuple[Tensor, ...]  # layers + 1 times (B, L, width): the embeddings, then each layer, none normalised
    last: Tensor  # (B, L, width): the last state after the final LayerNorm
    pooled: Tensor  # (B, width): `last` at the end token
    projected: Tensor | None  # (B, projection): `pooled` through the text projection, where the file has one


class Embeddings(nn.Module):
    """The sum of token and position embeddings."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.token_embedding = table(config.vocabulary, config.width)
        self.position_embedding = table(config.positions, config.width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1], device=ids.device))


class SelfAttention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(config.width, config.width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=True))


class FeedForward(nn.Module):
    """Two linear layers; quick_gelu is x * sigmoid(1.702 x)."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.quick = config.activation == "quick_gelu"
        self.fc1 = nn.Linear(config.width, config.inner)
        self.fc2 = nn.Linear(config.inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.width)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The layers; the result is every state on the way, the input first."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return tuple(states)


class ClipText(nn.Module):
    """CLIP's text transformer (Radford et al. 2021); only the causal mask hides anything, padding is attended to."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.width)
        if config.projection is not None:
            self.text_projection = nn.Linear(config.width, config.projection, bias=False)

    def forward(self, ids: Tensor) -> ClipFeatures:
        """Encode token ids (B, L), L at most `positions`."""
        if ids.shape[1] > self.config.positions:
            raise InputError(
                f"the text encoder got {ids.shape[1]} tokens and has {self.config.positions} positions; "
                "truncate the prompt or encode it in chunks"
            )
        states = self.encoder(self.embeddings(ids))
        last = self.final_layer_norm(states[-1])
        pooled = last[torch.arange(len(ids), device=ids.device), self._ends(ids)]
        projected = None if self.config.projection is None else self.text_projection(pooled)
        return ClipFeatures(states, last, pooled, projected)

    def _ends(self, ids: Tensor) -> Tensor:
        """Where each text ends (B,): the first of the largest ids, or the first end token."""
        end = self.config.end_token
        return (ids if end is None else (ids == end).int()).argmax(dim=-1)
