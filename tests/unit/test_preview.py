"""Previews: the linear one, what a previewer takes, and the files that it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from enlarger.checkpoint.taesd import tiny_config, tiny_json, to_decoder_key
from enlarger.errors import CheckpointError, InputError, NonFinite, Unsupported
from enlarger.nn.taesd import AutoencoderTiny, AutoencoderTinyConfig, DecoderTiny
from enlarger.runtime.runtime import Runtime
from enlarger.tasks.auxiliary.preview import Previewer, linear_preview, load_previewer
from tests.support.random_weights import normal, randomise

TINY = AutoencoderTinyConfig(8, encoder_blocks=(1, 1), decoder_blocks=(1, 1))


def test_linear_preview_is_one_pixel_per_latent() -> None:
    pictures = linear_preview(normal(2, 4, 6, 9), "sd")
    assert len(pictures) == 2 and pictures[0].size == (9, 6) and pictures[0].mode == "RGB"


@pytest.mark.parametrize(
    ("space", "channel", "colour"),
    [("sd", 0, (165, 154, 154)), ("sd", 3, (104, 93, 67)), ("sdxl", 0, (176, 190, 195)), ("sdxl", 2, (150, 173, 101))],
)
def test_linear_preview_weighs_the_channels(space, channel: int, colour: tuple[int, int, int]) -> None:
    clean = torch.zeros(1, 4, 1, 1)
    clean[:, channel] = 1
    assert linear_preview(clean, space)[0].getpixel((0, 0)) == colour


def test_linear_preview_of_nothing_is_grey_and_of_much_is_clamped() -> None:
    assert np.unique(np.array(linear_preview(torch.zeros(1, 4, 2, 2), "sdxl")[0])).tolist() == [128]
    assert linear_preview(torch.full((1, 4, 1, 1), -1e4), "sd")[0].getpixel((0, 0)) == (0, 0, 0)


def test_linear_preview_refuses_other_latents() -> None:
    with pytest.raises(Unsupported, match="no linear preview of x4 latents, there are sd, sdxl; decode them instead"):
        linear_preview(torch.zeros(1, 4, 2, 2), "x4")
    with pytest.raises(InputError, match=r"found latents of shape \(4, 2, 2\), expected \(B, 4, h, w\)"):
        linear_preview(torch.zeros(4, 2, 2), "sd")
    with pytest.raises(NonFinite):
        linear_preview(torch.full((1, 4, 2, 2), torch.nan), "sd")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_previewer_batch_equals_singles(dtype: torch.dtype) -> None:
    previewer = Previewer(randomise(DecoderTiny(TINY)).to(dtype))
    clean = normal(3, 4, 5, 2)
    batch = previewer(clean)
    assert [picture.size for picture in batch] == [(4, 10)] * 3
    for picture, one in zip(batch, clean, strict=True):
        alone = np.array(previewer(one[None])[0]).astype(int)
        assert np.abs(np.array(picture) - alone).max() <= (1 if dtype == torch.float32 else 4)


def test_offload_changes_nothing() -> None:
    decoder, clean = randomise(DecoderTiny(TINY)), normal(1, 4, 4, 4)
    pictures = [Previewer(decoder, Runtime(offload=offload))(clean)[0] for offload in ("none", "model", "sequential")]
    assert pictures[0].tobytes() == pictures[1].tobytes() == pictures[2].tobytes()


def test_previewer_refuses_other_latents() -> None:
    with pytest.raises(InputError, match=r"found latents of shape \(1, 16, 2, 2\), expected \(B, 4, h, w\)"):
        Previewer(DecoderTiny(TINY))(torch.zeros(1, 16, 2, 2))


def test_latents_are_bent_not_cut() -> None:
    decoder = randomise(DecoderTiny(TINY))
    with torch.inference_mode():
        far, farther = (decoder(torch.full((1, 4, 2, 2), value)) for value in (1e3, 1e6))
    assert torch.equal(far, farther)


def test_autoencoder_rebuilds_the_size() -> None:
    assert randomise(AutoencoderTiny(TINY))(normal(1, 3, 8, 6)).shape == (1, 3, 8, 6)


def test_names_of_both_layouts() -> None:
    assert to_decoder_key("1.weight") == to_decoder_key("decoder.layers.0.weight") == "layers.0.weight"
    assert (
        to_decoder_key("18.conv.4.bias") == to_decoder_key("decoder.layers.17.conv.4.bias") == "layers.17.conv.4.bias"
    )
    assert to_decoder_key("encoder.layers.0.weight") is None


def test_config_comes_back() -> None:
    config = AutoencoderTinyConfig(32, 16, (1, 2), (2, 1), 0.5)
    assert tiny_config(tiny_json(config)) == config
    assert tiny_config({"_class_name": "AutoencoderTiny"}) == AutoencoderTinyConfig()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"act_fn": "silu"}, "act_fn is 'silu'; supported: 'relu'"),
        ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor is 4; supported: 2"),
        ({"decoder_block_out_channels": [64, 32]}, r"widths \[32, 64\]; supported: one width for all levels"),
        ({"extra": 1}, "unknown settings extra"),
    ],
)
def test_other_configs_are_refused(changed: dict, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        tiny_config(tiny_json(AutoencoderTinyConfig()) | changed)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file or folder. Nothing is downloaded: fetch TAESD first"):
        load_previewer(tmp_path / "taesd")
    (tmp_path / "taesd_decoder.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"programs that run when opened.*fetch taesd_decoder.safetensors"):
        load_previewer(tmp_path / "taesd_decoder.pth")
    save_file({"0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "taesd_encoder.safetensors")
    with pytest.raises(CheckpointError, match=r"found 0.weight ..., expected TAESD's decoder"):
        load_previewer(tmp_path / "taesd_encoder.safetensors")
    save_file({"1.weight": torch.zeros(8, 4, 3, 3)}, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"weights missing: layers.0.bias"):
        load_previewer(tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"config.json: cannot be read"):
        load_previewer(tmp_path)
