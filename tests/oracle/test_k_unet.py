"""The K-UNet equals diffusers' and k-diffusion's on the same random weights."""

import pytest
import torch
from torch import Tensor

from enlarger.errors import InputError
from enlarger.nn.k_unet import KStage, KUNet, KUNetConfig, downsample, upsample
from tests.support import k_diffusion
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise

ATOL = 1e-5
VECTOR, CONTEXT, LENGTH = 40, 48, 7


def config(layers: int = 4) -> KUNetConfig:
    """The official shape at a twelfth of its width."""
    stages = tuple(
        KStage(channels, layers, cross_attention=level > 0, self_attention=level == 3)
        for level, channels in enumerate((32, 32, 64, 64))
    )
    return KUNetConfig(8, 5, stages, CONTEXT, head_channels=16, vector_channels=VECTOR)


def inputs(batch: int = 2, height: int = 16, width: int = 24) -> dict[str, Tensor]:
    return {
        "x": normal(batch, 8, height, width, seed=1),
        "time": torch.linspace(-0.9, 0.6, batch),
        "tokens": normal(batch, LENGTH, CONTEXT, seed=2),
        "vector": normal(batch, VECTOR, seed=3),
        "mask": torch.arange(LENGTH).expand(batch, -1) < torch.arange(3, 3 + batch)[:, None],
    }


def diffusers_unet(layers: int) -> torch.nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    cross = "KCrossAttn{}Block2D"
    return UNet2DConditionModel(
        in_channels=8, out_channels=5, block_out_channels=(32, 32, 64, 64), layers_per_block=layers,
        down_block_types=("KDownBlock2D", *[cross.format("Down")] * 3),
        up_block_types=(*[cross.format("Up")] * 3, "KUpBlock2D"), mid_block_type=None, act_fn="gelu",
        attention_head_dim=16, cross_attention_dim=CONTEXT, conv_in_kernel=1, conv_out_kernel=1, norm_num_groups=None,
        resnet_time_scale_shift="scale_shift", time_cond_proj_dim=VECTOR, time_embedding_type="fourier",
        timestep_post_act="gelu",
    )  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("layers", "height", "width"), [(1, 16, 24), (2, 16, 16), (4, 32, 16)])
def test_equals_diffusers(layers: int, height: int, width: int, masked: bool) -> None:
    ours = randomise(KUNet(config(layers)))
    theirs = diffusers_unet(layers).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    given = inputs(height=height, width=width)
    mask = given.pop("mask") if masked else given.pop("mask") & False
    with torch.inference_mode():
        found = ours(**given, mask=mask if masked else None)
        expected = theirs(
            given["x"], given["time"], given["tokens"], timestep_cond=given["vector"],
            encoder_attention_mask=mask.float() if masked else None,
        ).sample  # fmt: skip
    assert expected.std() > 0.1
    assert_close(found, expected, ATOL)


@pytest.mark.parametrize("masked", [False, True])
def test_equals_k_diffusion(masked: bool) -> None:
    image_v1 = k_diffusion.load("models.image_v1")
    head = 64  # theirs is fixed
    theirs = randomise(
        image_v1.ImageDenoiserModelV1(
            4,
            64,
            (4, 4, 4, 4),
            (32, 32, 64, 64),
            (False, False, False, True),
            (False, True, True, True),
            mapping_cond_dim=VECTOR,
            unet_cond_dim=4,
            cross_cond_dim=CONTEXT,
            has_variance=True,
        )
    )
    ours = KUNet(KUNetConfig(8, 5, config().stages, CONTEXT, head, VECTOR))
    ours.load_state_dict(k_diffusion.to_ours(theirs.state_dict()), strict=True)
    given = inputs()
    hidden = (~given["mask"] if masked else given["mask"] & False).float()
    with torch.inference_mode():
        found = ours(**given | {"mask": given["mask"] if masked else None})
        expected, log_variance = theirs(
            given["x"][:, :4], (4 * given["time"]).exp(), given["vector"], given["x"][:, 4:], given["tokens"],
            hidden, return_variance=True,
        )  # fmt: skip
    assert expected.std() > 0.1
    assert_close(found[:, :4], expected, ATOL)
    assert_close(found[:, 4].flatten(1).mean(1), log_variance, ATOL)


def test_masked_tokens_do_not_matter() -> None:
    ours, given = randomise(KUNet(config(1))), inputs()
    changed = torch.where(given["mask"][..., None], given["tokens"], 7 * normal(2, LENGTH, CONTEXT, seed=9))
    assert_close(ours(**given | {"tokens": changed}), ours(**given), 1e-6)


def test_all_true_mask_is_no_mask() -> None:
    ours, given = randomise(KUNet(config(1))), inputs()
    assert_close(ours(**given | {"mask": given["mask"] | True}), ours(**given | {"mask": None}), ATOL)


def test_batch_equals_singles() -> None:
    ours, given = randomise(KUNet(config(1))), inputs(batch=3)
    singles = [ours(**{name: value[i : i + 1] for name, value in given.items()}) for i in range(3)]
    assert_close(ours(**given), torch.cat(singles), ATOL)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 14), (30, 6)])
def test_resampling_equals_k_diffusion(height: int, width: int) -> None:
    layers = k_diffusion.load("layers")
    x = normal(2, 5, height, width)
    assert_close(downsample(x), layers.Downsample2d()(x), 1e-6)
    assert_close(upsample(x), layers.Upsample2d()(x), 1e-6)


def test_without_vector_and_attention() -> None:
    stages = (KStage(32, 1, False, False), KStage(32, 2, False, False))
    ours = randomise(KUNet(KUNetConfig(3, 3, stages, context_channels=CONTEXT)))
    x = normal(1, 3, 4, 6)
    assert ours(x, torch.zeros(1), tokens=normal(1, 0, CONTEXT)).shape == x.shape


def test_half_precision_stays_half_and_close() -> None:
    ours, given = randomise(KUNet(config(1))), inputs()
    wanted, half = (
        ours(**given),
        {n: v.bfloat16() if v.is_floating_point() and n != "time" else v for n, v in given.items()},
    )
    found = ours.bfloat16()(**half)
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), wanted, 0.1)


def test_learns() -> None:
    ours, given = randomise(KUNet(config(1))).requires_grad_(True), inputs()
    ours(**given).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())


@pytest.mark.parametrize(("height", "width"), [(16, 20), (8, 16)])
def test_refuses_a_size_it_cannot_join(height: int, width: int) -> None:
    ours, given = randomise(KUNet(config(1))), inputs(height=height, width=width)
    said = f"latent of {width}x{height}: width and height must be multiples of 8 and at least 16; pad it first"
    with pytest.raises(InputError, match=said):
        ours(**given)


def test_refuses_a_missing_vector() -> None:
    ours, given = randomise(KUNet(config(1))), inputs()
    with pytest.raises(InputError, match=r"got no condition vector .*vector_channels=40"):
        ours(**given | {"vector": None})
