"""The UNet of Stable Diffusion 1, 2, x4, SDXL and its refiner, under diffusers' parameter names."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enlarger.errors import InputError
from enlarger.nn.blocks import (
    Attention,
    Downsample,
    ResnetBlock,
    TimeEmbedding,
    Upsample,
    sinusoid,
    table,
    to_map,
    to_tokens,
)

EPS = 1e-5


@dataclass(frozen=True)
class Stage:
    """One resolution of the UNet: `layers` residual blocks going down, one more going up."""

    channels: int
    layers: int
    depth: int = 0  # transformer blocks per layer; 0: no attention
    heads: int = 8
    cross_only: bool = False  # the first attention of each block also looks at the tokens


@dataclass(frozen=True)
class UNetConfig:
    """Widths of a UNet; the stages run from the highest resolution to the lowest."""

    in_channels: int
    out_channels: int
    stages: tuple[Stage, ...]
    mid_depth: int
    mid_heads: int
    context_channels: int
    linear_projection: bool
    vector_channels: int | None = None  # input of SDXL's `add_embedding`
    scalar_channels: int | None = None  # sinusoid per SDXL size; the caller embeds
    labels: int | None = None  # rows of the x4 upscaler's class embedding
    upcast_attention: bool = False  # kept for saving; the fused product ignores it
    groups: int = 32


@dataclass(frozen=True)
class Inputs:
    """What every block may look at."""

    time: Tensor  # (B, time channels), after SiLU
    tokens: Tensor  # (B, L, context channels)
    bias: Tensor | None  # (B, 1, 1, L), True where a token may be attended to


class GatedGelu(nn.Module):
    """Linear to twice the width, one half gated by the exact GELU of the other (Shazeer 2020, GEGLU)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated expansion to four times the width and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GatedGelu(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )  # the weights are numbered 0 and 2

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention (or, `cross_only`, attention to the tokens), attention to the tokens, feed-forward."""

    def __init__(self, channels: int, heads: int, context_channels: int, *, cross_only: bool) -> None:
        super().__init__()
        self.cross_only = cross_only
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, context_channels if cross_only else None)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, inputs: Inputs) -> Tensor:
        seen = (inputs.tokens, inputs.bias)
        x = x + self.attn1(self.norm1(x), *(seen if self.cross_only else ()))
        x = x + self.attn2(self.norm2(x), *seen)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """Transformer blocks over the pixels, between two projections, beside a shortcut."""

    def __init__(self, config: UNetConfig, channels: int, depth: int, heads: int, *, cross_only: bool = False) -> None:
        super().__init__()
        self.linear = config.linear_projection
        self.norm = nn.GroupNorm(config.groups, channels, eps=1e-6)
        self.proj_in, self.proj_out = (
            nn.Linear(channels, channels) if self.linear else nn.Conv2d(channels, channels, 1) for _ in range(2)
        )
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, config.context_channels, cross_only=cross_only) for _ in range(depth)
        )

    def forward(self, x: Tensor, inputs: Inputs) -> Tensor:
        h = self.norm(x)
        h = self.proj_in(to_tokens(h)) if self.linear else to_tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, inputs)
        return x + (to_map(self.proj_out(h), x) if self.linear else self.proj_out(to_map(h, x)))


def _resnets(config: UNetConfig, inputs: Iterable[int], channels: int) -> nn.ModuleList:
    time_channels = 4 * config.stages[0].channels
    return nn.ModuleList(
        ResnetBlock(width, channels, groups=config.groups, eps=EPS, time_channels=time_channels) for width in inputs
    )


def _transformers(config: UNetConfig, stage: Stage, count: int) -> nn.ModuleList:
    return nn.ModuleList(
        Transformer(config, stage.channels, stage.depth, stage.heads, cross_only=stage.cross_only)
        for _ in range(count if stage.depth else 0)
    )


class DownBlock(nn.Module):
    """One stage going down: each layer's result is kept for the way up, and so is the halved one."""

    def __init__(self, config: UNetConfig, stage: Stage, inputs: int, *, last: bool) -> None:
        super().__init__()
        self.resnets = _resnets(config, [inputs] + [stage.channels] * (stage.layers - 1), stage.channels)
        self.attentions = _transformers(config, stage, stage.layers)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(stage.channels)])

    def forward(self, x: Tensor, inputs: Inputs) -> list[Tensor]:
        """All results in order; the last is the next stage's input."""
        kept: list[Tensor] = []
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(x, inputs.time)
            x = x if attention is None else attention(x, inputs)
            kept.append(x)
        return kept + [halve(x) for halve in self.downsamplers]


class MidBlock(nn.Module):
    """A transformer between two residual blocks."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels = config.stages[-1].channels
        self.resnets = _resnets(config, [channels] * 2, channels)
        self.attentions = nn.ModuleList([Transformer(config, channels, config.mid_depth, config.mid_heads)])

    def forward(self, x: Tensor, inputs: Inputs) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, inputs.time), inputs)
        return self.resnets[1](x, inputs.time)


class UpBlock(nn.Module):
    """One stage going up: each layer joins one kept result; `inputs` are the layers' joined widths."""

    def __init__(self, config: UNetConfig, stage: Stage, inputs: Sequence[int], *, last: bool) -> None:
        super().__init__()
        self.resnets = _resnets(config, inputs, stage.channels)
        self.attentions = _transformers(config, stage, len(inputs))
        self.upsamplers = nn.ModuleList([] if last else [Upsample(stage.channels)])

    def forward(self, x: Tensor, kept: list[Tensor], inputs: Inputs) -> Tensor:
        """Consume the end of `kept`; the result has the size of what is then its last."""
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(torch.cat((x, kept.pop()), dim=1), inputs.time)
            x = x if attention is None else attention(x, inputs)
        for double in self.upsamplers:
            x = double(x, kept[-1].shape[2:])
        return x


class UNet(nn.Module):
    """The UNet of latent diffusion (Rombach et al. 2022; SDXL: Podell et al. 2023)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        first = config.stages[0].channels
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.time_embedding = TimeEmbedding(first, 4 * first)
        if config.labels is not None:
            self.class_embedding = table(config.labels, 4 * first)
        if config.vector_channels is not None:
            self.add_embedding = TimeEmbedding(config.vector_channels, 4 * first)
        self.down_blocks = self._down()
        self.mid_block = MidBlock(config)
        self.up_blocks = self._up()
        self.conv_norm_out = nn.GroupNorm(config.groups, first, eps=EPS)
        self.conv_out = nn.Conv2d(first, config.out_channels, 3, padding=1)

    def _down(self) -> nn.ModuleList:
        stages = self.config.stages
        widths = [stages[0].channels, *(stage.channels for stage in stages)]
        return nn.ModuleList(
            DownBlock(self.config, stage, width, last=stage_index == len(stages) - 1)
            for stage_index, (stage, width) in enumerate(zip(stages, widths, strict=False))
        )

    def _up(self) -> nn.ModuleList:
        stages = self.config.stages
        kept = [stages[0].channels]  # widths of what the way down keeps, as forward does
        for index, stage in enumerate(stages):
            kept += [stage.channels] * (stage.layers + (index < len(stages) - 1))
        blocks, x = nn.ModuleList(), stages[-1].channels
        for index, stage in reversed(list(enumerate(stages))):
            widths = [x, *[stage.channels] * stage.layers]
            blocks.append(UpBlock(self.config, stage, [width + kept.pop() for width in widths], last=index == 0))
            x = stage.channels
        return blocks

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        tokens: Tensor,
        vector: Tensor | None = None,
        label: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Run the network once: `x` (B, in, H, W) to (B, out, H, W), all raw; any height and width.

        `time` (B,) is the training step, possibly fractional; `tokens` (B, L, context_channels); `vector`
        (B, vector_channels); `label` (B,) whole numbers; `mask` (B, L) is True where a token may be attended to.
        """
        embedding = self._embed(time, vector, label, x)
        inputs = Inputs(F.silu(embedding), tokens, None if mask is None else mask[:, None, None])
        x = self.conv_in(x)
        kept = [x]
        for block in self.down_blocks:
            kept += block(kept[-1], inputs)
        x = self.mid_block(kept[-1], inputs)
        for block in self.up_blocks:
            x = block(x, kept, inputs)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def _embed(self, time: Tensor, vector: Tensor | None, label: Tensor | None, x: Tensor) -> Tensor:
        """The sum of the embeddings of time, label and vector: (B, 4 * first stage's channels)."""
        self._check("vector", vector, "vector_channels", self.config.vector_channels)
        self._check("label", label, "labels", self.config.labels)
        embedding = self.time_embedding(sinusoid(time, self.config.stages[0].channels).to(x.dtype))
        if label is not None:
            embedding = embedding + self.class_embedding(label)
        if vector is not None:
            embedding = embedding + self.add_embedding(vector)
        return embedding

    @staticmethod
    def _check(name: str, given: Tensor | None, field: str, built: int | None) -> None:
        """Refuse an input that the weights do not have, and the lack of one that they need."""
        if (given is None) != (built is None):
            raise InputError(
                f"this UNet got {'no' if given is None else 'a'} `{name}` and was built with {field}={built}; "
                f"pass `{name}` exactly when {field} is not None"
            )
