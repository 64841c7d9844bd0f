"""CLIP's image encoder (ViT), under transformers' parameter names."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from enlarger.nn.blocks import embedding_table
from enlarger.nn.clip_text import Encoder


@dataclass(frozen=True)
class ClipVisionConfig:
    """Widths of a CLIP image encoder."""

    width: int
    layers: int
    heads: int
    intermediate_size: int
    activation: Literal["quick_gelu", "gelu"]
    image_size: int  # pixels of a side
    patch_size: int
    projection_dim: int


class PatchEmbeddings(nn.Module):
    """A token for the class and one for each patch, with their positions."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, config.patch_size, bias=False)
        patches = (config.image_size // config.patch_size) ** 2
        self.position_embedding = embedding_table(patches + 1, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).mT  # (B, patches, width)
        tokens = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], 1)
        return tokens + self.position_embedding.weight


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2021, with a LayerNorm before the layers too; the result is the class token's state."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.embeddings = PatchEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width)  # so spelled in every file
        self.encoder = Encoder(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        last = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))[-1]
        return self.post_layernorm(last[:, 0])


class ClipVision(nn.Module):
    """Normalised pictures (B, 3, S, S) to embeddings (B, projection) (Radford et al. 2021)."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionTransformer(config)
        self.visual_projection = nn.Linear(config.width, config.projection_dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.visual_projection(self.vision_model(pixels))
