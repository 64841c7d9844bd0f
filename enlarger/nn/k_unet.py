"""The k-diffusion upscaler's UNet (the x2 latent upscaler), under diffusers' parameter names."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enlarger.errors import InputError
from enlarger.nn.blocks import Attention, PreparedConditioning, look_at_tokens, to_feature_map, to_tokens

CHANNELS_PER_GROUP = 32  # channels per group of every normalisation
MASKED_LOGIT_BIAS = -10000.0  # what the original adds to the logits of masked tokens

SkipFilter = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of the backbone and the skip that joins it


@dataclass(frozen=True)
class KStage:
    """One resolution of the K-UNet: `layers` residual blocks, each with the attentions asked for."""

    channels: int
    layers: int
    cross_attention: bool
    self_attention: bool


@dataclass(frozen=True)
class KUNetConfig:
    """Widths of a K-UNet; the stages run from the highest resolution to the lowest."""

    in_channels: int
    out_channels: int
    stages: tuple[KStage, ...]
    context_channels: int
    head_channels: int = 64
    vector_channels: int | None = None  # time_cond_proj_dim; None: no condition vector


def _resampling_kernel(x: Tensor) -> Tensor:
    """The resampling kernel outer([1, 3, 3, 1] / 8), once for each channel of `x`: (C, 1, 4, 4)."""
    kernel_1d = (2 - (torch.arange(4, device=x.device, dtype=x.dtype) - 1.5).abs()) / 4
    return torch.outer(kernel_1d, kernel_1d).expand(x.shape[1], 1, 4, 4)


def downsample(x: Tensor) -> Tensor:
    """Half the height and width by the triangle kernel, edges reflected."""
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), _resampling_kernel(x), stride=2, groups=x.shape[1])


def upsample(x: Tensor) -> Tensor:
    """Twice the height and width by the triangle kernel, edges reflected.

    The kernel's two phases are the weights 1/4 and 3/4 of bilinear interpolation, whose own edges are cut off.
    """
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)[:, :, 2:-2, 2:-2]


class GaussianFourierProjection(nn.Module):
    """cos and sin of 2 pi w t for the file's frequencies w: (B,) to (B, 2 * frequencies)."""

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        # drawn by `nn.init`: torch.randn without memory imports sympy, which takes longer than loading the network
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(frequencies)), requires_grad=False)

    def forward(self, time: Tensor) -> Tensor:
        angles = 2 * math.pi * time[:, None] * self.weight
        return torch.cat((angles.cos(), angles.sin()), dim=-1)


class KTimestepEmbedding(nn.Module):
    """The condition vector joins the Fourier features, then two linear layers, GELU after both."""

    def __init__(self, channels: int, vector_channels: int | None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, channels)
        self.cond_proj = None if vector_channels is None else nn.Linear(vector_channels, channels, bias=False)
        self.linear_2 = nn.Linear(channels, channels)

    def project(self, vector: Tensor | None) -> Tensor | None:
        """What joins the Fourier features for a condition vector."""
        return None if vector is None or self.cond_proj is None else self.cond_proj(vector)

    def forward(self, features: Tensor, joined: Tensor | None) -> Tensor:
        features = features if joined is None else features + joined
        return F.gelu(self.linear_2(F.gelu(self.linear_1(features))))


class AdaGroupNorm(nn.Module):
    """GroupNorm whose scale and shift (in this order) are linear in the time embedding."""

    def __init__(self, channels: int, time_channels: int) -> None:
        super().__init__()
        self.groups = max(1, channels // CHANNELS_PER_GROUP)
        self.linear = nn.Linear(time_channels, 2 * channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.linear(time)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, F.group_norm(x, self.groups, eps=1e-5), scale + 1)


class KResnetBlock(nn.Module):
    """Twice AdaGN, GELU, 3x3 convolution; the shortcut has no bias."""

    def __init__(self, in_channels: int, mid_channels: int, channels: int, time_channels: int) -> None:
        super().__init__()
        self.norm1 = AdaGroupNorm(in_channels, time_channels)
        self.conv1 = nn.Conv2d(in_channels, mid_channels, 3, padding=1)
        self.norm2 = AdaGroupNorm(mid_channels, time_channels)
        self.conv2 = nn.Conv2d(mid_channels, channels, 3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(in_channels, channels, 1, bias=False) if in_channels != channels else nn.Identity()
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.gelu(self.norm1(x, time)))
        return self.conv_shortcut(x) + self.conv2(F.gelu(self.norm2(h, time)))


class KAttentionBlock(nn.Module):
    """Self-attention where asked, then attention to the tokens, each after AdaGN; no feed-forward."""

    def __init__(self, channels: int, time_channels: int, config: KUNetConfig, *, self_attention: bool) -> None:
        super().__init__()
        heads = max(1, channels // config.head_channels)
        if self_attention:
            self.norm1 = AdaGroupNorm(channels, time_channels)
            self.attn1 = Attention(channels, heads, bias=True)
        self.norm2 = AdaGroupNorm(channels, time_channels)
        self.attn2 = Attention(channels, heads, config.context_channels, bias=True, norm_context=True)
        self.self_attention = self_attention

    def forward(self, x: Tensor, time: Tensor, told: PreparedConditioning) -> Tensor:
        if self.self_attention:
            x = x + to_feature_map(self.attn1(to_tokens(self.norm1(x, time))), x)
        context = told.context(self.attn2)
        return x + to_feature_map(self.attn2(to_tokens(self.norm2(x, time)), context, told.attention_mask), x)


class KBlock(nn.Module):
    """The residual blocks of one stage on one side of the UNet; `widths` runs from its input to its output.

    The last block turns to its output width in its second convolution only.
    """

    def __init__(self, widths: Sequence[int], stage: KStage, time_channels: int, config: KUNetConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(KResnetBlock(a, stage.channels, b, time_channels) for a, b in pairwise(widths))
        if stage.cross_attention:
            self.attentions = nn.ModuleList(
                KAttentionBlock(channels, time_channels, config, self_attention=stage.self_attention)
                for channels in widths[1:]
            )
        self.has_attention = stage.cross_attention

    skip_filter: SkipFilter | None = None  # see `freeu`

    def forward(self, x: Tensor, time: Tensor, told: PreparedConditioning) -> Tensor:
        for index, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.has_attention:
                x = self.attentions[index](x, time, told)
        return x


class KUNet(nn.Module):
    """The x2 latent upscaler's UNet (k-diffusion `ImageDenoiserModelV1`), without its outer preconditioning.

    Height and width must be multiples of `size_multiple`, and at least twice that.
    """

    def __init__(self, config: KUNetConfig) -> None:
        super().__init__()
        self.config = config
        stages, base_channels = config.stages, config.stages[0].channels
        time_channels = 2 * base_channels
        self.conv_in = nn.Conv2d(config.in_channels, base_channels, 1)
        self.time_proj = GaussianFourierProjection(base_channels)
        self.time_embedding = KTimestepEmbedding(time_channels, config.vector_channels)
        upper_channels = [
            base_channels,
            *(stage.channels for stage in stages[:-1]),
        ]  # the width of the next higher resolution
        down = [[a, *[s.channels] * s.layers] for a, s in zip(upper_channels, stages, strict=True)]
        skip_channels = [2 * stage.channels for stage in stages[:-1]] + [stages[-1].channels]
        up = [
            [j, *[s.channels] * (s.layers - 1), a]
            for j, s, a in zip(skip_channels, stages, upper_channels, strict=True)
        ]
        self.down_blocks = nn.ModuleList(
            KBlock(widths, stage, time_channels, config) for widths, stage in zip(down, stages, strict=True)
        )
        self.up_blocks = nn.ModuleList(
            KBlock(widths, stage, time_channels, config)
            for widths, stage in zip(reversed(up), reversed(stages), strict=True)
        )
        self.conv_out = nn.Conv2d(base_channels, config.out_channels, 1)

    @property
    def size_multiple(self) -> int:
        """What height and width must be multiples of, and at least twice as large as."""
        return 2 ** (len(self.config.stages) - 1)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        tokens: Tensor | None = None,
        vector: Tensor | None = None,
        mask: Tensor | None = None,
        prepared: PreparedConditioning | None = None,
    ) -> Tensor:
        """Run the network once: `x` (B, in, H, W) to (B, out, H, W), all raw.

        `time` (B,) is log(sigma) / 4. The rest is the conditioning, as `prepare` takes it, or `prepared`, what that
        gave.
        """
        self._check_size(x)
        told = self.prepare(tokens=tokens, vector=vector, mask=mask, look_ahead=False) if prepared is None else prepared
        time = self.time_embedding(self.time_proj(time).to(x.dtype), told.joined)
        x = self.conv_in(x)
        skips: list[Tensor] = []
        for block in self.down_blocks:
            x = block(downsample(x) if skips else x, time, told)
            skips.append(x)
        x = self.up_blocks[0](skips.pop(), time, told)
        for block in self.up_blocks[1:]:
            x, skip = upsample(x), skips.pop()
            filter_skip: SkipFilter | None = getattr(block, "skip_filter", None)
            x, skip = (x, skip) if filter_skip is None else filter_skip(x, skip)
            x = block(torch.cat((x, skip), dim=1), time, told)
        return self.conv_out(x)

    def prepare(
        self,
        *,
        tokens: Tensor | None,
        vector: Tensor | None = None,
        mask: Tensor | None = None,
        look_ahead: bool = True,
    ) -> PreparedConditioning:
        """What all steps of a run share, for `forward`; with `look_ahead` the keys and values of the tokens too.

        `tokens` are (B, L, context_channels), `vector` (B, vector_channels), `mask` (B, L) is True where a token may be
        attended to.
        """
        if tokens is None:
            raise InputError("the upscaler's UNet got no `tokens`; pass the features of a prompt, (B, L, channels)")
        self._check_vector(vector)
        bias = None if mask is None else tokens.new_zeros(mask.shape).masked_fill(~mask, MASKED_LOGIT_BIAS)
        return PreparedConditioning(
            tokens,
            None if bias is None else bias[:, None, None],
            self.time_embedding.project(vector),
            keys_values=look_at_tokens(self, tokens) if look_ahead else {},
        )

    def _check_size(self, x: Tensor) -> None:
        """Refuse what would fail further in, and less clearly."""
        height, width = x.shape[2:]
        if any(size % self.size_multiple or size < 2 * self.size_multiple for size in (height, width)):
            raise InputError(
                f"the upscaler's UNet got a latent of {width}x{height}: width and height must be "
                f"multiples of {self.size_multiple} and at least {2 * self.size_multiple}; pad it first"
            )

    def _check_vector(self, vector: Tensor | None) -> None:
        vector_channels = self.config.vector_channels
        if (vector is None) != (vector_channels is None):
            raise InputError(
                f"the upscaler's UNet got {'no' if vector is None else 'a'} condition vector and was built with "
                f"vector_channels={vector_channels}; pass `vector` exactly when that is not None"
            )
