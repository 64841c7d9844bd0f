"""Upscaler networks of others are spandrel's own, in tiles too, with every option of `enlarger.upscale`."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import enlarger
from enlarger.cli.main import run
from enlarger.errors import CheckpointError, InputError, Unsupported
from enlarger.runtime import choices
from enlarger.service.settings import ModelSettings
from enlarger.service.worker.model_description import describe_model
from enlarger.tasks.upscale.pixel_network import PixelNetworkUpscaler
from tests.support.spandrel import NETWORKS, import_spandrel

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # of spandrel's networks as they are built

LOCAL = {
    "Compact",
    "ESRGAN",
    "HAT",
    "SPAN",
    "PLKSR",
    "SwinIR",
}  # as small as they are here, they see less than 64 pixels far
GLOBAL = {"RCAN": 1e-3, "OmniSR": 0.1, "DAT": 0.1, "SAFMN": 0.1}  # they average over what they are given: the bound


def save(path: Path, name: str, prefix: str = "") -> dict[str, Tensor]:
    import_spandrel()
    weights = {key: tensor.contiguous().clone() for key, tensor in NETWORKS[name]().state_dict().items()}
    save_file({prefix + key: tensor for key, tensor in weights.items()}, path)
    return weights


def load(path: Path) -> PixelNetworkUpscaler:
    upscaler = enlarger.load(path, precision="float32")
    assert isinstance(upscaler, PixelNetworkUpscaler)
    return upscaler


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_to_spandrel_and_in_tiles(name: str, tmp_path: Path) -> None:
    weights = save(tmp_path / "net.safetensors", name)
    upscaler, small = load(tmp_path / "net.safetensors"), torch.rand(1, 3, 88, 72) * 2 - 1
    expected = import_spandrel().MAIN_REGISTRY.load(weights)(small / 2 + 0.5) * 2 - 1
    assert float((upscaler.enlarge(small) - expected).abs().max()) <= 1e-6
    tiled = replace(upscaler, tile=16).enlarge(small)
    assert float((tiled - expected).abs().max()) <= GLOBAL.get(name, 1e-5) and (name in LOCAL) is (name not in GLOBAL)


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "4x.safetensors"
    save(path, "Compact", "params_ema.")
    return path


def test_where_bfloat16_is_the_choice_it_is_not_theirs(compact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their last layer gives the pixels, of which bfloat16 would keep the steps of 8 bits."""
    found = replace(choices.hardware(), bfloat16="avx512_bf16")
    monkeypatch.setattr(choices, "hardware", lambda: found)
    for precision, expected in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        upscaler = enlarger.load(compact, "cpu", precision)
        assert isinstance(upscaler, PixelNetworkUpscaler)
        assert next(upscaler.network.model.parameters()).dtype == expected


def test_every_size_with_alpha_and_sixteen_bits(compact: Path) -> None:
    upscaler = load(compact)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8), "RGBA")
    for by, size in ((1.5, (11, 14)), (2, (14, 18)), (4, (28, 36)), (5, (35, 45))):
        made = upscaler(enlarger.UpscaleRequest(picture, by=by)).images[0]
        assert made.size == size and made.mode == "RGBA"
    deep = np.random.default_rng(1).integers(0, 65536, (8, 8), np.uint16)
    assert upscaler(enlarger.UpscaleRequest(Image.fromarray(deep))).images[0].mode == "I;16"
    plain, result = (
        upscaler(enlarger.UpscaleRequest(picture.convert("RGB"), consistent=asked, count=3)) for asked in (None, True)
    )
    assert len(result.images) == 1 and plain.consistency is not None and result.consistency is not None
    assert result.consistency < plain.consistency
    count_note, range_note = result.notes  # noise has pixels that no larger picture is reduced to
    assert count_note == "count is 3, but the network has one answer for a picture: one was made"
    assert range_note.startswith(
        "where the input is near black or white, or alternates from pixel to pixel, the result"
    )


def test_unused_options_are_refused(compact: Path) -> None:
    with pytest.raises(Unsupported) as error:
        load(compact)(enlarger.UpscaleRequest(Image.new("RGB", (4, 4)), steps=3))
    assert str(error.value) == (
        "steps is set, but an upscaler network of one call (ESRGAN, SwinIR, SPAN ...) has no use for it; "
        "leave it, or load another upscaler"
    )


def test_a_pickle_goes_through_the_guard(tmp_path: Path) -> None:
    weights = save(tmp_path / "x.safetensors", "ESRGAN")
    torch.save({"params": weights, "params_ema": weights}, tmp_path / "4x-UltraSharp.pth")
    with pytest.raises(CheckpointError, match="pickle"):
        enlarger.load(tmp_path / "4x-UltraSharp.pth")
    upscaler = enlarger.load(enlarger.Checkpoint(tmp_path / "4x-UltraSharp.pth", allow_pickle=True))
    assert isinstance(upscaler, PixelNetworkUpscaler) and upscaler.scale == 4


def test_a_network_of_grey_pictures_enlarges_each_channel(tmp_path: Path) -> None:
    import_spandrel()
    from spandrel.architectures.Compact import Compact

    grey = Compact(num_in_ch=1, num_out_ch=1, num_feat=4, num_conv=1, upscale=2).eval()
    save_file(dict(grey.state_dict()), tmp_path / "grey.safetensors")
    x = torch.rand(1, 3, 6, 5) * 2 - 1
    with torch.inference_mode():
        expected = torch.cat([grey(x[:, i : i + 1] / 2 + 0.5).clamp(0, 1) * 2 - 1 for i in range(3)], 1)
    assert float((load(tmp_path / "grey.safetensors").enlarge(x) - expected).abs().max()) <= 1e-6


def test_networks_that_do_not_enlarge_are_refused(tmp_path: Path) -> None:
    import_spandrel()
    from spandrel.architectures.Compact import Compact

    save_file(dict(Compact(num_feat=4, num_conv=1, upscale=1).state_dict()), tmp_path / "clean.safetensors")
    with pytest.raises(Unsupported) as error:
        enlarger.load(tmp_path / "clean.safetensors")
    assert str(error.value) == (
        f"{tmp_path}/clean.safetensors: a RealESRGAN Compact network that keeps the size; expected one that enlarges 2 "
        "times or more"
    )


def test_without_spandrel_the_line_says_what_to_install(
    compact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(Unsupported) as error:
        enlarger.load(compact)
    assert str(error.value) == (
        f"{compact}: holds an upscaler of the ESRGAN kind; reading such networks needs spandrel and the torchvision of "
        "this torch: pip install 'enlarger[spandrel]'"
    )


def test_command_line_inspect_and_service_know_it(
    compact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (6, 5), "teal").save(tmp_path / "in.png")
    for words in (
        ["upscale", tmp_path / "in.png", "--model", compact, "-o", tmp_path / "out.png"],
        ["inspect", compact],
    ):
        monkeypatch.setattr(sys, "argv", ["enlarger", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            run()
        assert not ended.value.code
    with Image.open(tmp_path / "out.png") as made:
        assert made.size == (12, 10)
    assert "an upscaler network (RealESRGAN Compact)" in capsys.readouterr().out
    described = describe_model(ModelSettings(name="compact", path=str(compact)), torch.device("cpu"))
    assert (described.kind, list(described.verbs), described.error) == ("pixel", ["upscale"], None)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    weights = save(tmp_path / "x.safetensors", "Compact")
    weights["body.0.weight"] = weights["body.0.weight"][:, :, :1]
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, tmp_path / "bad.safetensors")
    with pytest.raises((CheckpointError, InputError)) as error:
        enlarger.load(tmp_path / "bad.safetensors")
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{tmp_path}/bad.safetensors: looks like ")
