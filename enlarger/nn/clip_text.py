"""CLIP's text encoder (ViT-L, ViT-H and bigG are configurations), under transformers' parameter names."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enlarger.errors import InputError
from enlarger.nn.attention import attend
from enlarger.nn.blocks import embedding_table


@dataclass(frozen=True)
class ClipTextConfig:
    """Widths of a CLIP text encoder."""

    width: int
    layers: int
    heads: int
    intermediate_size: int
    activation: Literal["quick_gelu", "gelu"]
    vocab_size: int = 49408
    max_positions: int = 77
    projection_dim: int | None = None  # width of `text_projection`; None: the file has none
    eos_token_id: int | None = None  # None: the end is where the largest id is (files that say eos_token_id 2)


@dataclass(frozen=True)
class ClipTextOutput:
    """What the encoder makes of (B, L) ids."""

    hidden_states: tuple[Tensor, ...]  # layers + 1 times (B, L, width): embeddings, then each layer, unnormalised
    last_hidden_state: Tensor  # (B, L, width): the last state after the final LayerNorm
    pooler_output: Tensor  # (B, width): `last_hidden_state` at the end token
    text_embeds: Tensor | None  # (B, projection): `pooler_output` through the text projection, where the file has one


class TransformerConfig(Protocol):
    """Widths of a transformer, of text or of pictures."""

    @property
    def width(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def activation(self) -> Literal["quick_gelu", "gelu"]: ...


class Embeddings(nn.Module):
    """The sum of token and position embeddings."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.token_embedding = embedding_table(config.vocab_size, config.width)
        self.position_embedding = embedding_table(config.max_positions, config.width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1], device=ids.device))


class SelfAttention(nn.Module):
    """Self-attention; a causal one hides later positions."""

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = config.heads, causal
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(config.width, config.width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=self.causal))


class FeedForward(nn.Module):
    """Two linear layers; quick_gelu is x * sigmoid(1.702 x)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.quick_gelu = config.activation == "quick_gelu"
        self.fc1 = nn.Linear(config.width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick_gelu else F.gelu(x))


class EncoderLayer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.self_attn = SelfAttention(config, causal=causal)
        self.layer_norm2 = nn.LayerNorm(config.width)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The layers; the result is every state on the way, the input first."""

    def __init__(self, config: TransformerConfig, *, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config, causal=causal) for _ in range(config.layers))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        hidden_states = [x]
        for layer in self.layers:
            hidden_states.append(layer(hidden_states[-1]))
        return tuple(hidden_states)


class ClipText(nn.Module):
    """CLIP's text transformer (Radford et al. 2021); only the causal mask hides anything, padding is attended to."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config, causal=True)
        self.final_layer_norm = nn.LayerNorm(config.width)
        if config.projection_dim is not None:
            self.text_projection = nn.Linear(config.width, config.projection_dim, bias=False)

    def forward(self, ids: Tensor) -> ClipTextOutput:
        """Encode token ids (B, L), L at most `max_positions`."""
        if ids.shape[1] > self.config.max_positions:
            raise InputError(
                f"the text encoder got {ids.shape[1]} tokens and has {self.config.max_positions} positions; "
                "truncate the prompt or encode it in chunks"
            )
        hidden_states = self.encoder(self.embeddings(ids))
        last_hidden_state = self.final_layer_norm(hidden_states[-1])
        pooler_output = last_hidden_state[torch.arange(len(ids), device=ids.device), self._eos_positions(ids)]
        text_embeds = None if self.config.projection_dim is None else self.text_projection(pooler_output)
        return ClipTextOutput(hidden_states, last_hidden_state, pooler_output, text_embeds)

    def _eos_positions(self, ids: Tensor) -> Tensor:
        """Where each text ends (B,): the first of the largest ids, or the first end token."""
        eos_token_id = self.config.eos_token_id
        return (ids if eos_token_id is None else (ids == eos_token_id).int()).argmax(dim=-1)
