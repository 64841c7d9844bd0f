"""The tiny autoencoder equals diffusers' AutoencoderTiny on the same random weights, from every file layout."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from enlarger.checkpoint.components import PipelineComponents
from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.folder.save import save_folder
from enlarger.nn.taesd import AutoencoderTiny, AutoencoderTinyConfig, DecoderTiny
from enlarger.tasks.auxiliary.preview import Previewer, load_previewer
from tests.support.close import assert_close
from tests.support.random_weights import normal, randomise

ATOL = 1e-5
WEIGHTS = "diffusion_pytorch_model.safetensors"
WIDTHS = {"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4}
# Where the original decoder, a Sequential that begins with the bend, has its weights.
ORIGINAL_CONVOLUTIONS = {"1": True, "7": False, "12": False, "17": False, "19": True}  # and whether they have a bias
ORIGINAL_BLOCKS = ("3", "4", "5", "8", "9", "10", "13", "14", "15", "18")


def theirs():
    from diffusers import AutoencoderTiny as Theirs

    return randomise(Theirs(**WIDTHS), 3)


def original_names() -> list[str]:
    """The names in taesd_decoder.safetensors."""
    blocks = [f"{block}.conv.{layer}.{kind}" for block in ORIGINAL_BLOCKS for layer in (0, 2, 4) for kind in KINDS]
    return blocks + [f"{at}.{kind}" for at, biased in ORIGINAL_CONVOLUTIONS.items() for kind in KINDS[: 1 + biased]]


KINDS = ("weight", "bias")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("taesd")
    theirs().save_pretrained(path)
    return path


def original_file(folder: Path, place: Path) -> Path:
    """The decoder of a diffusers folder under the original names."""
    tensors = load_file(folder / WEIGHTS)
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("decoder.layers."):
            index, rest = name.removeprefix("decoder.layers.").split(".", 1)
            renamed[f"{int(index) + 1}.{rest}"] = tensor.contiguous()
    save_file(renamed, place / "taesd_decoder.safetensors")
    return place / "taesd_decoder.safetensors"


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("size", [(8, 8), (5, 3)])
def test_both_halves_equal_diffusers(size: tuple[int, int], scale: float) -> None:
    other = theirs()
    ours = AutoencoderTiny(AutoencoderTinyConfig(16, scaling_factor=scale))
    ours.load_state_dict(other.state_dict(), strict=True)
    image, latents = normal(2, 3, 8 * size[0], 8 * size[1]), 2 * normal(2, 4, *size)
    with torch.inference_mode():
        encoded, decoded = other.encode(image).latents, other.decode(latents / scale).sample
        assert_close(ours.encode(image), encoded * scale, ATOL)
        assert_close(ours.decode(latents), decoded, ATOL)
    assert decoded.shape == image.shape and decoded.std() > 0.05


def test_the_official_width_has_the_official_keys() -> None:
    from diffusers import AutoencoderTiny as Theirs

    with torch.device("meta"):
        ours, other = AutoencoderTiny(AutoencoderTinyConfig()), Theirs()
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in other.state_dict().items()}
    assert sum(p.numel() for p in ours.decoder.parameters()) == 1_222_531


def test_the_original_names_are_all_there() -> None:
    with torch.device("meta"):
        ours = DecoderTiny(AutoencoderTinyConfig()).state_dict()
    shifted = {f"layers.{int(name.split('.', 1)[0]) - 1}.{name.split('.', 1)[1]}" for name in original_names()}
    assert shifted == set(ours) and len(shifted) == len(original_names())


def test_every_layout_gives_the_same_picture(folder: Path, tmp_path: Path) -> None:
    clean, other = normal(2, 4, 6, 4), theirs()
    with torch.inference_mode():
        expected = other.decode(clean).sample.clamp(-1, 1)
    for path in (folder, folder / WEIGHTS, original_file(folder, tmp_path)):
        previewer = load_previewer(path)
        assert isinstance(previewer, Previewer)
        with torch.inference_mode():
            assert_close(previewer.decoder(clean).clamp(-1, 1), expected, ATOL)
        pictures = previewer(clean)
        assert [picture.size for picture in pictures] == [(32, 48)] * 2 and pictures[0].mode == "RGB"


def test_a_folder_with_it_reads_and_comes_back(tmp_path: Path) -> None:
    network = randomise(AutoencoderTiny(AutoencoderTinyConfig(16, latent_channels=16, decoder_blocks=(1, 2, 1))))
    path = save_folder(PipelineComponents(tmp_path, {"_class_name": "Any"}, {"vae": network}), tmp_path / "whole")
    found = read_folder(path)
    assert found.index["vae"] == ["diffusers", "AutoencoderTiny"]
    assert found.components["vae"].config == network.config
    from diffusers import AutoencoderTiny as Theirs

    other, latents = Theirs.from_pretrained(path / "vae"), normal(1, 16, 4, 4)
    with torch.inference_mode():
        assert_close(found.components["vae"].decode(latents), other.decode(latents).sample, ATOL)
