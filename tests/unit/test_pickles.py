"""Pickled checkpoints: what torch.save writes is read, and a program that makes anything else is refused."""

import pickle
import random
import struct
import sys
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
from torch import nn

from enlarger.checkpoint.load_module import load_module
from enlarger.checkpoint.tensors import pickle_guard, pickle_opcodes
from enlarger.checkpoint.tensors.open import LazyTensors, open_checkpoint
from enlarger.checkpoint.tensors.pickle_globals import STORAGE_DTYPES
from enlarger.checkpoint.tensors.pickle_guard import open_pickle
from enlarger.checkpoint.tensors.pickle_opcodes import MAX_DIMS
from enlarger.checkpoint.tensors.pickle_protocol import as_protocol_2
from enlarger.checkpoint.tensors.pickle_zip import PickleRejected
from enlarger.errors import CheckpointError, Unsupported
from tests.support.hostile import apply, benign, call, name, programs, value, with_program, zipped

REBUILD = ("torch._utils", "_rebuild_tensor_v2")
STORED = {"data/0": bytes(16)}
MACHINE = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


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
        SimpleNamespace(lr=1), Decimal("1.5"), UUID(int=7), range(3), 1 + 2j,
        date(2023, 1, 2), datetime(2023, 1, 2, tzinfo=UTC),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_trainers_keep_beside_the_weights_has_no_effect(tmp_path: Path, beside: Any) -> None:
    file = saved(tmp_path / "a.ckpt", {"state_dict": {"a": torch.ones(2)}, "beside": beside, "inner": {"deep": beside}})
    weights = open_pickle(file)
    assert weights.keys() == ("a",) and weights.get_tensor("a").equal(torch.ones(2))
    assert weights.notes == ("left out 2 entries that are no named tensors: beside, inner.deep",)


def test_a_counter_is_a_dictionary_of_no_tensors(tmp_path: Path) -> None:
    weights = open_pickle(saved(tmp_path / "a.ckpt", {"state_dict": {"a": torch.ones(2)}, "beside": Counter("aab")}))
    assert weights.keys() == ("a",) and weights.notes == (
        "left out 2 entries that are no named tensors: beside.a, beside.b",
    )


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


FORMS: dict[str, dict[str, Any]] = {
    "protocol 3": {"pickle_protocol": 3},
    "protocol 4": {"pickle_protocol": 4},
    "protocol 5": {"pickle_protocol": 5},
    "torch before 1.6": {"_use_new_zipfile_serialization": False},
}


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_are_read_as_the_usual_one(tmp_path: Path, form: str) -> None:
    shared = torch.arange(24.0)
    beside = {"set": {1, 2}, "frozen": frozenset({3}), "array": np.ones((2, 2)), "raw": b"\xff\0", "big": 2**80}
    weights = {"turned": shared.reshape(4, 6).T, "part": shared[3:7], "parameter": nn.Parameter(torch.ones(2).half())}
    found: dict[str, Any] = {"state_dict": weights, "model_ema": {"a": torch.tensor(True)}, "beside": beside}
    torch.save(found, tmp_path / "new.ckpt")
    torch.save(found, tmp_path / "other.ckpt", **FORMS[form])
    usual, other = (open_pickle(tmp_path / name) for name in ("new.ckpt", "other.ckpt"))
    assert other.keys() == usual.keys() == ("turned", "part", "parameter", "model_ema.a") and other.notes == usual.notes
    assert all(other.get_tensor(name).equal(usual.get_tensor(name)) for name in usual.keys())


def test_a_long_program_ends_while_it_is_translated() -> None:
    with pytest.raises(PickleRejected, match=r"more than 500,000 steps"):
        as_protocol_2(b"\x80\x04" + b"N0" * 300_000 + b"}.", 8 << 20)
    assert as_protocol_2(b"\x80\x04\x95" + bytes(8) + b"}\x94.", 8 << 20) == b"\x80\x02}r" + bytes(4) + b"."


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("label", ["os.system", "a chain of calls", "STACK_GLOBAL", "INST"])
def test_no_program_runs_in_another_form(tmp_path: Path, form: str, label: str) -> None:
    steps = programs(str(tmp_path / "canary"))[label][2:]
    if "pickle_protocol" in FORMS[form]:
        data = with_program(b"\x80" + bytes([FORMS[form]["pickle_protocol"]]) + steps)
    else:
        data = legacy(b"\x80\x02" + steps, [])
    (tmp_path / "a.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.ckpt: refused, and nothing in it has run: its program"):
        open_checkpoint(tmp_path / "a.ckpt", allow_pickle=True)
    assert not (tmp_path / "canary").exists()


def legacy(
    weights: bytes, storages: list[tuple[str, list[float]]], machine: Any = MACHINE, version: int = 1001
) -> bytes:
    """A file as torch wrote it before 1.6, its storages of float32."""
    head = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, version, machine)]
    numbers = [struct.pack(f"<q{len(each)}f", len(each), *each) for _, each in storages]
    return b"".join([*head, weights, pickle.dumps([key for key, _ in storages], 2), *numbers])


def one_tensor(
    count: int = 4, function: tuple[str, str] = REBUILD, rest: tuple[Any, ...] = (False, ordered())
) -> bytes:
    numbers = b"(" + value("storage") + name("torch", "FloatStorage") + value("7") + value("cuda:0") + value(count)
    made = call(*function, numbers + b"NtQ", 0, (count,), (1,), *rest)
    return b"\x80\x02}" + value("x") + made + b"s."


def test_a_tensor_of_torch_before_0_4_is_read(tmp_path: Path) -> None:
    weights = one_tensor(4, ("torch._utils", "_rebuild_tensor"), ())
    (tmp_path / "a.pth").write_bytes(legacy(weights, [("7", [1.0, 2.0, 3.0, 4.0])]))
    assert open_pickle(tmp_path / "a.pth").get_tensor("x").tolist() == [1.0, 2.0, 3.0, 4.0]


NUMBERS = [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (legacy(one_tensor(), [("7", NUMBERS)])[:-1], "its numbers end at byte .*: cut short"),
        (legacy(one_tensor(), [("7", NUMBERS)]) + b"x", "its numbers end at byte .* something follows them"),
        (legacy(one_tensor(), [("7", NUMBERS[:3])]), "a storage has another count of numbers than its tensors"),
        (legacy(one_tensor(), []), "its list of stored numbers is not that of its tensors"),
        (legacy(one_tensor(), [("7", NUMBERS), ("8", NUMBERS)]), "its list of stored numbers is not"),
        (legacy(one_tensor(), [("7", NUMBERS), ("7", NUMBERS)]), "its numbers end at byte .* something follows them"),
        (legacy(one_tensor(), [("7", NUMBERS)], MACHINE | {"little_endian": False}), "its numbers are big-endian"),
        (legacy(one_tensor(), [("7", NUMBERS)], version=1002), "it is of another version"),
        (legacy(b"\x80\x02N.", []), "it holds something else than a dictionary"),
    ],
    ids=["cut", "longer", "count", "no storage", "one more", "twice", "big-endian", "version", "nothing"],
)
def test_a_file_of_torch_before_1_6_must_fit(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match=f"refused, and nothing in it has run: {message}"):
        open_pickle(tmp_path / "a.ckpt")


@pytest.mark.parametrize("form", [{}, FORMS["protocol 4"]], ids=["usual", "protocol 4"])
def test_a_parameter_dict_is_a_dictionary(tmp_path: Path, form: dict[str, Any]) -> None:
    table = nn.ParameterDict({"*": nn.Parameter(torch.arange(6.0).reshape(2, 3)), "word": nn.Parameter(torch.ones(1))})
    torch.save({"string_to_param": table}, tmp_path / "a.pt", **form)
    weights = open_pickle(tmp_path / "a.pt")
    assert weights.keys() == ("string_to_param.*", "string_to_param.word")
    assert weights.get_tensor("string_to_param.*").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


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
