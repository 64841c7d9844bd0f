"""Pickled checkpoints: what torch.save writes is read, and a program that makes anything else is refused."""

import random
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from enlarger.checkpoint.load_module import load_module
from enlarger.checkpoint.tensors import pickle_guard, pickle_opcodes
from enlarger.checkpoint.tensors.open import LazyTensors, open_checkpoint
from enlarger.checkpoint.tensors.pickle_guard import open_pickle
from enlarger.checkpoint.tensors.pickle_opcodes import MAX_DIMS, STORAGE_DTYPES
from enlarger.errors import CheckpointError, Unsupported
from tests.support.hostile import apply, benign, call, name, value, zipped

REBUILD = ("torch._utils", "_rebuild_tensor_v2")
STORED = {"data/0": bytes(16)}


def saved(path: Path, found: Any) -> Path:
    torch.save(found, path)
    return path


def storage(kind: str = "FloatStorage", key: Any = "0", device: Any = "cpu", count: Any = 4) -> bytes:
    return b"(" + value("storage") + name("torch", kind) + value(key) + value(device) + value(count) + b"tQ"


def ordered() -> bytes:
    return call("collections", "OrderedDict")


def tensor(
    numbers: bytes | None = None, offset: Any = 0, shape: Any = (4,), stride: Any = (1,), grad: Any = False
) -> bytes:
    return call(*REBUILD, numbers or storage(), offset, shape, stride, grad, ordered())


def checkpoint(path: Path, **entries: bytes) -> Path:
    """A file whose program makes a dictionary of what the steps make."""
    steps = b"".join(value(key) + made + b"s" for key, made in entries.items())
    path.write_bytes(zipped(benign() | STORED | {"data.pkl": b"\x80\x02}" + steps + b"."}))
    return path


def test_reads_what_torch_saves(tmp_path: Path) -> None:
    tensors = {
        "half": torch.arange(7, dtype=torch.float16),
        "turned": torch.linspace(-1, 1, 24).reshape(2, 3, 4).transpose(0, 2),
        "part": torch.arange(10.0)[3:6],
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    weights: LazyTensors = open_pickle(saved(tmp_path / "a.ckpt", tensors))
    assert weights.keys() == tuple(tensors) and weights.path == tmp_path / "a.ckpt"
    for label, expected in tensors.items():
        found = weights.get_tensor(label)
        assert weights.shape(label) == tuple(expected.shape) and weights.dtype(label) == found.dtype == expected.dtype
        assert found.equal(expected.detach()) and found.is_contiguous() and not found.requires_grad
        whole = torch.cat([torch.zeros(0, dtype=found.dtype), *open_pickle(weights.path).iter_blocks(label)])
        assert whole.equal(found.reshape(-1))


@pytest.mark.parametrize("dtype", STORAGE_DTYPES.values(), ids=str)
def test_every_type_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    expected = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    found = open_pickle(saved(tmp_path / "a.pt", {"t": expected})).get_tensor("t")
    assert found.dtype == dtype and found.equal(expected)


def test_only_floating_weights_are_converted(tmp_path: Path) -> None:
    weights = open_pickle(saved(tmp_path / "a.pt", {"t": torch.ones(3), "ids": torch.arange(3)}))
    assert weights.get_tensor("t", torch.float16).dtype == torch.float16
    assert weights.get_tensor("ids", torch.float16).dtype == torch.int64


def test_dictionaries_are_opened_and_the_rest_is_counted(tmp_path: Path) -> None:
    found = {
        "state_dict": OrderedDict(a=torch.ones(1), inner={"state_dict": {"b": torch.ones(2)}}),
        "model_ema": {"a": torch.ones(3)},
        "module": {"state_dict": {"c": torch.ones(4)}},
        "loose": torch.ones(5),
        "epoch": 3,
        "optimizer_states": [{"state": {0: torch.ones(6)}}],
        "optimizer": {"state": {0: {"mean": torch.ones(6)}}},
        "lr": 1e-4,
    }
    weights = open_pickle(saved(tmp_path / "a.ckpt", found))
    assert {label: weights.shape(label)[0] for label in weights.keys()} == {
        "a": 1,
        "inner.state_dict.b": 2,
        "model_ema.a": 3,
        "module.state_dict.c": 4,
        "loose": 5,
    }
    assert weights.notes == (
        "left out 4 entries that are no named tensors: epoch, optimizer_states, optimizer.state.[int], lr",
    )


def test_what_lightning_writes_besides_has_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "pytorch_lightning.callbacks.model_checkpoint"
    for label in ("pytorch_lightning", "pytorch_lightning.callbacks", path):
        monkeypatch.setitem(sys.modules, label, ModuleType(label))
    kind = type("ModelCheckpoint", (), {"__module__": path})
    monkeypatch.setattr(sys.modules[path], "ModelCheckpoint", kind, raising=False)
    best = {"best_model_score": np.float64(3.0), "best_model_path": "x.ckpt"}
    file = saved(tmp_path / "a.ckpt", {"callbacks": {kind: best}, "state_dict": {"a": torch.ones(1)}, "raw": b"bytes"})
    for label in ("pytorch_lightning", "pytorch_lightning.callbacks", path):
        monkeypatch.delitem(sys.modules, label)
    before = set(torch.serialization.get_safe_globals())
    assert open_pickle(file).keys() == ("a",)
    assert set(torch.serialization.get_safe_globals()) == before and path not in sys.modules


@pytest.mark.parametrize(
    "beside",
    [
        {1, 2}, {"a", "b"}, np.array([1.0, 2.0]), np.zeros((2, 3), np.float16), torch.Size([1, 2]), torch.device("cpu"),
        torch.float16, Path("a/b.yaml"), Namespace(steps=3, name="x"), datetime(2023, 1, 2), [np.int64(3), {4}], set(),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_trainers_keep_beside_the_weights_has_no_effect(tmp_path: Path, beside: Any) -> None:
    file = saved(tmp_path / "a.ckpt", {"state_dict": {"a": torch.ones(2)}, "beside": beside, "inner": {"deep": beside}})
    weights = open_pickle(file)
    assert weights.keys() == ("a",) and weights.get_tensor("a").equal(torch.ones(2))
    assert weights.notes == ("left out 2 entries that are no named tensors: beside, inner.deep",)


@pytest.mark.parametrize(
    "steps",
    [
        call("__builtin__", "set", "abc"), call("torch", "Size", 3), call("torch", "device", 3),
        name("argparse", "Namespace") + value("x") + b"\x81", name("torch", "Size") + b")\x81",
        name("collections", "OrderedDict") + b")\x81", call("numpy", "load", "x"), call("pathlib", "Path", "x"),
    ],
)  # fmt: skip
def test_values_are_made_as_torch_saves_them_alone(tmp_path: Path, steps: bytes) -> None:
    with pytest.raises(CheckpointError, match="refused, and nothing in it has run: its program"):
        open_pickle(checkpoint(tmp_path / "a.ckpt", x=tensor(), y=steps))


def test_keys_with_one_hash_are_few(tmp_path: Path) -> None:
    keys = b"".join(value(count * (2**61 - 1)) + b"N" for count in range(1, 2000))
    with pytest.raises(CheckpointError, match="its program makes more of itself than weights need"):
        open_pickle(checkpoint(tmp_path / "a.ckpt", x=tensor(), y=b"}(" + keys + b"u"))


def test_a_network_is_built_from_a_pickle(tmp_path: Path) -> None:
    expected = nn.Linear(3, 2)
    path = saved(tmp_path / "a.pth", expected.state_dict())
    found = load_module(lambda: nn.Linear(3, 2), open_checkpoint(path, allow_pickle=True))
    path.unlink()
    assert all(a.equal(b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", {"a": torch.ones(1), "state_dict": {"a": torch.ones(1)}})
    with pytest.raises(CheckpointError, match=r"a\.ckpt: refused, .*the name 'a' is there twice"):
        open_pickle(path)


def test_a_file_that_changed_after_opening(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", {"a": torch.ones(10_000)})
    weights = open_pickle(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(
        CheckpointError, match=r"a\.ckpt: a cannot be read: found 5,000 bytes, expected .* open it again"
    ):
        weights.get_tensor("a")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"a cannot be read .No such file"):
        next(weights.iter_blocks("a"))
    with pytest.raises(CheckpointError, match=r"a\.ckpt: no such file"):
        open_pickle(path)


@pytest.mark.parametrize("version", ["2.9.1+cpu", "2.4.0", "1.13.1"])
def test_an_unsafe_torch_reads_no_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    path = saved(tmp_path / "a.ckpt", {"a": torch.ones(1)})
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(
        Unsupported, match=r"a\.ckpt: torch .*CVE-2026-24747.*; install torch 2.10 or newer, or convert"
    ):
        open_pickle(path)


def test_the_old_format_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"not as torch.save has written files since torch 1.6, .*; save it anew"):
        open_pickle(tmp_path / "a.ckpt")


def test_what_holds_no_tensors(tmp_path: Path) -> None:
    for label, found, message in (
        ("a", torch.ones(2), "it holds something else than a dictionary"),
        ("b", [torch.ones(2)], "it holds something else than a dictionary"),
        ("c", {"x": 1}, "it holds no tensors in dictionaries"),
        ("d", nn.Linear(1, 1), "its program names 'torch.nn.modules.linear.Linear', which no tensor needs"),
        ("e", {"x": torch.ones(2).to_sparse()}, "its program names 'torch._utils._rebuild_sparse_tensor'"),
        ("f", {"x": {(1, 2): torch.ones(2)}}, "a dictionary has a key that is no text"),
        ("g", {"x": torch.ones(2, dtype=torch.complex64)}, "its program names 'torch.ComplexFloatStorage'"),
        ("h", {"a\nb": torch.ones(2)}, "the name 'a.*nb' is there twice or is no plain text"),
    ):
        with pytest.raises(CheckpointError, match=f"{label}: refused, and nothing in it has run: {message}"):
            open_pickle(saved(tmp_path / label, found))


def test_the_hand_made_checkpoint_is_read(tmp_path: Path) -> None:
    """So that what is wrong in the tests below is the one thing that differs."""
    assert open_pickle(checkpoint(tmp_path / "a", x=tensor(), y=b"}" + b"q\x01", z=ordered() + b"}b")).keys() == ("x",)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (tensor(shape=(5,)), "calls torch._utils._rebuild_tensor_v2 in a way"),
        (tensor(offset=1), "calls torch._utils._rebuild_tensor_v2 in a way"),
        (tensor(offset=-1), "calls torch._utils._rebuild_tensor_v2 in a way"),
        (tensor(shape=(2**40,), stride=(0,)), "calls torch._utils._rebuild_tensor_v2 in a way"),  # one number, a bomb
        (tensor(shape=(2,), stride=(2**62,)), "calls torch._utils._rebuild_tensor_v2 in a way"),
        (tensor(shape=(0, 2**61, 2**61), stride=(2**61, 2**61, 1)), "calls torch._utils._rebuild_tensor_v2 in a way"),
        (tensor(shape=(2**30, 0, 2**30), stride=(1, 1, 1)), "calls torch._utils._rebuild_tensor_v2 in a way"),
        (tensor(shape=(0,), stride=(2**61,)), "calls torch._utils._rebuild_tensor_v2 in a way"),
        (tensor(offset=2**61, shape=(0,)), "calls torch._utils._rebuild_tensor_v2 in a way"),
        (tensor(shape=(1,) * (MAX_DIMS + 1), stride=(1,) * (MAX_DIMS + 1)), "in a way that no tensor needs"),
        (tensor(shape=(True,)), "in a way that no tensor needs"),
        (tensor(shape=(2, 2)), "in a way that no tensor needs"),
        (tensor(grad=None), "in a way that no tensor needs"),
        (call(*REBUILD, storage(), 0, (4,), (1,), False, ordered(), {}), "in a way that no tensor needs"),
        (call(*REBUILD, value("0"), 0, (4,), (1,), False, ordered()), "in a way that no tensor needs"),
        (call("torch._utils", "_rebuild_parameter", 1, True, ordered()), "in a way that no tensor needs"),
        (name(*REBUILD) + b"NR", "calls torch._utils._rebuild_tensor_v2 without arguments"),
        (apply(tensor()), "calls a value in a way"),
        (call("collections", "OrderedDict", [("a", 1)]), "calls collections.OrderedDict in a way"),
        (call("_codecs", "encode", "x", "zlib"), "calls _codecs.encode in a way"),
        (call("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"), "in a way that no tensor needs"),
        (name("collections", "OrderedDict x"), "names 'collections.OrderedDict.x'"),
        (name("", "torch FloatStorage"), "its program names"),
        (name("collections", "Ordered\\x44ict"), r"names 'collections.Ordered\\\\x44ict'"),
        (name("os", "x" * 5000), "refused, and nothing in it has run"),
        (name("builtins", "bytearray"), "names 'builtins.bytearray'"),
        (storage(count=5), "storage '0' does not hold 5 numbers of type torch.float32"),
        (storage(key="1"), "storage '1' does not hold"),
        (storage(key="version"), "storage 'version' does not hold"),
        (storage(key=0), "describes stored numbers wrongly"),
        (storage(count=-1), "describes stored numbers wrongly"),
        (storage(device=None), "describes stored numbers wrongly"),
        (b"(" + storage() + storage("HalfStorage", count=8) + b"t", "storage '0' does not hold 8 numbers"),
        (b"(" + value("module") + b"tQ", "asks for something else than stored numbers"),
        (value("storage") + b"Q", "asks for something else than stored numbers"),
        (tensor() + b"(" + storage() + b"K\0)tb", "changes something that is no dictionary"),
        (value(1) + b"}b", "changes something that is no dictionary"),
        (ordered() + b"Nb", "changes something that is no dictionary"),
        (tensor() + value("x") + b"Ns", "sets an entry of something that is no dictionary"),
        (b"}(" + value("x") + b"u", "sets an entry of something that is no dictionary"),
        (b"}" + value("x") + b"Ns" + value("x") + b"Ns", "a dictionary has 'x' twice"),
        (b"})Ns", "a dictionary has a key that is no text"),
        (b")Na", "appends to something that is no list"),
        (b"h\x63", "recalls what it has not stored"),
        (b"(Nb", "takes more than it has made"),
        (b"t", "takes more than it has made"),
        (b"(N", "sets an entry|takes more than it has made|something else"),
        (b"\x82\x01", "has the step EXT1"),
        (b"N)\x81", "makes an object that no tensor needs"),
        (b"\x8f", "has the step EMPTY_SET"),
        (b"\x80\x02N", "has the step PROTO"),
        (b".N", "something follows its program"),
        (b"\xff", "refused, and nothing in it has run"),
        (b"X\x03\0\0\0", "cut short|no end|follows"),
        (b"X\xff\xff\xff\x7fx", "refused, and nothing in it has run"),
        (b"I99999999999999999999\n", "has the step INT"),
    ],
)
def test_a_program_that_makes_more_than_tensors(tmp_path: Path, steps: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        open_pickle(checkpoint(tmp_path / "a.ckpt", x=steps))
    assert str(tmp_path / "a.ckpt") in str(error.value) and str(error.value).isprintable()


def test_dictionaries_in_dictionaries_end(tmp_path: Path) -> None:
    itself = b"}q\x01" + value("self") + b"h\x01s" + value("t") + tensor() + b"s"
    weights = open_pickle(checkpoint(tmp_path / "a", x=itself))
    assert weights.keys() == ("x.t",) and weights.notes == ("left out 1 entries that are no named tensors: x.self",)
    deep = b"}" + (value("a") + b"}") * 50_000 + value("t") + tensor() + b"s" * 50_001
    with pytest.raises(CheckpointError, match="it holds no tensors in dictionaries"):
        open_pickle(checkpoint(tmp_path / "b", x=deep))
    branches = b"}" + value("t") + tensor() + b"sq\x01"
    for _ in range(60):  # two to the power of 60 paths
        branches = b"}(" + value("l") + branches + value("r") + b"h\x01uq\x01"
    with pytest.raises(CheckpointError, match="it holds no tensors in dictionaries"):
        open_pickle(checkpoint(tmp_path / "c", x=branches))


def test_attributes_of_a_dictionary_do_not_hide_it(tmp_path: Path) -> None:
    shadow = ordered() + b"}" + value("items") + b"Nsb" + value("t") + tensor() + b"s"
    assert open_pickle(checkpoint(tmp_path / "a", x=shadow)).keys() == ("x.t",)


def altered(rng: random.Random, whole: bytes) -> bytes:
    made = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(made))
        made[at : at + rng.choice([1, 1, 1, 0, 2, 9])] = rng.randbytes(rng.choice([1, 1, 1, 0, 2]))
    return bytes(made)


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: zipped(benign() | {"data.pkl": altered(rng, benign()["data.pkl"])}),  # with a right checksum
        lambda rng: altered(rng, zipped(benign())),
    ],
    ids=["program", "zip"],
)
def test_no_mutation_escapes_as_another_error(tmp_path: Path, make: Callable[[random.Random], bytes]) -> None:
    path, read = tmp_path / "mutated.ckpt", 0
    for seed in range(200):
        path.write_bytes(make(random.Random(seed)))
        try:
            weights = open_checkpoint(path, allow_pickle=True)
            read += len([weights.get_tensor(label) for label in weights.keys()])
        except CheckpointError as error:
            assert "mutated.ckpt: " in str(error) and str(error).isprintable(), seed
    assert read > 0


def test_the_limits_leave_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A checkpoint as large as the full training checkpoints of SDXL, in tensors."""
    numbers = torch.zeros(1)
    names = [f"model.diffusion_model.input_blocks.{count}.1.transformer_blocks.0.attn1.weight" for count in range(8000)]
    path = saved(tmp_path / "a.ckpt", {"state_dict": {label: numbers.clone() for label in names}})
    assert open_pickle(path).keys() == tuple(names)
    monkeypatch.setattr(pickle_opcodes, "MAX_OPCODES", 1000)
    with pytest.raises(CheckpointError, match="its program has more than 1,000 steps"):
        open_pickle(path)
    monkeypatch.setattr(pickle_guard, "MAX_PROGRAM_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"data\.pkl has [\d,]+ bytes, at most 1,000"):
        open_pickle(path)
