"""The UNet of every official family equals diffusers' on the same random weights."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from enlarger.errors import InputError
from enlarger.nn.blocks import sinusoidal_embedding
from enlarger.nn.unet import Stage, UNet, UNetConfig
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise

ATOL = 1e-5
CONTEXT, LENGTH = 24, 7


@dataclass(frozen=True)
class Family:
    """Our configuration of a family at a small width, and what diffusers' needs beside the widths."""

    config: UNetConfig
    theirs: dict[str, Any]


def family(stages: tuple[Stage, ...], linear: bool, channels: int = 4, **own: Any) -> Family:
    mid = own.pop("mid", (1, stages[-1].heads))
    theirs = own.pop("theirs", {})
    config = UNetConfig(channels, 4, stages, *mid, CONTEXT, linear, groups=8, **own)
    return Family(config, theirs)


SD1 = (Stage(16, 2, 1, 2), Stage(32, 2, 1, 2), Stage(48, 2, 1, 2), Stage(48, 2, 0, 2))
SD2 = (Stage(16, 2, 1, 1), Stage(32, 2, 1, 2), Stage(48, 2, 1, 3), Stage(48, 2, 0, 3))
BASE = (Stage(16, 2, 0, 1), Stage(32, 2, 2, 2), Stage(48, 2, 3, 3))
REFINER = (Stage(16, 2, 0, 1), Stage(32, 2, 2, 2), Stage(48, 2, 2, 3), Stage(48, 2, 0, 3))
X4 = (
    Stage(16, 2, 0, 2, only_cross_attention=True),
    Stage(32, 2, 1, 2, only_cross_attention=True),
    Stage(32, 2, 1, 2, only_cross_attention=True),
    Stage(48, 2, 1, 2),
)
TEXT_TIME = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}

FAMILIES = {
    "sd1": family(SD1, linear=False),
    "sd1 inpainting": family(SD1, linear=False, channels=9),
    "sd2": family(SD2, linear=True, upcast_attention=True),
    "sd2 depth": family(SD2, linear=True, channels=5),
    "x4": family(X4, linear=True, channels=7, num_class_embeds=30),
    "sdxl base": family(BASE, linear=True, mid=(3, 3), vector_channels=68, theirs=TEXT_TIME),
    "sdxl refiner": family(REFINER, linear=True, mid=(2, 3), vector_channels=60, theirs=TEXT_TIME),
    "one layer, two stages": family((Stage(16, 1, 1, 2), Stage(32, 1, 1, 2)), linear=False),
}


def diffusers_unet(of: Family) -> torch.nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config, stages = of.config, of.config.stages
    depths = [stage.transformer_depth for stage in stages]
    return UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        layers_per_block=stages[0].layers,
        block_out_channels=[stage.channels for stage in stages],
        norm_num_groups=config.groups,
        down_block_types=["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        up_block_types=["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        transformer_layers_per_block=[*[depth or 1 for depth in depths[:-1]], config.mid_transformer_depth],
        attention_head_dim=[stage.heads for stage in stages],
        cross_attention_dim=CONTEXT,
        only_cross_attention=[stage.only_cross_attention for stage in stages],
        use_linear_projection=config.linear_projection,
        projection_class_embeddings_input_dim=config.vector_channels,
        num_class_embeds=config.num_class_embeds,
        upcast_attention=config.upcast_attention,
        **of.theirs,
    ).eval()


def inputs(config: UNetConfig, height: int = 16, width: int = 24, batch: int = 2) -> dict[str, Any]:
    vector = None if config.vector_channels is None else normal(batch, config.vector_channels, seed=4)
    return {
        "x": normal(batch, config.in_channels, height, width),
        "time": torch.linspace(17.5, 981, batch),
        "tokens": normal(batch, LENGTH, CONTEXT, seed=2),
        "vector": vector,
        "label": None if config.num_class_embeds is None else torch.arange(20, 20 + batch),
    }


def expected(theirs: torch.nn.Module, given: dict[str, Any], mask: Tensor | None = None) -> Tensor:
    added = None if given["vector"] is None else _text_time(theirs, given["vector"])
    return theirs(
        given["x"], given["time"], given["tokens"], class_labels=given["label"], added_cond_kwargs=added,
        encoder_attention_mask=mask,
    ).sample  # fmt: skip


def _text_time(theirs: torch.nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """diffusers embeds the sizes itself, ours takes the finished vector: put the vector in unchanged."""
    theirs.add_time_proj = torch.nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    return {"text_embeds": vector[:, :20], "time_ids": vector[:, 20:]}


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_diffusers(name: str) -> None:
    config = FAMILIES[name].config
    ours, theirs = randomise(UNet(config)), diffusers_unet(FAMILIES[name])
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for height, width in ((16, 24), (9, 14)):
        given = inputs(config, height, width)
        with torch.inference_mode():
            wanted = expected(theirs, given)
            assert wanted.std() > 0.1
            assert_close(ours(**given), wanted, ATOL)


def test_mask_equals_diffusers() -> None:
    ours, theirs = randomise(UNet(FAMILIES["sd1"].config)), diffusers_unet(FAMILIES["sd1"])
    theirs.load_state_dict(ours.state_dict(), strict=True)
    given, mask = inputs(FAMILIES["sd1"].config), torch.arange(LENGTH).expand(2, -1) < torch.tensor([[3], [5]])
    with torch.inference_mode():
        assert_close(ours(**given, mask=mask), expected(theirs, given, mask.float()), ATOL)


def test_sinusoid_equals_diffusers() -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    values = torch.tensor([0.0, 1.0, 17.5, 999.0, 1024.0])
    assert_close(
        sinusoidal_embedding(values, 32),
        get_timestep_embedding(values, 32, flip_sin_to_cos=True, downscale_freq_shift=0),
        ATOL,
    )


def test_batch_equals_singles() -> None:
    config = FAMILIES["x4"].config
    ours, given = randomise(UNet(config)), inputs(config, batch=3)
    singles = [ours(**{k: v if v is None else v[i : i + 1] for k, v in given.items()}) for i in range(3)]
    assert_close(ours(**given), torch.cat(singles), ATOL)


def test_half_precision_stays_half_and_close() -> None:
    config = FAMILIES["sdxl base"].config
    ours, given = randomise(UNet(config)), inputs(config)
    wanted, half = ours(**given), {n: v if v is None or n == "time" else v.bfloat16() for n, v in given.items()}
    found = ours.bfloat16()(**half)
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), wanted, 0.1)


def test_refuses_a_missing_or_needless_input() -> None:
    config = replace(FAMILIES["sdxl base"].config, num_class_embeds=3)
    ours, given = randomise(UNet(config)), inputs(config) | {"label": torch.tensor([0, 2])}
    with pytest.raises(InputError, match="this UNet got no `vector` and was built with vector_channels=68; pass"):
        ours(**given | {"vector": None})
    plain = randomise(UNet(FAMILIES["sd1"].config))
    with pytest.raises(
        InputError, match="this UNet got a `label` and was built with num_class_embeds=None; pass `label` exactly"
    ):
        plain(**inputs(FAMILIES["sd1"].config) | {"label": torch.tensor([0, 2])})
