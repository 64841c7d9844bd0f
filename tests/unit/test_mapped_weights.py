"""Weights that stay in their files: what may happen to such a file, and what happens then."""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from enlarger.checkpoint.folder.load import read_folder
from enlarger.checkpoint.load_module import load_module
from enlarger.checkpoint.single_file.load import read_single_file
from enlarger.checkpoint.single_file.save import save_single_file
from enlarger.checkpoint.tensors.open import open_checkpoint, open_weights
from enlarger.checkpoint.tensors.save_safetensors import save_safetensors
from enlarger.errors import CheckpointError
from enlarger.runtime import mapped_file
from enlarger.runtime.mapped_file import changed_files
from enlarger.runtime.runtime import Runtime
from tests.support.single import tiny_single
from tests.support.tiny_models import x2_folder

WRITTEN = (
    r"^\S+\.safetensors: was written to while its weights were in use, which are read from it; load the model again, "
    r"or copy the weights of a file that changes \(mmap=False, on the command line --no-mmap\)$"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"weight": torch.rand(3, 2), "bias": torch.rand(3)}, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def linear(file: Path, *, mmap: bool = True, dtype: torch.dtype | None = None) -> nn.Module:
    return load_module(lambda: nn.Linear(2, 3), open_checkpoint(file, mmap=mmap), dtype=dtype)


def copies(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(module: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(tensor.equal(before[name]) for name, tensor in module.state_dict().items())


def overwrite(file: Path, data: bytes) -> None:
    """Write into a file, and let its time show it whatever the clock's resolution."""
    written = file.stat().st_mtime_ns
    file.write_bytes(data)
    os.utime(file, ns=(written + 10**9, written + 10**9))


def is_mapped(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in mapped_file._mappings


def test_weights_lie_in_the_file(file: Path) -> None:
    module = linear(file)
    assert all(is_mapped(tensor) for tensor in module.state_dict().values())
    assert not any(is_mapped(tensor) for tensor in linear(file, mmap=False).state_dict().values())
    assert same(module, copies(linear(file, mmap=False)))


def test_a_file_may_be_replaced_and_deleted(file: Path) -> None:
    module = linear(file)
    before = copies(module)
    save_safetensors(file, {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)})
    with Runtime().hold(module):
        assert same(module, before)
    assert float(linear(file).get_parameter("bias").abs().sum()) == 0  # the new file is another one
    file.unlink()
    with Runtime().hold(module):
        assert same(module, before)


@pytest.mark.parametrize("change", ["overwritten", "cut", "emptied", "longer"])
def test_a_file_that_is_written_to_is_named(file: Path, change: str) -> None:
    module, data = linear(file), file.read_bytes()
    changed = {"overwritten": b"\1" * len(data), "cut": data[:-4], "emptied": b"", "longer": data + b"\0" * 8192}
    overwrite(file, changed[change])
    with pytest.raises(CheckpointError, match=WRITTEN), Runtime().hold(module):
        raise AssertionError("it is not handed out")
    shared = nn.Sequential(nn.Linear(2, 3))
    shared[0].weight = module.get_parameter("weight")  # as adapters share what they do not change
    with pytest.raises(CheckpointError, match=WRITTEN), Runtime().hold(shared):
        raise AssertionError("it is not handed out")


def test_copied_weights_outlive_what_is_done_to_their_file(file: Path) -> None:
    module = linear(file, mmap=False)
    before = copies(module)
    overwrite(file, b"")
    with Runtime().hold(module):
        assert same(module, before)


def test_converted_weights_are_copies(file: Path) -> None:
    module = linear(file, dtype=torch.float64)
    overwrite(file, b"")
    with Runtime().hold(module):
        assert not any(is_mapped(tensor) for tensor in module.state_dict().values())


def test_what_is_written_to_weights_stays_in_memory(file: Path) -> None:
    module, data = linear(file), file.read_bytes()
    with torch.no_grad():
        module.get_parameter("weight").add_(1)
    assert file.read_bytes() == data
    assert module.get_parameter("weight").equal(linear(file).get_parameter("weight") + 1)


def test_a_weight_at_an_odd_place_is_copied(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (1 - len(header) % 2)  # eight bytes of its length and this: an odd place
    data = torch.tensor([1.0, 2.0]).numpy().tobytes()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    found = open_checkpoint(tmp_path / "a.safetensors", mmap=True).get_tensor("a")
    assert found.tolist() == [1, 2] and not is_mapped(found)


def test_weights_of_every_shape_and_type(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "half": torch.rand(2, 3, 1, 1).half(),
        "byte": torch.arange(3, dtype=torch.uint8),
        "long": torch.arange(4),
    }
    save_safetensors(tmp_path / "a.safetensors", tensors)
    weights = open_checkpoint(tmp_path / "a.safetensors", mmap=True)
    for name, expected in tensors.items():
        assert weights.get_tensor(name).equal(expected)
        assert is_mapped(weights.get_tensor(name)) == (expected.numel() > 0)


def test_a_file_cut_after_opening_is_named(file: Path) -> None:
    weights = open_checkpoint(file, mmap=True)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"a.safetensors: \w+ cannot be read \(the file ends early\); fetch the"):
        [weights.get_tensor(name) for name in weights.keys()]
    file.unlink()
    with pytest.raises(CheckpointError, match=r"bias cannot be read .*No such file"):
        open_checkpoint_of(file)


def open_checkpoint_of(file: Path) -> None:
    save_file({"bias": torch.rand(3)}, file)
    weights = open_checkpoint(file, mmap=True)
    file.unlink()
    weights.get_tensor("bias")


def test_a_file_is_let_go_with_its_weights(file: Path) -> None:
    gc.collect()
    before = len(mapped_file._mappings)
    module = linear(file)
    assert len(mapped_file._mappings) == before + 1
    descriptor = next(each.descriptor for each in mapped_file._mappings.values() if each.path == file)
    del module
    gc.collect()
    assert len(mapped_file._mappings) == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_shards_are_mapped(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3, 2)}, tmp_path / "model-1.safetensors")
    save_file({"bias": torch.ones(3)}, tmp_path / "model-2.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"weight": "model-1.safetensors", "bias": "model-2.safetensors"}}'
    )
    module = load_module(lambda: nn.Linear(2, 3), open_weights(tmp_path, mmap=True))
    assert all(is_mapped(tensor) for tensor in module.state_dict().values())
    overwrite(tmp_path / "model-2.safetensors", b"")
    assert changed_files(module) == [tmp_path / "model-2.safetensors"]


def test_whole_models_are_mapped_unless_asked_otherwise(tmp_path: Path) -> None:
    folder = x2_folder(tmp_path)
    for mmap in (True, False):
        parts = read_folder(folder, mmap=mmap).components
        for name in ("unet", "vae", "text_encoder"):
            assert all(is_mapped(tensor) == mmap for tensor in parts[name].state_dict().values()), name
    single = tmp_path / "sdxl.safetensors"
    save_single_file(tiny_single("sdxl"), single)
    mapped, copied = (read_single_file(single, mmap=mmap).components for mmap in (True, False))
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        turned = sum(not is_mapped(tensor) for tensor in mapped[name].state_dict().values())
        assert turned <= 1  # the projection of the second text encoder lies the other way round in the file
        assert same(mapped[name], copies(copied[name]))


def test_writing_over_the_file_that_is_read_is_safe(tmp_path: Path) -> None:
    """As `convert` in place does: the new file takes the name, and the old one stays until it is let go."""
    folder = x2_folder(tmp_path)
    module = read_folder(folder).components["unet"]
    before, path = copies(module), folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_safetensors(path, module.state_dict(), torch.float16)
    with Runtime().hold(module):
        assert same(module, before)
    shutil.rmtree(folder)
    with Runtime().hold(module):
        assert same(module, before)


IMPORTS = """
import sys
from pathlib import Path
from enlarger.checkpoint.folder.load import read_folder
read_folder(Path(sys.argv[1]))
import enlarger, numpy
enlarger.load_upscaler()(numpy.random.default_rng(0).integers(0, 256, (16, 16, 3), numpy.uint8), by=2)
print(*sorted(name for name in sys.modules if name.split(".")[0] in ("sympy", "transformers", "diffusers")))
"""


def test_loading_and_enlarging_import_nothing_slow(tmp_path: Path) -> None:
    """torch draws values, and looks up shapes, without memory by way of sympy, which takes longer than loading does."""
    command = [sys.executable, "-c", IMPORTS, str(x2_folder(tmp_path))]
    root = Path(__file__).parents[2]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout == "\n"


def test_nothing_is_drawn_for_weights_that_a_file_has(file: Path) -> None:
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    module = linear(file)
    assert torch.get_rng_state().equal(expected) and module.get_parameter("weight").shape == (3, 2)
    assert not nn.Linear(2, 3).weight.is_meta and float(nn.Linear(2, 3).weight.detach().abs().sum()) > 0
