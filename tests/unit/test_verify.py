"""Weights that are no numbers are found, block by block, and named."""

import tracemalloc
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from enlarger.checkpoint.tensors import safetensors_file
from enlarger.checkpoint.tensors.finite_check import check_finite, find_first_non_finite, find_non_finite
from enlarger.checkpoint.tensors.open import open_checkpoint
from enlarger.checkpoint.tensors.safetensors_file import DTYPES, SafetensorsCheckpoint
from enlarger.cli.convert import convert
from enlarger.cli.inspect import inspect
from enlarger.errors import CheckpointError, InputError

FLOATS = [dtype for dtype in DTYPES.values() if dtype.is_floating_point]
BAD = (float("nan"), float("inf"), -float("inf"))


def with_bad(bad: float, dtype: torch.dtype = torch.float32, size: int = 100, place: int = -1) -> Tensor:
    found = torch.linspace(-1, 1, size)
    found[place] = bad
    return found.to(dtype)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_the_weight_is_named(tmp_path: Path, bad: float, pickled: bool) -> None:
    tensors = {
        "a": torch.ones(3),
        "b.weight": with_bad(bad).reshape(4, 25),
        "c": torch.arange(3),
        "d": torch.zeros(0, 2),
    }
    path = tmp_path / "model"
    torch.save(tensors, path) if pickled else save_file(tensors, path)
    weights = open_checkpoint(path, allow_pickle=pickled)
    assert find_non_finite(weights) == ("b.weight",)
    with pytest.raises(CheckpointError, match=r"model: NaN or infinity in 1 weights: b.weight; expected numbers"):
        check_finite(weights)


def test_whole_weights_pass(tmp_path: Path) -> None:
    largest = {str(dtype): torch.full((9,), torch.finfo(dtype).max, dtype=dtype) for dtype in FLOATS}
    save_file(largest | {"ids": torch.arange(3), "empty": torch.zeros(0)}, tmp_path / "a.safetensors")
    weights = open_checkpoint(tmp_path / "a.safetensors")
    check_finite(weights)
    assert find_non_finite(weights) == ()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_is_found_in_every_type(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": with_bad(float("nan"), dtype), "b": torch.ones(2, dtype=dtype)}, tmp_path / "a.safetensors")
    assert find_non_finite(open_checkpoint(tmp_path / "a.safetensors")) == ("a",)


@pytest.mark.parametrize("place", [0, 3, 4, 15, 16, 98, 99])
def test_every_place_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    monkeypatch.setattr(safetensors_file, "BLOCK_BYTES", 16)
    save_file({"a": with_bad(float("inf"), place=place)}, tmp_path / "a.safetensors")
    assert find_non_finite(open_checkpoint(tmp_path / "a.safetensors")) == ("a",)


def test_many_weights_are_counted(tmp_path: Path) -> None:
    save_file({f"w{count:02}": torch.tensor([float("nan")]) for count in range(12)}, tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=r"NaN or infinity in 12 weights: w00, .*, w09 and 2 more; expected numbers"
    ):
        check_finite(open_checkpoint(tmp_path / "a.safetensors"))


def test_other_holders_of_tensors_are_read_whole(tmp_path: Path) -> None:
    save_file({"a": with_bad(float("nan"))}, tmp_path / "a.safetensors")

    class Renamed:
        def __init__(self, weights: SafetensorsCheckpoint) -> None:
            self.weights, self.path = weights, weights.path

        def keys(self) -> tuple[str, ...]:
            return ("ours",)

        def shape(self, name: str) -> tuple[int, ...]:
            return self.weights.shape("a")

        def dtype(self, name: str) -> torch.dtype:
            return self.weights.dtype("a")

        def get_tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
            return self.weights.get_tensor("a", dtype)

    assert find_non_finite(Renamed(open_checkpoint(tmp_path / "a.safetensors"))) == ("ours",)


def test_a_block_of_a_large_weight_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1 << 22)}, path)
    made: list[int] = []
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *size, **how: made.append(empty(*size, **how).nbytes) or empty(*size, **how)
    )
    tracemalloc.start()
    assert find_non_finite(open_checkpoint(path)) == ()
    assert tracemalloc.get_traced_memory()[1] < 1 << 20 and made == [safetensors_file.BLOCK_BYTES]
    tracemalloc.stop()


def test_the_first_bad_weight_of_a_network_is_named() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    assert find_first_non_finite(network) is None
    with torch.no_grad():
        network[2].weight[1, 1] = float("nan")
        network[1].running_mean[0] = float("inf")
    assert find_first_non_finite(network) == "2.weight"  # parameters before buffers
    with torch.no_grad():
        network[2].weight.zero_()
    assert find_first_non_finite(network.half()) == "1.running_mean"


def test_a_network_without_memory_has_no_bad_weights() -> None:
    with torch.device("meta"):
        assert find_first_non_finite(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif"])
def test_a_picture_is_no_checkpoint_and_is_inspected_whatever_its_name(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{suffix}")
    path = (tmp_path / f"a.{suffix}").rename(tmp_path / "picture")
    with pytest.raises(CheckpointError, match=r"picture: found a picture \(.*, expected safetensors"):
        open_checkpoint(path)
    inspect(str(path))
    assert "holds: a picture" in capsys.readouterr().out


def test_a_file_is_converted_to_what_its_name_says_with_options_that_count(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"out\.ckpt: files of \.ckpt are not written; end the name in \.safetensors"):
        convert(str(tmp_path / "a.safetensors"), tmp_path / "out.ckpt")
    with pytest.raises(InputError, match=r"is no whole model, and --variant, --vae are for those; leave them"):
        convert(str(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", variant="fp16", vae=tmp_path)
    convert(str(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
