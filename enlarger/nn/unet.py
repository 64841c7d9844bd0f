"""The UNet of Stable Diffusion 1, 2, x4, SDXL and its refiner, under diffusers' parameter names."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enlarger.errors import InputError
from enlarger.nn.blocks import (
    Attention,
    Downsample,
    PreparedConditioning,
    ResnetBlock,
    TimestepEmbedding,
    Upsample,
    embedding_table,
    look_at_tokens,
    sinusoidal_embedding,
    to_feature_map,
    to_tokens,
)

EPS = 1e-5


@dataclass(frozen=True)
class Stage:
    """One resolution of the UNet: `layers` residual blocks going down, one more going up."""

    channels: int
    layers: int
    transformer_depth: int = 0  # transformer blocks per layer; 0: no attention
    heads: int = 8
    only_cross_attention: bool = False  # the first attention of each block also looks at the tokens


@dataclass(frozen=True)
class UNetConfig:
    """Widths of a UNet; the stages run from the highest resolution to the lowest."""

    in_channels: int
    out_channels: int
    stages: tuple[Stage, ...]
    mid_transformer_depth: int
    mid_heads: int
    context_channels: int
    linear_projection: bool
    vector_channels: int | None = None  # input of SDXL's `add_embedding`
    time_id_channels: int | None = None  # sinusoid per SDXL size; the caller embeds
    num_class_embeds: int | None = None  # rows of the x4 upscaler's class embedding
    upcast_attention: bool = False  # only for saving; the fused product ignores it
    groups: int = 32
    guidance_channels: int | None = None  # of the embedded guidance scale that distilled networks are told


@dataclass(frozen=True)
class BlockInputs:
    """What every block may look at."""

    time: Tensor  # (B, time channels), after SiLU
    conditioning: PreparedConditioning


class GEGLU(nn.Module):
    """Linear to twice the width, one half gated by the exact GELU of the other (Shazeer 2020, GEGLU)."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden_channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated expansion to four times the width and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )  # the weights are numbered 0 and 2

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention (or, `cross_only`, attention to the tokens), attention to the tokens, feed-forward."""

    def __init__(self, channels: int, heads: int, context_channels: int, *, only_cross_attention: bool) -> None:
        super().__init__()
        self.only_cross_attention = only_cross_attention
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, context_channels if only_cross_attention else None)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        told = inputs.conditioning
        if self.only_cross_attention:
            x = x + self.attn1(self.norm1(x), told.context(self.attn1), told.attention_mask)
        else:
            x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), told.context(self.attn2), told.attention_mask)
        return x + self.ff(self.norm3(x))


class Transformer2D(nn.Module):
    """Transformer blocks over the pixels, between two projections, beside a shortcut."""

    def __init__(
        self, config: UNetConfig, channels: int, depth: int, heads: int, *, only_cross_attention: bool = False
    ) -> None:
        super().__init__()
        self.linear_projection = config.linear_projection
        self.norm = nn.GroupNorm(config.groups, channels, eps=1e-6)
        self.proj_in, self.proj_out = (
            nn.Linear(channels, channels) if self.linear_projection else nn.Conv2d(channels, channels, 1)
            for _ in range(2)
        )
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, config.context_channels, only_cross_attention=only_cross_attention)
            for _ in range(depth)
        )

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        h = self.norm(x)
        h = self.proj_in(to_tokens(h)) if self.linear_projection else to_tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, inputs)
        return x + (
            to_feature_map(self.proj_out(h), x) if self.linear_projection else self.proj_out(to_feature_map(h, x))
        )


def _make_resnets(config: UNetConfig, in_channels: Iterable[int], channels: int) -> nn.ModuleList:
    time_channels = 4 * config.stages[0].channels
    return nn.ModuleList(
        ResnetBlock(width, channels, groups=config.groups, eps=EPS, time_channels=time_channels)
        for width in in_channels
    )


def _make_transformers(config: UNetConfig, stage: Stage, count: int) -> nn.ModuleList:
    return nn.ModuleList(
        Transformer2D(
            config,
            stage.channels,
            stage.transformer_depth,
            stage.heads,
            only_cross_attention=stage.only_cross_attention,
        )
        for _ in range(count if stage.transformer_depth else 0)
    )


class DownBlock(nn.Module):
    """One stage going down: each layer's result is a skip connection of the way up, and so is the halved one."""

    def __init__(self, config: UNetConfig, stage: Stage, in_channels: int, *, last: bool) -> None:
        super().__init__()
        self.resnets = _make_resnets(config, [in_channels] + [stage.channels] * (stage.layers - 1), stage.channels)
        self.attentions = _make_transformers(config, stage, stage.layers)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(stage.channels)])

    def forward(self, x: Tensor, inputs: BlockInputs) -> list[Tensor]:
        """All results in order; the last is the next stage's input."""
        skips: list[Tensor] = []
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(x, inputs.time)
            x = x if attention is None else attention(x, inputs)
            skips.append(x)
        return skips + [downsampler(x) for downsampler in self.downsamplers]


class MidBlock(nn.Module):
    """A transformer between two residual blocks."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels = config.stages[-1].channels
        self.resnets = _make_resnets(config, [channels] * 2, channels)
        self.attentions = nn.ModuleList(
            [Transformer2D(config, channels, config.mid_transformer_depth, config.mid_heads)]
        )

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, inputs.time), inputs)
        return self.resnets[1](x, inputs.time)


class UpBlock(nn.Module):
    """One stage going up: each layer joins one skip connection; `inputs` are the layers' joined widths."""

    def __init__(self, config: UNetConfig, stage: Stage, in_channels: Sequence[int], *, last: bool) -> None:
        super().__init__()
        self.resnets = _make_resnets(config, in_channels, stage.channels)
        self.attentions = _make_transformers(config, stage, len(in_channels))
        self.upsamplers = nn.ModuleList([] if last else [Upsample(stage.channels)])

    skip_filter: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None  # see `freeu`

    def forward(self, x: Tensor, skips: list[Tensor], inputs: BlockInputs) -> Tensor:
        """Consume the end of `skips`; the result has the size of what is then its last."""
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            skip = skips.pop()
            x, skip = (x, skip) if self.skip_filter is None else self.skip_filter(x, skip)
            x = resnet(torch.cat((x, skip), dim=1), inputs.time)
            x = x if attention is None else attention(x, inputs)
        for upsampler in self.upsamplers:
            x = upsampler(x, skips[-1].shape[2:])
        return x


class UNet(nn.Module):
    """The UNet of latent diffusion (Rombach et al. 2022; SDXL: Podell et al. 2023)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        base_channels = config.stages[0].channels
        self.conv_in = nn.Conv2d(config.in_channels, base_channels, 3, padding=1)
        self.time_embedding = TimestepEmbedding(base_channels, 4 * base_channels, config.guidance_channels)
        if config.num_class_embeds is not None:
            self.class_embedding = embedding_table(config.num_class_embeds, 4 * base_channels)
        if config.vector_channels is not None:
            self.add_embedding = TimestepEmbedding(config.vector_channels, 4 * base_channels)
        self.down_blocks = self._make_down_blocks()
        self.mid_block = MidBlock(config)
        self.up_blocks = self._make_up_blocks()
        self.conv_norm_out = nn.GroupNorm(config.groups, base_channels, eps=EPS)
        self.conv_out = nn.Conv2d(base_channels, config.out_channels, 3, padding=1)

    def _make_down_blocks(self) -> nn.ModuleList:
        stages = self.config.stages
        widths = [stages[0].channels, *(stage.channels for stage in stages)]
        return nn.ModuleList(
            DownBlock(self.config, stage, width, last=stage_index == len(stages) - 1)
            for stage_index, (stage, width) in enumerate(zip(stages, widths, strict=False))
        )

    def _make_up_blocks(self) -> nn.ModuleList:
        stages = self.config.stages
        skip_channels = [stages[0].channels]  # widths of the skip connections, as in forward
        for index, stage in enumerate(stages):
            skip_channels += [stage.channels] * (stage.layers + (index < len(stages) - 1))
        blocks, in_channels = nn.ModuleList(), stages[-1].channels
        for index, stage in reversed(list(enumerate(stages))):
            widths = [in_channels, *[stage.channels] * stage.layers]
            blocks.append(
                UpBlock(self.config, stage, [width + skip_channels.pop() for width in widths], last=index == 0)
            )
            in_channels = stage.channels
        return blocks

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        tokens: Tensor | None = None,
        vector: Tensor | None = None,
        label: Tensor | None = None,
        mask: Tensor | None = None,
        guidance: Tensor | None = None,
        prepared: PreparedConditioning | None = None,
    ) -> Tensor:
        """Run the network once: `x` (B, in, H, W) to (B, out, H, W), all raw; any height and width.

        `time` (B,) is the training step, possibly fractional. The rest is the conditioning, as `prepare` takes it, or
        `prepared`, what that gave.
        """
        if prepared is None:
            prepared = self.prepare(
                tokens=tokens, vector=vector, label=label, mask=mask, guidance=guidance, look_ahead=False
            )
        inputs = BlockInputs(F.silu(self._embed(time, prepared, x)), prepared)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            skips += block(skips[-1], inputs)
        x = self.mid_block(skips[-1], inputs)
        for block in self.up_blocks:
            x = block(x, skips, inputs)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def prepare(
        self,
        *,
        tokens: Tensor | None,
        vector: Tensor | None = None,
        label: Tensor | None = None,
        mask: Tensor | None = None,
        guidance: Tensor | None = None,
        look_ahead: bool = True,
    ) -> PreparedConditioning:
        """What all steps of a run share, for `forward`; with `look_ahead` the keys and values of the tokens too.

        `tokens` are (B, L, context_channels), `vector` (B, vector_channels), `label` (B,) whole numbers, `mask` (B, L)
        is True where a token may be attended to, `guidance` (B, guidance_channels) is for distilled networks.
        """
        if tokens is None:
            raise InputError("this UNet got no `tokens`; pass the features of a prompt, (B, L, context_channels)")
        self._check_optional_input("vector", vector, "vector_channels", self.config.vector_channels)
        self._check_optional_input("label", label, "num_class_embeds", self.config.num_class_embeds)
        self._check_optional_input("guidance", guidance, "guidance_channels", self.config.guidance_channels)
        embeddings = () if label is None else (self.class_embedding(label),)
        return PreparedConditioning(
            tokens,
            None if mask is None else mask[:, None, None],
            self.time_embedding.project(guidance),
            embeddings if vector is None else (*embeddings, self.add_embedding(vector)),
            look_at_tokens(self, tokens) if look_ahead else {},
        )

    def _embed(self, time: Tensor, prepared: PreparedConditioning, x: Tensor) -> Tensor:
        """The sum of the embeddings of time, label and vector: (B, 4 * first stage's channels)."""
        times = sinusoidal_embedding(time, self.config.stages[0].channels).to(x.dtype)
        embedding = self.time_embedding(times, prepared.joined)
        for other in prepared.embeddings:
            embedding = embedding + other
        return embedding

    @staticmethod
    def _check_optional_input(name: str, value: Tensor | None, field: str, expected: int | None) -> None:
        """Refuse an input that the weights do not have, and the lack of one that they need."""
        if (value is None) != (expected is None):
            raise InputError(
                f"this UNet got {'no' if value is None else 'a'} `{name}` and was built with {field}={expected}; "
                f"pass `{name}` exactly when {field} is not None"
            )
