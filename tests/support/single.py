"""The tables of original single files, and a tiny model of every family to write as one."""

import csv
import gzip
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.config.bundled_configs import clip_tokenizer, family_configs
from enlarger.checkpoint.config.network_configs import (
    autoencoder_config,
    clip_projection_config,
    clip_text_config,
)
from enlarger.nn.autoencoder import AutoencoderConfig, AutoencoderKL
from enlarger.nn.clip_text import ClipText, ClipTextConfig
from enlarger.nn.k_unet import KStage, KUNet, KUNetConfig
from enlarger.nn.unet import Stage, UNet, UNetConfig
from tests.support.random_weights import randomise

TABLE = Path(__file__).parents[1] / "data" / "reference" / "single_file.tsv.gz"
LAYOUTS = {  # of the tables: the family, and our name of the layout
    "sd1": ("sd1", "sd1"),
    "sd1_inpainting": ("sd1_inpainting", "sd1"),
    "sd2": ("sd2", "sd2"),
    "sd2_inpainting": ("sd2_inpainting", "sd2"),
    "sd2_depth": ("sd2_depth", "sd2"),
    "sd_x4_upscaler": ("x4", "sd2"),
    "sdxl_base": ("sdxl", "sdxl"),
    "sdxl_refiner": ("sdxl_refiner", "sdxl_refiner"),
    "k_upscaler_unet": ("x2", "x2"),
    "ldm_vae_only": (None, "vae"),
}
FAMILIES = ("sd1", "sd1_inpainting", "sd2", "sd2_inpainting", "sd2_depth", "x4", "x2", "sdxl", "sdxl_inpainting",
            "sdxl_refiner")  # fmt: skip
Row = dict[str, str]


@cache
def tables() -> Mapping[str, list[Row]]:
    """The rows of each table, in their order."""
    with gzip.open(TABLE, "rt") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {layout: [row for row in rows if row["layout"] == layout] for layout in LAYOUTS}


def shape_of(text: str) -> tuple[int, ...]:
    return () if text in ("", "scalar") else tuple(map(int, text.split("x")))


def original_shapes_of(layout: str) -> dict[str, tuple[int, ...]]:
    """All keys of a table with their shapes."""
    return {row["original_key"]: shape_of(row["original_shape"]) for row in tables()[layout]}


def unet_of(family: str, context: int) -> UNetConfig | KUNetConfig:
    """A UNet as its family builds them, of least size; widths that tell nothing of the family."""
    if family == "x2":
        stages = (KStage(32, 1, False, False), KStage(64, 2, True, False), KStage(64, 2, True, True))
        return KUNetConfig(8, 5, stages, context, 64, 128 + context)
    channels = 9 if "inpainting" in family else {"sd2_depth": 5, "x4": 7}.get(family, 4)
    if family.startswith("sd1"):
        return UNetConfig(channels, 4, (Stage(32, 1, 1), Stage(64, 1)), 1, 8, context, False)
    if family == "x4":
        stages = (Stage(32, 1, 0, 8, True), Stage(64, 1, 1, 8, True), Stage(64, 1, 1, 8, False))
        return UNetConfig(channels, 4, stages, 1, 8, context, True, num_class_embeds=1000)
    if family.startswith("sd2"):
        stages = (Stage(64, 2, 1, 1), Stage(128, 2, 0, 2))
        return UNetConfig(channels, 4, stages, 1, 2, context, True, upcast_attention=family == "sd2")
    sizes, pooled = (5 if family == "sdxl_refiner" else 6), 24
    last = 0 if family == "sdxl_refiner" else 2
    stages = (Stage(32, 1, 0, 1), Stage(64, 1, 2, 1), Stage(64, 1, last, 1))
    return UNetConfig(channels, 4, stages, 2, 1, context, True, pooled + sizes * 8, 8)


def tiny_single(family: str, place: Path = Path("tiny")) -> PipelineComponents:
    """A whole random model of a family, as a folder of it would be read."""
    configs = family_configs(family)
    parts: dict[str, Any] = {name: value for name, value in configs.items() if "scheduler" in name}
    widths = []
    for number, name in enumerate(("text_encoder", "text_encoder_2")):
        if name in configs:
            second = name == "text_encoder_2"
            known = (clip_projection_config if second else clip_text_config)(configs[name])
            text = ClipTextConfig(
                64,
                2,
                1,
                96,
                known.activation,
                300,
                projection_dim=24 if second else None,
                eos_token_id=known.eos_token_id,
            )
            parts[name] = randomise(ClipText(text), number)
            open_clip = second or configs[name]["hidden_size"] == 1024
            parts[name.replace("text_encoder", "tokenizer")] = clip_tokenizer("!" if open_clip else "<|endoftext|>")
            widths.append(text.width)
    known = autoencoder_config(configs["vae"])
    channels = (32, 32, 64) if family == "x4" else (32, 32, 64, 32)
    vae = AutoencoderConfig(channels, 1, 4, known.scaling_factor, known.force_upcast)
    parts["vae"] = randomise(AutoencoderKL(vae), 2)
    unet = unet_of(family, sum(widths))
    parts["unet"] = randomise(KUNet(unet) if isinstance(unet, KUNetConfig) else UNet(unet), 3)
    if family == "x2":
        parts["noise_frequencies"] = torch.randn(64, 1, generator=torch.Generator().manual_seed(4))
    return PipelineComponents(place, configs["model_index"], {name: parts[name] for name in sorted(parts)})


class InMemory:
    """Named tensors, or shapes alone, as a file holds them; counts what is read."""

    def __init__(self, tensors: Mapping[str, Any], path: Path = Path("memory")) -> None:
        self.tensors, self.path, self.reads = tensors, path, []

    def keys(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        found = self.tensors[name]
        return tuple(found if isinstance(found, tuple) else found.shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def get_tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        self.reads.append(name)
        found = self.tensors[name]
        return found.to(dtype, copy=True) if dtype and found.is_floating_point() else found.clone()


def networks(bundle: PipelineComponents) -> dict[str, nn.Module]:
    return {name: part for name, part in bundle.components.items() if isinstance(part, nn.Module)}
